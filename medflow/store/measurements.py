"""What a model may see of an encounter's measurements: one SQL condition for every question, and columns of them.

A measurement is the encounter's when it names it, or names none and is of the same patient. It is seen from when it was
known (``available_us``) until a correction took its place (``until_us``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np
from sqlalchemy import BigInteger, ColumnElement, Connection, and_, or_, select, text, tuple_
from sqlalchemy import column as sql_column

from medflow.garbage import seldom_collected
from medflow.plugin import Channel, Coding, TimeSeriesInput
from medflow.records import Instant
from medflow.store.packed import SEVERAL, codings_of
from medflow.store.tables import ConceptRow, EncounterRow, MeasurementRow
from medflow.timeseries import Concept, Readings

CHUNK = 1000  # concepts in one statement
BLOCK = 1000  # rows
VOID_MEASUREMENT = ("entered-in-error", "cancelled")  # FHIR ObservationStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What some channels read: ``concepts`` by their id here, those of coded ``answers`` likewise, ``statuses``.

    ``of_patient``: whichever encounter a measurement names.
    """

    channels: Sequence[Channel]
    concepts: Mapping[int, Concept]
    answers: Mapping[int, Concept]
    statuses: Sequence[str]
    of_patient: bool = False

    @property
    def coded(self) -> bool:
        """Whether any channel takes coded answers."""
        return any(channel.values for channel in self.channels)


def static_channels(spec: TimeSeriesInput) -> list[Channel]:
    """The channels among the statics."""
    return [item for item in spec.statics if isinstance(item, Channel)]


def wanted_of(connection: Connection, spec: TimeSeriesInput, *, static: bool = False) -> Wanted:
    """What the channels of ``spec`` read; of ``static`` its static ones."""
    channels = static_channels(spec) if static else spec.channels
    return Wanted(
        channels=channels,
        concepts=_concepts(connection, {code for channel in channels for code in channel.codes}),
        answers=_concepts(connection, {item.code for channel in channels for item in channel.values}),
        statuses=[status for status in spec.statuses if status not in VOID_MEASUREMENT],
        of_patient=static,
    )


def theirs(wanted: Wanted) -> ColumnElement[bool]:
    """SQL condition: a measurement of the encounter that the channels could read, whenever it was known."""
    has_value: ColumnElement[bool] = MeasurementRow.value.is_not(None)
    if wanted.coded:
        has_value = or_(has_value, MeasurementRow.value_concept_id.is_not(None))
    conditions = [
        MeasurementRow.patient_id == EncounterRow.patient_id,
        MeasurementRow.concept_id.in_(list(wanted.concepts)),
        MeasurementRow.status.in_(wanted.statuses),
        has_value,
    ]
    if not wanted.of_patient:
        conditions.append(or_(MeasurementRow.encounter_id.is_(None), MeasurementRow.encounter_id == EncounterRow.id))
    return and_(*conditions)


def visible(wanted: Wanted, *, after: Any, until: Any) -> ColumnElement[bool]:
    """SQL condition: a measurement of the encounter, effective in [after, until), that was known at ``until``.

    ``after`` None: effective from any time on. Times are in microseconds.
    """
    conditions = [
        theirs(wanted),
        MeasurementRow.effective_us < until,
        MeasurementRow.available_us <= until,
        or_(MeasurementRow.until_us.is_(None), MeasurementRow.until_us > until),
    ]
    if after is not None:
        conditions.append(MeasurementRow.effective_us >= after)
    return and_(*conditions)


def changed_between(wanted: Wanted, since: Any, now: Any) -> ColumnElement[bool]:
    """SQL condition: a measurement that came to be seen, or ceased to be, between ``since`` and ``now``."""
    until = MeasurementRow.until_us
    came = or_(MeasurementRow.available_us > since, MeasurementRow.effective_us >= since)
    seen = and_(visible(wanted, after=None, until=now), came)
    return or_(seen, and_(theirs(wanted), until > since, until <= now))


def readings(
    connection: Connection,
    wanted: Wanted,
    units: Sequence[tuple[int, Instant]],
    window_us: int | None,
    *,
    resources: bool = False,
) -> Readings:
    """The visible measurements of ``units`` (an encounter's id and the prediction time each), as columns.

    ``window_us`` is how long before the prediction time they were effective at most; None: however long. With
    ``resources`` also the id of the FHIR resource that each one came from.
    """
    windows = _windows(units, window_us or 0)
    after = windows.c.after_us if window_us is not None else None
    query = (
        select(windows.c.position, MeasurementRow.concept_id, MeasurementRow.unit, MeasurementRow.value)
        .add_columns(MeasurementRow.effective_us - windows.c.after_us, MeasurementRow.available_us - windows.c.after_us)
        .select_from(windows)
        .join(EncounterRow, EncounterRow.id == windows.c.encounter_id)
        .join(MeasurementRow, visible(wanted, after=after, until=windows.c.until_us))
    )
    extra = [MeasurementRow.value_concept_id] * wanted.coded + [MeasurementRow.resource_id] * resources
    names: defaultdict[str | None, int] = defaultdict(count().__next__)
    place = {key: index for index, key in enumerate(wanted.answers)} | {None: -1}
    makes = [_WHOLE, _WHOLE, _numbered(names.__getitem__), partial(np.array, dtype=np.float64), _WHOLE, _WHOLE]
    makes += [_numbered(lambda key: place.get(key, len(wanted.answers)))] * wanted.coded + [_WHOLE] * resources
    case, concept, unit, value, offset_us, known_us, *more = _columns(connection, query.add_columns(*extra), makes)
    return Readings(
        codes=list(wanted.concepts.values()),
        units=list(names),
        case=case,
        code=np.searchsorted(np.array(list(wanted.concepts), dtype=np.int64), concept),
        unit=unit,
        offset_us=offset_us,
        known_us=known_us,
        value=value,
        answers=[*wanted.answers.values(), frozenset()],
        answer=more[0] if wanted.coded else None,
        resource=more[-1] if resources else None,
    )


_Make = Callable[[Sequence[Any]], np.ndarray]
_WHOLE: _Make = partial(np.array, dtype=np.int64)


def _numbered(number: Callable[[Any], int]) -> _Make:
    return lambda items: np.fromiter(map(number, items), dtype=np.int64, count=len(items))


def _columns(connection: Connection, query: Any, makes: Sequence[_Make]) -> list[np.ndarray]:
    """What a query finds, as an array of each column.

    Rows become columns a block at a time, while the processor's cache still has them: of all of them at once it takes
    twice as long.
    """
    columns: list[list[np.ndarray]] = [[make(())] for make in makes]
    with seldom_collected(), connection.execute(query) as result:
        assert result.cursor is not None  # noqa: S101 - a SELECT has one
        while rows := result.cursor.fetchmany(BLOCK):  # plain tuples: there may be a million
            for column, make, items in zip(columns, makes, zip(*rows, strict=True), strict=True):
                column.append(make(items))
    return list(map(np.concatenate, columns))


def _windows(units: Sequence[tuple[int, Instant]], window_us: int) -> Any:
    """A table of these units, written out: thousands of parameters take longer to bind than their rows to read."""
    rows = ",".join(
        f"({position},{encounter_id},{moment.utc_us - window_us},{moment.utc_us})"
        for position, (encounter_id, moment) in enumerate(units)
    )
    names = ("position", "encounter_id", "after_us", "until_us")
    columns = ", ".join(f"column{number} AS {name}" for number, name in enumerate(names, start=1))
    query = text(f"SELECT {columns} FROM (VALUES {rows}) AS written")  # noqa: S608 - whole numbers only
    return query.columns(*(sql_column(name, BigInteger) for name in names)).cte("windows")


def _concepts(connection: Connection, codes: Iterable[Coding]) -> dict[int, Concept]:
    """Whatever is stored of these codes, alone or beside other codings of the same element, by its id here."""
    wanted = sorted({(code.system, code.code) for code in codes})
    if not wanted:
        return {}
    found: dict[int, Concept] = {}
    for start in range(0, len(wanted), CHUNK):
        query = select(ConceptRow.id, ConceptRow.system, ConceptRow.code).where(
            tuple_(ConceptRow.system, ConceptRow.code).in_(wanted[start : start + CHUNK])
        )
        found.update({key: Coding(system=system, code=code) for key, system, code in connection.execute(query)})
    among = {Coding(system=system, code=code) for system, code in wanted}
    query = select(ConceptRow.id, ConceptRow.code).where(ConceptRow.system == SEVERAL)
    for key, code in connection.execute(query):
        codings = codings_of(code)
        if not among.isdisjoint(codings):
            found[key] = codings
    return dict(sorted(found.items()))
