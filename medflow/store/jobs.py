r"""Jobs: what is to be scored, by whom, and how it ended. Every change of state is one set-based statement.

ready --lease--> leased --complete--> done
^                | \--error in the data--> dead          (listed; replayed by `medflow retry jobs`)
|                |  \--infrastructure--> failed          (leased again after a back-off; dead in the end)
\--- release ----/      a lease that ran out, or whose process is gone, is taken by someone else
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, and_, case, func, literal, or_, select, true, update

from medflow.records import DueUnit, Instant, Result, Unit, UnitKind
from medflow.store.ledger import now_us, upsert
from medflow.store.predictions import write_results
from medflow.store.tables import JobRow, ModelRow, PredictionRow

SECOND_US = 1_000_000
BACK_OFF_S = 30  # first wait after an infrastructure error; doubles with every attempt
IN_LIST = 5000
_LEFT = ("ready", "failed", "dead")  # what an earlier version of a model leaves behind
# in the place of a revision (no unit has one below zero): a value that a result may be made of was taken back,
TAKEN_BACK = -2
LOST = -3  # and it was made of it


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredModel:
    """A model that has been seen here: what selecting and delivering need, without its plugin."""

    id: int
    name: str
    version: str
    digest: str
    distribution: str
    spec: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One unit to be scored by one model, as leased."""

    id: int
    unit: Unit
    revision: int
    input_key: str
    prediction_time: Instant
    attempts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class JobLine:
    """One job as `medflow jobs` lists it."""

    id: int
    model: str
    version: str
    unit: str
    state: str
    attempts: int
    error_code: str | None
    error: str | None


def process_owner() -> str:
    """A name for this process that no other process, here or elsewhere, now or later, will have."""
    return f"{socket.gethostname()}|{os.getpid()}|{_started(os.getpid())}|{uuid4().hex[:8]}"


def process_of(owner: str) -> str:
    """What all owners that one process makes have in common."""
    return owner.rpartition("|")[0]


def register_model(
    connection: Connection, *, name: str, version: str, digest: str, distribution: str, spec: dict[str, Any]
) -> int:
    """The id of this model at this digest; its spec is stored the first time it is seen."""
    statement = upsert(connection, ModelRow).values(
        name=name, version=version, digest=digest, distribution=distribution, spec=spec, registered_us=now_us()
    )
    connection.execute(statement.on_conflict_do_nothing(index_elements=["name", "digest"]))
    found = known_model(connection, name=name, digest=digest)
    assert found is not None  # noqa: S101 - it was put there a moment ago
    return found


def known_model(connection: Connection, *, name: str, digest: str) -> int | None:
    """The id of this model at this digest; None where it was never seen here."""
    return connection.scalar(select(ModelRow.id).where(ModelRow.name == name, ModelRow.digest == digest))


def stored_model(connection: Connection, model_id: int) -> StoredModel:
    """The model of this id."""
    row = connection.execute(select(ModelRow.__table__).where(ModelRow.id == model_id)).mappings().one()
    return StoredModel(**{name: row[name] for name in StoredModel.__dataclass_fields__})


def enqueue(connection: Connection, model_id: int, due: Sequence[DueUnit]) -> int:
    """Make jobs of what is due; returns how many are new work.

    A unit whose input_key has a job already only has its revision noted; if that job has no answer that stands, also
    the prediction time. A job that waits on an older input of the same unit is superseded; that is undone when an
    input returns to what it was before.
    """
    if not due:
        return 0
    now = now_us()
    rows = [
        {
            "model_id": model_id,
            "unit_kind": str(item.unit.kind),
            "unit_id": item.unit.id,
            "unit_revision": item.revision,
            "input_key": item.input_key,
            "prediction_time_us": item.prediction_time.utc_us,
            "prediction_time_offset": item.prediction_time.offset_min,
            "created_us": now,
        }
        for item in due
    ]
    statement = upsert(connection, JobRow)
    unanswered = or_(JobRow.superseded, *(JobRow.state == state for state in _LEFT))  # IN takes one row only
    moment = {
        name: case((unanswered, statement.excluded[name]), else_=getattr(JobRow, name))
        for name in ("prediction_time_us", "prediction_time_offset")
    }
    # a mark stays until it is judged: what was read for this selection may be older than what set it
    marked = and_(~JobRow.superseded, or_(*(JobRow.unit_revision == mark for mark in (TAKEN_BACK, LOST))))
    revision = case((marked, JobRow.unit_revision), else_=statement.excluded.unit_revision)
    statement = statement.on_conflict_do_update(
        index_elements=["model_id", "unit_kind", "unit_id", "input_key"],
        set_={"unit_revision": revision, **moment},
    )
    connection.execute(statement, rows)
    _supersede_waiting(connection, model_id, due, now)
    return _made(connection, model_id, now)


def _made(connection: Connection, model_id: int, created_us: int) -> int:
    query = select(func.count()).where(JobRow.model_id == model_id, JobRow.created_us == created_us)
    return connection.execute(query.where(JobRow.state == "ready", ~JobRow.superseded)).scalar_one()


def _supersede_waiting(connection: Connection, model_id: int, due: Sequence[DueUnit], now: int) -> None:
    wanted = {(str(item.unit.kind), item.unit.id, item.input_key) for item in due}
    older, again = [], []
    for kind, unit_ids in _ids_by_kind(due).items():
        for part in _parts(unit_ids, IN_LIST):
            query = select(JobRow.id, JobRow.unit_id, JobRow.input_key, JobRow.superseded)
            query = query.where(JobRow.model_id == model_id, JobRow.unit_kind == kind, JobRow.unit_id.in_(part))
            query = query.where(or_(JobRow.state != "done", JobRow.superseded), JobRow.created_us != now)
            for job_id, unit_id, input_key, superseded in connection.execute(query):
                if superseded == ((kind, unit_id, input_key) in wanted):
                    (again if superseded else older).append(job_id)
    for part in _parts(older, IN_LIST):
        connection.execute(
            update(JobRow)
            .where(JobRow.id.in_(part), JobRow.state != "done", ~JobRow.superseded)
            .values(superseded=True)
        )
    for part in _parts(again, IN_LIST):
        connection.execute(
            update(JobRow)
            .where(JobRow.id.in_(part), JobRow.superseded)
            .values(superseded=False, state="ready", attempts=0, not_before_us=0, created_us=now)
        )


def _ids_by_kind(due: Sequence[DueUnit]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for item in due:
        found.setdefault(str(item.unit.kind), []).append(item.unit.id)
    return found


def lease(
    connection: Connection, model_id: int, owner: str, *, limit: int, seconds: int, max_attempts: int
) -> list[Job]:
    """Take up to ``limit`` jobs that nobody holds; they are this owner's for ``seconds``.

    Jobs of owners that are gone are taken over: a lease that ran out, or one held by a process of this host that no
    longer lives. A job that was leased ``max_attempts`` times without ending is dead: it may be what kills them.
    """
    now = now_us()
    lost = _lost(connection, model_id, now)
    connection.execute(
        update(JobRow)
        .where(lost, JobRow.attempts >= max_attempts)
        .values(
            state="dead",
            error_code="abandoned",
            error=f"{max_attempts} processes ended while scoring it",
            finished_us=now,
            lease_owner=None,
        )
    )
    query = select(JobRow.id).where(_free(model_id, lost, now)).order_by(JobRow.id).limit(limit)
    chosen = connection.execute(query.with_for_update(skip_locked=True)).scalars().all()
    statement = (
        update(JobRow)
        .where(JobRow.id.in_(chosen))
        .values(
            state="leased", lease_owner=owner, lease_until_us=now + seconds * SECOND_US, attempts=JobRow.attempts + 1
        )
        .returning(
            JobRow.id,
            JobRow.unit_kind,
            JobRow.unit_id,
            JobRow.unit_revision,
            JobRow.input_key,
            JobRow.prediction_time_us,
            JobRow.prediction_time_offset,
            JobRow.attempts,
        )
    )
    jobs = [
        Job(
            id=row.id,
            unit=Unit(kind=UnitKind(row.unit_kind), id=row.unit_id),
            revision=row.unit_revision,
            input_key=row.input_key,
            prediction_time=Instant(utc_us=row.prediction_time_us, offset_min=row.prediction_time_offset),
            attempts=row.attempts,
        )
        for row in connection.execute(statement)
    ]
    return sorted(jobs, key=lambda job: job.id)


def leasable(connection: Connection, model_id: int) -> int:
    """How many jobs of a model `lease` would give out now."""
    now = now_us()
    free = _free(model_id, _lost(connection, model_id, now), now)
    return connection.execute(select(func.count()).select_from(JobRow).where(free)).scalar_one()


def _lost(connection: Connection, model_id: int, now: int) -> ColumnElement[bool]:
    gone = JobRow.lease_owner.in_(_dead_owners(connection, model_id))
    leased = and_(JobRow.model_id == model_id, JobRow.state == "leased")
    return and_(leased, or_(JobRow.lease_until_us < now, gone))


def _free(model_id: int, lost: ColumnElement[bool], now: int) -> ColumnElement[bool]:
    back_off_over = and_(JobRow.state == "failed", JobRow.not_before_us <= now)
    free = or_(JobRow.state == "ready", back_off_over, lost.self_group())
    return and_(JobRow.model_id == model_id, free, ~JobRow.superseded)


def _dead_owners(connection: Connection, model_id: int) -> list[str]:
    query = select(JobRow.lease_owner).where(JobRow.model_id == model_id, JobRow.state == "leased").distinct()
    return [owner for owner in connection.execute(query).scalars() if owner and is_gone(owner)]


def is_gone(owner: str) -> bool:
    """Whether ``owner`` was a process of this host that has ended; False when that cannot be known from here."""
    host, _, rest = owner.partition("|")
    if host != socket.gethostname():
        return False
    pid, started = rest.split("|")[:2]
    return _started(int(pid)) != started


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks; "gone" if it is not there, "unknown" where that is not told."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "gone" if state in "ZX" else fields[18]  # a zombie has ended, though nobody has asked how
    except (FileNotFoundError, ProcessLookupError):
        if not Path("/proc/self").exists():
            return "unknown"
        return "gone"


def renew(connection: Connection, owner: str, job_ids: Sequence[int], *, seconds: int) -> None:
    """Hold leases for ``seconds`` from now."""
    until = now_us() + seconds * SECOND_US
    for part in _parts(job_ids, IN_LIST):
        connection.execute(
            update(JobRow)
            .where(JobRow.id.in_(part), JobRow.lease_owner == owner, JobRow.state == "leased")
            .values(lease_until_us=until)
        )


def void_leases(connection: Connection, owners: Sequence[str]) -> None:
    """Let the leases of these owners run out now: others may have their jobs."""
    for part in _parts(owners, IN_LIST):
        connection.execute(
            update(JobRow).where(JobRow.lease_owner.in_(part), JobRow.state == "leased").values(lease_until_us=0)
        )


def release(connection: Connection, owner: str, job_ids: Sequence[int]) -> None:
    """Give leases back untouched: they count as no attempt."""
    for part in _parts(job_ids, IN_LIST):
        connection.execute(
            update(JobRow)
            .where(JobRow.id.in_(part), JobRow.lease_owner == owner, JobRow.state == "leased")
            .values(state="ready", lease_owner=None, lease_until_us=None, attempts=JobRow.attempts - 1)
        )


def held(connection: Connection, owner: str, job_ids: Sequence[int]) -> set[int]:
    """Which of these jobs are still this owner's, locked until the transaction ends.

    Not those that were superseded meanwhile: their answer would take the place of a later one.
    """
    found: set[int] = set()
    for part in _parts(job_ids, IN_LIST):
        query = select(JobRow.id).where(JobRow.id.in_(part), JobRow.lease_owner == owner, JobRow.state == "leased")
        query = query.where(~JobRow.superseded).order_by(JobRow.id)  # locked in one order by whoever locks several
        found.update(connection.execute(query.with_for_update()).scalars())
    return found


def is_live(connection: Connection, job_id: int) -> bool:
    """Whether a done job's answer still stands; it does until the transaction ends."""
    query = select(JobRow.id).where(JobRow.id == job_id, JobRow.state == "done", ~JobRow.superseded)
    return connection.execute(query.with_for_update()).first() is not None


def complete(connection: Connection, results: dict[int, Sequence[Result]]) -> None:
    """Write the predictions of jobs that are `held`, and mark them done."""
    write_results(connection, results)
    for part in _parts(list(results), IN_LIST):
        connection.execute(
            update(JobRow)
            .where(JobRow.id.in_(part))
            .values(
                state="done", lease_owner=None, lease_until_us=None, error=None, error_code=None, finished_us=now_us()
            )
        )


def supersede_older(connection: Connection, job_ids: Sequence[int]) -> list[int]:
    """Mark the earlier jobs of the same units and model names as superseded; returns the ids of those that were done.

    What waits or is dead is superseded only if it is an earlier version's: nobody would score it, and it would be
    counted as waiting for good.
    """
    done: list[int] = []
    new, old = JobRow.__table__.alias("new"), JobRow.__table__.alias("old")
    new_model, old_model = ModelRow.__table__.alias("new_model"), ModelRow.__table__.alias("old_model")
    for part in _parts(job_ids, IN_LIST):
        query = (
            select(old.c.id, old.c.state)
            .join(old_model, old_model.c.id == old.c.model_id)
            .join(new_model, new_model.c.name == old_model.c.name)
            .join(
                new,
                and_(
                    new.c.model_id == new_model.c.id,
                    new.c.unit_kind == old.c.unit_kind,
                    new.c.unit_id == old.c.unit_id,
                    new.c.id != old.c.id,
                ),
            )
            .where(new.c.id.in_(part), old.c.superseded == literal(False))
            .where(or_(old.c.state == "done", and_(old.c.state.in_(_LEFT), old.c.model_id < new.c.model_id)))
            .where(old.c.id.not_in(part))
            .distinct()
        )
        older = {row.id: row.state for row in connection.execute(query)}
        done.extend(job_id for job_id, state in older.items() if state == "done")
        for ids in _parts(list(older), IN_LIST):
            connection.execute(update(JobRow).where(JobRow.id.in_(ids)).values(superseded=True))
    return done


def fail(
    connection: Connection, owner: str, job_id: int, *, code: str, error: str, retry: bool, max_attempts: int
) -> str:
    """Note that a job did not succeed; returns its new state.

    With ``retry`` it is leased again after a back-off that doubles each time, until ``max_attempts``; without, it
    is dead at once. Nothing changes if the lease has been lost meanwhile.
    """
    now = now_us()
    query = select(JobRow.attempts).where(JobRow.id == job_id, JobRow.lease_owner == owner, JobRow.state == "leased")
    attempts = connection.execute(query).scalar_one_or_none()
    if attempts is None:
        return "lost"
    state = "failed" if retry and attempts < max_attempts else "dead"
    connection.execute(
        update(JobRow)
        .where(JobRow.id == job_id)
        .values(
            state=state,
            error_code=code,
            error=error,
            lease_owner=None,
            lease_until_us=None,
            not_before_us=now + BACK_OFF_S * SECOND_US * 2 ** (attempts - 1),
            finished_us=now if state == "dead" else None,
        )
    )
    return state


def waiting(connection: Connection, model_id: int) -> tuple[int, int]:
    """How many of a model's jobs could be leased now or soon, and how many others hold."""
    query = (
        select(JobRow.state, func.count())
        .where(JobRow.model_id == model_id, JobRow.state.in_(("ready", "leased", "failed")), ~JobRow.superseded)
        .group_by(JobRow.state)
    )
    found = {state: count for state, count in connection.execute(query)}
    return found.get("ready", 0) + found.get("failed", 0), found.get("leased", 0)


def count_jobs(connection: Connection) -> dict[str, dict[str, int]]:
    """Live (not superseded) jobs by model name and state."""
    query = (
        select(ModelRow.name, JobRow.state, func.count())
        .join(ModelRow, ModelRow.id == JobRow.model_id)
        .where(~JobRow.superseded)
        .group_by(ModelRow.name, JobRow.state)
    )
    counts: dict[str, dict[str, int]] = {}
    for name, state, count in connection.execute(query):
        counts.setdefault(name, {})[state] = count
    return counts


def list_jobs(
    connection: Connection, *, states: Iterable[str], model: str | None = None, limit: int | None = None
) -> list[JobLine]:
    """Live jobs in these states, of one model if it is named; those made last first."""
    query = (
        select(JobRow, ModelRow.name, ModelRow.version)
        .join(ModelRow, ModelRow.id == JobRow.model_id)
        .with_only_columns(
            JobRow.id,
            ModelRow.name,
            ModelRow.version,
            JobRow.unit_kind,
            JobRow.unit_id,
            JobRow.state,
            JobRow.attempts,
            JobRow.error_code,
            JobRow.error,
        )
        .where(JobRow.state.in_(list(states)), ~JobRow.superseded)
        .where(ModelRow.name == model if model else true())
        .order_by(JobRow.id.desc())
        .limit(limit)
    )
    return [
        JobLine(
            id=row.id,
            model=row.name,
            version=row.version,
            unit=f"{row.unit_kind}/{row.unit_id}",
            state=row.state,
            attempts=row.attempts,
            error_code=row.error_code,
            error=row.error,
        )
        for row in connection.execute(query)
    ]


def retry_jobs(connection: Connection, job_ids: Sequence[int] | None = None) -> int:
    """Make dead and failed jobs ready again: all of them, or those named. Returns how many."""
    condition = and_(JobRow.state.in_(("dead", "failed")), ~JobRow.superseded)
    if job_ids is not None:
        condition = and_(condition, JobRow.id.in_(job_ids))
    result = connection.execute(
        update(JobRow).where(condition).values(state="ready", attempts=0, not_before_us=0, finished_us=None)
    )
    return result.rowcount


def predictions(connection: Connection, model_name: str) -> list[tuple[str, str, float | None, str | None]]:
    """(unit, output, value, out_of_scope) of the live done jobs of a model, in unit order."""
    query = (
        select(JobRow.unit_kind, JobRow.unit_id, PredictionRow.output, PredictionRow.value, PredictionRow.out_of_scope)
        .join(JobRow, JobRow.id == PredictionRow.job_id)
        .join(ModelRow, ModelRow.id == JobRow.model_id)
        .where(ModelRow.name == model_name, JobRow.state == "done", ~JobRow.superseded)
        .order_by(JobRow.unit_id, PredictionRow.output)
    )
    return [(f"{kind}/{unit}", output, value, out) for kind, unit, output, value, out in connection.execute(query)]


def _parts(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
