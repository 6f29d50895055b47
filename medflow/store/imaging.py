"""Studies, series and instances: stored in bulk, contradictions refused, and read back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Connection, bindparam, select, text, update

from medflow.records import DicomObject, Instance
from medflow.store.imaging_batch import Batch, Outcome, content_of, instant, rows_among
from medflow.store.tables import InstanceRow

__all__ = [
    "content_of",
    "held_instances",
    "known_objects",
    "lock_imaging",
    "objects_of",
    "relocate_objects",
    "series_instances",
    "store_objects",
]

IMAGING_LOCK = 0x6D656470  # advisory lock of PostgreSQL: one writer at a time decides what a UID means


def known_objects(connection: Connection, digests: Iterable[str]) -> dict[str, str | None]:
    """Which of these SHA-256 are stored already, each with the path of its file where it was taken in place."""
    query = select(InstanceRow.sha256, InstanceRow.path)
    return {row.sha256: row.path for row in rows_among(connection, query, InstanceRow.sha256, digests)}


def held_instances(connection: Connection, sop_instance_uids: Iterable[str]) -> set[str]:
    """Which of these SOP Instance UIDs are stored."""
    return {row.uid for row in rows_among(connection, select(InstanceRow.uid), InstanceRow.uid, sop_instance_uids)}


def objects_of(connection: Connection, sop_instance_uids: Iterable[str]) -> dict[str, tuple[str, str | None]]:
    """SHA-256 of the instances stored under these UIDs, and the path where one was taken in place."""
    query = select(InstanceRow.uid, InstanceRow.sha256, InstanceRow.path)
    rows = rows_among(connection, query, InstanceRow.uid, sop_instance_uids)
    return {row.uid: (row.sha256, row.path) for row in rows}


def kept_instances(connection: Connection, uids: Iterable[str]) -> dict[str, tuple[str, str]]:
    """SOP Class UID and SHA-256 of these SOP instances, as far as their files lie in the object store."""
    query = select(InstanceRow.uid, InstanceRow.sop_class_uid, InstanceRow.sha256).where(InstanceRow.path.is_(None))
    return {row.uid: (row.sop_class_uid, row.sha256) for row in rows_among(connection, query, InstanceRow.uid, uids)}


def relocate_objects(connection: Connection, paths: Mapping[str, str | None]) -> None:
    """Note where the files of these SHA-256 lie now: a path, or None for the object store."""
    if paths:
        table = InstanceRow.__table__
        statement = update(table).where(table.c.sha256 == bindparam("digest")).values(path=bindparam("where"))  # type: ignore[arg-type]  # a Table
        connection.execute(statement, [{"digest": digest, "where": path} for digest, path in paths.items()])


def lock_imaging(connection: Connection) -> None:
    """Let one writer of imaging in at a time, until the transaction ends; SQLite does so by itself.

    To be taken before patients are resolved, so that all writers of imaging take their locks in one order.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": IMAGING_LOCK})


def store_objects(connection: Connection, items: Sequence[tuple[DicomObject, int | None]]) -> list[Outcome]:
    """Store DICOM objects, each with the surrogate id of its patient (None: it names nobody).

    The series that gained an instance get new counts, content and revision, and their studies a new revision. A study
    without a patient gets the patient of a later object of that study.

    Returns
    -------
    list
        For each item, in order: "stored"; "unchanged" when the same bytes are stored already; or the `InputRejected`
        (UID_CONFLICT) when its UIDs contradict what is stored. A rejected item changes nothing.
    """
    if not items:
        return []
    lock_imaging(connection)
    batch = Batch.of(connection, [item for item, _ in items])
    outcomes = [batch.settle(item, patient_id) for item, patient_id in items]
    batch.write(connection)
    return outcomes


def series_instances(connection: Connection, series_id: int) -> list[Instance]:
    """The instances of a series, by instance number and UID."""
    query = select(InstanceRow.__table__).where(InstanceRow.series_id == series_id)
    instances = [
        Instance(
            sop_instance_uid=row.uid,
            sop_class_uid=row.sop_class_uid,
            transfer_syntax_uid=row.transfer_syntax_uid,
            sha256=row.sha256,
            size=row.size,
            instance_number=row.instance_number,
            rows=row.rows,
            columns=row.columns,
            frames=row.frames,
            acquired=instant(row.acquired_us, row.acquired_offset),
            path=row.path,
        )
        for row in connection.execute(query)
    ]
    return sorted(
        instances, key=lambda item: (item.instance_number is None, item.instance_number, item.sop_instance_uid)
    )
