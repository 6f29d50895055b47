"""The workers that announced themselves: what each serves, on what device, and when it was last heard of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select, update

from medflow.store.jobs import SECOND_US, StoredModel, is_gone
from medflow.store.ledger import now_us, upsert
from medflow.store.tables import ModelRow, WorkerRow

HEARTBEAT_S = 5
SILENT_S = 60  # without a heartbeat for so long, a worker is taken to be gone
FORGET_S = 7 * 24 * 3600
SERVING, DRAINING = "serving", "draining"


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """A worker as it announced itself. ``models``: name to digest; ``loaded``: the names on its device now."""

    name: str
    owner: str
    device: str
    models: Mapping[str, str]
    loaded: Sequence[str]
    started_us: int
    seen_us: int
    state: str

    @property
    def alive(self) -> bool:
        """Whether it was heard of lately, and its process is not known to have ended."""
        return now_us() - self.seen_us < SILENT_S * SECOND_US and not is_gone(self.owner)


def announce(connection: Connection, name: str, owner: str, device: str, models: Mapping[str, str]) -> None:
    """Put a worker on the list, in the place of an earlier one of its name; forget those silent for a week."""
    now = now_us()
    row = {"owner": owner, "device": device, "models": dict(models), "loaded": [], "state": SERVING}
    statement = upsert(connection, WorkerRow).values(name=name, started_us=now, seen_us=now, **row)
    again = {**row, "started_us": now, "seen_us": now}
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=again))
    connection.execute(delete(WorkerRow).where(WorkerRow.seen_us < now - FORGET_S * SECOND_US))


def is_taken(connection: Connection, name: str) -> bool:
    """Whether a living worker has this name."""
    return any(worker.name == name and worker.alive for worker in listed(connection))


def beat(connection: Connection, name: str, owner: str, *, loaded: Sequence[str], state: str) -> None:
    """Say that a worker lives."""
    mine = (WorkerRow.name == name, WorkerRow.owner == owner)
    connection.execute(update(WorkerRow).where(*mine).values(seen_us=now_us(), loaded=list(loaded), state=state))


def now_serves(connection: Connection, name: str, owner: str, models: Mapping[str, str]) -> None:
    """Say that a worker serves other versions than it announced."""
    mine = (WorkerRow.name == name, WorkerRow.owner == owner)
    connection.execute(update(WorkerRow).where(*mine).values(models=dict(models)))


def leave(connection: Connection, name: str, owner: str) -> None:
    """Take a worker off the list."""
    connection.execute(delete(WorkerRow).where(WorkerRow.name == name, WorkerRow.owner == owner))


def listed(connection: Connection) -> list[Worker]:
    """Every worker on the list, by name; `Worker.alive` says which are there."""
    query = select(WorkerRow.__table__).order_by(WorkerRow.name)
    return [Worker(**row) for row in connection.execute(query).mappings()]


def served(connection: Connection) -> dict[str, set[str]]:
    """Digests by model name that living workers take chunks of."""
    found: dict[str, set[str]] = {}
    for worker in listed(connection):
        if worker.state == SERVING and worker.alive:
            for name, digest in worker.models.items():
                found.setdefault(name, set()).add(digest)
    return found


def models_of(connection: Connection, digests: Sequence[str]) -> list[StoredModel]:
    """The stored models of these digests, the one registered last first."""
    query = select(ModelRow.__table__).where(ModelRow.digest.in_(digests)).order_by(ModelRow.id.desc())
    names = StoredModel.__dataclass_fields__
    return [StoredModel(**{name: row[name] for name in names}) for row in connection.execute(query).mappings()]
