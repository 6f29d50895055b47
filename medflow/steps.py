"""The path of the data, in one place.

    records --> store --> select --> inputs --> prepare --> predict --> store --> FHIR resources --> delivery
    [ ingest           ][ score                                                ][ deliver                     ]

Plain functions without Prefect: the command line calls them directly, the flows call them from tasks. Each one
records a run in the store: who, when, which versions, which counts.
"""

from __future__ import annotations

import getpass
import logging
import platform
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medflow import promotion, sample_selection, scoring, selection, trained
from medflow.config import LabelTable, Settings
from medflow.connections.endpoints import AnySource, AnyTarget, Files
from medflow.delivery import DeliveryTally
from medflow.delivery import deliver as deliver_pending
from medflow.dispatch import Dispatch, Wake
from medflow.errors import ConfigurationError, MedflowError, PluginBroken, TransientError, unforeseen
from medflow.evaluation.result import Evaluation, InputDrift
from medflow.explanation import explain_done, explainable
from medflow.genomics.site import GenomeSite
from medflow.ingest.fetch import fetch
from medflow.ingest.fhir import ingest_fhir
from medflow.ingest.genomics import ingest_fasta, ingest_vcf
from medflow.ingest.received import remove_received
from medflow.ingest.tally import Tally
from medflow.ingest.withdrawing import named_file
from medflow.overlap import select_and_score
from medflow.promotion import Promotion
from medflow.records import Instant
from medflow.registry import RegisteredModel, Registry, elsewhere, installed, with_announced
from medflow.sample_selection import SampleList
from medflow.scoring import LoadedModels, ScoreTally
from medflow.selection import Explanation
from medflow.store import Store, chunks, jobs, ledger, watermarks, workers
from medflow.store import trained as trained_versions
from medflow.store.ledger import begin_run, finish_run, now_us
from medflow.training.asked import Asked
from medflow.training.result import Trained
from medflow.variant_rule import assemblies_of, variants_of

log = logging.getLogger(__name__)
Progress = Callable[[int], None]
ScoreProgress = Callable[[str, int, int], None]
TrainProgress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """One installation: its settings, its store, and the models that answer here.

    Those are what the plugins bring, or versions trained here that were promoted in their place.
    """

    settings: Settings
    store: Store
    registry: Registry


def open_site(settings: Settings, *, ahead: bool = False) -> Site:
    """Open the store (the embedded one is migrated by itself) and read the installed models.

    With ``ahead`` the processes that read many records begin now, before there are any: see `Beside.begin`.

    Raises
    ------
    StoreNotReady, StoreUnavailable
        The message says what to do.
    """
    store = Store(settings)
    if ahead:
        store.beside.begin()
    store.open()
    return Site(settings=settings, store=store, registry=trained.served(store, settings, installed()))


def refreshed(site: Site) -> Site:
    """The site with what was promoted since it was opened, for processes that stay: one small query."""
    return replace(site, registry=trained.served(site.store, site.settings, installed()))


def promote(site: Site, model: str, version: str, *, worse: bool = False) -> Promotion:
    """Have a version of a model answer from now on; "installed" is what its plugin brings."""
    with recorded(site, trained_versions.DECIDING) as run:
        chosen = promotion.asked_for(version)
        made = promotion.promote(site.store, site.settings, installed(), model, chosen, worse=worse, run_id=run.id)
        run.counts = {"let_go": made.let_go}
    return made


def remove_version(site: Site, model: str, version: str) -> int:
    """Let go of a candidate; returns how many files of it went from the object store."""
    with recorded(site, trained_versions.DECIDING) as run:
        removed = promotion.remove(site.store, model, version, run_id=run.id)
        run.counts = {"files": removed}
    return removed


def ingest(site: Site, source: AnySource, *, name: str | None = None, progress: Progress | None = None) -> Tally:
    """Take one source's inputs into the store; every one of them ends stored, unchanged or rejected.

    ``name`` is what the source is called in the configuration, for the record; None where it is not from there.
    """
    with recorded(site, f"ingest {source.kind}", source=name) as run:
        if isinstance(source, Files):
            tally = take(site, source, run.id, progress)
        else:
            tally = fetch(site.store, site.settings, source, name or source.public, run_id=run.id, progress=progress)
        tally.check()
        run.counts = tally.as_json()
    return tally


def read_again(site: Site, name: str, since: datetime, types: Collection[str] = ()) -> int:
    """Have the next `ingest` from a server begin no later than then, of these resource types or of all.

    Returns how many of its watermarks moved back.
    """
    with site.store.writing() as connection:
        return watermarks.lower_marks(connection, name, Instant.of(since).utc_us, types)


def take(
    site: Site, source: Files, run_id: int, progress: Progress | None, *, record_source: str | None = None
) -> Tally:
    """Take in files within a run that was begun; ``record_source`` is the system that records are of, where another."""
    store, settings, paths = site.store, site.settings, source.paths
    if source.kind == "dicom":
        from medflow.ingest.dicom import ingest_dicom  # with pydicom, for which no other step should wait

        tally = ingest_dicom(store, settings, paths, run_id=run_id, in_place=source.in_place, progress=progress)
        if source.remove_received:
            tally.notes["removed"] = remove_received(store, paths)
    elif source.kind == "fhir":
        tally = ingest_fhir(store, settings, paths, source=record_source, run_id=run_id, progress=progress)
    elif source.kind == "vcf":
        tally = ingest_vcf(
            store,
            settings,
            paths,
            reference=source.reference,
            samples=source.samples,
            run_id=run_id,
            progress=progress,
        )
    else:
        tally = ingest_fasta(store, settings, paths, run_id=run_id, progress=progress)
    return tally


def select(
    site: Site,
    model: RegisteredModel,
    *,
    as_of: Instant | None = None,
    run_id: int | None = None,
    expect: Callable[[int], None] = lambda _count: None,
    on_selected: Callable[[int], None] = lambda _count: None,
) -> ScoreTally:
    """Make jobs of what is new to a model; ``as_of`` stands for the present where it is given."""
    moment = as_of or Instant(utc_us=now_us())
    with _sealed():
        return scoring.select(
            site.store,
            site.settings,
            model,
            as_of=moment,
            run_id=run_id,
            assemblies=assemblies_of(one.spec for one in site.registry.models.values()),
            expect=expect,
            on_selected=on_selected,
        )


def explain_selection(
    site: Site, model: RegisteredModel, *, as_of: Instant | None = None, limit: int, series: int | None = None
) -> Explanation:
    """Why a model is given each series, study or sample, or is not; ``limit`` of them get a line. Changes nothing."""
    with _sealed():
        moment = as_of or Instant(utc_us=now_us())
        if variants_of(model.spec) is not None:
            if series is not None:
                raise ConfigurationError(f"--series is of images: {model.name} reads variants of samples")
            genomes = GenomeSite.of(site.settings)
            return sample_selection.explain_samples(site.store, model, genomes, as_of=moment, limit=limit)
        return selection.explain_selection(site.store, model, as_of=moment, limit=limit, series=series)


def list_samples(site: Site, *, limit: int, file: str | None = None) -> SampleList:
    """The samples of variant files, or of one named as for `withdraw_vcf`, and how models of variants stand to them."""
    with _sealed():
        file_id = named_file(site.store, file).id if file is not None else None
        models, genomes = site.registry.choose(), GenomeSite.of(site.settings)
        moment = Instant(utc_us=now_us())
        return sample_selection.list_samples(site.store, models, genomes, as_of=moment, limit=limit, file_id=file_id)


def score(
    site: Site,
    models: Sequence[str] = (),
    *,
    as_of: Instant | None = None,
    explain: bool = False,
    loaded: LoadedModels | None = None,
    progress: ScoreProgress | None = None,
) -> ScoreTally:
    """Score what is new to the named models (default: all), chunk by chunk, until nothing is left.

    With ``explain`` models that can also show what led to their answers. ``progress`` is called with the model's name,
    how many cases just ended, and how many there were at its start.
    """
    total = ScoreTally()
    own = loaded or LoadedModels(site.settings)
    with recorded(site, "score") as run:
        for model in site.registry.choose(models):
            try:
                tick = progress or (lambda _name, _count, _cases: None)
                total.add(_score_model(site, model, own, as_of, run.id, tick, explain=explain))
            except PluginBroken as error:
                total.broken[model.name] = error.message
        if not models:
            total.broken.update({plugin.entry_point: plugin.error for plugin in site.registry.broken})
        run.counts = total.as_json()
    if loaded is None:
        own.close()
    return total


def _score_model(
    site: Site,
    model: RegisteredModel,
    loaded: LoadedModels,
    as_of: Instant | None,
    run_id: int,
    progress: ScoreProgress,
    *,
    explain: bool,
) -> ScoreTally:
    cases, _ = scoring.waiting(site.store, model)
    if cases:
        loaded.look()

    def advance(count: int, more: int = 0) -> None:
        nonlocal cases
        cases += more
        progress(model.name, count, cases)

    def choose(on_selected: Callable[[int], None]) -> ScoreTally:
        def expect(count: int) -> None:
            if site.store.beside.start(count):  # so many that some are new
                loaded.look()

        def selected(count: int) -> None:
            loaded.look()
            advance(0, count)
            on_selected(count)

        return select(site, model, as_of=as_of, run_id=run_id, expect=expect, on_selected=selected)

    total = ScoreTally()
    one = partial(score_chunk, site, model, loaded, run_id=run_id, explain=explain, progress=advance)
    for part in select_and_score(choose, one):
        total.add(part)
    note_held(site, model, total)
    return total


def explain(site: Site, job_id: int, *, loaded: LoadedModels | None = None) -> list[str]:
    """Explain the answer of a done job; returns the outputs that heat maps are kept of."""
    view, model = explainable(site.store, site.registry, job_id)
    with recorded(site, "explain") as run:
        own = loaded or LoadedModels(site.settings)
        try:
            outputs = explain_done(site.store, site.settings, view, model, own)
        finally:
            if loaded is None:
                own.close()
        run.counts = {"explained": len(outputs)}
        with site.store.writing() as connection:
            ledger.record_audit(connection, run.id, "explain", f"job {job_id}", outputs=outputs)
    return outputs


def with_workers(site: Site) -> Site:
    """The site with the models that living workers announce: what can be scored when they do it.

    Selecting and delivering need a model's stored spec only, so it need not be installed in this process. What a worker
    announces that has not yet heard of a promotion is passed over.
    """
    with site.store.reading() as connection:
        digests = {digest for found in workers.served(connection).values() for digest in found}
        stored = [
            model
            for model in workers.models_of(connection, sorted(digests))
            if trained_versions.is_served(connection, model.name, model.version)
        ]
    here = {model.digest for model in site.registry.models.values()}
    announced = {
        model.name: elsewhere(spec=model.spec, distribution=model.distribution, digest=model.digest)
        for model in reversed(stored)  # the one registered last wins
    }
    served_here = {model.name for model in stored if model.digest in here}
    others = [model for model in announced.values() if model.name not in served_here]
    return replace(site, registry=with_announced(site.registry, others))


def note_held(site: Site, model: RegisteredModel, tally: ScoreTally) -> None:
    """Say how many of a model's cases were left to other processes, which hold them now."""
    _, held = scoring.waiting(site.store, model)
    if held:
        tally.notes["held-by-others"] += held


def score_chunk(
    site: Site,
    model: RegisteredModel,
    loaded: LoadedModels,
    *,
    run_id: int | None = None,
    explain: bool = False,
    progress: Progress = lambda _: None,
    on_read: Callable[[], None] = lambda: None,
    stopping: Callable[[], bool] = lambda: False,
) -> ScoreTally:
    """Lease and score one chunk of a model's jobs; ``leased`` is 0 when there was nothing to do."""
    terms = scoring.Terms(run_id=run_id, explain=explain, progress=progress, on_read=on_read, stopping=stopping)
    with _sealed():
        return scoring.score_chunk(site.store, site.settings, model, loaded, terms)


def score_asked(
    site: Site,
    model: RegisteredModel,
    loaded: LoadedModels,
    *,
    worker: str,
    owner: str | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> ScoreTally:
    """Score the chunk of a model that some run asked for first; ``leased`` is 0 when none is asked for.

    Raises
    ------
    PluginBroken, TransientError
        The run that asked is told as well.
    """
    with _sealed():
        return scoring.score_asked(
            site.store, site.settings, model, loaded, worker=worker, owner=owner, stopping=stopping
        )


def dispatch(
    site: Site,
    run: Run,
    models: Sequence[RegisteredModel],
    wake: Wake,
    *,
    announced: bool = True,
    explain: bool = False,
) -> dict[str, MedflowError]:
    """Have others score what is waiting for these models; returns, by name, why a model was given up."""
    with _sealed():
        asking = Dispatch(site.store, site.settings, run.id, wake, announced=announced, explain=explain)
        return asking.run(models)


def scored(site: Site, run: Run) -> dict[str, ScoreTally]:
    """What a run's chunks came to, by model name, whoever scored them."""
    with site.store.reading() as connection:
        found = chunks.of_run(connection, run.id)
    tallies: dict[str, ScoreTally] = {}
    for chunk in found:
        tallies.setdefault(chunk.model, ScoreTally()).add_chunk(chunk)
    return tallies


def deliver(
    site: Site, targets: Sequence[str] | str | None = None, *, progress: Progress | None = None
) -> DeliveryTally:
    """Send what the targets (a name, a folder, or a FHIR base URL each) have not been sent yet; archives come first.

    Of several, one that fails keeps no other waiting: it is counted, and raised if all of them fail.
    """
    chosen = site.settings.chosen_targets(targets)
    if len(chosen) == 1:
        return _deliver_to(site, next(iter(chosen.values())), progress)
    total = DeliveryTally()
    failures: list[MedflowError] = []
    for name, target in chosen.items():
        try:
            total.add(name, _deliver_to(site, target, progress))
        except (TransientError, ConfigurationError) as error:
            failures.append(error)
            total.add(name, DeliveryTally(failed=1, errors=Counter({error.message: 1})))
    if len(failures) == len(chosen):
        raise failures[0]
    return total


def _deliver_to(site: Site, target: AnyTarget, progress: Progress | None) -> DeliveryTally:
    with recorded(site, "deliver") as run:
        tally = deliver_pending(site.store, site.settings, target, run_id=run.id, progress=progress)
        run.counts = tally.as_json()
    return tally


def evaluate(site: Site, model: str, *, output: str | None = None, labels: LabelTable | None = None) -> Evaluation:
    """Hold a model's live predictions against a table of outcomes, or else against the records that came later."""
    from medflow.evaluation.run import evaluate as hold  # with scikit-learn, which no other step should wait for

    registered = site.registry.get(model)
    with recorded(site, "evaluate") as run:
        found = hold(site.store, site.settings, registered, output=output, labels=labels)
        run.counts = found.counts()
        detail = {"version": found.version, "output": found.output, "cases": found.cases}
        with site.store.writing() as connection:
            ledger.record_audit(
                connection, run.id, "evaluate", found.model, **detail, labels_sha256=found.labels_sha256
            )
    return found


def input_drift(site: Site, model: str, *, since_us: int, most: int | None = None) -> InputDrift:
    """The inputs of what a model answered since then, beside its training cohort: no outcome is needed.

    Of many patients ``most`` are drawn.
    """
    from medflow.evaluation.inputs import MOST, drift_since  # with scikit-learn, as above

    registered = site.registry.get(model)
    with _sealed(), site.store.reading() as connection:
        return drift_since(connection, registered, since_us, most=most or MOST)


def train(site: Site, model: str, asked: Asked, *, progress: TrainProgress | None = None) -> Trained:
    """Fit a model to a cohort of the store; what comes of it is a candidate, which nothing serves until promoted."""
    from medflow.training.run import train as fit  # with scikit-learn and Optuna, which no other step should wait for

    with recorded(site, "train") as run:
        found = fit(
            site.store,
            site.settings,
            installed(),
            model,
            asked,
            served=site.registry.models.get(model),
            run_id=run.id,
            progress=progress or (lambda _said, _count, _total: None),
        )
        run.counts = found.counts()
    return found


def source_of(
    kind: str,
    paths: Sequence[Path],
    *,
    reference: Path | None = None,
    samples: Path | None = None,
    in_place: bool = False,
    remove_received: bool = False,
) -> Files:
    """A source given directly, as on the command line.

    Raises
    ------
    ConfigurationError
        No path is given.
    """
    if not paths:
        raise ConfigurationError(f"nothing to ingest: name a file or a folder of {kind} data")
    options = {"reference": reference, "samples": samples, "in_place": in_place, "remove_received": remove_received}
    return Files.model_validate({"kind": kind, "paths": paths, **options})


@contextmanager
def _sealed() -> Iterator[None]:
    """Let no foreign error out with its text, which may quote what it was given: Prefect and terminals keep it."""
    try:
        yield
    except MedflowError:
        raise
    except Exception as error:  # noqa: BLE001 - a defect, wherever it is
        log.error("unforeseen %s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
        raise unforeseen(error) from None


@dataclass(kw_only=True, slots=True)
class Run:
    """A run on record: what it counted is written when it ends."""

    id: int
    counts: dict[str, Any]


@contextmanager
def recorded(site: Site, command: str, *, source: str | None = None) -> Iterator[Run]:
    """Put a run on record: who, when, which versions; at the end of the block, how it went and its counts."""
    versions = {"medflow": version("medflow"), "python": platform.python_version()}
    with site.store.writing() as connection:  # a transaction of its own: the run is on record whatever happens next
        who = {"actor": _actor(), "owner": jobs.process_owner(), "source": source}
        run = Run(id=begin_run(connection, command=command, versions=versions, **who), counts={})
    log.info("%s began", command, extra={"run": run.id, "source": source})
    status = "failed"
    try:
        with _sealed():
            yield run
        status = "completed"
    finally:
        with site.store.writing() as connection:
            finish_run(connection, run.id, status=status, counts=run.counts)
        log.info("%s %s", command, status, extra={"run": run.id, "source": source})


def _actor() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a passwd entry
        return "unknown"
