"""The outbox: result resources, and DICOM objects, waiting to be sent, and what each target has been sent of them.

A resource is queued in the transaction that stores its prediction. A target's `delivery` rows are made when a delivery
to it begins, and say from then on what it still needs: pending --> delivered, or failed (sent again later), or dead,
or withheld (of a type that the target has no place for).

A DICOM object is a row of type `DICOM` whose body is the SHA-256 (hex) of its file. Folders are sent them too, archives
nothing else; a FHIR server has no place for them and gets no delivery row, so that nothing waits for it. An object of a
superseded result is withdrawn: what was sent stays where it is, what was not never goes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import (
    ColumnElement,
    Connection,
    String,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal,
    or_,
    select,
    update,
)

from medflow.errors import TargetUnavailable
from medflow.records import Outgoing, digest_of
from medflow.store.jobs import is_gone
from medflow.store.ledger import now_us, upsert
from medflow.store.shared_basis import COLUMNS, VOID, Sent, sent, with_basis
from medflow.store.tables import DeliveryRow, OutboxRow, TargetRow

SECOND_US = 1_000_000
IN_LIST = 5000
QUEUE_LOCK = 0x6D65_6466_6C6F_7701  # PostgreSQL advisory lock: queueing (shared) against enrolling (exclusive)
TURN_LOCK = 0x6D65_6466_6C6F_7702  # and of who changes what results of several jobs are derived from
STATES = ("pending", "delivered", "failed", "dead", "withheld")
DICOM = "DICOM"  # the type of a row that stands for a DICOM object; no FHIR resource type is written so
WITHDRAWN = "WITHDRAWN"  # of a row whose object no longer holds: kept, as a target's `enrolled` relies on growing ids


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingResource:
    """A resource that a target is to be sent. ``attempts`` counts the tries before this one.

    ``server_id`` and ``etag`` are what the server called its last version of it, if it has one and told.
    """

    outbox_id: int
    version: int
    type: str
    id: str
    body: bytes
    envelope: str
    job_id: int | None
    attempts: int
    server_id: str | None = None
    etag: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A resource that a target did not take. ``error`` stays in SQL: a server's words may name a patient.

    ``withheld``: the target has no place for its kind, so that it was never sent. Not ``counted``: nobody answered, and
    that is no reason to give it up.
    """

    resource: PendingResource
    error: str
    not_before_us: int
    withheld: bool = False
    counted: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What a target calls a resource of the outbox, if it has it, and what it is known by anywhere."""

    server_id: str | None
    identifier: dict[str, Any] | None


# --- queueing ------------------------------------------------------------------------------------------------


def queue(connection: Connection, job_id: int | None, outgoing: Sequence[Outgoing]) -> None:
    """Put a job's resources in the outbox (None: the catalog); see `queue_many`."""
    queue_many(connection, {job_id: outgoing})


def queue_many(connection: Connection, outgoing: Mapping[int | None, Sequence[Outgoing]]) -> None:
    """Put resources in the outbox, by job id.

    One that is there already with the same ``sha256`` is left alone; a changed one becomes a new version, which every
    target is sent.
    """
    now = now_us()
    rows = {
        (item.type, item.id): {
            "type": item.type,
            "fhir_id": item.id,
            "envelope": item.envelope,
            "job_id": job_id,
            "body": item.body,
            "sha256": item.sha256,
            "created_us": now,
        }
        for job_id, items in outgoing.items()
        for item in items
    }
    if not rows:
        return
    _lock_queue(connection, shared=True)
    statement = upsert(connection, OutboxRow)
    values = {name: statement.excluded[name] for name in ("envelope", "job_id", "body", "sha256", "created_us")}
    statement = statement.on_conflict_do_update(
        index_elements=["type", "fhir_id"],
        set_={**values, "version": OutboxRow.version + 1},
        where=OutboxRow.sha256 != statement.excluded.sha256,
    )
    connection.execute(statement, list(rows.values()))  # RETURNING would have it written out anew for every thousand
    changed = select(OutboxRow.id).where(OutboxRow.version > 1, OutboxRow.created_us == now)
    for part in _parts([job_id for job_id in outgoing if job_id is not None]):
        _reopen(connection, connection.scalars(changed.where(OutboxRow.job_id.in_(part))).all())
    if None in outgoing:
        _reopen(connection, connection.scalars(changed.where(OutboxRow.job_id.is_(None))).all())


def take_turn(connection: Connection) -> None:
    """Wait until no other transaction that called this is open (PostgreSQL; writers of SQLite take turns anyway).

    For those that queue what models share, a variant of a sample: each comes to the shared rows in an order of its own,
    and two of them could wait for one another for good. To be called before anything is locked.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(TURN_LOCK)))


def ids_of(connection: Connection, job_id: int) -> set[tuple[str, str]]:
    """Type and id of what a job has in the outbox."""
    query = select(OutboxRow.type, OutboxRow.fhir_id).where(OutboxRow.job_id == job_id)
    return {(row.type, row.fhir_id) for row in connection.execute(query)}


def supersede(connection: Connection, job_ids: Sequence[int], status: str) -> int:
    """Give the results of these jobs another FHIR status ("amended", "entered-in-error"); returns how many changed.

    Their DICOM objects have no status that could tell: they are withdrawn. What results of several jobs are derived
    from, a variant of a sample, follows when none of them stands any more.
    """
    _lock_queue(connection, shared=True)
    rows: dict[int, Sent] = {}
    for part in _parts(job_ids):
        _withdraw(connection, OutboxRow.job_id.in_(part))
        query = select(*COLUMNS).where(OutboxRow.job_id.in_(part), OutboxRow.type != WITHDRAWN)
        rows |= {row.id: sent(row) for row in connection.execute(query.with_for_update())}
    changed: list[dict[str, Any]] = []
    for key, row in with_basis(connection, rows).items():
        resource = row.resource
        # Provenance has none, and tells what happened either way; what was never right is not amended later
        if resource.get("status", status) not in (status, *VOID):
            body = orjson.dumps({**resource, "status": status}, option=orjson.OPT_SORT_KEYS)
            changed.append({"key": key, "new_body": body, "new_sha256": digest_of(row.sha256, status)})
    if changed:
        connection.execute(
            update(OutboxRow)
            .where(OutboxRow.id == bindparam("key"))
            .values(
                body=bindparam("new_body"),
                sha256=bindparam("new_sha256"),
                version=OutboxRow.version + 1,
                created_us=now_us(),
            ),
            changed,
        )
        _reopen(connection, [row["key"] for row in changed])
    return len(changed)


def withdraw(connection: Connection, sop_instance_uids: Sequence[str]) -> None:
    """Let no target be sent these DICOM objects from now on."""
    _lock_queue(connection, shared=True)
    for part in _parts(sop_instance_uids):
        _withdraw(connection, OutboxRow.fhir_id.in_(part))


def _withdraw(connection: Connection, which: ColumnElement[bool]) -> None:
    ids = connection.execute(select(OutboxRow.id).where(OutboxRow.type == DICOM, which)).scalars().all()
    for part in _parts(ids):
        connection.execute(delete(DeliveryRow).where(DeliveryRow.outbox_id.in_(part)))
        freed = OutboxRow.fhir_id + literal("#") + cast(OutboxRow.id, String)  # the object may be queued again
        connection.execute(update(OutboxRow).where(OutboxRow.id.in_(part)).values(type=WITHDRAWN, fhir_id=freed))


def _reopen(connection: Connection, outbox_ids: Sequence[int]) -> None:
    """Make the present version of these rows pending again wherever an older one was."""
    version = select(OutboxRow.version).where(OutboxRow.id == DeliveryRow.outbox_id).scalar_subquery()
    for part in _parts(outbox_ids):
        connection.execute(
            update(DeliveryRow)
            .where(DeliveryRow.outbox_id.in_(part))
            .values(state="pending", version=version, attempts=0, not_before_us=0, last_error=None)
        )


def _lock_queue(connection: Connection, *, shared: bool) -> None:
    # Without it, a row with a lower id could be committed after the target was enrolled past it, and never be sent.
    # SQLite needs none: its writers take turns.
    if connection.dialect.name == "postgresql":
        lock = func.pg_advisory_xact_lock_shared if shared else func.pg_advisory_xact_lock
        connection.execute(select(lock(QUEUE_LOCK)))


# --- targets -------------------------------------------------------------------------------------------------


def fits(kind: str) -> ColumnElement[bool]:
    """Which rows of the outbox are for a kind of target: archives take DICOM objects, FHIR servers all else."""
    if kind in ("dicomweb", "pacs"):
        return OutboxRow.type == DICOM
    return OutboxRow.type.not_in((DICOM, WITHDRAWN) if kind == "fhir" else (WITHDRAWN,))


def claim_target(connection: Connection, target: str, owner: str, *, seconds: int, kind: str) -> dict[str, int]:
    """Become the one writer to a target for ``seconds``, and enrol what is new in the outbox.

    ``kind`` is what it is: folder, fhir, dicomweb or pacs.

    A lease that ran out, or whose process is gone, is taken over. Returns the committed sizes of a folder's files.

    Raises
    ------
    TargetUnavailable
        Another process is writing to it now.
    """
    _lock_queue(connection, shared=False)
    fresh = upsert(connection, TargetRow).values(name=target, kind=kind, committed={})
    connection.execute(fresh.on_conflict_do_nothing(index_elements=["name"]))
    row = connection.execute(select(TargetRow.__table__).where(TargetRow.name == target).with_for_update()).one()
    now = now_us()
    if row.lease_owner and row.lease_owner != owner and row.lease_until_us > now and not is_gone(row.lease_owner):
        raise TargetUnavailable(
            "another process is delivering to this target: let it finish, then run the same command again",
            retry_after_s=(row.lease_until_us - now) / SECOND_US,
        )
    new = select(OutboxRow.id, literal(target), OutboxRow.version, literal("pending"), literal(0), literal(0)).where(
        OutboxRow.id > row.enrolled, fits(row.kind)
    )
    enrol = upsert(connection, DeliveryRow).from_select(
        ["outbox_id", "target", "version", "state", "attempts", "not_before_us"], new
    )
    connection.execute(enrol.on_conflict_do_nothing(index_elements=["outbox_id", "target"]))
    last = select(func.coalesce(func.max(OutboxRow.id), 0)).scalar_subquery()
    connection.execute(
        update(TargetRow)
        .where(TargetRow.name == target)
        .values(lease_owner=owner, lease_until_us=now + seconds * SECOND_US, enrolled=last)
    )
    return {name: int(size) for name, size in row.committed.items()}


def renew_target(
    connection: Connection, target: str, owner: str, *, seconds: int, committed: Mapping[str, int] | None = None
) -> None:
    """Hold the lease for ``seconds`` from now, and note how far a folder's files are committed.

    Raises
    ------
    TargetUnavailable
        The lease was lost to another process meanwhile: nothing of this transaction may stay.
    """
    values: dict[str, Any] = {"lease_until_us": now_us() + seconds * SECOND_US}
    if committed is not None:
        values["committed"] = dict(committed)
    mine = and_(TargetRow.name == target, TargetRow.lease_owner == owner)
    if connection.execute(update(TargetRow).where(mine).values(values)).rowcount != 1:
        raise TargetUnavailable("another process took over the delivery to this target; run the same command again")


def release_target(connection: Connection, target: str, owner: str) -> None:
    """Give the lease back, if it is still this owner's."""
    mine = and_(TargetRow.name == target, TargetRow.lease_owner == owner)
    connection.execute(update(TargetRow).where(mine).values(lease_owner=None, lease_until_us=None))


# --- what a target is to be sent -------------------------------------------------------------------------------


def pending_envelopes(connection: Connection, target: str, *, at_us: int) -> list[list[int]]:
    """The outbox ids that a claimed target is to be sent now, an envelope each: the catalog first."""
    due = or_(DeliveryRow.state == "pending", and_(DeliveryRow.state == "failed", DeliveryRow.not_before_us <= at_us))
    query = (
        select(OutboxRow.id, OutboxRow.envelope)
        .join(DeliveryRow, DeliveryRow.outbox_id == OutboxRow.id)
        .where(DeliveryRow.target == target, due)
        .order_by(case((OutboxRow.envelope == "catalog", 0), else_=1), OutboxRow.envelope, OutboxRow.id)
    )
    envelopes: dict[str, list[int]] = {}
    for outbox_id, envelope in connection.execute(query):
        envelopes.setdefault(envelope, []).append(outbox_id)
    return list(envelopes.values())


def load_resources(connection: Connection, target: str, outbox_ids: Sequence[int]) -> dict[int, PendingResource]:
    """What these ids stand for, as it is now."""
    found: dict[int, PendingResource] = {}
    for part in _parts(outbox_ids):
        query = (
            select(OutboxRow.__table__, DeliveryRow.attempts, DeliveryRow.server_id, DeliveryRow.etag)
            .join(DeliveryRow, and_(DeliveryRow.outbox_id == OutboxRow.id, DeliveryRow.target == target))
            .where(OutboxRow.id.in_(part))
        )
        for row in connection.execute(query):
            found[row.id] = PendingResource(
                outbox_id=row.id,
                version=row.version,
                type=row.type,
                id=row.fhir_id,
                body=row.body,
                envelope=row.envelope,
                job_id=row.job_id,
                attempts=row.attempts,
                server_id=row.server_id,
                etag=row.etag,
            )
    return found


def known_resources(
    connection: Connection, target: str, names: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], Known]:
    """Of these (type, id), those that are in the outbox, and what the target calls them."""
    found: dict[tuple[str, str], Known] = {}
    wanted = set(names)
    for part in _parts(sorted({key for _, key in wanted})):
        query = (
            select(OutboxRow.type, OutboxRow.fhir_id, OutboxRow.body, DeliveryRow.server_id)
            .outerjoin(DeliveryRow, and_(DeliveryRow.outbox_id == OutboxRow.id, DeliveryRow.target == target))
            .where(OutboxRow.fhir_id.in_(part), OutboxRow.type.not_in((DICOM, WITHDRAWN)))
        )
        for kind, key, body, server_id in connection.execute(query):
            if (kind, key) in wanted:
                identifiers = orjson.loads(body).get("identifier")
                found[kind, key] = Known(server_id=server_id, identifier=identifiers[0] if identifiers else None)
    return found


def record_delivered(connection: Connection, target: str, resources: Sequence[PendingResource]) -> None:
    """Note that the target has these; one that got a newer version meanwhile stays pending.

    What the server called them is kept of either: the newer version goes to the same place.
    """
    by_version: dict[int, list[int]] = defaultdict(list)
    for resource in resources:
        by_version[resource.version].append(resource.outbox_id)
    _name(connection, target, [item for item in resources if item.etag or item.server_id or item.version > 1])
    for version, ids in by_version.items():
        for part in _parts(ids):
            connection.execute(
                update(DeliveryRow)
                .where(DeliveryRow.target == target, DeliveryRow.version == version, DeliveryRow.outbox_id.in_(part))
                .values(state="delivered", delivered_us=now_us(), attempts=DeliveryRow.attempts + 1, last_error=None)
            )


def _name(connection: Connection, target: str, resources: Sequence[PendingResource]) -> None:
    rows = [{"key": item.outbox_id, "new_id": item.server_id, "new_etag": item.etag} for item in resources]
    if rows:
        mine = and_(DeliveryRow.target == target, DeliveryRow.outbox_id == bindparam("key"))
        values = {"server_id": bindparam("new_id"), "etag": bindparam("new_etag")}
        connection.execute(update(DeliveryRow).where(mine).values(values), rows)


def record_failed(connection: Connection, target: str, failures: Sequence[Failure], *, max_attempts: int) -> int:
    """Note what the target did not take: tried again from ``not_before_us`` on, dead after ``max_attempts`` tries.

    What was withheld waits for nothing but `retry_deliveries`, or a newer version. Returns how many are dead.
    """
    rows = [
        {
            "key": failure.resource.outbox_id,
            "sent": failure.resource.version,
            "new_state": _state(failure, max_attempts),
            "new_attempts": failure.resource.attempts + (0 if failure.withheld or not failure.counted else 1),
            "new_error": failure.error,
            "new_not_before": failure.not_before_us,
        }
        for failure in failures
    ]
    if rows:
        connection.execute(
            update(DeliveryRow)
            .where(
                DeliveryRow.target == target,
                DeliveryRow.outbox_id == bindparam("key"),
                DeliveryRow.version == bindparam("sent"),
            )
            .values(
                state=bindparam("new_state"),
                attempts=bindparam("new_attempts"),
                last_error=bindparam("new_error"),
                not_before_us=bindparam("new_not_before"),
            ),
            rows,
        )
    return sum(row["new_state"] == "dead" for row in rows)


def _state(failure: Failure, max_attempts: int) -> str:
    if failure.withheld:
        return "withheld"
    return "dead" if failure.counted and failure.resource.attempts + 1 >= max_attempts else "failed"


def retry_deliveries(connection: Connection, target: str | None = None, *, overwrite: bool = False) -> int:
    """Make failed, dead and withheld deliveries pending again, of one target or of all; returns how many.

    With ``overwrite``, what a server has of them is forgotten: whatever is there now is written over. A folder that is
    named is written anew as a whole: its files are what may have been lost.
    """
    wanted = DeliveryRow.state.in_(("failed", "dead", "withheld"))
    if target is not None:
        row = connection.execute(select(TargetRow.committed).where(TargetRow.name == target)).one_or_none()
        folder = row is not None and bool(row.committed)
        wanted = and_(DeliveryRow.target == target, DeliveryRow.state != "pending" if folder else wanted)
        if row is not None and folder:
            empty = dict.fromkeys(row.committed, 0)
            connection.execute(update(TargetRow).where(TargetRow.name == target).values(committed=empty))
    fresh: dict[str, Any] = {"state": "pending", "attempts": 0, "not_before_us": 0, "last_error": None}
    if overwrite:
        fresh |= {"server_id": None, "etag": None}
    return connection.execute(update(DeliveryRow).where(wanted).values(fresh)).rowcount


def counts(connection: Connection) -> dict[str, dict[str, int]]:
    """Resources by target and state; ``pending`` includes what is not enrolled yet."""
    found: dict[str, dict[str, int]] = {}
    known = select(TargetRow.name, TargetRow.kind, TargetRow.enrolled).order_by(TargetRow.name)
    for name, kind, enrolled in connection.execute(known):
        waiting = select(func.count(OutboxRow.id)).where(OutboxRow.id > enrolled, fits(kind))
        found[name] = {**dict.fromkeys(STATES, 0), "pending": connection.execute(waiting).scalar_one()}
    query = select(DeliveryRow.target, DeliveryRow.state, func.count()).group_by(DeliveryRow.target, DeliveryRow.state)
    for name, state, count in connection.execute(query):
        found[name][state] += count
    return found


def list_errors(connection: Connection, target: str, *, limit: int = 20) -> list[tuple[str, str, str, int, str]]:
    """(type, id, state, attempts, error) of what a target did not take. The error may hold a server's own words."""
    query = (
        select(OutboxRow.type, OutboxRow.fhir_id, DeliveryRow.state, DeliveryRow.attempts, DeliveryRow.last_error)
        .join(DeliveryRow, DeliveryRow.outbox_id == OutboxRow.id)
        .where(DeliveryRow.target == target, DeliveryRow.state.in_(("failed", "dead")))
        .order_by(OutboxRow.id)
        .limit(limit)
    )
    return [(kind, key, state, tries, error or "") for kind, key, state, tries, error in connection.execute(query)]


def _parts(items: Iterable[Any]) -> Iterator[list[Any]]:
    everything = list(items)
    return (everything[start : start + IN_LIST] for start in range(0, len(everything), IN_LIST))
