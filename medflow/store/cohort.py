"""The encounters that a cohort may be made of, in one query: when they were, whose, and what they were like."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

from sqlalchemy import Connection, Select, func, select

from medflow.records import Instant
from medflow.store.tables import EncounterRow, PatientRow
from medflow.store.timeseries import REVISION

FETCHED = 10_000  # rows in memory at once, beside what is made of them


@dataclass(frozen=True, kw_only=True, slots=True)
class Stay:
    """One encounter whose start and patient are known. ``revision`` grows with whatever belongs to either.

    ``latest_us`` is when the last of the patient's values became known.
    """

    encounter_id: int
    patient_id: int
    start: Instant
    end_us: int | None
    status: str | None
    encounter_class: str | None
    types: tuple[str, ...]
    birth_date: date | None
    sex: str | None
    latest_us: int
    revision: int


def stays(connection: Connection, *, since_us: int | None = None, until_us: int | None = None) -> Iterator[Stay]:
    """The encounters that began in [since, until), by id."""
    query = _within(
        select(EncounterRow.id, EncounterRow.patient_id, EncounterRow.start_us, EncounterRow.start_offset)
        .add_columns(EncounterRow.end_us, EncounterRow.status, EncounterRow.encounter_class, EncounterRow.types)
        .add_columns(PatientRow.birth_date, PatientRow.sex, PatientRow.latest_us, REVISION.label("revision"))
        .join(PatientRow, PatientRow.id == EncounterRow.patient_id)
        .where(EncounterRow.start_us.is_not(None)),
        since_us,
        until_us,
    ).order_by(EncounterRow.id)
    with connection.execute(query.execution_options(yield_per=FETCHED)) as rows:
        for row in rows:
            yield Stay(
                encounter_id=row.id,
                patient_id=row.patient_id,
                start=Instant(utc_us=row.start_us, offset_min=row.start_offset or 0),
                end_us=row.end_us,
                status=row.status,
                encounter_class=row.encounter_class,
                types=tuple(row.types),
                birth_date=row.birth_date,
                sex=row.sex,
                latest_us=row.latest_us,
                revision=row.revision,
            )


def count_encounters(connection: Connection) -> int:
    """How many encounters were ever told of, those included that are known only by a reference."""
    return connection.execute(select(func.count()).select_from(EncounterRow)).scalar_one()


def count_within(connection: Connection, *, since_us: int | None = None, until_us: int | None = None) -> int:
    """How many encounters began in [since, until), whosever they are."""
    query = select(func.count()).select_from(EncounterRow).where(EncounterRow.start_us.is_not(None))
    return connection.execute(_within(query, since_us, until_us)).scalar_one()


def _within(query: Select, since_us: int | None, until_us: int | None) -> Select:
    if since_us is not None:
        query = query.where(EncounterRow.start_us >= since_us)
    return query if until_us is None else query.where(EncounterRow.start_us < until_us)
