"""Time series of encounters: which encounters are due for a model, and what it is given of them, set by set.

What may be seen of an encounter is one condition for both (`medflow.store.measurements`), so that what is scored is
what was selected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Connection, Row, and_, exists, func, or_, select

from medflow.errors import InputNotUsable
from medflow.plugin import Channel, TimeSeries, TimeSeriesInput
from medflow.records import DueUnit, Instant, Unit, UnitKind, digest_of
from medflow.store.bulk import rows_at_once
from medflow.store.due import not_yet_seen
from medflow.store.ledger import now_us
from medflow.store.measurements import (
    VOID_MEASUREMENT,
    Wanted,
    changed_between,
    readings,
    static_channels,
    visible,
    wanted_of,
)
from medflow.store.tables import EncounterRow, JobRow, MeasurementRow, PatientRow
from medflow.timeseries import Grid, grid, last_values, statics, steps_of

__all__ = ["VOID_ENCOUNTER", "VOID_MEASUREMENT", "SeriesBlock", "due_encounters", "load_series"]

CHUNK = 1000  # encounters in one statement: four parameters each, with room for a model's concepts
LOOKED_AT = 512  # encounters at once when what is due is looked for: the device waits for the first of them
VOID_ENCOUNTER = ("planned", "cancelled", "entered-in-error")  # FHIR EncounterStatus
# a measurement that names no encounter raises its patient's revision only; both grow, so that no two states are equal
REVISION = EncounterRow.revision * 1_000_000 + PatientRow.revision
OPEN_ENCOUNTER = ("arrived", "triaged", "in-progress", "onleave")


@dataclass(frozen=True, kw_only=True)
class SeriesBlock:
    """The series of many encounters at once.

    ``values`` (n, steps, channels) float32, NaN where nothing was measured; ``statics`` (n, k) float32, NaN unknown;
    ``refused`` says by position why a model is not given that one (its values are whatever there was).
    """

    values: np.ndarray
    statics: np.ndarray
    refused: Mapping[int, InputNotUsable]

    def cases(self) -> list[TimeSeries | InputNotUsable]:
        """One by one, in order: the series, or why there is none."""
        return [
            self.refused.get(place) or TimeSeries(values=values, statics=statics)
            for place, (values, statics) in enumerate(zip(self.values, self.statics, strict=True))
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stay:
    """An encounter and what is static about it."""

    id: int
    revision: int
    start: Instant
    statics: tuple[float, ...]


def due_encounters(
    connection: Connection,
    spec: TimeSeriesInput,
    *,
    as_of: Instant,
    model_id: int,
    expect: Callable[[int], None] = lambda _count: None,
) -> Iterator[DueUnit]:
    """The encounters whose input may be new to this model, in the order of their ids, `LOOKED_AT` at a time.

    Anchored at admission: those still open when their window had passed, once it has. Anchored at the prediction time:
    those open at ``as_of``, if anything became known since the model last looked, and it has not looked at a later
    moment already. An encounter without a single measurement that the model reads is not due. The input_key covers the
    measurements up to the prediction time and the statics, whatever their order, so that a moving window alone scores
    nothing anew. ``expect`` is told at the very first how many may be due.
    """
    wanted = wanted_of(connection, spec)
    fixed = wanted_of(connection, spec, static=True) if static_channels(spec) else None
    candidates = _candidates(connection, spec, [one for one in (wanted, fixed) if one], as_of, model_id)
    expect(len(candidates))
    admission = spec.anchor == "admission"
    window_us = _us(spec.window)
    for start in range(0, len(candidates), LOOKED_AT):
        chunk = {row.id: _stay(spec, row) for row in candidates[start : start + LOOKED_AT]}
        for encounter_id, key in _keys(connection, spec, wanted, fixed, chunk, as_of).items():
            stay = chunk[encounter_id]
            moment = Instant(utc_us=stay.start.utc_us + window_us, offset_min=stay.start.offset_min)
            yield DueUnit(
                unit=Unit(kind=UnitKind.ENCOUNTER, id=stay.id),
                revision=stay.revision,
                input_key=key,
                prediction_time=moment if admission else as_of,
            )


def input_keys(connection: Connection, spec: TimeSeriesInput, units: Sequence[tuple[int, Instant]]) -> list[str | None]:
    """The input_key that each of ``units`` has now; None where there is nothing to be given.

    ``units`` are pairs of an encounter's id and the prediction time.
    """
    wanted = wanted_of(connection, spec)
    fixed = wanted_of(connection, spec, static=True) if static_channels(spec) else None
    found: dict[tuple[int, Instant], str] = {}
    for moment in {moment for _, moment in units}:
        ids = sorted({encounter_id for encounter_id, its in units if its == moment})
        for start in range(0, len(ids), CHUNK):
            query = _stays().where(EncounterRow.id.in_(ids[start : start + CHUNK]))
            stays = {row.id: _stay(spec, row) for row in connection.execute(query)}
            keys = _keys(connection, spec, wanted, fixed, stays, moment)
            found.update({(encounter_id, moment): key for encounter_id, key in keys.items()})
    return [found.get(unit) for unit in units]


def _keys(
    connection: Connection,
    spec: TimeSeriesInput,
    wanted: Wanted,
    fixed: Wanted | None,
    stays: Mapping[int, _Stay],
    moment: Instant,
) -> dict[int, str]:
    """The input_key of each of ``stays`` that has a measurement; ``moment`` counts where the window ends at it."""
    admission = spec.anchor == "admission"
    after = EncounterRow.start_us if admission else None
    until: Any = EncounterRow.start_us + _us(spec.window) if admission else moment.utc_us
    marks = _marks(connection, stays, visible(wanted, after=after, until=until))
    more = _marks(connection, marks, visible(fixed, after=None, until=until)) if fixed else {}
    return {
        key: digest_of(stay.start.utc_us, *marks[key], *stay.statics, *more.get(key, ()))
        for key, stay in stays.items()
        if key in marks
    }


def load_series(connection: Connection, spec: TimeSeriesInput, units: Sequence[tuple[int, Instant]]) -> SeriesBlock:
    """What the model is given for ``units`` as one block, in their order; reading needs memory for a part of them.

    ``units`` are pairs of an encounter's id and the prediction time, at which its window ends.
    """
    block = SeriesBlock(
        values=np.full((len(units), steps_of(spec), len(spec.channels)), np.nan, dtype=np.float32),
        statics=np.full((len(units), len(spec.statics)), np.nan, dtype=np.float32),
        refused={},
    )
    wanted = wanted_of(connection, spec)
    fixed = wanted_of(connection, spec, static=True) if static_channels(spec) else None
    refused: dict[int, InputNotUsable] = {}
    for start in range(0, len(units), CHUNK):
        chunk = units[start : start + CHUNK]
        places = slice(start, start + len(chunk))
        cells = grid(spec, readings(connection, wanted, chunk, _us(spec.window)), len(chunk))
        block.values[places] = cells.values
        query = _stays().where(EncounterRow.id.in_({encounter_id for encounter_id, _ in chunk}))
        stays = {row.id: _stay(spec, row) for row in connection.execute(query)}
        for place, (encounter_id, _) in enumerate(chunk):
            if encounter_id in stays:
                block.statics[start + place] = stays[encounter_id].statics
        if fixed is not None:
            found = last_values(fixed.channels, readings(connection, fixed, chunk, None), len(chunk))
            block.statics[places, [isinstance(item, Channel) for item in spec.statics]] = found
        known = np.array([encounter_id in stays for encounter_id, _ in chunk], dtype=bool)
        reasons = _refusals(spec, cells, block.statics[places], known)
        refused.update({start + place: reason for place, reason in reasons.items()})
    return SeriesBlock(values=block.values, statics=block.statics, refused=refused)


# --- coverage ----------------------------------------------------------------------------------------------------


def _refusals(spec: TimeSeriesInput, cells: Grid, fixed: np.ndarray, known: np.ndarray) -> dict[int, InputNotUsable]:
    """Why each case is refused that is not to be scored, by its position."""
    measured: np.ndarray = ~np.isnan(cells.values)
    channels: np.ndarray = np.any(measured, axis=1)
    steps: np.ndarray = np.any(measured, axis=2).sum(axis=1)
    lacking = _lacking(spec, channels, fixed)
    short = (cells.taken < spec.min_measurements) | lacking.any(axis=1)
    short |= (channels.sum(axis=1) < spec.min_channels) | (steps < spec.min_steps) | ~known
    return {
        int(place): _reason(spec, cells, int(place), bool(known[place]), channels[place], int(steps[place]), lacking)
        for place in np.flatnonzero(short)
    }


def _lacking(spec: TimeSeriesInput, channels: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """(cases, channels and statics): a required channel that has no value."""
    required = np.array([channel.required for channel in spec.channels], dtype=bool)
    constant = np.array([isinstance(item, Channel) and item.required for item in spec.statics], dtype=bool)
    return np.concatenate([required & ~channels, constant & np.isnan(fixed)], axis=1)


def _reason(
    spec: TimeSeriesInput, cells: Grid, place: int, known: bool, channels: np.ndarray, steps: int, lacking: np.ndarray
) -> InputNotUsable:
    if not known:
        return InputNotUsable("encounter-incomplete", "the encounter's start or patient is no longer known")
    taken, filled, refused = int(cells.taken[place]), int(channels.sum()), _also(cells, place)
    if taken < spec.min_measurements:
        reason = f"{taken} measurements in the window, {spec.min_measurements} needed{refused}"
        return InputNotUsable("too-few-measurements", reason)
    if lacking[place].any():
        named = [*spec.channels, *spec.statics]
        names = [
            item.name for item, lacks in zip(named, lacking[place], strict=True) if lacks and not isinstance(item, str)
        ]
        return InputNotUsable("channel-missing", f"no value of {', '.join(names)}, which is required{refused}")
    if filled < spec.min_channels:
        reason = f"values of {filled} channels in the window, {spec.min_channels} needed{refused}"
        return InputNotUsable("too-few-channels", reason)
    return InputNotUsable("too-few-steps", f"values in {steps} steps of the window, {spec.min_steps} needed{refused}")


def _also(cells: Grid, place: int) -> str:
    """What else there was in the window of a case, and counted for nothing; empty where that is nothing."""
    counted = (
        (cells.wrong_unit[place], "in another unit"),
        (cells.out_of_range[place], "out of range"),
        (cells.unknown_answer[place], "as a coded answer that stands for no number"),
    )
    said = " and ".join(f"{count} {why}" for count, why in counted if count)
    return f"; refused were {said}" if said else ""


# --- encounters --------------------------------------------------------------------------------------------------


def _candidates(
    connection: Connection, spec: TimeSeriesInput, read: Sequence[Wanted], as_of: Instant, model_id: int
) -> Sequence[Row[Any]]:
    query = _stays().where(EncounterRow.status.not_in(VOID_ENCOUNTER)).order_by(EncounterRow.id)
    if spec.anchor == "admission":
        query = query.where(
            EncounterRow.start_us <= as_of.utc_us - _us(spec.window),
            or_(EncounterRow.end_us.is_(None), EncounterRow.end_us >= EncounterRow.start_us + _us(spec.window)),
            not_yet_seen(model_id, UnitKind.ENCOUNTER, EncounterRow.id, REVISION),
        )
    else:
        still_open = and_(EncounterRow.end_us.is_(None), EncounterRow.status.in_(OPEN_ENCOUNTER))
        query = query.where(
            EncounterRow.start_us <= as_of.utc_us,
            or_(still_open, EncounterRow.end_us > as_of.utc_us),
            ~_seen_all(model_id, read, as_of),
            ~_looked_later(model_id, as_of),
        )
    return connection.execute(query).all()


def _seen_all(model_id: int, read: Sequence[Wanted], as_of: Instant) -> ColumnElement[bool]:
    """SQL condition: the model looked at this revision of the encounter, and nothing became known between then and now.

    What is known grows with the time alone: a result may be stored before the moment at which it was issued. Whether
    the patient has any such is told by ``latest_us``, so that an open encounter with nothing new costs no look at its
    measurements; where it may have one, they decide.
    """
    since = [
        exists(
            select(MeasurementRow.ordinal)
            .where(changed_between(wanted, JobRow.prediction_time_us, as_of.utc_us))
            .correlate(EncounterRow, JobRow)
        )
        for wanted in read
    ]
    looked = select(JobRow.id).where(
        JobRow.model_id == model_id,
        JobRow.unit_kind == str(UnitKind.ENCOUNTER),
        JobRow.unit_id == EncounterRow.id,
        JobRow.unit_revision == REVISION,
        JobRow.prediction_time_us <= as_of.utc_us,
        or_(PatientRow.latest_us < JobRow.prediction_time_us, ~or_(*since)),
    )
    return exists(looked.correlate(EncounterRow, PatientRow))


def _looked_later(model_id: int, as_of: Instant) -> ColumnElement[bool]:
    """SQL condition: the model looked at the encounter at a later moment, whose result an earlier one may not replace.

    A moment that has not come yet, asked for by mistake, does not count: it would stop every night until then.
    """
    later = select(JobRow.id).where(
        JobRow.model_id == model_id,
        JobRow.unit_kind == str(UnitKind.ENCOUNTER),
        JobRow.unit_id == EncounterRow.id,
        JobRow.prediction_time_us > as_of.utc_us,
        JobRow.prediction_time_us <= now_us(),
    )
    return exists(later.correlate(EncounterRow))


def _stays() -> Any:
    return (
        select(EncounterRow.id, REVISION.label("revision"), EncounterRow.start_us, EncounterRow.start_offset)
        .add_columns(EncounterRow.types, EncounterRow.encounter_class, EncounterRow.priority, EncounterRow.admit_source)
        .add_columns(PatientRow.birth_date, PatientRow.sex)
        .join(PatientRow, PatientRow.id == EncounterRow.patient_id)
        .where(EncounterRow.start_us.is_not(None))
    )


def _stay(spec: TimeSeriesInput, row: Row[Any]) -> _Stay:
    start = Instant(utc_us=row.start_us, offset_min=row.start_offset or 0)
    birth: date | None = row.birth_date
    fixed = statics(
        spec.statics,
        birth=birth,
        admitted=start.datetime().date(),
        sex=row.sex,
        types=row.types,
        encounter_class=row.encounter_class,
        priority=(row.priority or "").splitlines(),
        admit_source=(row.admit_source or "").splitlines(),
    )
    return _Stay(id=row.id, revision=row.revision, start=start, statics=fixed)


def _marks(
    connection: Connection, encounters: Mapping[int, Any], seen: ColumnElement[bool]
) -> dict[int, tuple[int, int, int]]:
    """What identifies the measurements of each encounter that are seen."""
    sums = func.count(), func.sum(MeasurementRow.mark_1), func.sum(MeasurementRow.mark_2)
    if connection.dialect.name == "postgresql":
        # encounter by encounter: left to join them, it reads the measurements of everybody where a window has no start
        each = select(*(one.label(f"mark_{place}") for place, one in enumerate(sums))).where(seen)
        marks = each.correlate(EncounterRow).lateral("marks")
        query = select(EncounterRow.id, *marks.c).join(marks, marks.c.mark_0 > 0)
    else:
        query = select(EncounterRow.id, *sums).join(MeasurementRow, seen).group_by(EncounterRow.id)
    query = query.where(EncounterRow.id.in_(list(encounters)))
    # PostgreSQL's sum of bigint is numeric: a Decimal, which would print otherwise than SQLite's
    return {key: (count, int(one), int(other)) for key, count, one, other in rows_at_once(connection, query)}


def _us(span: timedelta) -> int:
    return span // timedelta(microseconds=1)
