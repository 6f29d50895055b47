"""What surrounds a job's results: whom they are about, by which model, of which run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from medflow.config import Settings
from medflow.dicom.maker import Maker
from medflow.fhir.write import ModelIdentity, ResultContext
from medflow.inputs import job_facts
from medflow.records import Instant, ResultObject, Subject, fhir_identifier
from medflow.registry import RegisteredModel
from medflow.store import Connection
from medflow.store.jobs import Job
from medflow.store.patients import subjects
from medflow.store.units import UnitFacts


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What results need to know of their units and patients, by id."""

    facts: Mapping[int, UnitFacts]
    subjects: Mapping[int, Subject]


def read_about(connection: Connection, settings: Settings, model: RegisteredModel, jobs: Sequence[Job]) -> About:
    """Of all these jobs at once."""
    facts = {key: _named(item, settings.source) for key, item in job_facts(connection, model.spec, jobs).items()}
    patients = [item.patient_id for item in facts.values() if item.patient_id is not None]
    return About(facts=facts, subjects=subjects(connection, patients, source=settings.source))


def _named(facts: UnitFacts, source: str) -> UnitFacts:
    """Facts whose literal references lead to resources of ``source``, the system that results go to.

    Another system's Encounter/7 would be taken for one of its own there, which may be somebody else's: it is named by
    identifier: its content's, where it is known by that.
    """
    if facts.source in (None, source):
        return facts
    inputs = (
        replace(item, reference=None, identifier=item.identifier or fhir_identifier(facts.source, item.reference))
        if item.reference is not None
        else item
        for item in facts.inputs
    )
    return replace(facts, encounter=None, inputs=tuple(inputs))


def identity_of(model: RegisteredModel) -> ModelIdentity:
    """The model as its results name it."""
    return ModelIdentity(
        name=model.name,
        version=model.spec.version,
        digest=model.digest,
        spec=model.spec,
        distribution=model.distribution,
    )


def maker_of(model: RegisteredModel, settings: Settings, job: Job, issued: Instant) -> Maker:
    """The model as a job's DICOM objects name it."""
    return Maker(
        model=model.name,
        version=model.spec.version,
        title=model.spec.title,
        digest=model.digest,
        identity=(job.input_key, str(job.prediction_time.utc_us)),
        issued=issued,
        zone=settings.zone,
    )


def context_of(
    model: ModelIdentity,
    settings: Settings,
    job: Job,
    about: About,
    issued: Instant,
    objects: Sequence[ResultObject],
) -> ResultContext:
    """What the results of one job are of."""
    facts = about.facts[job.unit.id]
    return ResultContext(
        model=model,
        unit=job.unit,
        subject=about.subjects.get(facts.patient_id) if facts.patient_id is not None else None,
        input_key=job.input_key,
        prediction_time=job.prediction_time,
        effective=facts.effective or job.prediction_time,
        issued=issued,
        inputs=facts.inputs,
        encounter=facts.encounter,
        status=settings.result_status,
        objects=tuple(objects),
    )
