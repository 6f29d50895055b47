"""The form that Prefect's pages show for a run: made from the flow's signature, the models installed, and the settings.

Prefect checks a run's parameters against it when the run is created, so that a wrong one never starts. Names and kinds
only: what else a source or target stands for (paths, addresses, who we are there) does not leave the configuration.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from prefect import Flow
from prefect.utilities.callables import ParameterSchema
from pydantic import create_model

from medflow.config import Settings
from medflow.registry import Registry
from medflow.training.asked import is_trainable

# The zone may not be left out: hospitals keep local time, and servers often do not.
ZONED = r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:\d{2})$"
Choices = Mapping[str, str]  # a name, and what is said of it


def form(flow: Flow[..., Any], settings: Settings, registry: Registry) -> ParameterSchema:
    """The flow's parameters as JSON schema: titles, descriptions, defaults, and the names there are to choose from."""
    properties, required = _signature(flow)
    models = {name: f"{model.spec.title} ({model.spec.version})" for name, model in sorted(registry.models.items())}
    fitted = {name: said for name, said in models.items() if is_trainable(registry.models[name])}
    sources = {name: source.kind for name, source in sorted(settings.sources.items())}
    targets = {name: target.kind for name, target in sorted(settings.targets.items())}
    labels = dict.fromkeys(sorted(settings.labels), "")
    cohorts = {"all": "every stay in the store"} | dict.fromkeys(sorted(settings.cohorts), "")
    shapes: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "models": lambda shown: _several(shown, models, "No model is installed."),
        "model": lambda shown: (
            _one(shown, fitted, "No model that can be trained is installed.")
            if flow.name == "train"
            else _one(shown, models, "No model is installed.")
        ),
        "sources": lambda shown: _several(shown, sources, "No source is configured (MEDFLOW_SOURCES)."),
        "target": lambda shown: _one(shown, targets, "No target is configured by name (MEDFLOW_TARGETS)."),
        "deliver_to": lambda shown: _one(shown, targets, "No target is configured by name (MEDFLOW_TARGETS)."),
        "labels": lambda shown: _one(shown, labels, "No table is configured (MEDFLOW_LABELS)."),
        "cohort": lambda shown: _one(shown, cohorts, ""),
        "as_of": _moment,
    }
    shown = {name: shapes.get(name, lambda same: same)(_filled_in(item)) for name, item in properties.items()}
    for position, item in enumerate(shown.values()):
        item["position"] = position
    return ParameterSchema(properties=shown, required=required)


def _signature(flow: Flow[..., Any]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Properties and required names, from the hints with their titles, which Prefect's own reading leaves out."""
    function = inspect.unwrap(flow.fn)
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        fields[name] = (hints[name], ... if parameter.default is inspect.Parameter.empty else parameter.default)
    schema = create_model("Parameters", **fields).model_json_schema()
    return schema.get("properties", {}), schema.get("required", [])


def _filled_in(item: dict[str, Any]) -> dict[str, Any]:
    """Of "something or null" the something: a form shows one field for it, and leaving it empty is the null."""
    kinds = [kind for kind in item.get("anyOf", ()) if kind.get("type") != "null"]
    if len(kinds) == 1:
        item = {**{name: value for name, value in item.items() if name != "anyOf"}, **kinds[0]}
    return {name: value for name, value in item.items() if not (name == "default" and value is None)}


def _several(item: dict[str, Any], choices: Choices, none: str) -> dict[str, Any]:
    names = {"type": "string", "enum": list(choices)}
    return {**_said(item, choices, none), "type": "array", "items": names, "uniqueItems": True, "default": []}


def _one(item: dict[str, Any], choices: Choices, none: str) -> dict[str, Any]:
    return {**_said(item, choices, none), "type": "string", "enum": list(choices)}


def _moment(item: dict[str, Any]) -> dict[str, Any]:
    return {**item, "type": "string", "format": "date-time", "pattern": ZONED}


def _said(item: dict[str, Any], choices: Choices, none: str) -> dict[str, Any]:
    told = "\n\n".join(f"- {name}: {what}" for name, what in choices.items() if what)  # shown as Markdown
    return {**item, "description": "\n\n".join(filter(None, [item.get("description"), told if choices else none]))}
