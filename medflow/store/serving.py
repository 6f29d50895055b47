"""Which version of a model answers: what becomes of the jobs of all its versions when another one is to be served."""

from __future__ import annotations

from sqlalchemy import Connection, and_, func, select, update

from medflow.store.tables import JobRow, ModelRow

NEVER_LOOKED = -1  # a revision that no unit has: whoever selects looks at the unit again


def take_over(connection: Connection, model_id: int) -> int:
    """Have this version of a model answer from now on; returns how many waiting jobs of others are let go.

    What other versions have waiting, dead or under way is superseded: its answers are no longer wanted. What this
    version answered before, and another one since, is selected again, so that its answers stand again.
    """
    name = select(ModelRow.name).where(ModelRow.id == model_id).scalar_subquery()
    others = select(ModelRow.id).where(ModelRow.name == name, ModelRow.id != model_id)
    left = and_(JobRow.model_id.in_(others), JobRow.state != "done", ~JobRow.superseded)
    waiting = select(func.count()).select_from(JobRow).where(left, JobRow.state != "dead")
    let_go = connection.execute(waiting).scalar_one()
    connection.execute(update(JobRow).where(left).values(superseded=True))
    again = and_(JobRow.model_id == model_id, JobRow.superseded)
    connection.execute(update(JobRow).where(again).values(unit_revision=NEVER_LOOKED))
    return let_go
