"""Variant files, their samples, and sequences in the store; and which sequences are new to a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, bindparam, insert, select, text, update

from medflow.plugin import SequenceInput
from medflow.records import DueUnit, Instant, Unit, UnitKind, VariantFile, digest_of
from medflow.records import Sequence as Bases
from medflow.store.due import not_yet_seen
from medflow.store.ledger import now_us, upsert
from medflow.store.tables import SampleRow, SequenceRow, VariantFileRow

Stored = Literal["stored", "unchanged"]
CHUNK = 5000  # parameters in one IN list
SEQUENCE_LOCK = 0x6D656473  # advisory lock of PostgreSQL: one writer at a time decides what is new


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceItem:
    """A sequence to be stored, and whose it is (None: nobody's that is known)."""

    sequence: Bases
    patient_id: int | None = None


# --- variant files -----------------------------------------------------------------------------------------------


def find_variant_file(connection: Connection, sha256: str) -> VariantFile | None:
    """The stored description of the file with these bytes."""
    row = connection.execute(select(VariantFileRow.__table__).where(VariantFileRow.sha256 == sha256)).mappings().first()
    if row is None:
        return None
    query = select(SampleRow.name).where(SampleRow.variant_file_id == row["id"]).order_by(SampleRow.id)
    return VariantFile(
        sha256=row["sha256"],
        size=row["size"],
        version=row["version"],
        samples=tuple(connection.scalars(query)),
        records=row["records"],
        contigs=tuple(row["contigs"]),
        assembly=row["assembly"],
        path=row["path"],
    )


def store_variant_file(connection: Connection, file: VariantFile, patients: Sequence[int | None]) -> Stored:
    """Note a file and its samples, each with its patient; the same bytes once.

    A sample of a file that is there already is given to its patient when it had none, or another one.
    """
    values = {
        "sha256": file.sha256,
        "size": file.size,
        "version": file.version,
        "records": file.records,
        "contigs": list(file.contigs),
        "assembly": file.assembly,
        "path": file.path,
    }
    statement = upsert(connection, VariantFileRow).values(**values).on_conflict_do_nothing(index_elements=["sha256"])
    new = connection.execute(statement.returning(VariantFileRow.id)).scalar_one_or_none()
    if new is None:
        return _give_samples(connection, file, patients)
    rows = [
        {"variant_file_id": new, "name": name, "patient_id": patient_id, "revision": 0}
        for name, patient_id in zip(file.samples, patients, strict=True)
    ]
    if rows:
        connection.execute(insert(SampleRow), rows)
    return "stored"


def _give_samples(connection: Connection, file: VariantFile, patients: Sequence[int | None]) -> Stored:
    query = select(SampleRow.id, SampleRow.name, SampleRow.patient_id).join(
        VariantFileRow, VariantFileRow.id == SampleRow.variant_file_id
    )
    known = {row.name: row for row in connection.execute(query.where(VariantFileRow.sha256 == file.sha256))}
    changed = [
        {"key": known[name].id, "owner": patient_id}
        for name, patient_id in zip(file.samples, patients, strict=True)
        if patient_id is not None and known[name].patient_id != patient_id
    ]
    if not changed:
        return "unchanged"
    connection.execute(
        update(SampleRow)
        .where(SampleRow.id == bindparam("key"))
        .values(patient_id=bindparam("owner"), revision=SampleRow.revision + 1),
        changed,
    )
    return "stored"


# --- sequences ---------------------------------------------------------------------------------------------------


def store_sequences(connection: Connection, items: Sequence[SequenceItem]) -> list[Stored]:
    """Note sequences, each once per name, content and patient; what happened to each, in order.

    A sequence that was nobody's is given to the patient whom it comes with now; one that comes without a patient is
    unchanged when it is there already, whoever it belongs to.
    """
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time anyway
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": SEQUENCE_LOCK})
    owners = _owners(connection, {(item.sequence.name, item.sequence.sha256) for item in items})
    outcomes: list[Stored] = []
    new: list[dict[str, Any]] = []
    given: list[dict[str, Any]] = []
    received = now_us()
    for item in items:
        sequence = item.sequence
        mine = owners.setdefault((sequence.name, sequence.sha256), {})
        if item.patient_id in mine or (item.patient_id is None and mine):
            outcomes.append("unchanged")
            continue
        outcomes.append("stored")
        nobodys = mine.pop(None, None)
        mine[item.patient_id] = row = nobodys or {}
        if "key" in row:
            given.append(row | {"owner": item.patient_id})
        elif nobodys is not None:  # it came without a patient earlier in this batch
            row["patient_id"] = item.patient_id
        else:
            row |= {
                "name": sequence.name,
                "sha256": sequence.sha256,
                "length": len(sequence.bases),
                "bases": sequence.bases,
                "patient_id": item.patient_id,
                "revision": 0,
                "received_us": received,
            }
            new.append(row)
    if new:
        connection.execute(insert(SequenceRow), new)
    if given:
        connection.execute(
            update(SequenceRow)
            .where(SequenceRow.id == bindparam("key"))
            .values(patient_id=bindparam("owner"), revision=SequenceRow.revision + 1),
            given,
        )
    return outcomes


def _owners(connection: Connection, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], dict[int | None, Any]]:
    """Of each (name, sha256) in the store: the patients it belongs to, with its id."""
    owners: dict[tuple[str, str], dict[int | None, Any]] = {}
    for chunk in _chunks(sorted({digest for _, digest in wanted})):
        query = select(SequenceRow.id, SequenceRow.name, SequenceRow.sha256, SequenceRow.patient_id)
        for row in connection.execute(query.where(SequenceRow.sha256.in_(chunk))):
            if (row.name, row.sha256) in wanted:
                owners.setdefault((row.name, row.sha256), {})[row.patient_id] = {"key": row.id}
    return owners


def due_sequences(connection: Connection, spec: SequenceInput, *, as_of: Instant, model_id: int) -> list[DueUnit]:
    """Sequences long enough for the model that it has not been given yet, as far as they were there at ``as_of``.

    The prediction time is when the sequence was received, whenever this is asked. The patient is part of the key: a
    sequence that turns out to be somebody's is scored again, so that its result finds its way.
    """
    columns = (SequenceRow.id, SequenceRow.revision, SequenceRow.sha256, SequenceRow.patient_id)
    query = (
        select(*columns, SequenceRow.received_us)
        .where(SequenceRow.length >= spec.length, SequenceRow.received_us <= as_of.utc_us)
        .where(not_yet_seen(model_id, UnitKind.SEQUENCE, SequenceRow.id, SequenceRow.revision))
        .order_by(SequenceRow.id)
    )
    return [
        DueUnit(
            unit=Unit(kind=UnitKind.SEQUENCE, id=row.id),
            revision=row.revision,
            input_key=digest_of("sequence", row.sha256, row.patient_id or ""),
            prediction_time=Instant(utc_us=row.received_us),
        )
        for row in connection.execute(query)
    ]


def load_sequences(connection: Connection, ids: Sequence[int]) -> dict[int, str]:
    """The bases of these sequences, by id; one that is gone is left out."""
    bases: dict[int, str] = {}
    for chunk in _chunks(sorted(set(ids))):
        query = select(SequenceRow.id, SequenceRow.bases).where(SequenceRow.id.in_(chunk))
        bases.update((row.id, row.bases) for row in connection.execute(query))
    return bases


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]
