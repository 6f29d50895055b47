"""Scoring: make jobs of what is new, lease a chunk, run the model, commit results together with their outbox rows."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

from medflow.answers import Answers, Ended, Finished, code_of
from medflow.config import Settings
from medflow.contexts import read_about
from medflow.errors import (
    CaseError,
    MedflowError,
    PluginBroken,
    TransientError,
)
from medflow.garbage import seldom_collected
from medflow.genomics.site import GenomeSite
from medflow.inference.memory import chunk_of, largest_batch
from medflow.inference.resident import LoadedModels
from medflow.inference.runner import Runs
from medflow.inputs import CaseOpener, due_units, open_cases
from medflow.plugin import Case, ModelSpec, SequenceInput, TimeSeriesInput
from medflow.records import Instant, Outgoing, UnitKind
from medflow.registry import RegisteredModel, dump_spec
from medflow.store import Connection, Store, chunks, outbox, result_objects, trained, withdrawal
from medflow.store import jobs as queue
from medflow.store.genomics import samples_elsewhere, sequences_too_short
from medflow.store.jobs import Job
from medflow.store.ledger import now_us
from medflow.store.withdrawn_files import still_due
from medflow.variant_rule import variants_of

log = logging.getLogger(__name__)
Progress = Callable[[int], None]
COMMIT_EVERY = 64  # cases, rounded up to whole batches: what a killed process loses at most,
COMMIT_AFTER_S = 30  # or so many seconds of work, where cases are slow
UNKNOWN_ASSEMBLY = "samples-of-unknown-assembly"  # notes of what no model of variants is given
OTHER_ASSEMBLY = "samples-of-another-assembly"
TOO_SHORT = "sequences-too-short"  # and of what a model of sequences is not
OF_THE_STORE = frozenset({UNKNOWN_ASSEMBLY, OTHER_ASSEMBLY, TOO_SHORT})  # the same units, whichever model tells
WRITING = 2  # threads that make FHIR resources and DICOM objects of answers beside the device,
WRITTEN_AHEAD = 2  # and parts of batches that wait for it: a batch, or one case with its image, masks and heat maps


@dataclass(kw_only=True, slots=True)
class ScoreTally:
    """Counts of one scoring: jobs newly selected, how many were leased, and how those ended.

    ``notes`` says what is worth knowing and no failure; ``broken`` names the models that could not be run at all,
    with the error; ``seconds`` are by stage.
    """

    selected: int = 0
    leased: int = 0
    done: int = 0
    failed: int = 0
    dead: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, other: ScoreTally) -> None:
        """Count another scoring's cases as well.

        Notes of what is in the store tell of the same units: the most that any model is not given are all of them.
        """
        self.selected += other.selected
        self.leased += other.leased
        self.done += other.done
        self.failed += other.failed
        self.dead += other.dead
        self.reasons.update(other.reasons)
        for name, count in other.notes.items():
            self.notes[name] = max(self.notes[name], count) if name in OF_THE_STORE else self.notes[name] + count
        self.broken.update(other.broken)
        for stage, spent in other.seconds.items():
            self.seconds[stage] += spent

    def add_chunk(self, chunk: chunks.Chunk) -> None:
        """Count a chunk's cases as well."""
        numbers = {name: getattr(chunk, name) for name in ("leased", "done", "failed", "dead")}
        other = ScoreTally(**numbers, reasons=Counter(chunk.reasons), notes=Counter(chunk.notes))
        other.seconds.update(chunk.seconds)
        self.add(other)

    def as_json(self) -> dict[str, object]:
        """The counts as ``medflow score --json`` prints them."""
        return {
            "selected": self.selected,
            "done": self.done,
            "failed": self.failed,
            "dead": self.dead,
            "reasons": dict(sorted(self.reasons.items())),
            "notes": dict(sorted(self.notes.items())),
            "broken": dict(sorted(self.broken.items())),
        }


def select(
    store: Store,
    settings: Settings,
    model: RegisteredModel,
    *,
    as_of: Instant,
    run_id: int | None = None,
    assemblies: Collection[str] = (),
    expect: Callable[[int], None] = lambda _count: None,
    on_selected: Callable[[int], None] = lambda _count: None,
) -> ScoreTally:
    """Make jobs of the units whose input has no job of this model yet.

    Results that no longer stand, and that no new job is about to replace, are taken back. Jobs are made half a chunk at
    a time, and ``on_selected`` is told how many: they can be scored from then on; ``expect`` is told before, of time
    series, how many there may be. Samples that are given to no model of variants for their assembly are noted, those
    of ``assemblies`` being other models', and sequences that are too short for this one.

    Raises
    ------
    PluginBroken
        Another version of the model was promoted after this process read which one is.
    """
    spec, started, tally = model.spec, time.perf_counter(), ScoreTally()
    with store.writing() as connection:
        _check_served(connection, model)
        model_id = _register(connection, model)
    with store.reading() as reading:
        genomes = GenomeSite.of(settings)
        due = iter(due_units(reading, spec, as_of=as_of, model_id=model_id, genomes=genomes, expect=expect))
        while part := list(islice(due, _selected_at_once(settings, model))):
            with store.writing() as connection:
                _check_served(connection, model)  # a promotion lets go of the jobs that there are, not of these
                if spec.unit is UnitKind.SAMPLE:
                    part = still_due(connection, part)  # files may have been withdrawn meanwhile
                selected = queue.enqueue(connection, model_id, part)
            tally.selected += selected
            on_selected(selected)
        _note_not_given(reading, tally, spec, as_of, assemblies)
    if isinstance(spec.accepts[0], TimeSeriesInput):
        _note_withdrawn(tally, _take_back(store, spec.accepts[0], model_id, run_id))
    tally.seconds["select"] = time.perf_counter() - started
    return tally


def _note_not_given(
    connection: Connection, tally: ScoreTally, spec: ModelSpec, as_of: Instant, assemblies: Collection[str]
) -> None:
    if (wanted := variants_of(spec)) is not None:
        unknown, other = samples_elsewhere(connection, {wanted.assembly, *assemblies}, as_of=as_of)
        tally.notes.update({name: n for name, n in ((UNKNOWN_ASSEMBLY, unknown), (OTHER_ASSEMBLY, other)) if n})
    elif isinstance(spec.accepts[0], SequenceInput) and (
        short := sequences_too_short(connection, spec.accepts[0], as_of=as_of)
    ):
        tally.notes[TOO_SHORT] = short


def _check_served(connection: Connection, model: RegisteredModel) -> None:
    if not trained.stays_served(connection, model.name, model.spec.version):
        raise PluginBroken(
            f"another version of {model.name} than {model.spec.version} was promoted meanwhile: run the same again"
        )


def _take_back(store: Store, spec: TimeSeriesInput, model_id: int, run_id: int | None) -> int:
    with store.reading() as connection:
        verdicts = withdrawal.judge(connection, spec, model_id)
    if not any((verdicts.withdrawn, verdicts.lost, verdicts.standing)):
        return 0
    with store.writing() as connection:
        return withdrawal.carry_out(connection, verdicts, run_id)


def _note_withdrawn(tally: ScoreTally, count: int) -> None:
    if count:
        tally.notes["withdrawn"] += count


def model_id(store: Store, model: RegisteredModel) -> int:
    """The model's id in the store."""
    with store.writing() as connection:
        return _register(connection, model)


def waiting(store: Store, model: RegisteredModel) -> tuple[int, int]:
    """How many cases of this model could be scored now or soon, and how many other processes hold."""
    with store.writing() as connection:
        return queue.waiting(connection, _register(connection, model))


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """On what terms a chunk is scored: for which run, or because another process ``asked``; and until when.

    With ``explain`` a model that can also shows what led to each of its answers; of an asked chunk its row says that.
    ``progress`` is told how many cases just ended, ``on_read`` that the last one is being read. When ``stopping`` turns
    true, what is scored is committed after the batch at hand and the rest given back.
    """

    run_id: int | None = None
    asked: bool = False
    explain: bool = False
    worker: str | None = None
    owner: str | None = None
    progress: Progress = lambda _count: None
    on_read: Callable[[], None] = lambda: None
    stopping: Callable[[], bool] = lambda: False


def score_chunk(
    store: Store, settings: Settings, model: RegisteredModel, loaded: LoadedModels, terms: Terms
) -> ScoreTally:
    """Lease one chunk of the model's jobs and score it; an empty tally when there is nothing to lease."""
    return _Chunk(store, settings, model, loaded, terms).run()


def score_asked(
    store: Store,
    settings: Settings,
    model: RegisteredModel,
    loaded: LoadedModels,
    *,
    worker: str,
    owner: str | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> ScoreTally:
    """Score the chunk that was asked for first, leased as ``owner``; an empty tally when none is.

    The chunk says whether its predictions are to be explained.
    When ``stopping`` turns true, what is scored is committed after the batch at hand and the rest given back.
    """
    return _Chunk(
        store, settings, model, loaded, Terms(asked=True, worker=worker, owner=owner, stopping=stopping)
    ).run()


def chunk_cases(settings: Settings, model: RegisteredModel) -> int:
    """Cases in a chunk: whole batches, so that they are the same wherever an interrupted run is taken up."""
    batch = largest_batch(model.spec, settings.chunk_size)
    return max(batch, chunk_of(model.spec, settings.chunk_size) // batch * batch)


def _selected_at_once(settings: Settings, model: RegisteredModel) -> int:
    """Half a chunk, in whole batches: the device waits for the first of them."""
    batch = largest_batch(model.spec, settings.chunk_size)
    return max(batch, chunk_cases(settings, model) // 2 // batch * batch)


class _Chunk:
    """One leased chunk on its way from jobs to committed results."""

    def __init__(
        self, store: Store, settings: Settings, model: RegisteredModel, loaded: LoadedModels, terms: Terms
    ) -> None:
        self.store, self.settings, self.model, self.loaded, self.terms = store, settings, model, loaded, terms
        self.id = 0
        self.explain = terms.explain
        self.owner = terms.owner or queue.process_owner()
        self.committed = time.perf_counter()
        self.tally = ScoreTally()
        self.issued = Instant(utc_us=now_us())
        self.open: dict[int, Job] = {}
        self.finished: dict[int, Finished] = {}
        self.failures: dict[int, CaseError | TransientError] = {}
        self.writing: deque[Future[Ended]] = deque()
        self.catalog: Future[Sequence[Outgoing]] | None = None
        self.committing: Future[None] = Future()
        self.committing.set_result(None)

    def run(self) -> ScoreTally:
        leased = self._lease()
        if not leased:
            return self.tally
        try:
            self._score(leased)
        except BaseException as error:
            with self.store.writing() as connection:
                queue.release(connection, self.owner, list(self.open))
                self._finish(connection, error)
            raise
        return self.tally

    def _lease(self) -> list[Job]:
        seconds, terms = self.settings.lease_seconds, self.terms
        with self.store.writing() as connection:
            model_id = _register(connection, self.model)
            if terms.asked:
                taken = chunks.take(connection, model_id, self.owner, terms.worker, seconds=seconds)
                if taken is None:
                    return []
                self.id, self.explain = taken.id, taken.explain
            leased = queue.lease(
                connection,
                model_id,
                self.owner,
                limit=chunk_cases(self.settings, self.model),
                seconds=seconds,
                max_attempts=self.settings.max_attempts,
            )
            if leased and not terms.asked:
                self.id = chunks.begin(
                    connection, terms.run_id, model_id, self.owner, seconds=seconds, explain=self.explain
                )
            self.tally.leased = len(leased)
            self.open = {job.id: job for job in leased}
            if leased:
                chunks.record(connection, self.id, self.owner, seconds=seconds, counts=self._counts())
            elif terms.asked:
                self._finish(connection)
        return leased

    def _counts(self) -> dict[str, object]:
        counted = {name: getattr(self.tally, name) for name in ("leased", "done", "failed", "dead")}
        details = {name: dict(getattr(self.tally, name)) for name in ("reasons", "notes", "seconds")}
        return {**counted, **details}

    def _finish(self, connection: Connection, error: BaseException | None = None) -> None:
        state = chunks.DONE if error is None else chunks.BROKEN if isinstance(error, PluginBroken) else chunks.FAILED
        said = error.message if isinstance(error, MedflowError) else type(error).__name__ if error else None
        chunks.finish(connection, self.id, self.owner, state=state, error=said, counts=self._counts())

    def _score(self, leased: Sequence[Job]) -> None:
        started = time.perf_counter()
        with self.store.reading() as connection:
            about = read_about(connection, self.settings, self.model, leased)
        genomes = GenomeSite.of(self.settings)
        openers = open_cases(self.store, self.model.spec, leased, workers=self.settings.threads, genomes=genomes)
        answers = Answers(self.store, self.settings, self.model, leased, openers, about=about, issued=self.issued)
        openers = [*openers[:-1], _after(self.terms.on_read, openers[-1])]
        self.tally.seconds["read"] += time.perf_counter() - started
        started = time.perf_counter()
        with self.loaded.running(self.model, threads=self.settings.threads, explain=self.explain) as runner:
            self.tally.seconds["load"] += time.perf_counter() - started
            self._score_with(runner, openers, answers)

    def _score_with(self, runner: Runs, openers: Sequence[CaseOpener], answers: Answers) -> None:
        started = time.perf_counter()
        with (
            seldom_collected(),
            closing(runner.run(openers)) as batches,
            ThreadPoolExecutor(WRITING, "write") as pool,
            ThreadPoolExecutor(1, "commit") as committer,
        ):
            self.catalog = pool.submit(answers.catalog)
            for batch in batches:
                for part in answers.parts(batch):
                    while len(self.writing) >= WRITTEN_AHEAD:
                        self._settle_next()
                    self.writing.append(pool.submit(answers.made, part))
                while self.writing and self.writing[0].done():
                    self._settle_next()
                if self._commit_is_due():
                    self._begin_commit(committer)
                if self.terms.stopping():
                    break
            while self.writing:
                self._settle_next()
            self._begin_commit(committer)
            self.committing.result()
        self.tally.seconds["score"] += time.perf_counter() - started
        for stage, spent in runner.seconds.items():
            self.tally.seconds[stage] += spent
        with self.store.writing() as connection:
            queue.release(connection, self.owner, list(self.open))
            self._finish(connection)

    def _commit_is_due(self) -> bool:
        waited = time.perf_counter() - self.committed
        return len(self.finished) + len(self.failures) >= COMMIT_EVERY or waited >= COMMIT_AFTER_S

    def _settle_next(self) -> None:
        for job_id, end in self.writing.popleft().result().items():
            if isinstance(end, Finished):
                self.finished[job_id] = end
            else:
                self.failures[job_id] = end

    def _begin_commit(self, committer: Executor) -> None:
        """Commit what has ended, beside the device, once the commit before is done."""
        self.committing.result()
        ended, self.finished, self.failures = (self.finished, self.failures), {}, {}
        self.committed = time.perf_counter()
        self.committing = committer.submit(self._commit, *ended)

    def _queue_catalog(self) -> None:
        """The model's own resources go before the first results that refer to them."""
        if self.catalog is not None:
            catalog, self.catalog = self.catalog.result(), None
            with self.store.writing() as connection:
                outbox.queue(connection, None, catalog)

    def _commit(self, finished: Mapping[int, Finished], failures: Mapping[int, CaseError | TransientError]) -> None:
        """Predictions, outbox rows and job states in one transaction: all of it is there, or nothing."""
        started = time.perf_counter()
        if finished:
            self._queue_catalog()
        with self.store.writing() as connection:
            if self.model.spec.unit is UnitKind.SAMPLE:
                outbox.take_turn(connection)
            held = queue.held(connection, self.owner, [*finished, *failures])
            done = {job_id: item for job_id, item in finished.items() if job_id in held}
            queue.complete(connection, {job_id: item.results for job_id, item in done.items()})
            result_objects.record(connection, {job_id: item.objects for job_id, item in done.items()})
            withdrawal.supersede_older(connection, {job_id: item.outgoing for job_id, item in done.items()})
            outbox.queue_many(connection, {job_id: item.outgoing for job_id, item in done.items()})
            failed = {job_id: error for job_id, error in failures.items() if job_id in held}
            ends = [self._fail(connection, job_id, error) for job_id, error in failed.items()]
            refused = [job_id for job_id, error in failed.items() if _tells_of_the_data(error)]
            contradicted = withdrawal.contradicted(connection, refused)
            _note_withdrawn(self.tally, withdrawal.withdraw(connection, contradicted, self.terms.run_id))
            for job_id in (*finished, *failures):
                del self.open[job_id]
            queue.renew(connection, self.owner, list(self.open), seconds=self.settings.lease_seconds)
            self.tally.done += len(done)
            self.tally.notes.update(item.note for item in done.values() if item.note)
            self.tally.failed += ends.count("failed")
            self.tally.dead += ends.count("dead")
            chunks.record(connection, self.id, self.owner, seconds=self.settings.lease_seconds, counts=self._counts())
        self.terms.progress(len(finished) + len(failures))
        self.tally.seconds["commit"] += time.perf_counter() - started

    def _fail(self, connection: Connection, job_id: int, error: CaseError | TransientError) -> str:
        code = code_of(error)
        self.tally.reasons[code] += 1
        state = queue.fail(
            connection,
            self.owner,
            job_id,
            code=code,
            error=error.message,
            retry=isinstance(error, TransientError),
            max_attempts=self.settings.max_attempts,
        )
        ids = {"job": job_id, "model": self.model.name, "code": code}
        log.warning("job %d of %s: %s (%s)", job_id, self.model.name, state, code, extra=ids)
        return state


def _after(tell: Callable[[], None], opener: CaseOpener) -> CaseOpener:
    def opening() -> Case:
        tell()
        return opener()

    return opening


def _tells_of_the_data(error: MedflowError) -> bool:
    """Whether the case was judged, and its data refused: of one that changed meanwhile the next selection tells."""
    return isinstance(error, CaseError) and code_of(error) != "input-changed"


def _register(connection: Connection, model: RegisteredModel) -> int:
    return queue.register_model(
        connection,
        name=model.name,
        version=model.spec.version,
        digest=model.digest,
        distribution=model.distribution,
        spec=dump_spec(model.spec),
    )
