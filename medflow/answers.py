"""What becomes of a model's answers: results, DICOM objects and FHIR resources, made beside the device."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass

from medflow.config import Settings
from medflow.contexts import About, context_of, identity_of, maker_of
from medflow.dicom.maker import Maker
from medflow.errors import CaseError, DeviceExhausted, MedflowError, PredictionInvalid, TransientError, place_of
from medflow.evidence import ExplainedCase, Told, told_of, with_contributions, without_contributions
from medflow.fhir.write import ResultContext, catalog_resources, resources_of_many, result_resources
from medflow.heat_maps import are_drawn, keep_heat_maps
from medflow.inference.results import results_of
from medflow.inference.runner import Outcome
from medflow.inputs import CaseOpener
from medflow.records import Instant, Outgoing, Result, ResultObject
from medflow.registry import RegisteredModel
from medflow.samples import SampleOpener
from medflow.segmentations import has_segments, keep_segmentations
from medflow.store import Store, result_objects
from medflow.store.jobs import Job
from medflow.variant_scores import keep_variant_scores

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A job's checked results, the DICOM objects made of them, and all that is to be sent; waiting to be committed."""

    results: Sequence[Result]
    objects: Sequence[ResultObject]
    outgoing: Sequence[Outgoing]
    note: str | None = None


Ended = dict[int, Finished | CaseError | TransientError]  # by the job's id


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    """The checked results of a job's case, the DICOM objects made of them, and what to note of it."""

    job: Job
    results: Sequence[Result]
    objects: Sequence[ResultObject]
    note: str | None = None


class Answers:
    """Makes of the answers to a chunk's jobs what is to be committed, in any thread.

    ``leased`` and ``openers`` are the chunk's jobs and what opened their cases: those at the outcomes' ``index``.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        model: RegisteredModel,
        leased: Sequence[Job],
        openers: Sequence[CaseOpener],
        *,
        about: About,
        issued: Instant,
    ) -> None:
        self.store, self.settings, self.model = store, settings, model
        self.leased, self.openers, self.about, self.issued = leased, openers, about, issued
        self.identity = identity_of(model)

    def catalog(self) -> Sequence[Outgoing]:
        """The model's own resources, to which those of its results refer. Raises PluginBroken."""
        asked = self.store.beside.ask(catalog_resources, self.identity)
        if asked is not None:
            with suppress(BrokenProcessPool):
                return asked.result()
        return catalog_resources(self.identity)

    def parts(self, batch: Sequence[Outcome]) -> Iterator[Sequence[Outcome]]:
        """A batch as it is written: whole, but its cases one by one where each holds images."""
        heavy = has_segments(self.model.spec) or any(are_drawn(outcome.explanation) for outcome in batch)
        return ([outcome] for outcome in batch) if heavy else iter([batch])

    def made(self, part: Sequence[Outcome]) -> Ended:
        """What each case of a part comes to, or the error that ended it, by its job's id."""
        told = self._told(part)
        ended: Ended = {}
        answers: dict[int, _Answer] = {}
        for outcome in part:
            job = self.leased[outcome.index]
            try:
                answers[job.id] = self._answer(job, outcome, told.get(outcome.index, {}))
            except (CaseError, TransientError) as error:
                ended[job.id] = error
        resources = self._resources(answers)
        for job_id, answer in answers.items():
            try:
                ended[job_id] = self._to_commit(answer, resources.get(job_id))
            except (CaseError, TransientError) as error:
                ended[job_id] = error
        return ended

    def _told(self, batch: Sequence[Outcome]) -> Mapping[int, Told | Exception]:
        """What moved the answers of a batch, by place: looked up together. What goes wrong costs no answer."""
        explained = {
            item.index: ExplainedCase(job=self.leased[item.index], case=item.case, explanation=item.explanation)
            for item in batch
            if item.case is not None and item.explanation
        }
        try:
            return dict(zip(explained, told_of(self.store, self.model.spec, list(explained.values())), strict=True))
        except Exception as error:  # noqa: BLE001 - told with each of them
            return dict.fromkeys(explained, error)

    def _resources(self, answers: Mapping[int, _Answer]) -> Mapping[int, Sequence[Outgoing]]:
        """The resources of answers by their job's id, as far as a process beside this one makes them."""
        items = list(answers.values())
        asked = self.store.beside.ask(resources_of_many, list(map(self._context, items)), [it.results for it in items])
        if asked is not None:
            with suppress(BrokenProcessPool):
                return {job_id: found for job_id, found in zip(answers, asked.result(), strict=True) if found}
        return {}

    def _answer(self, job: Job, outcome: Outcome, told: Told | Exception) -> _Answer:
        """What a case comes to, with the DICOM objects made of it."""
        if outcome.error is not None:
            raise outcome.error
        assert outcome.case is not None and outcome.prediction is not None  # noqa: S101 - the other two outcomes
        results = results_of(self.model.spec, outcome.case, outcome.prediction)
        maker = maker_of(self.model, self.settings, job, self.issued)
        kept, objects = keep_segmentations(self.store, self.model.spec, job, outcome.prediction, results, maker)
        if isinstance(opener := self.openers[outcome.index], SampleOpener):
            kept = keep_variant_scores(self.store, self.model, opener.take(), outcome.prediction, kept)
        heat_maps, note = self._explained(job, outcome, maker, told)
        if not isinstance(told, Exception):
            kept = with_contributions(kept, told)
        return _Answer(job=job, results=kept, objects=[*objects, *heat_maps], note=note)

    def _explained(
        self, job: Job, outcome: Outcome, maker: Maker, told: Told | Exception
    ) -> tuple[list[ResultObject], str | None]:
        """The heat maps of a case, and what to note of its explanation; whatever goes wrong, the result stands."""
        try:
            if outcome.unexplained is not None:
                raise outcome.unexplained
            if isinstance(told, Exception):
                raise told
            if outcome.case is None or not outcome.explanation:
                return [], None
            spec = self.model.spec
            return keep_heat_maps(self.store, spec, job, outcome.case, outcome.explanation, maker), "explained"
        except Exception as error:  # noqa: BLE001 - also of a library that makes the object
            return [], self._unexplained(job, error)

    def _unexplained(self, job: Job, error: Exception) -> str:
        """The note that an explanation failed."""
        if isinstance(error, MedflowError):
            code, said = code_of(error), error.message
        else:  # its words may quote a header
            code, said = "unforeseen", f"{type(error).__name__} at {place_of(error)}"
        ids = {"job": job.id, "model": self.model.name, "code": code}
        log.warning("job %d of %s is not explained (%s): %s", job.id, self.model.name, code, said, extra=ids)
        return f"explanation-failed: {code}"

    def _context(self, answer: _Answer) -> ResultContext:
        return context_of(self.identity, self.settings, answer.job, self.about, self.issued, answer.objects)

    def _to_commit(self, answer: _Answer, made: Sequence[Outgoing] | None) -> Finished:
        """What to commit of an answer: with the resources that were ``made`` of it, or else are here."""
        context = self._context(answer)
        results, note = answer.results, answer.note
        try:
            resources = made or result_resources(context, results)
        except PredictionInvalid as error:
            results = without_contributions(results)
            if results == list(answer.results):
                raise
            resources, note = result_resources(context, results), self._unexplained(answer.job, error)
        files = [result_objects.outgoing(item, context.envelope) for item in answer.objects]
        return Finished(results=results, objects=answer.objects, outgoing=[*resources, *files], note=note)


def code_of(error: MedflowError) -> str:
    """The kebab-case reason that an error is counted under."""
    if code := error.fields.get("code"):
        return str(code)
    return "out-of-memory" if isinstance(error, DeviceExhausted) else "transient"
