"""Evaluating a model: what it predicted, what came of it, and how well the two agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from medflow.config import LabelTable, Settings
from medflow.errors import ConfigurationError, PluginBroken
from medflow.evaluation.inputs import input_drift
from medflow.evaluation.join import join
from medflow.evaluation.labels import read_labels
from medflow.evaluation.measure import Joined, measured, several
from medflow.evaluation.observed import check_observable
from medflow.evaluation.outcomes import Question, outcomes_of
from medflow.evaluation.result import SMALLEST, Evaluation, InputDrift
from medflow.plugin import Classification, ModelSpec, OutputSpec, Risk, TimeSeriesInput
from medflow.registry import RegisteredModel
from medflow.store import Connection, Store
from medflow.store.outcomes import Scored, every_prediction, live_predictions, people
from medflow.store.units import unit_facts


def evaluate(
    store: Store,
    settings: Settings,
    model: RegisteredModel,
    *,
    output: str | None = None,
    labels: LabelTable | None = None,
) -> Evaluation:
    """Hold a model's predictions against labels, or against what the store's records say where none are given.

    Of a model that is asked once about a unit its live predictions count; of one that is asked again as time goes on
    (`rolling`) every prediction, each against what came after it.

    Raises
    ------
    ConfigurationError
        There is no such output, no way to know its outcomes, or fewer than ten patients' predictions have one.
    """
    chosen = choose_output(model, output)
    table = read_labels(labels, chosen, settings.zone) if labels is not None else None
    if table is None:
        check_observable(chosen, model.spec.unit)
    with store.reading() as connection:
        read = every_prediction if rolling(model.spec) else live_predictions
        found = read(connection, model.name, chosen.name)
        scored, left_out = _usable(found, model)
        if not scored:
            raise ConfigurationError(
                f"there are no predictions of {chosen.name} by {model.name} {model.spec.version}: "
                f"run `medflow score --model {model.name}` first"
            )
        facts = unit_facts(connection, model.spec.unit, [item.unit_id for item in scored])
        patients = {unit: fact.patient_id for unit, fact in facts.items()}
        question = Question(unit=model.spec.unit, output=chosen, table=table)
        outcomes, unmatched = outcomes_of(connection, settings, question, scored)
        who = people(connection, [patient for patient in patients.values() if patient is not None])
        inputs = _inputs(connection, model, scored)
    cases, unknown = join(scored, outcomes, patients, who, classes=several(chosen))
    left_out += unknown
    if len(np.unique(cases.patients)) < SMALLEST:
        raise ConfigurationError(_too_few(model, chosen, len(found), len(cases.truth), left_out, unmatched))
    held = measured(
        model.spec,
        chosen,
        Joined(
            cases=cases,
            left_out=left_out,
            predictions=len(found),
            every=rolling(model.spec),
            digests=tuple(sorted({item.digest for item in scored})),
            labels_sha256=None if table is None else table.sha256,
            labels_unmatched=unmatched,
        ),
    )
    return replace(held, inputs_unknown=inputs) if isinstance(inputs, str) else replace(held, inputs=inputs)


def _inputs(connection: Connection, model: RegisteredModel, scored: Sequence[Scored]) -> InputDrift | str | None:
    """The drift of their inputs, or why it is not told; None of a model that reads no time series."""
    if not any(isinstance(item, TimeSeriesInput) for item in model.spec.accepts):
        return None
    try:
        return input_drift(connection, model, scored)
    except (ConfigurationError, PluginBroken) as error:  # how good the model was can be told without it
        return error.message


def rolling(spec: ModelSpec) -> bool:
    """Whether the model is asked about a unit again and again, at moments that move with the time."""
    return any(isinstance(item, TimeSeriesInput) and item.anchor == "prediction-time" for item in spec.accepts)


def choose_output(model: RegisteredModel, name: str | None) -> Risk | Classification:
    """The output to evaluate: the one named, or the only one that has a yes, no or class to compare with.

    Raises
    ------
    ConfigurationError
        None, or several; the message lists them.
    """
    known = [item for item in model.spec.outputs if isinstance(item, (Risk, Classification))]
    names = ", ".join(item.name for item in known)
    if name is None and len(known) == 1:
        return known[0]
    if not known:
        raise ConfigurationError(f"{model.name} has no risk or classification: there is no outcome to hold it against")
    if name is None:
        raise ConfigurationError(
            f"{model.name} has {len(known)} outputs that can be evaluated; name one (--output): {names}"
        )
    for item in known:
        if item.name == name:
            return item
    raise ConfigurationError(f"{model.name} has no risk or classification called {name!r}; it has: {names}")


def _usable(found: Sequence[Scored], model: RegisteredModel) -> tuple[list[Scored], Counter[str]]:
    """The predictions of the installed version that have a value; the others are counted."""
    scored: list[Scored] = []
    left_out: Counter[str] = Counter()
    for item in found:
        if item.version != model.spec.version:
            left_out["of-another-version"] += 1
        elif item.out_of_scope or item.value is None:
            left_out["out-of-scope-of-the-model"] += 1
        else:
            scored.append(item)
    return scored, left_out


def _too_few(
    model: RegisteredModel, output: OutputSpec, found: int, cases: int, left_out: Mapping[str, int], unmatched: int
) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
    beside = f"; {unmatched} lines of the label table name no prediction" if unmatched else ""
    many = "none has" if not cases else f"those of fewer than {SMALLEST} patients have"
    told = f"of {found} predictions of {output.name} by {model.name}, {many} a known outcome ({reasons}{beside})"
    if unmatched and "no-label" in left_out:
        told += ": a line names its unit by FHIR id, UID or name, or by system|value of an identifier"
    return told
