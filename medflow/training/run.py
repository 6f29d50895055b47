"""One training, end to end: from a cohort's name to a candidate in the store, which nothing serves yet."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from medflow.config import Settings
from medflow.errors import ConfigurationError, MedflowError, PluginBroken
from medflow.evaluation.bootstrap import gain
from medflow.evaluation.input_drift import reference_of
from medflow.inference.devices import resolve_device
from medflow.plugin import ModelSpec, Risk, TimeSeriesInput, Trainable, Weights
from medflow.records import Instant, digest_of
from medflow.registry import RegisteredModel, Registry, dump_spec
from medflow.store import Store, ledger, trained
from medflow.store.ledger import now_us
from medflow.training import study
from medflow.training.asked import Asked, Plan, check_asked, trainable
from medflow.training.card import card_of, markdown
from medflow.training.cohort import Members, find
from medflow.training.dataset import Dataset, digest_of_members, read_dataset, remove_dataset
from medflow.training.measure import Answers, answers, candidate, evaluation_of, fitted_spec, loss_of, write_files
from medflow.training.plots import plots
from medflow.training.result import CohortTold, Part, Served, Trained
from medflow.training.search import Search, quiet
from medflow.training.splits import Parts, check, split
from medflow.training.study import Found

REFERENCE = "reference.json"
LIBRARIES = ("medflow", "torch", "numpy", "optuna", "scikit-learn")
Progress = Callable[[str, int, int | None], None]
"""Called with what is going on, how much of it just ended, and, where something new begins, of how many."""


@dataclass(kw_only=True)
class _Training:
    """One training: what it works with, and what it has spent."""

    store: Store
    settings: Settings
    base: RegisteredModel
    model: type[Trainable[Any]]
    series: TimeSeriesInput
    output: Risk
    asked: Asked
    plan: Plan
    progress: Progress
    seconds: dict[str, float]

    @contextmanager
    def stage(self, said: str, total: int | None = None):
        """Say what begins, and keep how long it took."""
        self.progress(said, 0, total or 1)
        started = time.perf_counter()
        yield
        self.seconds[said] = self.seconds.get(said, 0.0) + time.perf_counter() - started


def train(
    store: Store,
    settings: Settings,
    installed: Registry,
    name: str,
    asked: Asked,
    *,
    served: RegisteredModel | None = None,
    run_id: int | None = None,
    progress: Progress = lambda _said, _count, _total: None,
) -> Trained:
    """Fit a model to a cohort of the store, measure it, and keep it as a candidate.

    Parameters
    ----------
    store, settings, installed
        The installation, and the models as their plugins bring them.
    name
        Which of them.
    asked
        On what, and how.
    served
        The version that answers now, to be measured on the same patients; None where none can.
    run_id
        The run on record.
    progress
        See `Progress`.

    Raises
    ------
    ConfigurationError
        The model cannot be trained, the cohort has too few outcomes, or a name is not configured.
    PluginBroken
        The model could not be fitted, or not be served from what it was fitted to.
    """
    training = _prepared(store, settings, installed, name, asked, progress)
    with quiet():
        return _train(training, served, run_id)


def _prepared(
    store: Store, settings: Settings, installed: Registry, name: str, asked: Asked, progress: Progress
) -> _Training:
    check_asked(asked)
    model, base = trainable(installed, name), installed.get(name)
    inputs = [item for item in base.spec.accepts if isinstance(item, TimeSeriesInput)]
    if len(inputs) != 1 or len(base.spec.accepts) != 1:
        raise ConfigurationError(f"{name} cannot be trained: its one input must be a time series")
    device = resolve_device(asked.device or settings.device)
    return _Training(
        store=store,
        settings=settings.model_copy(update={"device": device}),
        base=base,
        model=model,
        series=inputs[0],
        output=_risk(base.spec, asked.output),
        asked=asked,
        plan=Plan(trials=max(1, asked.trials), sampler=asked.sampler, seed=asked.seed, device=device),
        progress=progress,
        seconds={},
    )


def _risk(spec: ModelSpec, name: str | None) -> Risk:
    known = [item for item in spec.outputs if isinstance(item, Risk)]
    chosen = [item for item in known if name is None or item.name == name]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(item.name for item in known) or "none"
    if name is None and known:
        raise ConfigurationError(f"{spec.name} has several risks; name one (--output): {names}")
    raise ConfigurationError(f"{spec.name} has no risk{f' called {name!r}' if name else ''}; it has: {names}")


def _train(training: _Training, served: RegisteredModel | None, run_id: int | None) -> Trained:
    members = _members(training)
    digest = digest_of_members(members, training.base.spec)
    plan = training.plan
    key = digest_of(training.base.digest, training.output.name, digest, plan.seed, plan.sampler)[:16]
    with study.opened(training.settings.home, key) as folder:
        try:
            data = _dataset(training, members, folder)
            parts = split(data.members.outcome, data.members.patients, seed=plan.seed)
            told = _told(training.asked, training.settings, data.members, parts, digest)
            found = _search(training, data, parts, folder)
            made = _measured(training, data, parts, told, found, served)
        except MedflowError:
            remove_dataset(folder)  # what another run can mend goes on without the data; they are read again
            raise
        kept = _keep(training, made, run_id)
        study.remove(folder)
    return kept


def _members(training: _Training) -> Members:
    asked, settings = training.asked, training.settings
    cohort = settings.cohort(asked.cohort)
    with training.stage("cohort"):
        now = Instant(utc_us=now_us())
        found = find(training.store, settings, cohort, training.series, training.output, asked.labels, now=now)
    if not found.moments:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(found.left_out.items())) or "it has none"
        raise ConfigurationError(f"the cohort {asked.cohort} has no stay with an outcome ({reasons})")
    check(found.outcome, found.patients)
    return found


def _dataset(training: _Training, members: Members, folder: Path) -> Dataset:
    with training.stage("reading", len(members.moments)):
        return read_dataset(
            training.store,
            training.series,
            members,
            folder,
            progress=lambda count: training.progress("reading", count, None),
        )


def _search(training: _Training, data: Dataset, parts: Parts, folder: Path) -> Found:
    validation = data.take(parts.validation)
    with training.stage("training", training.plan.trials):
        return Search(
            folder,
            training.model,
            data.take(parts.training).examples,
            validation.examples,
            training.plan,
            judge=lambda kept: loss_of(training.settings, training.base, training.output, kept, validation),
            tell=lambda said, count: training.progress(said, count, None),
        ).run()


def _reference(learnt: Dataset, series: TimeSeriesInput) -> dict[str, Any]:
    return reference_of(learnt.values, learnt.statics, series, patients=learnt.members.patients)


def _measured(
    training: _Training, data: Dataset, parts: Parts, told: CohortTold, found: Found, served: RegisteredModel | None
) -> Trained:
    base, output, test = training.base, training.output, data.take(parts.test)
    fitted = np.sort(np.concatenate([parts.training, parts.validation]))
    learnt = data.take(fitted)
    reference = json.dumps(_reference(learnt, training.series)).encode()
    spec = fitted_spec(base.spec, output, found.best)
    spec = replace(spec, reference=Weights(file=REFERENCE, sha256=sha256(reference).hexdigest()))
    with training.stage("measuring", len(test)):
        with TemporaryDirectory(prefix="medflow-train-") as name:
            write_files({**found.best.files, REFERENCE: reference}, Path(name))
            model = candidate(base, spec, Path(name))
            mine = answers(
                training.settings,
                model,
                output,
                test,
                progress=lambda count: training.progress("measuring", count, None),
            )
        evaluation = evaluation_of(spec, output.name, model.digest, mine, test)
        other, why_not = _other(training, test, mine, served)
    return Trained(
        spec=spec,
        base_version=base.spec.version,
        output=output,
        cohort=told,
        plan=training.plan,
        found=found,
        test=evaluation,
        served=other,
        unserved=why_not,
        versions=_versions(base),
        weights_sha256={item.file: item.sha256 for item in spec.weights},
        reference=reference,
        seconds=training.seconds,
    )


def _other(
    training: _Training, test: Dataset, mine: Answers, served: RegisteredModel | None
) -> tuple[Served | None, str | None]:
    """The version served now, on the same cases; or why that is not known."""
    if served is None:
        return None, "it cannot be used"
    if served.spec.accepts != training.base.spec.accepts:
        return None, "it takes other inputs"
    try:
        theirs = answers(training.settings, served, training.output, test)
        evaluation = evaluation_of(served.spec, training.output.name, served.digest, theirs, test)
    except (PluginBroken, KeyError):
        return None, "it does not answer"
    both = ~(np.isnan(mine.scores) | np.isnan(theirs.scores))
    members = test.members
    by = gain(members.outcome[both], mine.scores[both], theirs.scores[both], members.patients[both])
    return Served(evaluation=evaluation, gain=by), None


def _keep(training: _Training, made: Trained, run_id: int | None) -> Trained:
    """Put the files into the object store, then the version into its registry, with its number in spec and card."""
    store, base = training.store, training.base
    files = {**made.found.best.files, REFERENCE: made.reference}
    with training.stage("keeping"):
        pictures = {f"{name}.png": data for name, data in plots(made).items()}
        digests = {name: store.objects.put(data) for name, data in {**files, **pictures}.items()}
        with store.writing() as connection:
            number = trained.next_version(connection, base.name, base.spec.version)
            made = made.numbered(number)
            spec = replace(made.spec, card=card_of(base.spec.card, made))
            made = replace(made, spec=spec)
            made = replace(made, card=markdown(made, {name.removesuffix(".png"): name for name in pictures}))
            digests[trained.CARD] = store.objects.put(made.card.encode())
            trained.add(
                connection,
                model=base.name,
                version=number,
                base_version=base.spec.version,
                base_digest=base.digest,
                spec=dump_spec(spec),
                files=digests,
                hyperparameters=made.found.best.chosen,
                seed=training.plan.seed,
                cohort=made.cohort.as_json(),
                metrics=made.metrics(),
                run_id=run_id,
            )
            detail = {"version": number, "cohort": made.cohort.name, "cohort_digest": made.cohort.digest}
            ledger.record_audit(
                connection, run_id, "train", trained.subject_of(base.name), **detail, weights=made.weights_sha256
            )
    return made


def _told(asked: Asked, settings: Settings, members: Members, parts: Parts, digest: str) -> CohortTold:
    named = {"training": parts.training, "validation": parts.validation, "test": parts.test}
    return CohortTold(
        name=asked.cohort,
        asked=settings.cohort(asked.cohort),
        encounters=members.encounters,
        left_out=members.left_out,
        labels_sha256=members.labels_sha256,
        labels_unmatched=members.labels_unmatched,
        digest=digest,
        parts={name: _part(members, rows) for name, rows in named.items()},
    )


def _part(members: Members, rows: np.ndarray) -> Part:
    return Part(
        cases=len(rows),
        patients=len(np.unique(members.patients[rows])),
        events=int(members.outcome[rows].sum()),
    )


def _versions(base: RegisteredModel) -> Mapping[str, str]:
    distribution, _, number = base.distribution.partition(" ")
    found = {"python": platform.python_version(), distribution: number}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue  # a model may do without torch
    return found
