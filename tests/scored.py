"""Jobs that were scored at a moment of the test's choosing, for what looks back at them."""

from __future__ import annotations

from collections.abc import Sequence

from medflow.records import DueUnit, Instant, Result, Unit, UnitKind
from medflow.registry import dump_spec
from medflow.store import Connection, jobs
from medflow.store.tables import JobRow
from tests.models import GcContent


def add_model(
    connection: Connection,
    name: str = "gc-content",
    digest: str = "d1",
    version: str = "1.0.0",
    spec: dict | None = None,
) -> int:
    """A model as a process that scores registers it."""
    spec = dump_spec(GcContent.spec) if spec is None else spec
    return jobs.register_model(connection, name=name, version=version, digest=digest, distribution="test 1", spec=spec)


def add_scores(
    connection: Connection, model_id: int, values: Sequence[float], finished_us: int, output: str = "gc"
) -> None:
    """Jobs of one model that were done at one moment, one for each value."""
    first = connection.exec_driver_sql("SELECT count(*) FROM job").scalar_one()
    due = [
        DueUnit(
            unit=Unit(kind=UnitKind.SEQUENCE, id=number),
            revision=1,
            input_key=f"key-{number}",
            prediction_time=Instant(utc_us=1),
        )
        for number in range(first + 1, first + 1 + len(values))
    ]
    jobs.enqueue(connection, model_id, due)
    leased = jobs.lease(connection, model_id, "here", limit=len(values), seconds=60, max_attempts=3)
    results = [Result(output=output, value=float(value)) for value in values]
    jobs.complete(connection, {job.id: [result] for job, result in zip(leased, results, strict=True)})
    update = JobRow.__table__.update().where(JobRow.__table__.c.id.in_([job.id for job in leased]))
    connection.execute(update.values(finished_us=finished_us))
