r"""Chunks: what was scored together, for which run, by whom, and how long it took. A run is the sum of its chunks.

asked --> running --> done | failed (infrastructure) | broken (the model cannot be run at all)
  \----------\------> lost: whoever asked for it, or scored it, has gone

A chunk's counts are written in the transactions that end its jobs, so that they agree with the jobs whatever is killed.
Whoever asks holds an asked chunk alive; the process that takes it, from then on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, and_, insert, select, update

from medflow.store.jobs import SECOND_US, is_gone, process_of, void_leases
from medflow.store.ledger import now_us
from medflow.store.tables import ChunkRow, ModelRow
from medflow.store.workers import listed

ASKED, RUNNING, DONE, FAILED, BROKEN, LOST = "asked", "running", "done", "failed", "broken", "lost"


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """One chunk as it stands. ``seconds`` are by stage; ``error`` says why it ended failed or broken."""

    id: int
    model: str
    version: str
    state: str
    asked_us: int
    worker: str | None = None
    leased: int = 0
    done: int = 0
    failed: int = 0
    dead: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """An asked chunk that is this process's now, and whether its predictions are to be explained."""

    id: int
    explain: bool


def ask(connection: Connection, run_id: int, model_id: int, count: int, *, seconds: int, explain: bool = False) -> None:
    """Ask for ``count`` chunks of a model to be scored by whoever can; they are void after ``seconds`` unless held."""
    now = now_us()
    row = {"run_id": run_id, "model_id": model_id, "state": ASKED, "asked_us": now, "explain": explain}
    connection.execute(insert(ChunkRow), [{**row, "lease_until_us": now + seconds * SECOND_US}] * count)


def hold(connection: Connection, run_id: int, *, seconds: int) -> None:
    """Keep what a run has asked for alive for ``seconds`` from now; note which running chunks, of any run, are lost.

    Lost is a chunk whose lease ran out, whose process on this host ended, or whose worker has fallen silent. Its jobs
    are free at once: should its process live after all, it finds that it no longer holds them.
    """
    now = now_us()
    # only when it is time: a row that is being written is passed over by whoever would take it
    due = ChunkRow.lease_until_us < now + seconds * SECOND_US // 2
    asked = update(ChunkRow).where(ChunkRow.run_id == run_id, ChunkRow.state == ASKED, due)
    connection.execute(asked.values(lease_until_us=now + seconds * SECOND_US))
    query = select(ChunkRow.id, ChunkRow.owner, ChunkRow.worker, ChunkRow.lease_until_us)
    taken = connection.execute(query.where(ChunkRow.state == RUNNING)).all()
    if not taken:
        return
    silent = {worker.name for worker in listed(connection) if not worker.alive}
    _lose(
        connection,
        [row for row in taken if row.lease_until_us < now or row.worker in silent or is_gone(row.owner)],
    )


def abandon(connection: Connection, process: str, *, but: Collection[str]) -> None:
    """Give up what a process is on record as scoring, but for these owners: it could not say so at the time.

    ``process`` is what its owners begin with (`medflow.store.jobs.process_of`).
    """
    query = select(ChunkRow.id, ChunkRow.owner).where(ChunkRow.state == RUNNING, ChunkRow.worker.is_not(None))
    own = [row for row in connection.execute(query) if process_of(row.owner) == process]
    _lose(connection, [row for row in own if row.owner not in but])


def _lose(connection: Connection, lost: Sequence[Any]) -> None:
    if lost:
        which = ChunkRow.id.in_([row.id for row in lost])
        connection.execute(update(ChunkRow).where(which).values(state=LOST, finished_us=now_us()))
        void_leases(connection, [row.owner for row in lost])


def withdraw(connection: Connection, run_id: int, model_id: int | None = None) -> int:
    """Take back what a run asked for and nobody took; returns how many."""
    asked = and_(ChunkRow.run_id == run_id, ChunkRow.state == ASKED)
    if model_id is not None:
        asked = and_(asked, ChunkRow.model_id == model_id)
    return connection.execute(update(ChunkRow).where(asked).values(state=LOST, finished_us=now_us())).rowcount


def take(connection: Connection, model_id: int, owner: str, worker: str | None, *, seconds: int) -> Taken | None:
    """Become the one who scores the oldest asked chunk of a model; None when nothing is asked."""
    now = now_us()
    query = (
        select(ChunkRow.id, ChunkRow.explain)
        .where(ChunkRow.model_id == model_id, ChunkRow.state == ASKED, ChunkRow.lease_until_us >= now)
        .order_by(ChunkRow.id)
        .limit(1)
    )
    found = connection.execute(query.with_for_update(skip_locked=True)).one_or_none()
    if found is None:
        return None
    mine = {"state": RUNNING, "owner": owner, "worker": worker, "started_us": now}
    until = now + seconds * SECOND_US
    connection.execute(update(ChunkRow).where(ChunkRow.id == found.id).values(**mine, lease_until_us=until))
    return Taken(id=found.id, explain=found.explain)


def begin(
    connection: Connection, run_id: int | None, model_id: int, owner: str, *, seconds: int, explain: bool = False
) -> int:
    """Note a chunk that nobody asked for, taken by its own run; returns its id."""
    now = now_us()
    statement = insert(ChunkRow).values(
        run_id=run_id,
        model_id=model_id,
        state=RUNNING,
        owner=owner,
        explain=explain,
        asked_us=now,
        started_us=now,
        lease_until_us=now + seconds * SECOND_US,
    )
    return int(connection.execute(statement).inserted_primary_key[0])  # type: ignore[index]  # one row was inserted


def record(connection: Connection, chunk_id: int, owner: str, *, seconds: int, counts: Mapping[str, Any]) -> None:
    """Set a running chunk's counts to what they are by now, and hold it for ``seconds`` more."""
    mine = and_(ChunkRow.id == chunk_id, ChunkRow.owner == owner)
    until = now_us() + seconds * SECOND_US
    connection.execute(update(ChunkRow).where(mine).values(**counts, lease_until_us=until))


def finish(
    connection: Connection,
    chunk_id: int,
    owner: str,
    *,
    state: str,
    error: str | None = None,
    counts: Mapping[str, Any] | None = None,
) -> None:
    """Note how a chunk ended: done, failed or broken."""
    mine = and_(ChunkRow.id == chunk_id, ChunkRow.owner == owner)
    ended = {"state": state, "error": error, "finished_us": now_us(), "lease_until_us": None}
    connection.execute(update(ChunkRow).where(mine).values(**ended, **(counts or {})))


def of_run(connection: Connection, run_id: int) -> list[Chunk]:
    """The chunks of a run, in the order they were asked for."""
    columns = [getattr(ChunkRow, name) for name in Chunk.__dataclass_fields__ if name not in ("model", "version")]
    query = (
        select(ModelRow.name.label("model"), ModelRow.version, *columns)
        .join(ModelRow, ModelRow.id == ChunkRow.model_id)
        .where(ChunkRow.run_id == run_id)
        .order_by(ChunkRow.id)
    )
    return [Chunk(**row) for row in connection.execute(query).mappings()]


def running(connection: Connection) -> set[int]:
    """The ids of the models of which chunks are being scored now, for whichever run."""
    query = select(ChunkRow.model_id).where(ChunkRow.state == RUNNING, ChunkRow.lease_until_us >= now_us()).distinct()
    return set(connection.execute(query).scalars())
