"""How the connections stand: which servers answered last, and which do not, since when and why.

``role`` is "source" or "target"; ``name`` is the configured name of a source, and the stored name of a target (its
base URL, address or folder). ``error`` is a sentence of ours: no response text, and nothing about a patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from medflow.store.ledger import now_us, upsert
from medflow.store.tables import ConnectionRow

SOURCE, TARGET = "source", "target"


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionLine:
    """One connection. ``failing_since_us``, ``failed_us`` (the last time) and ``error`` are None where it answered."""

    role: str
    name: str
    ok_us: int | None
    failing_since_us: int | None
    failed_us: int | None
    failures: int
    error: str | None


def note_answered(connection: Connection, role: str, name: str) -> None:
    """It did what it was asked: whatever was wrong is over."""
    fresh = {"ok_us": now_us(), "failing_since_us": None, "failed_us": None, "failures": 0, "error": None}
    _note(connection, role, name, fresh, fresh)


def note_failed(connection: Connection, role: str, name: str, error: str) -> None:
    """It did not; ``error`` says why, for an operator."""
    now = now_us()
    first = {"failing_since_us": now, "failed_us": now, "failures": 1, "error": error}
    again = {
        "failing_since_us": func.coalesce(ConnectionRow.failing_since_us, now),
        "failed_us": now,
        "failures": ConnectionRow.failures + 1,
        "error": error,
    }
    _note(connection, role, name, first, again)


def _note(connection: Connection, role: str, name: str, first: dict, again: dict) -> None:
    statement = upsert(connection, ConnectionRow).values(role=role, name=name, **first)
    connection.execute(statement.on_conflict_do_update(index_elements=["role", "name"], set_=again))


def standing(connection: Connection) -> Sequence[ConnectionLine]:
    """Every connection that was ever used, by role and name."""
    table = ConnectionRow.__table__
    columns = [table.c[name] for name in ConnectionLine.__dataclass_fields__]
    rows = connection.execute(select(*columns).order_by(table.c.role, table.c.name))
    return [ConnectionLine(**row._mapping) for row in rows]
