"""Coded measurements to a regular grid: pure numpy, so that the store and a model's training share one meaning.

A measurement falls into the step that its time lies in, is converted to its channel's unit, is refused when its unit or
its value is not one the channel takes, and is joined with the others of its cell as the channel says. The order in
which measurements come never matters, not even to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from medflow.plugin import Channel, Coding, TimeSeriesInput

LARGEST = 1e30  # a sum over any window of values below this fits float32
SEXES = {"female": 0.0, "male": 1.0}


@dataclass(frozen=True, kw_only=True)
class Readings:
    """Measurements as columns, one element each, in any order.

    ``case`` is an index of the case; ``code`` and ``unit`` are indices into ``codes`` and ``units``. ``offset_us`` is
    when it was true, ``known_us`` when it became known: microseconds after the start of the case's window.
    """

    codes: Sequence[Coding]
    units: Sequence[str | None]
    case: np.ndarray
    code: np.ndarray
    unit: np.ndarray
    offset_us: np.ndarray
    known_us: np.ndarray
    value: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Grid:
    """``values`` (cases, steps, channels) float32, NaN where nothing was measured; and how many readings of each case
    were taken, were refused for their unit, or lay outside the valid range: (cases,) each.
    """

    values: np.ndarray
    taken: np.ndarray
    wrong_unit: np.ndarray
    out_of_range: np.ndarray


def steps_of(spec: TimeSeriesInput) -> int:
    """The number of steps on the grid of ``spec``."""
    return spec.window // spec.step


def grid(spec: TimeSeriesInput, readings: Readings, cases: int) -> Grid:
    """The grid of ``cases`` cases. A reading outside the window, or of no channel's code, does not count at all."""
    steps, channels = steps_of(spec), len(spec.channels)
    step = np.floor_divide(readings.offset_us, spec.step // timedelta(microseconds=1))
    inside = (step >= 0) & (step < steps)
    row, channel = _fan_out(spec.channels, readings)
    kept = inside[row]
    row, channel = row[kept], channel[kept]

    with np.errstate(over="ignore"):  # infinite is out of range
        value = readings.value[row] * _factors(spec.channels, readings.units)[channel, readings.unit[row]]
    low, high = _ranges(spec.channels)
    known_unit = ~np.isnan(value) | np.isnan(readings.value[row])
    valid = (value >= low[channel]) & (value <= high[channel])  # NaN is neither
    case = readings.case[row]
    counts = [np.bincount(case[which], minlength=cases) for which in (valid, ~known_unit, known_unit & ~valid)]

    row, channel, value = row[valid], channel[valid], value[valid]
    cell = (readings.case[row] * steps + step[row]) * channels + channel
    flat = np.full(cases * steps * channels, np.nan, dtype=np.float32)
    order = np.lexsort((value, readings.known_us[row], readings.offset_us[row], cell))
    cell, value = cell[order], value[order]
    if len(cell):
        first = np.flatnonzero(np.r_[True, cell[1:] != cell[:-1]])
        flat[cell[first]] = _joined(spec.channels, value, first, cell[first] % channels)
    taken, wrong_unit, out_of_range = counts
    return Grid(
        values=flat.reshape(cases, steps, channels), taken=taken, wrong_unit=wrong_unit, out_of_range=out_of_range
    )


def age_years(birth: date, at: date) -> int:
    """Completed years."""
    return at.year - birth.year - ((at.month, at.day) < (birth.month, birth.day))


def statics(
    names: Sequence[str], *, birth: date | None, admitted: date, sex: str | None, types: Sequence[str]
) -> tuple[float, ...]:
    """The static inputs ``names`` of one encounter, NaN where unknown.

    Parameters
    ----------
    names
        As `TimeSeriesInput.statics` declares them.
    birth, admitted
        Dates, for the age at admission.
    sex
        FHIR AdministrativeGender.
    types
        Encounter types as "system|code".

    Raises
    ------
    ValueError
        A name that is not age, sex or encounter-type:<system>|<code>.
    """
    known = {
        "age": float("nan") if birth is None else float(age_years(birth, admitted)),
        "sex": SEXES.get(sex or "", float("nan")),
    }
    return tuple(known[name] if name in known else _has_type(name, types) for name in names)


def _has_type(name: str, types: Sequence[str]) -> float:
    kind, _, value = name.partition(":")
    if kind != "encounter-type" or not value:
        raise ValueError(f"{name!r} is no static input: age, sex or encounter-type:<system>|<code>")
    return float(value in types)


def _fan_out(channels: Sequence[Channel], readings: Readings) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (index of a reading, channel that takes its code): one code may feed several channels."""
    order = np.argsort(readings.code, kind="stable")
    bounds = np.searchsorted(readings.code[order], np.arange(len(readings.codes) + 1))
    rows: list[np.ndarray] = [np.empty(0, dtype=np.intp)]
    for channel in channels:
        taken = [
            order[bounds[index] : bounds[index + 1]]
            for index, code in enumerate(readings.codes)
            if code in channel.codes
        ]
        rows.append(np.concatenate(taken) if taken else rows[0])
    lengths = [len(part) for part in rows[1:]]
    return np.concatenate(rows), np.repeat(np.arange(len(channels)), lengths)


def _factors(channels: Sequence[Channel], units: Sequence[str | None]) -> np.ndarray:
    """(channels, units): what turns a unit into the channel's own; NaN for one it does not take."""
    accepted = [{channel.unit: 1.0, **channel.units} for channel in channels]
    return np.array([[known.get(unit, np.nan) for unit in units] for known in accepted]).reshape(len(channels), -1)


def _ranges(channels: Sequence[Channel]) -> tuple[np.ndarray, np.ndarray]:
    ranges = np.array([channel.valid_range or (-LARGEST, LARGEST) for channel in channels], dtype=np.float64)
    clipped = np.clip(ranges.reshape(-1, 2), -LARGEST, LARGEST)
    return clipped[:, 0], clipped[:, 1]


def _joined(channels: Sequence[Channel], value: np.ndarray, first: np.ndarray, channel: np.ndarray) -> np.ndarray:
    """One value a cell: ``value`` is sorted by cell, and by time within it; ``first`` is where each cell begins."""
    ways = np.array([item.aggregate for item in channels])[channel]
    ends = np.r_[first[1:], len(value)]
    total = np.add.reduceat(value, first)
    choices = {
        "last": value[ends - 1],
        "mean": total / (ends - first),
        "min": np.minimum.reduceat(value, first),
        "max": np.maximum.reduceat(value, first),
        "sum": total,
        "count": (ends - first).astype(np.float64),
    }
    return np.select([ways == way for way in choices], list(choices.values()))
