"""One job's results: an Observation each, a RiskAssessment for a risk, and the Provenance of them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medflow.errors import InputNotUsable, InputRejected, PredictionInvalid
from medflow.fhir.write.contributions import explained, measurements, words
from medflow.fhir.write.elements import (
    COMPONENT,
    Json,
    coded,
    concept,
    outgoing,
    quantity,
    reference,
    rounded,
    subject_element,
    time,
)
from medflow.fhir.write.observations import (
    AIAST,
    CATEGORY,
    ResultContext,
    absent,
    identified,
    observation,
    result_id,
)
from medflow.fhir.write.variants import variant_resources
from medflow.plugin import Classification, Measure, OutputSpec, Risk, Segment, VariantEffect
from medflow.records import Coding, Instant, Outgoing, Result, ResultObject

INTERPRETATION = "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation"
AGENT_TYPE = "http://terminology.hl7.org/CodeSystem/provenance-participant-type"
DICOM_UID = "urn:dicom:uid"
HOUNSFIELD = "[hnsf'U]"
VOLUME = Coding(system="http://snomed.info/sct", code="118565006", display="Volume")


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


def resources_of_many(
    contexts: Sequence[ResultContext], results: Sequence[Sequence[Result]]
) -> list[list[Outgoing] | None]:
    """As `result_resources` for many jobs; None for one that it raises an error of."""
    return [_or_none(context, its) for context, its in zip(contexts, results, strict=True)]


def _or_none(context: ResultContext, results: Sequence[Result]) -> list[Outgoing] | None:
    try:
        return result_resources(context, results)
    except (InputNotUsable, PredictionInvalid):
        return None


def _referring(context: ResultContext, result: Result) -> Result:
    """A result that refers to measurements only where those, and the encounter, are of the system it goes to."""
    if not context.elsewhere:
        return result
    return replace(result, contributions=tuple(replace(item, basis=None) for item in result.contributions))


def _mapped(context: ResultContext, result: Result) -> list[Json]:
    output = context.model.spec.output(result.output)
    if isinstance(output, Risk):
        mirror, *assessment = _risk(context, output, result)
        return [explained(_linked(context, output, mirror), context.model.spec, output, result), *assessment]
    if isinstance(output, VariantEffect):
        return variant_resources(context, output, result)
    found = observation(context, output.name, VOLUME if isinstance(output, Segment) else output.code)
    if output.body_site is not None:
        found["bodySite"] = concept(output.body_site)
    if result.out_of_scope is not None:
        found |= absent(result.out_of_scope)
    elif isinstance(output, Classification):
        found |= _classified(output, result)
    else:
        unit = output.unit if isinstance(output, Measure) else "mL"
        found["valueQuantity"] = quantity(_value(result), unit)
        if result.mean is not None:
            found["component"] = [_mean(result.mean, result.mean_unit)]
    return [explained(_linked(context, output, found), context.model.spec, output, result)]


def _linked(context: ResultContext, output: OutputSpec, found: Json) -> Json:
    """With a component for each DICOM object that shows the output."""
    if links := [_link(item) for item in context.objects if output.name in item.outputs]:
        found["component"] = [*found.get("component", ()), *links]
    return found


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
    mirror = observation(context, output.name, output.code) | {"category": [coded(CATEGORY, "survey")]}
    if result.out_of_scope is not None:
        return [mirror | absent(result.out_of_scope)]
    chance = rounded(_value(result))
    percent = quantity(chance * 100, "%")
    mirror["valueQuantity"] = percent
    if output.threshold is not None:
        mirror["interpretation"] = [coded(INTERPRETATION, "POS" if chance >= output.threshold else "NEG")]
        mirror["component"] = [_threshold(output.threshold * 100, "%")]
    assessment = {
        **identified(result_id(context, "RiskAssessment", output.name, output.code), "RiskAssessment"),
        "meta": {"security": [AIAST]},
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
        "id": result_id(context, "Provenance", "", None),
        "target": [*made, *objects],
        "recorded": time(context.issued),
        "agent": [{"type": coded(AGENT_TYPE, "assembler"), "who": context.model.device}],
        "entity": [*sources, card],
    }


def _threshold(value: float, unit: str) -> Json:
    return {
        "code": coded(COMPONENT, "threshold") | {"text": "decision threshold"},
        "valueQuantity": quantity(value, unit),
    }


def _value(result: Result) -> float:
    if result.value is None:
        raise PredictionInvalid("prediction-incomplete", f"output {result.output} has no value")
    return result.value
