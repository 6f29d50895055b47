"""One job's results: an Observation each, a RiskAssessment for a risk, and the Provenance of them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from medflow.errors import InputNotUsable, InputRejected, PredictionInvalid
from medflow.fhir.write.contributions import explained, measurements, words
from medflow.fhir.write.elements import (
    COMPONENT,
    Json,
    ModelIdentity,
    coded,
    concept,
    made_id,
    outgoing,
    quantity,
    reference,
    rounded,
    subject_element,
    time,
    without_empty,
)
from medflow.plugin import Classification, ImagingInput, Measure, ModelSpec, OutputSpec, Risk, Segment, SequenceInput
from medflow.records import Coding, InputReference, Instant, Outgoing, Result, ResultObject, Subject, Unit

CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
INTERPRETATION = "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation"
ABSENT = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
AGENT_TYPE = "http://terminology.hl7.org/CodeSystem/provenance-participant-type"
DICOM_UID = "urn:dicom:uid"
HOUNSFIELD = "[hnsf'U]"
# HL7 v3 ObservationValue: a security label on what software inferred
AIAST: Json = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
    "code": "AIAST",
    "display": "Artificial Intelligence asserted",
}
VOLUME = Coding(system="http://snomed.info/sct", code="118565006", display="Volume")
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


def result_resources(context: ResultContext, results: Sequence[Result]) -> list[Outgoing]:
    """The resources of one job: its Observations and RiskAssessments, then the Provenance of them all.

    Raises
    ------
    InputNotUsable
        A risk is of a patient, and FHIR could name none.
    PredictionInvalid
        What comes out is not valid R4: a defect of the spec's codes or units.
    """
    resources = [resource for result in results for resource in _mapped(context, _referring(context, result))]
    resources.append(_provenance(context, resources))
    try:
        return [outgoing(resource, context.envelope) for resource in resources]
    except InputRejected as error:
        raise PredictionInvalid("invalid-resource", f"the result is not valid FHIR: {error.message}") from None


def _referring(context: ResultContext, result: Result) -> Result:
    """A result that refers to measurements only where those, and the encounter, are of the system it goes to."""
    if not _elsewhere(context):
        return result
    return replace(result, contributions=tuple(replace(item, basis=None) for item in result.contributions))


def _elsewhere(context: ResultContext) -> bool:
    """Whether it is an encounter of another system."""
    return any(item.type == "Encounter" and item.reference is None for item in context.inputs)


def _mapped(context: ResultContext, result: Result) -> list[Json]:
    output = context.model.spec.output(result.output)
    if isinstance(output, Risk):
        mirror, *assessment = _risk(context, output, result)
        return [explained(_linked(context, output, mirror), context.model.spec, output, result), *assessment]
    code = VOLUME if isinstance(output, Segment) else output.code
    observation = _observation(context, output, code, category=_category(context.model.spec))
    if output.body_site is not None:
        observation["bodySite"] = concept(output.body_site)
    if result.out_of_scope is not None:
        observation |= _absent(result.out_of_scope)
    elif isinstance(output, Classification):
        observation |= _classified(output, result)
    else:
        unit = output.unit if isinstance(output, Measure) else "mL"
        observation["valueQuantity"] = quantity(_value(result), unit)
        if result.mean is not None:
            observation["component"] = [_mean(result.mean, result.mean_unit)]
    return [explained(_linked(context, output, observation), context.model.spec, output, result)]


def _linked(context: ResultContext, output: OutputSpec, observation: Json) -> Json:
    """With a component for each DICOM object that shows the output."""
    if links := [_link(item) for item in context.objects if output.name in item.outputs]:
        observation["component"] = [*observation.get("component", ()), *links]
    return observation


def _mean(mean: float, unit: str | None) -> Json:
    """The mean intensity inside a segment: in Hounsfield units, or without a unit in whatever the image counts in."""
    if unit == HOUNSFIELD:
        value = quantity(mean, unit) | {"unit": "HU"}
        return {"code": coded(COMPONENT, "mean-intensity") | {"text": "mean attenuation"}, "valueQuantity": value}
    code = coded(COMPONENT, "mean-intensity") | {"text": "mean intensity, in the image's own units"}
    return {"code": code, "valueQuantity": quantity(mean, "1")}


def _link(item: ResultObject) -> Json:
    """Where the picture of a result is: a DICOM object, by its SOP Instance UID."""
    code = coded(COMPONENT, item.kind) | {"text": f"DICOM {item.kind} (SOP Instance UID)"}
    return {"code": code, "valueString": f"urn:oid:{item.sop_instance_uid}"}


def _category(spec: ModelSpec) -> str:
    kinds = {type(item) for item in spec.accepts}
    return "imaging" if ImagingInput in kinds else "laboratory" if SequenceInput in kinds else "survey"


def _observation(context: ResultContext, output: OutputSpec, code: Coding, *, category: str) -> Json:
    return without_empty(
        _identified(context, "Observation", output.name, code)
        | {
            "status": context.status,
            "category": [coded(CATEGORY, category)],
            "code": concept(code),
            "subject": subject_element(context.subject),
            "encounter": {"reference": context.encounter} if context.encounter else None,
            "effectiveDateTime": time(context.effective),
            "issued": time(context.issued),
            "method": {"text": f"{context.model.name}@{context.model.version}"},
            "device": context.model.device,
            "derivedFrom": [reference(item) for item in context.inputs if item.type in DERIVABLE],
        }
    )


def _classified(output: Classification, result: Result) -> Json:
    """The value: a probability and how to read it, or the most probable of several classes; with a component each."""
    chances = [rounded(value) for value in result.probabilities]
    components = [
        {"code": _class_code(label.code, label.name, output.code), "valueQuantity": quantity(chance, "1")}
        for label, chance in zip(output.classes, chances, strict=True)
    ]
    if output.positive is None:
        best = output.classes[chances.index(max(chances))]
        return {"valueCodeableConcept": concept(best.code) | {"text": best.name}, "component": components}
    chance = rounded(_value(result))
    return {
        "valueQuantity": quantity(chance, "1"),
        "interpretation": [coded(INTERPRETATION, output.interpretation(chance))],
        "component": [*components, _threshold(output.threshold, "1")],
    }


def _class_code(code: Coding, name: str, of: Coding) -> Json:
    # obs-7: no component may have the code of an Observation that has a value; the name tells it then
    return {"text": name} if code == of else concept(code) | {"text": name}


def _risk(context: ResultContext, output: Risk, result: Result) -> list[Json]:
    """A RiskAssessment, and the Observation that mirrors it for those who read Observations only."""
    if subject_element(context.subject) is None:
        raise InputNotUsable("no-patient", "a risk is of a patient, and this input names none that FHIR could name")
    mirror = _observation(context, output, output.code, category="survey")
    if result.out_of_scope is not None:
        return [mirror | _absent(result.out_of_scope)]
    chance = rounded(_value(result))
    percent = quantity(chance * 100, "%")
    mirror["valueQuantity"] = percent
    if output.threshold is not None:
        mirror["interpretation"] = [coded(INTERPRETATION, "POS" if chance >= output.threshold else "NEG")]
        mirror["component"] = [_threshold(output.threshold * 100, "%")]
    assessment = {
        **_identified(context, "RiskAssessment", output.name, output.code),
        **{name: mirror[name] for name in ("status", "method", "code", "subject", "encounter") if name in mirror},
        "occurrenceDateTime": time(context.prediction_time),
        "performer": context.model.device,
        "basis": [
            *map(reference, context.inputs),
            *measurements(result),
            {"reference": f"Observation/{mirror['id']}"},
        ],
        "prediction": [
            {
                "outcome": concept(output.outcome),
                "probabilityRange": {"low": percent, "high": percent},
                "whenPeriod": _horizon(context.prediction_time, output),
            }
        ],
    }
    if not output.calibrated:
        note = [{"text": "The probability is not calibrated: it ranks patients, and is no frequency."}]
        mirror["note"] = assessment["note"] = note
    if said := words(output, result):
        assessment["note"] = [*assessment.get("note", ()), *said]
    return [mirror, assessment]


def _horizon(start: Instant, output: Risk) -> Json:
    """From the prediction time to the horizon; open where that is the end of the encounter."""
    if output.horizon is None:
        return {"start": time(start)}
    end = start.utc_us + round(output.horizon.total_seconds() * 1_000_000)
    return {"start": time(start), "end": time(Instant(utc_us=end, offset_min=start.offset_min))}


def _provenance(context: ResultContext, targets: Sequence[Json]) -> Json:
    """Who made these results, DICOM objects among them, from what, by which description."""
    made = [{"reference": f"{target['resourceType']}/{target['id']}"} for target in targets]
    objects = [
        {
            "identifier": {"system": DICOM_UID, "value": f"urn:oid:{item.sop_instance_uid}"},
            "display": f"DICOM {item.kind} of {', '.join(item.outputs)}",
        }
        for item in context.objects
    ]
    sources = [{"role": "source", "what": reference(item)} for item in context.inputs]
    card = {"role": "derivation", "what": {"reference": f"DocumentReference/{context.model.card_id}"}}
    return {
        "resourceType": "Provenance",
        "id": _result_id(context, "Provenance", "", None),
        "target": [*made, *objects],
        "recorded": time(context.issued),
        "agent": [{"type": coded(AGENT_TYPE, "assembler"), "who": context.model.device}],
        "entity": [*sources, card],
    }


def _identified(context: ResultContext, kind: str, output: str, code: Coding) -> Json:
    key = _result_id(context, kind, output, code)
    return {
        "resourceType": kind,
        "id": key,
        "meta": {"security": [AIAST]},
        "identifier": [{"system": "urn:ietf:rfc:3986", "value": f"urn:uuid:{key}"}],
    }


def _result_id(context: ResultContext, kind: str, output: str, code: Coding | None) -> str:
    """Nothing of one database goes in, so that the same input scored elsewhere gives the same id."""
    subject = context.subject
    inputs = ("inputs", *(repr(reference(item)) for item in context.inputs))
    if subject is not None and subject.reference:
        of = ("reference", subject.reference)
    elif subject is not None and subject.identifier:
        of = ("identifier", subject.identifier.system, subject.identifier.value)
    else:
        of = inputs
    if _elsewhere(context) and of is not inputs:
        of = (*of, *inputs)  # the same stay as two systems know it: each its own result
    model = context.model
    named = (code.system, code.code) if code else ()
    return made_id(
        kind, model.name, model.digest, output, *named, *of, context.input_key, context.prediction_time.utc_us
    )


def _threshold(value: float, unit: str) -> Json:
    return {
        "code": coded(COMPONENT, "threshold") | {"text": "decision threshold"},
        "valueQuantity": quantity(value, unit),
    }


def _absent(reason: str) -> Json:
    return {
        "dataAbsentReason": coded(ABSENT, "not-performed"),
        "note": [{"text": f"The input is out of the model's scope: {reason}"}],
    }


def _value(result: Result) -> float:
    if result.value is None:
        raise PredictionInvalid("prediction-incomplete", f"output {result.output} has no value")
    return result.value
