"""Sequences that came as FHIR resources: one row each, changed when its resource changes.

A row stays when its resource is deleted, without its bases: its id must never mean another sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from medflow.records import Sequence as Bases
from medflow.records import UnitKind
from medflow.store.ledger import now_us
from medflow.store.tables import JobRow, SequenceRow
from medflow.store.withdrawal import withdraw

CHUNK = 2000  # parameters in one IN list
_COLUMNS = ("name", "sha256", "length", "bases", "patient_id", "received_us")


def replace_sequences(connection: Connection, found: Mapping[int, tuple[Bases | None, int | None]]) -> None:
    """Note what these resources (by surrogate id) hold now, and whose it is; None: nothing that can be read.

    Another content is new to models again. Results of a sequence that was taken back are withdrawn.
    """
    known: dict[int, Any] = {}
    for ids in _chunks(list(found)):
        columns = (SequenceRow.id, SequenceRow.resource_id, SequenceRow.sha256, SequenceRow.patient_id)
        query = select(*columns, SequenceRow.length).where(SequenceRow.resource_id.in_(ids))
        known.update((row.resource_id, row) for row in connection.execute(query))
    new, changed, gone = [], [], []
    now = now_us()
    for resource_id, (sequence, patient_id) in found.items():
        row = known.get(resource_id)
        if row is not None and sequence is None:
            gone += [row.id] if row.length else []
        elif sequence is not None and row is None:
            new.append({**_columns(sequence, patient_id, now), "resource_id": resource_id, "revision": 0})
        elif sequence is not None and row is not None and (sequence.sha256, patient_id) != (row.sha256, row.patient_id):
            values = _columns(sequence, patient_id, now)
            changed.append({"key": row.id, **{f"new_{name}": value for name, value in values.items()}})
    if new:
        connection.execute(insert(SequenceRow), new)
    if changed:
        values = {name: bindparam(f"new_{name}") for name in _COLUMNS}
        statement = update(SequenceRow).where(SequenceRow.id == bindparam("key"))
        connection.execute(statement.values(values | {"revision": SequenceRow.revision + 1}), changed)
    _take_back(connection, gone)


def _take_back(connection: Connection, ids: Sequence[int]) -> None:
    for part in _chunks(ids):
        emptied = {"bases": "", "length": 0, "sha256": "", "revision": SequenceRow.revision + 1}
        connection.execute(update(SequenceRow).where(SequenceRow.id.in_(part)).values(emptied))
        done = (JobRow.unit_kind == str(UnitKind.SEQUENCE), JobRow.unit_id.in_(part), JobRow.state == "done")
        withdraw(connection, list(connection.scalars(select(JobRow.id).where(*done, ~JobRow.superseded))), None)


def _columns(sequence: Bases, patient_id: int | None, received_us: int) -> dict[str, Any]:
    values = (sequence.name, sequence.sha256, len(sequence.bases), sequence.bases, patient_id, received_us)
    return dict(zip(_COLUMNS, values, strict=True))


def _chunks(items: Sequence[int]) -> list[Sequence[int]]:
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
