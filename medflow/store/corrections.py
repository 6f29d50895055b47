"""What was known before a correction stays known until it: the rows of a resource's earlier versions.

A score of last week must come out the same whether or not a value was corrected since. So when a newer version of a
resource arrives, the values that were known before it keep their rows, with ``until_us`` the moment at which the newer
version was known, and ordinals below zero, out of the way of those that hold now. A value that is taken back (deleted,
entered in error, measured in another patient, or simply gone from the newer version) leaves nothing behind: what was
never true must not count, for any time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, or_, select, update

from medflow.records import UnitKind
from medflow.store.jobs import TAKEN_BACK
from medflow.store.tables import EncounterRow, JobRow, MeasurementRow, ModelRow

CHUNK = 2000  # resources in one statement


@dataclass(frozen=True, kw_only=True, slots=True)
class Newer:
    """The newer version of a resource: when it was known (None: it measures nothing), and in whom it was measured."""

    known_us: int | None
    patient_id: int | None


def retire(connection: Connection, newer: Mapping[int, Newer]) -> set[tuple[int, int | None]]:
    """Take back the measurements of earlier versions of these resources (by id), from when each newer one was known.

    The results that may have been made of what was never true are marked, for the next selection to judge.

    Returns
    -------
    set
        The patient and encounter of every row that there was.
    """
    concerned: set[tuple[int, int | None]] = set()
    table = MeasurementRow
    ids = list(newer)
    for start in range(0, len(ids), CHUNK):
        rows: dict[int, list[Any]] = defaultdict(list)
        query = select(table.resource_id, table.ordinal, table.patient_id, table.encounter_id)
        query = query.add_columns(table.available_us, table.until_us)
        for row in connection.execute(query.where(table.resource_id.in_(ids[start : start + CHUNK]))):
            rows[row.resource_id].append(row)
            concerned.add((row.patient_id, row.encounter_id))
        _mark_results(connection, [key for key, its in rows.items() if _never_true(its, newer[key])])
        _write(connection, [_Parted.of(its, newer[key]) for key, its in rows.items()])
    return concerned


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where the rows of an older version go: ordinals down from ``ordinal``, and known until ``until_us``."""

    resource_id: int
    patient_id: int
    ordinal: int
    until_us: int


def places_of(connection: Connection, older: Mapping[int, int]) -> dict[int, Place]:
    """Where older versions that come late belong, by resource; and what was known before each ends where it began.

    ``older`` is when each became known. One that is stored already, or was known no earlier than what holds now, or of
    which nothing holds now, has no place.
    """
    found: dict[int, Place] = {}
    changed: list[dict[str, int]] = []
    table = MeasurementRow
    ids = list(older)
    for start in range(0, len(ids), CHUNK):
        rows: dict[int, list[Any]] = defaultdict(list)
        query = select(table.resource_id, table.ordinal, table.patient_id, table.available_us, table.until_us)
        for row in connection.execute(query.where(table.resource_id.in_(ids[start : start + CHUNK]))):
            rows[row.resource_id].append(row)
        for key, its in rows.items():
            known = older[key]
            later = [row.available_us for row in its if row.available_us > known]
            living = [row for row in its if row.ordinal >= 0]
            if not living or living[0].available_us <= known or any(row.available_us == known for row in its):
                continue
            ordinal = min(0, *(row.ordinal for row in its)) - 1
            found[key] = Place(resource_id=key, patient_id=living[0].patient_id, ordinal=ordinal, until_us=min(later))
            changed += [
                {"key": key, "old": row.ordinal, "new_until_us": known}
                for row in its
                if row.available_us < known and (row.until_us or 0) > known
            ]
    if changed:
        its_key = table.resource_id == bindparam("key"), table.ordinal == bindparam("old")
        connection.execute(update(table).where(*its_key).values(until_us=bindparam("new_until_us")), changed)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parted:
    """The rows of one resource: those to be dropped, and those to be kept, as parameters of an UPDATE."""

    resource_id: int
    dropped: list[dict[str, int]]
    kept: list[dict[str, int]]

    @classmethod
    def of(cls, rows: list[Any], newer: Newer) -> _Parted:
        parted = cls(resource_id=rows[0].resource_id, dropped=[], kept=[])
        ordinal = min(0, *(row.ordinal for row in rows))
        for row in sorted(rows, key=lambda row: row.ordinal):
            key = {"key": row.resource_id, "old": row.ordinal}
            known = newer.known_us
            if known is None or row.available_us >= known or row.patient_id != newer.patient_id:
                parted.dropped.append(key)
                continue
            until = known if row.until_us is None else min(row.until_us, known)
            ordinal -= row.ordinal >= 0
            new = ordinal if row.ordinal >= 0 else row.ordinal
            parted.kept.append({**key, "new_ordinal": new, "new_until_us": until})
        return parted


def _never_true(rows: list[Any], newer: Newer) -> bool:
    """Whether the newer version leaves any of these rows without another in its place."""
    return newer.known_us is None or any(row.patient_id != newer.patient_id for row in rows)


def _mark_results(connection: Connection, resource_ids: list[int]) -> None:
    """Mark the results of encounters of whom these resources' values were known at the prediction time."""
    if not resource_ids:
        return
    row, of_these = MeasurementRow, MeasurementRow.resource_id.in_(resource_ids)
    theirs = select(EncounterRow.id).join(row, row.patient_id == EncounterRow.patient_id)
    known = theirs.where(
        of_these,
        EncounterRow.id == JobRow.unit_id,
        row.available_us <= JobRow.prediction_time_us,
        or_(row.until_us.is_(None), row.until_us > JobRow.prediction_time_us),
    )
    connection.execute(
        update(JobRow)
        .where(JobRow.model_id.in_(select(ModelRow.id)), JobRow.unit_kind == str(UnitKind.ENCOUNTER))
        .where(JobRow.unit_id.in_(theirs.where(of_these).scalar_subquery()), known.correlate(JobRow).exists())
        .where(JobRow.state.in_(("done", "leased")), ~JobRow.superseded)
        .values(unit_revision=TAKEN_BACK)
    )


def _write(connection: Connection, parts: list[_Parted]) -> None:
    table = MeasurementRow
    its = table.resource_id == bindparam("key"), table.ordinal == bindparam("old")
    whole = [part.resource_id for part in parts if not part.kept]
    dropped = [key for part in parts if part.kept for key in part.dropped]
    kept = [change for part in parts for change in part.kept]
    if whole:
        connection.execute(delete(table).where(table.resource_id.in_(whole)))
    if dropped:
        connection.execute(delete(table).where(*its), dropped)
    if kept:
        changes = {"ordinal": bindparam("new_ordinal"), "until_us": bindparam("new_until_us")}
        connection.execute(update(table).where(*its).values(changes), kept)
