"""How far a source has been read: everything before the mark is stored, or is a reject on record.

A mark is set in a transaction of its own after what came before it was committed, so that a process that dies reads a
window again rather than leaving a gap. ``state`` is what a reader needs to go on where it was (the address of an
export that runs, a page); it holds no credential and nothing about a patient.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, delete, select, update

from medflow.store.ledger import now_us, upsert
from medflow.store.tables import WatermarkRow


@dataclass(frozen=True, kw_only=True, slots=True)
class Watermark:
    """``until_us``: None where nothing was read to its end yet."""

    until_us: int | None = None
    state: Mapping[str, Any] = field(default_factory=dict)


def read_mark(connection: Connection, source: str, kind: str) -> Watermark:
    """The mark of one source and kind (a FHIR resource type, "studies", "export")."""
    query = select(WatermarkRow.until_us, WatermarkRow.state)
    row = connection.execute(query.where(WatermarkRow.source == source, WatermarkRow.kind == kind)).one_or_none()
    return Watermark(until_us=row.until_us, state=row.state) if row is not None else Watermark()


def set_mark(connection: Connection, source: str, kind: str, mark: Watermark) -> None:
    """Set it; the caller has seen to it that what came before is committed."""
    values = {"until_us": mark.until_us, "state": dict(mark.state), "updated_us": now_us()}
    statement = upsert(connection, WatermarkRow).values(source=source, kind=kind, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["source", "kind"], set_=values))


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkLine:
    """How far one source was read for one kind, and when that was last noted."""

    source: str
    kind: str
    until_us: int | None
    updated_us: int


def standing(connection: Connection) -> list[MarkLine]:
    """Every mark, by source and kind, without what its reader keeps of it."""
    table = WatermarkRow.__table__
    columns = [table.c[name] for name in MarkLine.__dataclass_fields__]
    rows = connection.execute(select(*columns).order_by(table.c.source, table.c.kind))
    return [MarkLine(**row._mapping) for row in rows]


def drop_mark(connection: Connection, source: str, kind: str) -> None:
    """Have no mark of one kind, where there was one."""
    connection.execute(delete(WatermarkRow).where(WatermarkRow.source == source, WatermarkRow.kind == kind))


def lower_marks(connection: Connection, source: str, until_us: int, types: Collection[str] = ()) -> int:
    """Have a source read again from then on, where it was read further; returns how many marks moved back.

    ``types``: only marks of these resource types ("Patient", "Patient/_history", "export system Patient").
    """
    further = (WatermarkRow.source == source, WatermarkRow.until_us > until_us)
    kinds = connection.scalars(select(WatermarkRow.kind).where(*further)).all()
    chosen = [kind for kind in kinds if not types or kind.rpartition(" ")[2].partition("/")[0] in types]
    statement = update(WatermarkRow).where(*further, WatermarkRow.kind.in_(chosen))
    return connection.execute(statement.values(until_us=until_us, updated_us=now_us())).rowcount
