"""Coded measurements to a regular grid: pure numpy, so that the store and a model's training share one meaning.

A measurement falls into the step that its time lies in, is converted to its channel's unit, is refused when its unit,
its coded answer or its value is not one the channel takes, and is joined with the others of its cell as the channel
says. The order in which measurements come never matters, not even to the last bit.

What says the same twice counts once: of the values of one channel that have the same code, moment, value and unit, all
but the one known first are left out, whichever resources brought them. A sum would else double with every resource that
was sent under a second id. Two codes of a channel stay two sources: 50 mL of each of two drains are 100 mL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

import numpy as np

from medflow.plugin import Channel, Coding, TimeSeriesInput
from medflow.units import SAME, Conversion, conversion

LARGEST = 1e30  # a sum over any window of values below this fits float32
SEXES = {"female": 0.0, "male": 1.0}
Concept = Coding | frozenset[Coding]  # a code, or all the codings that one element has


@dataclass(frozen=True, kw_only=True)
class Readings:
    """Measurements as columns, one element each, in any order.

    ``case`` is an index of the case; ``code`` and ``unit`` are indices into ``codes`` and ``units``. ``offset_us`` is
    when it was true, ``known_us`` when it became known: microseconds after the start of the case's window. ``answer``
    is an index into ``answers`` of what has a coded answer in place of a value, else -1; None: nothing has.
    ``resource`` is the id of the FHIR resource that each came from, where anybody asks.
    """

    codes: Sequence[Concept]
    units: Sequence[str | None]
    case: np.ndarray
    code: np.ndarray
    unit: np.ndarray
    offset_us: np.ndarray
    known_us: np.ndarray
    value: np.ndarray
    answers: Sequence[Concept] = ()
    answer: np.ndarray | None = None
    resource: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Grid:
    """``values`` (cases, steps, channels) float32, NaN where nothing was measured.

    And how many readings of each case were taken, were refused for their unit, lay outside the valid range, or had a
    coded answer that stands for no number: (cases,) each.
    """

    values: np.ndarray
    taken: np.ndarray
    wrong_unit: np.ndarray
    out_of_range: np.ndarray
    unknown_answer: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cells:
    """Readings that channels take, one element each, in the order of case, channel, time, moment known and value."""

    row: np.ndarray
    channel: np.ndarray
    value: np.ndarray
    refused: dict[str, np.ndarray] = field(default_factory=dict)  # the rows refused, by reason


def steps_of(spec: TimeSeriesInput) -> int:
    """The number of steps on the grid of ``spec``."""
    return spec.window // spec.step


def grid(spec: TimeSeriesInput, readings: Readings, cases: int) -> Grid:
    """The grid of ``cases`` cases. A reading outside the window, or of no channel's code, does not count at all."""
    steps, channels = steps_of(spec), len(spec.channels)
    step = np.floor_divide(readings.offset_us, spec.step // timedelta(microseconds=1))
    cells = _taken(spec.channels, readings, (step >= 0) & (step < steps))
    case = readings.case[cells.row]
    cell = (case * channels + cells.channel) * steps + step[cells.row]  # in order, as they are
    flat = np.full(cases * channels * steps, np.nan, dtype=np.float32)
    if len(cell):
        first = np.flatnonzero(np.r_[True, cell[1:] != cell[:-1]])
        flat[cell[first]] = _joined(spec.channels, cells.value, first, cells.channel[first])
    refused = {why: np.bincount(readings.case[rows], minlength=cases) for why, rows in cells.refused.items()}
    values = np.ascontiguousarray(flat.reshape(cases, channels, steps).transpose(0, 2, 1))
    return Grid(values=values, taken=np.bincount(case, minlength=cases), **refused)


def last_values(channels: Sequence[Channel], readings: Readings, cases: int) -> np.ndarray:
    """The last value of each channel, however old, (cases, channels) float32; NaN where there is none.

    The channels' units and ranges hold as on the grid, and an impossible last value leaves the one before it.
    """
    found = np.full(cases * len(channels), np.nan, dtype=np.float32)
    cells = _taken(channels, readings, np.ones(len(readings.case), dtype=bool))
    found[readings.case[cells.row] * len(channels) + cells.channel] = cells.value  # of several, numpy keeps the last
    return found.reshape(cases, len(channels))


def last_taken(spec: TimeSeriesInput, readings: Readings, cases: int) -> np.ndarray:
    """Which reading is the last that each channel took onto the grid: its index, (cases, channels); -1 for none."""
    found = np.full(cases * len(spec.channels), -1, dtype=np.int64)
    step = np.floor_divide(readings.offset_us, spec.step // timedelta(microseconds=1))
    cells = _taken(spec.channels, readings, (step >= 0) & (step < steps_of(spec)))
    found[readings.case[cells.row] * len(spec.channels) + cells.channel] = cells.row  # of several, numpy keeps the last
    return found.reshape(cases, len(spec.channels))


# --- what is static about an encounter -------------------------------------------------------------------------------


def age_years(birth: date, at: date) -> int:
    """Completed years."""
    return at.year - birth.year - ((at.month, at.day) < (birth.month, birth.day))


def statics(
    names: Sequence[str | Channel],
    *,
    birth: date | None,
    admitted: date,
    sex: str | None,
    types: Sequence[str],
    encounter_class: str | None = None,
    priority: Sequence[str] = (),
    admit_source: Sequence[str] = (),
) -> tuple[float, ...]:
    """The static inputs ``names`` of one encounter, NaN where unknown; of a `Channel` always (see `last_values`).

    Parameters
    ----------
    names
        As `TimeSeriesInput.statics` declares them.
    birth, admitted
        Dates, for the age at admission.
    sex
        FHIR AdministrativeGender.
    types, priority, admit_source
        The codings of these elements of the Encounter as "system|code"; none where it says nothing of them.
    encounter_class
        The code of Encounter.class.

    Raises
    ------
    ValueError
        A name that `TimeSeriesInput.statics` does not know.
    """
    known = {
        "age": float("nan") if birth is None else float(age_years(birth, admitted)),
        "sex": SEXES.get(sex or "", float("nan")),
    }
    said = {
        "encounter-type": types,
        "encounter-class": () if encounter_class is None else (encounter_class,),
        "encounter-priority": priority,
        "admit-source": admit_source,
    }
    return tuple(
        float("nan") if isinstance(name, Channel) else known[name] if name in known else _says(name, said)
        for name in names
    )


def _says(name: str, said: dict[str, Sequence[str]]) -> float:
    kind, _, value = name.partition(":")
    if kind not in said or not value:
        raise ValueError(f"{name!r} is no static input: age, sex, or one of {', '.join(f'{one}:...' for one in said)}")
    return float(value in said[kind]) if said[kind] else float("nan")


# --- readings --------------------------------------------------------------------------------------------------------


def _taken(channels: Sequence[Channel], readings: Readings, inside: np.ndarray) -> _Cells:
    """Of the readings ``inside``, what the channels take, converted, each once."""
    row, channel, source = _fan_out(channels, readings)
    kept = inside[row]
    row, channel, source = row[kept], channel[kept], source[kept]
    value = readings.value[row]
    unit = readings.unit[row]
    coded = np.zeros(len(row), dtype=bool)
    if readings.answer is not None and len(readings.answers):
        answer = readings.answer[row]
        coded = answer >= 0
        value = np.where(coded, _meanings(channels, readings.answers)[channel, answer], value)
    slope, intercept = _conversions(channels, readings.units, channel[~coded], unit[~coded])
    with np.errstate(over="ignore", invalid="ignore"):  # infinite is out of range
        converted = np.where(coded, value, value * slope[channel, unit] + intercept[channel, unit])
    low, high = _ranges(channels)
    wrong_unit = ~coded & np.isnan(slope[channel, unit])
    unknown_answer = coded & np.isnan(value)
    valid = (converted >= low[channel]) & (converted <= high[channel])  # NaN is neither
    refused = {
        "wrong_unit": row[wrong_unit],
        "unknown_answer": row[unknown_answer],
        "out_of_range": row[~valid & ~wrong_unit & ~unknown_answer],
    }
    row, channel, source, value = row[valid], channel[valid], source[valid], converted[valid]
    order = _in_order(readings, row, channel, value)
    row, channel, source, value = row[order], channel[order], source[order], value[order]
    kept = ~_repeats(readings, row, channel, source, value)
    return _Cells(row=row[kept], channel=channel[kept], value=value[kept], refused=refused)


def _in_order(readings: Readings, row: np.ndarray, channel: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The order of case, channel, time, moment known and value.

    The first three are one number to sort by, which takes a tenth of the time of sorting by all five; few are equal.
    """
    case, offset_us, known_us = readings.case[row], readings.offset_us[row], readings.known_us[row]
    if not len(row):
        return np.empty(0, dtype=np.intp)
    earliest, channels = int(offset_us.min()), int(channel.max()) + 1
    moments = int(offset_us.max()) - earliest + 1
    if (int(case.max()) + 1) * channels * moments > np.iinfo(np.int64).max:
        return np.lexsort((value, known_us, offset_us, channel, case))
    place = (case * channels + channel) * moments + (offset_us - earliest)
    order = np.argsort(place, kind="stable")
    place = place[order]
    same = place[1:] == place[:-1]
    crowd = np.flatnonzero(np.r_[same, False] | np.r_[False, same])
    some = order[crowd]
    order[crowd] = some[np.lexsort((value[some], known_us[some], place[crowd]))]
    return order


def _repeats(
    readings: Readings, row: np.ndarray, channel: np.ndarray, source: np.ndarray, value: np.ndarray
) -> np.ndarray:
    """Which readings, sorted as they are, say what one known no later says already."""
    repeated = np.zeros(len(row), dtype=bool)
    together = [column[row] for column in (readings.case, readings.offset_us)] + [channel]
    close = np.all([column[1:] == column[:-1] for column in together], axis=0)
    crowd = np.flatnonzero(np.r_[close, False] | np.r_[False, close]) if len(row) else np.empty(0, dtype=np.intp)
    if len(crowd):  # of one channel and moment; few are
        some = row[crowd]
        same = (readings.case[some], channel[crowd], source[crowd], readings.offset_us[some], value[crowd])
        same = (*same, readings.unit[some])
        order = np.lexsort((readings.known_us[some], *same))
        again = np.all([column[order][1:] == column[order][:-1] for column in same], axis=0)
        repeated[crowd[order[1:][again]]] = True
    return repeated


def _fan_out(channels: Sequence[Channel], readings: Readings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(index of a reading, channel that takes its code, which of the channel's codes it is) of every such pair."""
    order = np.argsort(readings.code, kind="stable")
    bounds = np.searchsorted(readings.code[order], np.arange(len(readings.codes) + 1))
    rows, whose, which = ([np.empty(0, dtype=np.intp)] for _ in range(3))
    for number, channel in enumerate(channels):
        for index, concept in enumerate(readings.codes):
            place = _place(concept, channel.codes)
            if place is not None:
                part = order[bounds[index] : bounds[index + 1]]
                rows.append(part)
                whose.append(np.full(len(part), number))
                which.append(np.full(len(part), place))
    return np.concatenate(rows), np.concatenate(whose), np.concatenate(which)


def _place(concept: Concept, codes: Sequence[Coding]) -> int | None:
    """The place of the first of ``codes`` that a concept has, None if it has none."""
    has = (concept,) if isinstance(concept, Coding) else concept
    return next((place for place, code in enumerate(codes) if code in has), None)


def _meanings(channels: Sequence[Channel], answers: Sequence[Concept]) -> np.ndarray:
    """(channels, answers): the number that a coded answer stands for, NaN where it stands for none."""
    found = np.full((len(channels), len(answers)), np.nan)
    for number, channel in enumerate(channels):
        codes = [item.code for item in channel.values]
        for index, answer in enumerate(answers):
            place = _place(answer, codes)
            if place is not None:
                found[number, index] = channel.values[place].value
    return found


def conversion_of(channel: Channel, unit: str | None) -> Conversion | None:
    """What turns a value in ``unit`` into one in the channel's; None for a unit that it does not take."""
    if unit == channel.unit:
        return SAME
    if unit is None:
        return None
    if unit in channel.units:
        return Conversion(channel.units[unit])
    return None if channel.unit is None else conversion(unit, channel.unit, channel.molar_mass_g_mol)


def _conversions(
    channels: Sequence[Channel], units: Sequence[str | None], channel: np.ndarray, unit: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and intercepts, (channels, units) each, of the pairs that occur; NaN for what a channel does not take.

    Only of these, as the first unit that is not the channel's own has UCUM's library read, which takes a second.
    """
    slope, intercept = np.full((2, len(channels), len(units)), np.nan)
    for place in np.unique(channel * len(units) + unit).tolist():
        one, other = divmod(place, len(units))
        found = conversion_of(channels[one], units[other])
        if found is not None:
            slope[one, other], intercept[one, other] = found.slope, found.intercept
    return slope, intercept


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
