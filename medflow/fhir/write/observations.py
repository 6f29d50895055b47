"""What the Observations of one job have in common: what they are of, their ids, and who speaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medflow.fhir.write.elements import (
    Json,
    ModelIdentity,
    coded,
    concept,
    made_id,
    reference,
    subject_element,
    time,
    without_empty,
)
from medflow.plugin import ImagingInput, ModelSpec, SequenceInput
from medflow.records import Coding, InputReference, Instant, ResultObject, Subject, Unit

CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
ABSENT = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
# HL7 v3 ObservationValue: a security label on what software inferred
AIAST: Json = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
    "code": "AIAST",
    "display": "Artificial Intelligence asserted",
}
# R4 Observation.derivedFrom may point to these only
DERIVABLE = {"DocumentReference", "ImagingStudy", "Media", "QuestionnaireResponse", "Observation", "MolecularSequence"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultContext:
    """What the results of one job are of.

    ``effective`` is the acquisition, or the end of the window; ``issued`` the time of the run, which takes no part in
    any id. ``encounter`` is a FHIR reference; None where it is of another system than the one that results go to, and
    then part of the ids. ``objects`` are the DICOM objects that the job made.
    """

    model: ModelIdentity
    unit: Unit
    subject: Subject | None
    input_key: str
    prediction_time: Instant
    effective: Instant
    issued: Instant
    inputs: tuple[InputReference, ...] = ()
    encounter: str | None = None
    status: Literal["preliminary", "final"] = "preliminary"
    objects: tuple[ResultObject, ...] = ()

    @property
    def envelope(self) -> str:
        """What is sent in one transaction: everything of one patient, or of one unit without a patient."""
        return f"unit/{self.unit}" if self.subject is None else f"patient/{self.subject.patient_id}"

    @property
    def elsewhere(self) -> bool:
        """Whether it is an encounter of another system."""
        return any(item.type == "Encounter" and item.reference is None for item in self.inputs)

    @property
    def derived_from(self) -> list[Json]:
        """References to the inputs that an Observation may be derived from."""
        return [reference(item) for item in self.inputs if item.type in DERIVABLE]

    @property
    def specimen(self) -> Json | None:
        """The reference to the Specimen, where one is known (an Observation has at most one)."""
        return next((reference(item) for item in self.inputs if item.type == "Specimen"), None)


def observation(context: ResultContext, output: str, code: Coding, *more: object) -> Json:
    """An Observation without its value; ``more`` tells it from others of the same output and code."""
    return without_empty(
        identified(result_id(context, "Observation", output, code, *more), "Observation")
        | {
            "meta": {"security": [AIAST]},
            "status": context.status,
            "category": [coded(CATEGORY, category(context.model.spec))],
            "code": concept(code),
            "subject": subject_element(context.subject),
            "encounter": {"reference": context.encounter} if context.encounter else None,
            "effectiveDateTime": time(context.effective),
            "issued": time(context.issued),
            "method": {"text": f"{context.model.name}@{context.model.version}"},
            "specimen": context.specimen,
            "device": context.model.device,
            "derivedFrom": context.derived_from,
        }
    )


def category(spec: ModelSpec) -> str:
    """Of HL7's observation categories, by what the model reads."""
    kinds = {type(item) for item in spec.accepts}
    return "imaging" if ImagingInput in kinds else "laboratory" if SequenceInput in kinds else "survey"


def identified(key: str, kind: str) -> Json:
    """The beginning of a resource: its type, its id, and the id as a business identifier."""
    return {
        "resourceType": kind,
        "id": key,
        "identifier": [{"system": "urn:ietf:rfc:3986", "value": f"urn:uuid:{key}"}],
    }


def result_id(context: ResultContext, kind: str, output: str, code: Coding | None, *more: object) -> str:
    """Nothing of one database goes in, so that the same input scored elsewhere gives the same id."""
    inputs = ("inputs", *(repr(reference(item)) for item in context.inputs))
    of = whose(context.subject) or inputs
    if context.elsewhere and of is not inputs:
        of = (*of, *inputs)  # the same stay as two systems know it: each its own result
    model = context.model
    named = (code.system, code.code) if code else ()
    moment = context.prediction_time.utc_us
    return made_id(kind, model.name, model.digest, output, *named, *of, context.input_key, moment, *more)


def whose(subject: Subject | None) -> tuple[str, ...]:
    """The patient's part of an id; empty where FHIR could name none."""
    if subject is not None and subject.reference:
        return ("reference", subject.reference)
    if subject is not None and subject.identifier:
        return ("identifier", subject.identifier.system, subject.identifier.value)
    return ()


def absent(reason: str) -> Json:
    """Why there is no value."""
    return {
        "dataAbsentReason": coded(ABSENT, "not-performed"),
        "note": [{"text": f"The input is out of the model's scope: {reason}"}],
    }
