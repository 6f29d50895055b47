"""What explains a result, in FHIR: a component for each contribution, a note in words, and the measurements behind it.

A component has medflow's own code, never the channel's: whoever reads values by code would take the number for a heart
rate. The channel's code is in an extension of the component. Of a sequence it is a component for each of the top
positions, with the change by the one substitution that changes most.
"""

from __future__ import annotations

from medflow.contributions import declared_code, in_words, label, scale_of
from medflow.fhir.write.elements import COMPONENT, Json, coded, quantity, without_empty
from medflow.plugin import ModelSpec, OutputSpec, TimeSeriesInput
from medflow.records import Contribution, Result

CONTRIBUTION_OF = "urn:medflow:contribution-of"


def explained(observation: Json, spec: ModelSpec, output: OutputSpec, result: Result) -> Json:
    """An Observation with what contributed to its value; as it is where that was not asked for."""
    if not result.contributions:
        return observation
    components = [
        _position(output, result, item) if item.kind == "position" else _component(spec, output, item)
        for item in result.contributions
    ]
    return without_empty(
        {
            **observation,
            "component": [*observation.get("component", ()), *components],
            "derivedFrom": [*observation.get("derivedFrom", ()), *measurements(result)],
            "note": [*observation.get("note", ()), *words(output, result)],
        }
    )


def measurements(result: Result) -> list[Json]:
    """References to the last measurement of each contribution that has one."""
    return [{"reference": name} for name in dict.fromkeys(item.basis for item in result.contributions) if name]


def words(output: OutputSpec, result: Result) -> list[Json]:
    """The contributions as an Annotation: names, and no value."""
    return [{"text": in_words(output, result.contributions)}] if result.contributions else []


def _position(output: OutputSpec, result: Result, item: Contribution) -> Json:
    """What becomes of the score if the base at a position were another: the code, and the text that says where."""
    scale = scale_of(output, result.mutagenesis)
    return {
        "code": coded(COMPONENT, "top-position")
        | {"text": f"top positions: {label(item)} in the window read, change of {scale}"},
        "valueQuantity": quantity(item.value, "1"),
    }


def _component(spec: ModelSpec, output: OutputSpec, item: Contribution) -> Json:
    series = next((wanted for wanted in spec.accepts if isinstance(wanted, TimeSeriesInput)), None)
    code = declared_code(series, item) if series is not None else None
    named = without_empty({"system": code.system, "code": code.code, "display": code.display}) if code else None
    return without_empty(
        {
            "extension": [{"url": CONTRIBUTION_OF, "valueCoding": named}] if named else None,
            "code": coded(COMPONENT, "contribution")
            | {"text": f"contribution of {label(item)}, in {scale_of(output)}"},
            "valueQuantity": quantity(item.value, "1"),
        }
    )
