"""Scoring: make jobs of what is new, lease a chunk, run the model, commit results together with their outbox rows."""

from __future__ import annotations

import io
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from medflow.config import Settings
from medflow.errors import MedflowError, PluginBroken, TransientError
from medflow.fhir.write import ModelIdentity, ResultContext, catalog_resources, result_resources
from medflow.inference.devices import resolve_device
from medflow.inference.results import results_of
from medflow.inference.runner import Outcome, Runner, as_medflow_error
from medflow.inputs import due_units, open_cases
from medflow.plugin import Model
from medflow.records import Instant, Outgoing, Result, Subject
from medflow.registry import RegisteredModel, dump_spec
from medflow.store import Connection, Store, outbox
from medflow.store import jobs as queue
from medflow.store.jobs import Job
from medflow.store.ledger import now_us
from medflow.store.patients import subjects
from medflow.store.units import UnitFacts, unit_facts

log = logging.getLogger(__name__)
Progress = Callable[[int], None]
COMMIT_EVERY = 64  # cases; what a killed process loses at most
SELECTED_AT_ONCE = 5000


@dataclass(kw_only=True, slots=True)
class ScoreTally:
    """Counts of one scoring: jobs newly selected, how many were leased, and how those ended.

    ``broken`` names the models that could not be run at all, with the error. ``seconds`` are by stage.
    """

    selected: int = 0
    leased: int = 0
    done: int = 0
    failed: int = 0
    dead: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, other: ScoreTally) -> None:
        """Count another scoring's cases as well."""
        self.selected += other.selected
        self.leased += other.leased
        self.done += other.done
        self.failed += other.failed
        self.dead += other.dead
        self.reasons.update(other.reasons)
        self.broken.update(other.broken)
        for stage, spent in other.seconds.items():
            self.seconds[stage] += spent

    def as_json(self) -> dict[str, object]:
        """The counts as ``medflow score --json`` prints them."""
        return {
            "selected": self.selected,
            "done": self.done,
            "failed": self.failed,
            "dead": self.dead,
            "reasons": dict(sorted(self.reasons.items())),
            "broken": dict(sorted(self.broken.items())),
        }


class LoadedModels:
    """The models that this process has loaded, each once, on one device."""

    def __init__(self, settings: Settings) -> None:
        self.device = resolve_device(settings.device)
        self._loaded: dict[str, Model] = {}

    def get(self, model: RegisteredModel) -> Model:
        """The loaded model; loading happens at the first call.

        Raises
        ------
        MedflowError
            The model does not load: `PluginBroken` for a defect, `TransientError` for a device in trouble.
        """
        if model.digest not in self._loaded:
            started = time.perf_counter()
            try:
                loaded = model.factory()
                loaded.load(self.device)
            except MedflowError:
                raise
            except Exception as error:  # noqa: BLE001 - a plugin's code
                found = as_medflow_error(error)
                if isinstance(found, TransientError):
                    raise found from None
                raise PluginBroken(f"{model.name} of {model.distribution} does not load: {found.message}") from None
            self._loaded[model.digest] = loaded
            log.info("loaded %s on %s in %.1f s", model.name, self.device, time.perf_counter() - started)
        return self._loaded[model.digest]

    def close(self) -> None:
        """Free the device."""
        for model in self._loaded.values():
            model.close()
        self._loaded.clear()


def select(store: Store, model: RegisteredModel, *, as_of: Instant) -> ScoreTally:
    """Make jobs of the units whose input has no job of this model yet, and queue the model's own resources."""
    spec = model.spec
    with store.writing() as connection:
        model_id = _register(connection, model)
        outbox.queue(connection, None, catalog_resources(_identity(model)))
    with store.reading() as connection:
        due = due_units(connection, spec, as_of=as_of, model_id=model_id)
    tally = ScoreTally()
    for start in range(0, len(due), SELECTED_AT_ONCE):
        with store.writing() as connection:
            tally.selected += queue.enqueue(connection, model_id, due[start : start + SELECTED_AT_ONCE])
    return tally


def waiting(store: Store, model: RegisteredModel) -> int:
    """How many cases of this model could be scored now."""
    with store.writing() as connection:
        return queue.waiting(connection, _register(connection, model))


def score_chunk(
    store: Store, settings: Settings, model: RegisteredModel, loaded: LoadedModels, *, progress: Progress | None = None
) -> ScoreTally:
    """Lease one chunk of the model's jobs and score it; an empty tally when there is nothing to lease."""
    return _Chunk(store, settings, model, loaded, progress or (lambda _count: None)).run()


class _Chunk:
    """One leased chunk on its way from jobs to committed results."""

    def __init__(
        self, store: Store, settings: Settings, model: RegisteredModel, loaded: LoadedModels, progress: Progress
    ) -> None:
        self.store, self.settings, self.model, self.loaded, self.progress = store, settings, model, loaded, progress
        self.owner = queue.process_owner()
        self.tally = ScoreTally()
        self.finished: dict[int, list[Result]] = {}
        self.facts: dict[int, UnitFacts] = {}
        self.subjects: dict[int, Subject] = {}

    def run(self) -> ScoreTally:
        with self.store.writing() as connection:
            model_id = _register(connection, self.model)
            leased = queue.lease(
                connection,
                model_id,
                self.owner,
                limit=self.settings.chunk_size,
                seconds=self.settings.lease_seconds,
                max_attempts=self.settings.max_attempts,
            )
        if not leased:
            return self.tally
        self.tally.leased = len(leased)
        self.open = {job.id: job for job in leased}
        self.renewed = time.monotonic()
        try:
            self._score(leased)
        except BaseException:
            with self.store.writing() as connection:
                queue.release(connection, self.owner, list(self.open))
            raise
        return self.tally

    def _score(self, leased: Sequence[Job]) -> None:
        started = time.perf_counter()
        model = self.loaded.get(self.model)
        self._read_facts(leased)
        openers = open_cases(self.store, self.model.spec, leased)
        self.tally.seconds["read"] += time.perf_counter() - started
        started = time.perf_counter()
        runner = Runner(model, device=self.loaded.device, threads=self.settings.threads)
        for outcome in runner.run(openers):
            self._take(leased[outcome.index], outcome)
            if len(self.finished) >= COMMIT_EVERY:
                self._commit()
        self._commit()
        self.tally.seconds["score"] += time.perf_counter() - started

    def _read_facts(self, leased: Sequence[Job]) -> None:
        with self.store.reading() as connection:
            self.facts = unit_facts(connection, self.model.spec.unit, [job.unit.id for job in leased])
            patients = [item.patient_id for item in self.facts.values() if item.patient_id is not None]
            self.subjects = subjects(connection, patients, source=self.settings.source)

    def _take(self, job: Job, outcome: Outcome) -> None:
        error = outcome.error
        if outcome.case is not None and outcome.prediction is not None:
            try:
                results = results_of(self.model.spec, outcome.case, outcome.prediction)
                self.finished[job.id] = [self._keep_mask(result, outcome) for result in results]
                return
            except MedflowError as invalid:
                error = invalid
        if error is not None:
            self._fail(job, error)

    def _keep_mask(self, result: Result, outcome: Outcome) -> Result:
        """A segment's mask goes to the object store, and the result knows it by its SHA-256."""
        if result.voxels is None or outcome.case is None or outcome.prediction is None:
            return result
        mask = outcome.prediction.values[result.output]
        file = io.BytesIO()
        bits, affine = np.packbits(np.asarray(mask, dtype=bool)), np.asarray(outcome.case.image.affine)
        np.savez_compressed(file, bits=bits, shape=np.asarray(np.shape(mask)), affine=affine)
        return replace(result, mask=self.store.objects.put(file.getvalue()))

    def _fail(self, job: Job, error: MedflowError) -> None:
        retry = isinstance(error, TransientError)
        code = error.fields.get("code") or ("out-of-memory" if type(error).__name__ == "DeviceExhausted" else "device")
        with self.store.writing() as connection:
            state = queue.fail(
                connection,
                self.owner,
                job.id,
                code=str(code),
                error=error.message,
                retry=retry,
                max_attempts=self.settings.max_attempts,
            )
        del self.open[job.id]
        self._count(state, 1)
        self.tally.reasons[str(code)] += 1
        log.warning("job %d of %s on %s: %s (%s)", job.id, self.model.name, job.unit, state, code)

    def _commit(self) -> None:
        """Predictions, outbox rows and job states in one transaction: all of it is there, or nothing."""
        if self.finished:
            started = time.perf_counter()
            issued = Instant(utc_us=now_us())
            outgoing = {job_id: self._resources(self.open[job_id], issued) for job_id in self.finished}
            with self.store.writing() as connection:
                held = queue.held(connection, self.owner, list(self.finished))
                queue.complete(connection, {job_id: self.finished[job_id] for job_id in held})
                older = queue.supersede_older(connection, sorted(held))
                if older:
                    outbox.supersede(connection, older, "amended")
                outbox.queue_many(connection, {job_id: outgoing[job_id] for job_id in sorted(held)})
            for job_id in self.finished:
                del self.open[job_id]
            self._count("done", len(held))
            self.finished = {}
            self.tally.seconds["commit"] += time.perf_counter() - started
        if time.monotonic() - self.renewed > self.settings.lease_seconds / 3:
            with self.store.writing() as connection:
                queue.renew(connection, self.owner, list(self.open), seconds=self.settings.lease_seconds)
            self.renewed = time.monotonic()

    def _resources(self, job: Job, issued: Instant) -> list[Outgoing]:
        facts = self.facts[job.unit.id]
        context = ResultContext(
            model=_identity(self.model),
            unit=job.unit,
            subject=self.subjects.get(facts.patient_id) if facts.patient_id is not None else None,
            input_key=job.input_key,
            prediction_time=job.prediction_time,
            effective=facts.effective or job.prediction_time,
            issued=issued,
            inputs=facts.inputs,
            encounter=facts.encounter,
            status=self.settings.result_status,
        )
        return result_resources(context, self.finished[job.id])

    def _count(self, state: str, count: int) -> None:
        if state in ("done", "failed", "dead"):
            setattr(self.tally, state, getattr(self.tally, state) + count)
        self.progress(count)


def _identity(model: RegisteredModel) -> ModelIdentity:
    return ModelIdentity(
        name=model.name,
        version=model.spec.version,
        digest=model.digest,
        spec=model.spec,
        distribution=model.distribution,
    )


def _register(connection: Connection, model: RegisteredModel) -> int:
    return queue.register_model(
        connection,
        name=model.name,
        version=model.spec.version,
        digest=model.digest,
        distribution=model.distribution,
        spec=dump_spec(model.spec),
    )
