"""Measurements of encounters for time-series models: which encounters are due, and their grids, set by set.

Both questions rest on one condition (`_visible`): what a model may see of an encounter. A measurement is the
encounter's when it names it, or names none and is of the same patient; it counts from when it was known until a
correction took its place. A static channel (a height) is the patient's, whichever encounter it names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    Row,
    and_,
    column,
    exists,
    func,
    or_,
    select,
    tuple_,
    values,
)

from medflow.errors import InputNotUsable
from medflow.plugin import Coding, TimeSeries, TimeSeriesInput
from medflow.records import DueUnit, Instant, Unit, UnitKind, digest_of
from medflow.store.due import not_yet_seen
from medflow.store.tables import ConceptRow, EncounterRow, JobRow, MeasurementRow, PatientRow
from medflow.timeseries import Grid, Readings, grid, statics

CHUNK = 1000  # encounters in one statement: four parameters each, with room for a model's concepts
VOID_MEASUREMENT = ("entered-in-error", "cancelled")  # FHIR ObservationStatus
VOID_ENCOUNTER = ("planned", "cancelled", "entered-in-error")  # FHIR EncounterStatus
# a measurement that names no encounter raises its patient's revision only; both grow, so that no two states are equal
REVISION = EncounterRow.revision * 1_000_000 + PatientRow.revision
OPEN_ENCOUNTER = ("arrived", "triaged", "in-progress", "onleave")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stay:
    """An encounter and what is static about it."""

    id: int
    revision: int
    start: Instant
    statics: tuple[float, ...]


def due_encounters(connection: Connection, spec: TimeSeriesInput, *, as_of: Instant, model_id: int) -> list[DueUnit]:
    """The encounters whose input may be new to this model, in the order of their ids.

    Anchored at admission: those still open when their window had passed, once it has. Anchored at the prediction time:
    those open at ``as_of``, if anything became known since the model last looked. An encounter without a single
    measurement that the model reads is not due. The input_key covers the measurements up to the prediction time and
    the statics, whatever their order, so that a moving window alone scores nothing anew.
    """
    concepts = list(_concepts(connection, spec))
    candidates = _candidates(connection, spec, concepts, as_of, model_id)
    admission = spec.anchor == "admission"
    window_us = _us(spec.window)
    until: Any = EncounterRow.start_us + window_us if admission else as_of.utc_us
    visible = _visible(EncounterRow.start_us if admission else None, until, concepts)
    due = []
    for start in range(0, len(candidates), CHUNK):
        chunk = {stay.id: stay for stay in candidates[start : start + CHUNK]}
        query = (
            select(EncounterRow.id, func.count())
            .add_columns(func.sum(MeasurementRow.mark_1), func.sum(MeasurementRow.mark_2))
            .join(MeasurementRow, visible)
            .where(EncounterRow.id.in_(chunk))
            .group_by(EncounterRow.id)
            .order_by(EncounterRow.id)
        )
        for encounter_id, count, mark_1, mark_2 in connection.execute(query):
            stay = chunk[encounter_id]
            moment = Instant(utc_us=stay.start.utc_us + window_us, offset_min=stay.start.offset_min)
            due.append(
                DueUnit(
                    unit=Unit(kind=UnitKind.ENCOUNTER, id=stay.id),
                    revision=stay.revision,
                    # PostgreSQL's sum of bigint is numeric: a Decimal, which would print otherwise than SQLite's
                    input_key=digest_of(stay.start.utc_us, count, int(mark_1), int(mark_2), *stay.statics),
                    prediction_time=moment if admission else as_of,
                )
            )
    return due


def load_time_series(
    connection: Connection, spec: TimeSeriesInput, units: Sequence[tuple[int, Instant]]
) -> list[TimeSeries | InputNotUsable]:
    """What the model is given for each of ``units``, in order: the series, or why there is none.

    ``units`` are pairs of an encounter's id and the prediction time, at which its window ends.
    """
    found: list[TimeSeries | InputNotUsable] = []
    concepts = _concepts(connection, spec)
    for start in range(0, len(units), CHUNK):
        chunk = units[start : start + CHUNK]
        cells = grid(spec, _readings(connection, spec, concepts, chunk), len(chunk))
        query = _stays().where(EncounterRow.id.in_({encounter_id for encounter_id, _ in chunk}))
        stays = {row.id: _stay(spec, row) for row in connection.execute(query)}
        found.extend(
            _case(spec, cells, position, stays.get(encounter_id)) for position, (encounter_id, _) in enumerate(chunk)
        )
    return found


def _case(spec: TimeSeriesInput, cells: Grid, position: int, stay: _Stay | None) -> TimeSeries | InputNotUsable:
    if stay is None:
        return InputNotUsable("encounter-incomplete", "the encounter's start or patient is no longer known")
    taken = int(cells.taken[position])
    if taken < spec.min_measurements:
        refused = f"{cells.wrong_unit[position]} in another unit and {cells.out_of_range[position]} out of range"
        reason = f"{taken} measurements in the window, {spec.min_measurements} needed; {refused} were refused"
        return InputNotUsable("too-few-measurements", reason)
    return TimeSeries(values=cells.values[position], statics=np.array(stay.statics, dtype=np.float32))


# --- encounters --------------------------------------------------------------------------------------------------


def _candidates(
    connection: Connection, spec: TimeSeriesInput, concepts: Sequence[int], as_of: Instant, model_id: int
) -> list[_Stay]:
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
            ~_seen_all(model_id, concepts, as_of),
        )
    return [_stay(spec, row) for row in connection.execute(query)]


def _seen_all(model_id: int, concepts: Sequence[int], as_of: Instant) -> ColumnElement[bool]:
    """SQL condition: the model looked at this revision of the encounter, and nothing became known between then and now.

    What is known grows with the time alone: a result may be stored before the moment at which it was issued.
    """
    since = exists(
        select(MeasurementRow.ordinal)
        .where(_visible(None, as_of.utc_us, concepts), MeasurementRow.available_us > JobRow.prediction_time_us)
        .correlate(EncounterRow, JobRow)
    )
    looked = select(JobRow.id).where(
        JobRow.model_id == model_id,
        JobRow.unit_kind == str(UnitKind.ENCOUNTER),
        JobRow.unit_id == EncounterRow.id,
        JobRow.unit_revision == REVISION,
        JobRow.prediction_time_us <= as_of.utc_us,
        ~since,
    )
    return exists(looked.correlate(EncounterRow, PatientRow))


def _stays() -> Any:
    return (
        select(EncounterRow.id, REVISION.label("revision"), EncounterRow.start_us, EncounterRow.start_offset)
        .add_columns(EncounterRow.types, PatientRow.birth_date, PatientRow.sex)
        .join(PatientRow, PatientRow.id == EncounterRow.patient_id)
        .where(EncounterRow.start_us.is_not(None))
    )


def _stay(spec: TimeSeriesInput, row: Row[Any]) -> _Stay:
    start = Instant(utc_us=row.start_us, offset_min=row.start_offset or 0)
    birth: date | None = row.birth_date
    admitted = start.datetime().date()
    fixed = statics(spec.statics, birth=birth, admitted=admitted, sex=row.sex, types=row.types)
    return _Stay(id=row.id, revision=row.revision, start=start, statics=fixed)


# --- measurements ------------------------------------------------------------------------------------------------


def _visible(after: Any, until: Any, concepts: Sequence[int]) -> ColumnElement[bool]:
    """SQL condition: a measurement of the encounter that a model may see, effective in [after, until), known by then.

    ``after`` None: from any time on. Times are in microseconds.
    """
    conditions = [
        MeasurementRow.patient_id == EncounterRow.patient_id,
        or_(MeasurementRow.encounter_id.is_(None), MeasurementRow.encounter_id == EncounterRow.id),
        MeasurementRow.effective_us < until,
        MeasurementRow.available_us <= until,
        MeasurementRow.concept_id.in_(concepts),
        MeasurementRow.status.not_in(VOID_MEASUREMENT),
        MeasurementRow.value.is_not(None),
    ]
    if after is not None:
        conditions.append(MeasurementRow.effective_us >= after)
    return and_(*conditions)


def _concepts(connection: Connection, spec: TimeSeriesInput) -> dict[int, Coding]:
    """The codes that the channels take, by their id here; one that was never stored is absent."""
    codes = sorted({(code.system, code.code) for channel in spec.channels for code in channel.codes})
    found: dict[int, Coding] = {}
    for start in range(0, len(codes), CHUNK):
        query = select(ConceptRow.id, ConceptRow.system, ConceptRow.code).where(
            tuple_(ConceptRow.system, ConceptRow.code).in_(codes[start : start + CHUNK])
        )
        found.update({key: Coding(system=system, code=code) for key, system, code in connection.execute(query)})
    return dict(sorted(found.items()))


def _readings(
    connection: Connection,
    spec: TimeSeriesInput,
    concepts: dict[int, Coding],
    units: Sequence[tuple[int, Instant]],
) -> Readings:
    """The visible measurements in the windows of ``units``, as columns."""
    window_us = _us(spec.window)
    windows = (
        values(
            column("position", Integer),
            column("encounter_id", BigInteger),
            column("after_us", BigInteger),
            column("until_us", BigInteger),
            name="windows",
        )
        .data(
            [
                (position, encounter_id, moment.utc_us - window_us, moment.utc_us)
                for position, (encounter_id, moment) in enumerate(units)
            ]
        )
        .cte("windows")
    )
    query = (
        select(windows.c.position, MeasurementRow.concept_id, MeasurementRow.unit, MeasurementRow.value)
        .add_columns(MeasurementRow.effective_us - windows.c.after_us, MeasurementRow.available_us - windows.c.after_us)
        .select_from(windows)
        .join(EncounterRow, EncounterRow.id == windows.c.encounter_id)
        .join(MeasurementRow, _visible(windows.c.after_us, windows.c.until_us, list(concepts)))
    )
    with connection.execute(query) as result:
        assert result.cursor is not None  # noqa: S101 - a SELECT has one
        rows = result.cursor.fetchall()  # plain tuples: there may be a million, and columns are all that is wanted
    case, concept, unit, value, offset_us, known_us = zip(*rows, strict=True) if rows else ((),) * 6
    names = list(set(unit))
    number = {name: index for index, name in enumerate(names)}
    return Readings(
        codes=list(concepts.values()),
        units=names,
        case=np.array(case, dtype=np.int64),
        code=np.searchsorted(np.array(list(concepts), dtype=np.int64), np.array(concept, dtype=np.int64)),
        unit=np.fromiter(map(number.__getitem__, unit), dtype=np.int64, count=len(unit)),
        offset_us=np.array(offset_us, dtype=np.int64),
        known_us=np.array(known_us, dtype=np.int64),
        value=np.array(value, dtype=np.float64),
    )


def _us(span: timedelta) -> int:
    return span // timedelta(microseconds=1)
