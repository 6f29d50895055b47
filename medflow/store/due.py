"""The one condition that every selection shares: the model has not yet looked at this revision of the unit."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, exists, select

from medflow.records import UnitKind
from medflow.store.tables import JobRow


def not_yet_seen(model_id: int, kind: UnitKind, unit_id: Any, revision: Any) -> ColumnElement[bool]:
    """SQL condition: no job of this model was made at the present revision of the unit.

    A job keeps the revision at which its input_key was computed, so that an unchanged unit costs one index look-up,
    however much is stored. ``unit_id`` and ``revision`` are columns of the unit's table.
    """
    seen = select(JobRow.id).where(
        JobRow.model_id == model_id,
        JobRow.unit_kind == str(kind),
        JobRow.unit_id == unit_id,
        JobRow.unit_revision == revision,
    )
    return ~exists(seen.correlate_except(JobRow))
