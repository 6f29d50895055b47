"""The drift of a model's inputs: what its predictions were made from, read again, beside its training cohort.

Each input is read as it was at its own prediction time, part by part, and of each patient one; no outcome is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medflow.errors import ConfigurationError
from medflow.evaluation.input_drift import drift_of, worst
from medflow.evaluation.reference import Reference, read_reference
from medflow.evaluation.result import SMALLEST, InputDrift
from medflow.evaluation.summary import Summary, one_each, summary_of, together
from medflow.plugin import TimeSeriesInput
from medflow.records import Instant
from medflow.registry import RegisteredModel
from medflow.store import Connection
from medflow.store.outcomes import Asked, answered_since
from medflow.store.timeseries import load_series
from medflow.store.units import unit_facts
from medflow.trained import reference_bytes

MOST = 20_000  # cases: more say no more, and take longer to read
AT_ONCE = 1000


def input_drift(
    connection: Connection, model: RegisteredModel, asked: Sequence[Asked], *, most: int = MOST
) -> InputDrift:
    """The inputs of these predictions beside the reference that the model brings; of many ``most`` are drawn.

    Raises
    ------
    ConfigurationError
        The model brings no reference, or one of other channels; or there are predictions of fewer than ten patients.
    PluginBroken
        The reference is missing, or not the file that the spec names.
    """
    spec, reference = reference_for(model)
    chosen = _chosen(connection, model, asked, most)
    if len(chosen) < SMALLEST:
        raise ConfigurationError(
            f"drift of the inputs of {model.name} is shown for {SMALLEST} patients or more: there are predictions of "
            f"{len(chosen)}"
        )
    now = _read(connection, spec, chosen)
    if len(now) < SMALLEST:
        raise ConfigurationError(f"fewer than {SMALLEST} inputs of {model.name} can still be read as they were")
    columns = tuple(drift_of(reference, now))
    return InputDrift(
        trained_on=reference.cases,
        asked=len(asked),
        cases=len(now),
        unusable=len(chosen) - len(now),
        verdict=worst(columns),
        columns=columns,
    )


def drift_since(connection: Connection, model: RegisteredModel, since_us: int, *, most: int = MOST) -> InputDrift:
    """The inputs of what the version that answers now has answered since then; raises like `input_drift`."""
    reference_for(model)
    asked = answered_since(connection, model.name, model.spec.version, since_us)
    return input_drift(connection, model, asked, most=most)


def reference_for(model: RegisteredModel) -> tuple[TimeSeriesInput, Reference]:
    """The model's time series, and what it says of those that it was trained on; raises like `input_drift`."""
    series = [item for item in model.spec.accepts if isinstance(item, TimeSeriesInput)]
    data = reference_bytes(model) if len(series) == 1 else None
    if data is None:
        raise ConfigurationError(
            f"{model.name} {model.spec.version} brings no reference of the inputs that it was trained on, so that "
            "their drift cannot be told (a version that `medflow train` makes of a time-series model has one)"
        )
    return series[0], read_reference(data, series[0])


def _chosen(connection: Connection, model: RegisteredModel, asked: Sequence[Asked], most: int) -> list[Asked]:
    facts = unit_facts(connection, model.spec.unit, [item.unit_id for item in asked])
    of_someone = [item for item in asked if item.unit_id in facts and facts[item.unit_id].patient_id is not None]
    patients = np.array([facts[item.unit_id].patient_id for item in of_someone], dtype=np.int64)
    rows = one_each(patients)
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
    return [of_someone[row] for row in rows]


def _read(connection: Connection, spec: TimeSeriesInput, chosen: Sequence[Asked]) -> Summary:
    parts = []
    for start in range(0, len(chosen), AT_ONCE):
        units = [(item.unit_id, Instant(utc_us=item.time_us)) for item in chosen[start : start + AT_ONCE]]
        block = load_series(connection, spec, units)
        usable = [place for place in range(len(units)) if place not in block.refused]
        parts.append(summary_of(block.values[usable], block.statics[usable]))
    return together(parts)
