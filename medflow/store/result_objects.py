"""The DICOM objects that jobs make: recorded with their results, queued for the targets that take files.

Their bytes are in the object store before a row names them. A job's objects are replaced as a whole when it is scored
again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, select

from medflow.records import Outgoing, ResultObject
from medflow.store.ledger import now_us, upsert
from medflow.store.outbox import DICOM, withdraw
from medflow.store.tables import ResultObjectRow

IN_LIST = 5000


def record(connection: Connection, objects: Mapping[int, Sequence[ResultObject]]) -> None:
    """Note what these jobs made, by job id, in place of what they had made before; to be called for every job scored.

    An object that is not made again is withdrawn from the outbox as well.
    """
    before = _uids(connection, list(objects))
    now = now_us()
    rows = [
        {
            "job_id": job_id,
            "kind": item.kind,
            "sop_class_uid": item.sop_class_uid,
            "sop_instance_uid": item.sop_instance_uid,
            "series_uid": item.series_uid,
            "study_uid": item.study_uid,
            "sha256": item.sha256,
            "size": item.size,
            "outputs": list(item.outputs),
            "created_us": now,
        }
        for job_id, items in objects.items()
        for item in items
    ]
    gone = before - {str(row["sop_instance_uid"]) for row in rows}
    if gone:
        for part in _parts(sorted(gone)):
            connection.execute(delete(ResultObjectRow).where(ResultObjectRow.sop_instance_uid.in_(part)))
        withdraw(connection, sorted(gone))
    if rows:
        statement = upsert(connection, ResultObjectRow)
        values = {name: statement.excluded[name] for name in rows[0] if name != "sop_instance_uid"}
        connection.execute(statement.on_conflict_do_update(index_elements=["sop_instance_uid"], set_=values), rows)


def _uids(connection: Connection, job_ids: Sequence[int]) -> set[str]:
    found: set[str] = set()
    for part in _parts(job_ids):
        query = select(ResultObjectRow.sop_instance_uid).where(ResultObjectRow.job_id.in_(part))
        found.update(connection.execute(query).scalars())
    return found


def outgoing(item: ResultObject, envelope: str) -> Outgoing:
    """The object as the outbox queues it, beside the resources of the same ``envelope``."""
    return Outgoing(
        type=DICOM, id=item.sop_instance_uid, body=item.sha256.encode(), sha256=item.content, envelope=envelope
    )


def of_job(connection: Connection, job_id: int) -> list[ResultObject]:
    """What a job made; ``content`` is not kept and empty."""
    query = select(ResultObjectRow.__table__).where(ResultObjectRow.job_id == job_id).order_by(ResultObjectRow.id)
    return [
        ResultObject(
            kind=row.kind,
            sop_class_uid=row.sop_class_uid,
            sop_instance_uid=row.sop_instance_uid,
            series_uid=row.series_uid,
            study_uid=row.study_uid,
            sha256=row.sha256,
            size=row.size,
            content="",
            outputs=tuple(row.outputs),
        )
        for row in connection.execute(query)
    ]


def _parts(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[start : start + IN_LIST] for start in range(0, len(items), IN_LIST)]
