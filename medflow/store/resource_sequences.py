"""Sequences that came as FHIR resources: one row each, changed when its resource changes.

A row stays when its resource is deleted, without its bases: its id must never mean another sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import BigInteger, Connection, bindparam, insert, select, update

from medflow.records import Sequence as Bases
from medflow.records import UnitKind
from medflow.store.ledger import now_us
from medflow.store.tables import FhirResourceRow, JobRow, SequenceRow
from medflow.store.withdrawal import take_from_patients, withdraw

CHUNK = 2000  # parameters in one IN list
_COLUMNS = ("name", "sha256", "length", "bases", "patient_id", "specimen", "received_us")


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """What a MolecularSequence holds (None: nothing that can be read), and whose it is.

    ``specimen`` is the FHIR id of the Specimen that tells the patient, where the resource itself does not.
    """

    sequence: Bases | None
    patient_id: int | None
    specimen: str | None = None


def replace_sequences(connection: Connection, found: Mapping[int, Held]) -> None:
    """Note what these resources (by surrogate id) hold now.

    Another content is new to models again. Results of a sequence that was taken back are withdrawn, and so is what was
    said of a patient whose it is no longer.
    """
    known: dict[int, Any] = {}
    for ids in _chunks(list(found)):
        columns = (SequenceRow.id, SequenceRow.resource_id, SequenceRow.sha256, SequenceRow.patient_id)
        query = select(*columns, SequenceRow.length, SequenceRow.specimen).where(SequenceRow.resource_id.in_(ids))
        known.update((row.resource_id, row) for row in connection.execute(query))
    new, changed, moved, gone = [], [], [], []
    now = now_us()
    for resource_id, held in found.items():
        row = known.get(resource_id)
        if held.sequence is None:
            gone += [row.id] if row is not None and row.length else []
        elif row is None:
            new.append({**_columns(held.sequence, held, now), "resource_id": resource_id, "revision": 0})
        elif (held.sequence.sha256, held.patient_id, held.specimen) != (row.sha256, row.patient_id, row.specimen):
            values = _columns(held.sequence, held, now)
            changed.append({"key": row.id, **{f"new_{name}": value for name, value in values.items()}})
            if row.patient_id not in (None, held.patient_id):
                moved.append(row.id)
    if new:
        connection.execute(insert(SequenceRow), new)
    if changed:
        values = {name: bindparam(f"new_{name}") for name in _COLUMNS}
        statement = update(SequenceRow).where(SequenceRow.id == bindparam("key"))
        connection.execute(statement.values(values | {"revision": SequenceRow.revision + 1}), changed)
    take_from_patients(connection, UnitKind.SEQUENCE, moved)
    _take_back(connection, gone)


def _take_back(connection: Connection, ids: Sequence[int]) -> None:
    for part in _chunks(ids):
        emptied = {"bases": "", "length": 0, "sha256": "", "revision": SequenceRow.revision + 1}
        connection.execute(update(SequenceRow).where(SequenceRow.id.in_(part)).values(emptied))
        done = (JobRow.unit_kind == str(UnitKind.SEQUENCE), JobRow.unit_id.in_(part), JobRow.state == "done")
        withdraw(connection, list(connection.scalars(select(JobRow.id).where(*done, ~JobRow.superseded))), None)


def owners_of(connection: Connection, source: str, specimens: Iterable[str]) -> dict[str, int]:
    """Whose these Specimens (by FHIR id) are; without those that are deleted or name no patient."""
    found: dict[str, int] = {}
    for part in _chunks(sorted(set(specimens))):
        columns = (FhirResourceRow.fhir_id, FhirResourceRow.patient_id, FhirResourceRow.raw)
        query = select(*columns).where(FhirResourceRow.source == source, FhirResourceRow.type == "Specimen")
        query = query.where(FhirResourceRow.fhir_id.in_(part), ~FhirResourceRow.deleted)
        for row in connection.execute(query.where(FhirResourceRow.patient_id.is_not(None))):
            if orjson.loads(row.raw).get("status") != "entered-in-error":
                found[row.fhir_id] = row.patient_id
    return found


def follow_specimens(connection: Connection, source: str, specimens: Sequence[str]) -> None:
    """Give the sequences of these Specimens, which are new or were changed, to whom they are of now."""
    for part in _chunks(specimens):
        query = (
            select(SequenceRow.id, SequenceRow.specimen, SequenceRow.patient_id)
            .join(FhirResourceRow, FhirResourceRow.id == SequenceRow.resource_id)
            .where(SequenceRow.specimen.in_(part), FhirResourceRow.source == source, SequenceRow.length > 0)
        )
        rows = connection.execute(query.order_by(SequenceRow.id)).all()
        owners = owners_of(connection, source, [row.specimen for row in rows])
        others = [row for row in rows if row.patient_id != owners.get(row.specimen)]
        if others:
            values = {"patient_id": bindparam("new_patient_id", type_=BigInteger), "revision": SequenceRow.revision + 1}
            statement = update(SequenceRow).where(SequenceRow.id == bindparam("key")).values(values)
            given = [{"key": row.id, "new_patient_id": owners.get(row.specimen)} for row in others]
            connection.execute(statement, given)
        moved = [row.id for row in others if row.patient_id is not None]
        take_from_patients(connection, UnitKind.SEQUENCE, moved)


def _columns(sequence: Bases, held: Held, received_us: int) -> dict[str, Any]:
    content = (sequence.name, sequence.sha256, len(sequence.bases), sequence.bases)
    return dict(zip(_COLUMNS, (*content, held.patient_id, held.specimen, received_us), strict=True))


def _chunks(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
