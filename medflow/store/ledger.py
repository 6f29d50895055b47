"""What happened: runs, rejected inputs and the audit trail."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from medflow.store.tables import AuditRow, RejectRow, RunRow

IN_LIST = 5000
SET_ASIDE = "withdrawn"  # the state of rejects about a file that was withdrawn


def now_us() -> int:
    """The present, in microseconds since 1970-01-01T00:00Z."""
    return time.time_ns() // 1000


def upsert(connection: Connection, table: Any) -> Any:
    """The INSERT of this engine that knows ON CONFLICT."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """An input that was not taken. ``payload``: whether its bytes are in the object store under ``sha256``."""

    kind: str
    source: str
    origin: str
    code: str
    reason: str
    sha256: str | None = None
    payload: bool = False
    id: int = 0
    seen: int = 1
    state: str = "open"


def record_rejects(connection: Connection, run_id: int | None, rejects: Sequence[Reject]) -> None:
    """Write rejects; one seen before is counted again instead of listed twice."""
    if not rejects:
        return
    now = now_us()
    times = Counter(map(_same_reject, rejects))  # a DICOMDIR and its folder offer the same file twice, for one
    rows = {
        _same_reject(item): {
            "kind": item.kind,
            "source": item.source,
            "origin": item.origin,
            "sha256": item.sha256 or "",
            "code": item.code,
            "reason": item.reason,
            "payload": item.payload,
            "seen": times[_same_reject(item)],
            "state": "open",
            "first_us": now,
            "last_us": now,
            "run_id": run_id,
        }
        for item in rejects
    }
    statement = upsert(connection, RejectRow)
    statement = statement.on_conflict_do_update(
        index_elements=["kind", "origin", "code", "sha256"],
        set_={
            "reason": statement.excluded.reason,
            "last_us": now,
            "seen": RejectRow.seen + statement.excluded.seen,
            "state": "open",
            "run_id": run_id,
        },
    )
    connection.execute(statement, list(rows.values()))


def _same_reject(item: Reject) -> tuple[str, str, str, str]:
    return item.kind, item.origin, item.code, item.sha256 or ""


def list_rejects(connection: Connection, *, state: str = "open", limit: int | None = None) -> list[Reject]:
    """Rejects in the order they first came."""
    query = select(RejectRow.__table__).where(RejectRow.state == state).order_by(RejectRow.id).limit(limit)
    names = Reject.__dataclass_fields__
    return [Reject(**{name: row[name] for name in names}) for row in connection.execute(query).mappings()]


def settle_rejects(connection: Connection, ids: Sequence[int], *, before_us: int) -> int:
    """Mark those of ``ids`` as resolved that have not been rejected again since ``before_us``; returns how many."""
    settled = 0
    for start in range(0, len(ids), IN_LIST):
        unseen = RejectRow.id.in_(ids[start : start + IN_LIST]) & (RejectRow.last_us < before_us)
        unseen &= RejectRow.state != SET_ASIDE
        settled += connection.execute(update(RejectRow).where(unseen).values(state="resolved")).rowcount
    return settled


def open_origins(connection: Connection, source: str, code: str) -> list[str]:
    """Where the open rejects of one code and source came from, the oldest first."""
    wanted = (RejectRow.state == "open", RejectRow.source == source, RejectRow.code == code)
    return list(connection.scalars(select(RejectRow.origin).where(*wanted).order_by(RejectRow.id)))


def settle_origins(connection: Connection, source: str, code: str, origins: Sequence[str]) -> int:
    """Mark the open rejects of one code and source that came from there as resolved; returns how many."""
    settled = 0
    for start in range(0, len(origins), IN_LIST):
        wanted = (RejectRow.state == "open", RejectRow.source == source, RejectRow.code == code)
        which = RejectRow.origin.in_(origins[start : start + IN_LIST])
        settled += connection.execute(update(RejectRow).where(*wanted, which).values(state="resolved")).rowcount
    return settled


def open_entries(connection: Connection, kind: str, sha256: str, code: str) -> list[tuple[str, str]]:
    """Origin and reason of the open rejects of this code that stand for parts of one file (by its bytes)."""
    query = select(RejectRow.origin, RejectRow.reason).where(RejectRow.state == "open", RejectRow.code == code)
    query = query.where(RejectRow.kind == kind, RejectRow.sha256 == sha256)
    return [(row.origin, row.reason) for row in connection.execute(query)]


def settle_entries(connection: Connection, kind: str, sha256: str, codes: Sequence[str]) -> int:
    """Mark the open rejects of these codes that stand for parts of one file (by its bytes) as resolved; how many."""
    wanted = (RejectRow.state == "open", RejectRow.code.in_(codes), RejectRow.kind == kind, RejectRow.sha256 == sha256)
    return connection.execute(update(RejectRow).where(*wanted).values(state="resolved")).rowcount


def set_aside(connection: Connection, kind: str, sha256: str) -> None:
    """Let nobody be asked about what is open of a file (by its bytes), which is withdrawn; `take_up` asks again."""
    _move(connection, kind, sha256, "open", SET_ASIDE)


def take_up(connection: Connection, kind: str, sha256: str) -> None:
    """What was open of a file when it was set aside is open again."""
    _move(connection, kind, sha256, SET_ASIDE, "open")


def _move(connection: Connection, kind: str, sha256: str, before: str, after: str) -> None:
    which = RejectRow.state == before, RejectRow.kind == kind, RejectRow.sha256 == sha256
    connection.execute(update(RejectRow).where(*which).values(state=after))


def count_rejects(connection: Connection) -> dict[str, int]:
    """Open rejects by code."""
    query = select(RejectRow.code, func.count()).where(RejectRow.state == "open").group_by(RejectRow.code)
    return {code: count for code, count in connection.execute(query)}


def begin_run(
    connection: Connection,
    *,
    command: str,
    actor: str,
    versions: dict[str, str],
    source: str | None = None,
    owner: str | None = None,
) -> int:
    """Note that a command or flow that changes something has started; returns its id.

    ``source`` is the configured name of what is ingested; ``owner`` the process (`jobs.process_owner`).
    """
    values = {"command": command, "actor": actor, "versions": versions, "source": source, "owner": owner}
    result = connection.execute(insert(RunRow).values(**values, started_us=now_us(), counts={}))
    return int(result.inserted_primary_key[0])  # type: ignore[index]  # one row was inserted


def finish_run(connection: Connection, run_id: int, *, status: str, counts: dict[str, Any]) -> None:
    """Note how a run ended: completed or failed."""
    connection.execute(
        update(RunRow).where(RunRow.id == run_id).values(status=status, counts=counts, finished_us=now_us())
    )


def record_audit(connection: Connection, run_id: int | None, action: str, subject: str, **detail: Any) -> None:
    """One line of the audit trail. ``subject`` is a surrogate id."""
    connection.execute(
        insert(AuditRow).values(at_us=now_us(), run_id=run_id, action=action, subject=subject, detail=detail)
    )
