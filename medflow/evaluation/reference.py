"""What a model's training cohort looked like, channel by channel: the ground that later inputs are held against.

It goes beside the weights into hands that may not see the cohort, so that it tells of many cases at once only: every
bin holds `SMALLEST` cases or none, edges are deciles (never the least or the largest value) rounded to three digits,
and a value that a few cases lack or have alone is said of none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from medflow.errors import ConfigurationError
from medflow.evaluation.result import SMALLEST
from medflow.evaluation.summary import Summary, one_each, summary_of
from medflow.plugin import Channel, TimeSeriesInput

BINS = 10
DIGITS = 3  # significant, of an edge
FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """How values lie: ``shares`` (0..1) of the cases in the ``len(edges) + 1`` bins; an edge is of the bin above it."""

    edges: tuple[float, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One channel, or one static: the share of cases without it, and how it lies in those that have it.

    ``values`` are of the mean over the window, or of the static; ``readings`` of how many steps hold a value. None
    where fewer than ``SMALLEST`` cases have any.
    """

    name: str
    unit: str | None
    missing: float
    values: Spread | None
    readings: Spread | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """The training cohort of one time-series input."""

    format: int
    input: str
    cases: int
    channels: tuple[Column, ...]
    statics: tuple[Column, ...]


_REFERENCE = TypeAdapter(Reference)


def reference_of(
    values: np.ndarray, statics: np.ndarray, spec: TimeSeriesInput, *, patients: np.ndarray | None = None
) -> dict[str, Any]:
    """The reference of a training cohort, as a JSON object.

    Parameters
    ----------
    values
        (n, steps, channels) float32 as in `TimeSeries`, NaN where nothing was measured.
    statics
        (n, k) float32, NaN unknown.
    spec
        What they are an input of.
    patients
        (n,): whose case each is, where a patient may have several: one of them counts.

    Raises
    ------
    ConfigurationError
        The cohort is too small to be told of without telling of its patients.
    """
    if patients is not None:
        rows = one_each(patients)
        values, statics = values[rows], statics[rows]
    return _REFERENCE.dump_python(reference_of_summary(summary_of(values, statics), spec), mode="json")


def reference_of_summary(summary: Summary, spec: TimeSeriesInput) -> Reference:
    """The reference of summarised cases; raises like `reference_of`."""
    if len(summary) < SMALLEST:
        raise ConfigurationError(f"a reference of inputs tells of {SMALLEST} cases or more, not of {len(summary)}")
    return Reference(
        format=FORMAT,
        input=spec.name,
        cases=len(summary),
        channels=tuple(
            _column(channel.name, channel.unit, summary.means[:, place], summary.readings[:, place])
            for place, channel in enumerate(spec.channels)
        ),
        statics=tuple(
            _column(name, unit, summary.statics[:, place]) for place, (name, unit) in enumerate(statics_of(spec))
        ),
    )


def read_reference(data: bytes, spec: TimeSeriesInput) -> Reference:
    """A reference from its JSON.

    Raises
    ------
    ConfigurationError
        It is none, or not of this input's channels.
    """
    try:
        found = _REFERENCE.validate_json(data)
    except ValidationError:
        raise ConfigurationError("the model's reference of inputs cannot be read: it is of another format") from None
    return checked(found, spec)


def checked(found: Reference, spec: TimeSeriesInput) -> Reference:
    """The reference, if it is of this input; ConfigurationError otherwise."""
    told = [(column.name, column.unit) for column in (*found.channels, *found.statics)]
    declared = [(channel.name, channel.unit) for channel in spec.channels] + statics_of(spec)
    broken = [
        spread
        for column in (*found.channels, *found.statics)
        for spread in (column.values, column.readings)
        if spread is not None and len(spread.shares) != len(spread.edges) + 1
    ]
    if found.format != FORMAT or told != declared or broken:
        raise ConfigurationError("the model's reference of inputs is not of the channels that the model declares")
    return found


def from_json(data: dict[str, Any], spec: TimeSeriesInput) -> Reference:
    """A reference from what `reference_of` gave; raises like `read_reference`."""
    try:
        return checked(_REFERENCE.validate_python(data), spec)
    except ValidationError:
        raise ConfigurationError("this is no reference of inputs") from None


def statics_of(spec: TimeSeriesInput) -> list[tuple[str, str | None]]:
    """Name and unit of each static."""
    return [(item.name, item.unit) if isinstance(item, Channel) else (item, None) for item in spec.statics]


def counts_in(edges: Sequence[float] | np.ndarray, values: np.ndarray) -> np.ndarray:
    """How many values lie in each bin."""
    places = np.searchsorted(np.asarray(edges, dtype=np.float64), values.astype(np.float64), side="right")
    return np.bincount(places, minlength=len(edges) + 1)


def _column(name: str, unit: str | None, values: np.ndarray, readings: np.ndarray | None = None) -> Column:
    known = np.isfinite(values)
    return Column(
        name=name,
        unit=unit,
        missing=shown_share(int((~known).sum()), len(known)),
        values=_spread(values[known]),
        readings=None if readings is None else _spread(readings[known]),
    )


def shown_share(count: int, cases: int) -> float:
    """A share that may be shown: 0 or 1 where fewer than `SMALLEST` cases stand on one side."""
    if min(count, cases - count) < SMALLEST:
        return float(2 * count > cases)
    return round(count / cases, 4)


def _spread(values: np.ndarray) -> Spread | None:
    if len(values) < SMALLEST:
        return None
    edges = _edges(values)
    counts = counts_in(edges, values)
    while (few := np.flatnonzero((counts > 0) & (counts < SMALLEST))).size:  # empty bins tell of nobody and may stay
        edges = np.delete(edges, max(few[0] - 1, 0))
        counts = counts_in(edges, values)
    shares = tuple(round(float(count) / len(values), 4) for count in counts)
    return Spread(edges=tuple(map(float, edges)), shares=shares)


def _edges(values: np.ndarray) -> np.ndarray:
    """Rounded deciles; one at which many values lie (0, 1, a score) becomes two edges close around it."""
    parts = min(BINS, len(values) // SMALLEST)
    values = values.astype(np.float64)
    inner = np.quantile(values, np.arange(parts + 1) / parts, method="inverted_cdf")
    least = float(np.abs(values).max()) * 1e-3 or 1e-3  # what is small beside the values: the width around a zero
    edges: set[float] = set()
    for place, value in enumerate(inner.tolist()):
        if (values == value).sum() >= max(SMALLEST, len(values) / parts):
            edges.update(_around(value, least))
        elif 0 < place < parts:
            edges.add(_rounded(value))
    return np.array(sorted(edges))


def _around(value: float, least: float) -> tuple[float, float]:
    """Two rounded edges of which the lower is at most ``value`` and the upper is above it."""
    step = least if abs(value) < least else 10.0 ** (floor(log10(abs(value))) - DIGITS + 1)
    number = floor(value / step + 0.5)
    if _rounded(number * step) > value:
        number -= 1
    return _rounded(number * step), _rounded((number + 1) * step)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
