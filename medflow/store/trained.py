"""The versions of models that were trained here: which there are, how good they were, and which one is served.

The files (weights, card, plots) lie in the object store under their SHA-256; this table says which belong to which
version. Promoting is one transaction: whoever reads the table sees one promoted version of a model, or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select, text, update

from medflow.errors import ConfigurationError
from medflow.store.ledger import now_us
from medflow.store.tables import AuditRow, RunRow, TrainedModelRow

CANDIDATE, PROMOTED, RETIRED, REMOVED = "candidate", "promoted", "retired", "removed"
DECIDING = "models"  # the command under which decisions about versions are on record
CARD = "MODEL_CARD.md"  # the name among ``files`` that the version's card has
TRAINED_LOCK = 0x6D656474  # advisory lock of PostgreSQL: one at a time numbers a version or decides what is served


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedVersion:
    """A version of a model that was trained here.

    ``spec`` is the declaration it is served with, as JSON; ``files`` names to SHA-256 (hex) in the object store: what
    the spec's weights and reference name, and the card (`CARD`) and its plots. ``state``: candidate, promoted (at most
    one of a model), retired (promoted before), removed (its files are no longer wanted; its number stays taken).
    """

    id: int
    model: str
    version: str
    base_version: str
    base_digest: str
    spec: Mapping[str, Any]
    files: Mapping[str, str]
    hyperparameters: Mapping[str, Any]
    seed: int
    cohort: Mapping[str, Any]
    metrics: Mapping[str, Any]
    state: str
    run_id: int | None
    created_us: int
    promoted_us: int | None


def next_version(connection: Connection, model: str, base_version: str) -> str:
    """The version that the next training of a model gives, such as "1.1.0+trained.3"; numbers are never used again.

    Call it in the `Store.writing` block that calls `add`: until that block ends nobody else is given a number.
    """
    _alone(connection)
    taken = select(TrainedModelRow.version).where(TrainedModelRow.model == model)
    numbers = [int(version.rpartition(".")[2]) for version in connection.execute(taken).scalars()]
    return f"{base_version}+trained.{max(numbers, default=0) + 1}"


def add(
    connection: Connection,
    *,
    model: str,
    version: str,
    base_version: str,
    base_digest: str,
    spec: Mapping[str, Any],
    files: Mapping[str, str],
    hyperparameters: Mapping[str, Any],
    seed: int,
    cohort: Mapping[str, Any],
    metrics: Mapping[str, Any],
    run_id: int | None = None,
) -> TrainedVersion:
    """Keep a new candidate; its files are in the object store already.

    Raises
    ------
    ConfigurationError
        The spec names a file that ``files`` has not, or has under another digest.
    """
    _check_files(f"{model} {version}", spec, files)
    values = {
        "base_version": base_version,
        "base_digest": base_digest,
        "spec": dict(spec),
        "files": dict(files),
        "hyperparameters": dict(hyperparameters),
        "seed": seed,
        "cohort": dict(cohort),
        "metrics": dict(metrics),
        "run_id": run_id,
    }
    connection.execute(
        insert(TrainedModelRow).values(model=model, version=version, state=CANDIDATE, created_us=now_us(), **values)
    )
    return one(connection, model, version)


def _check_files(name: str, spec: Mapping[str, Any], files: Mapping[str, str]) -> None:
    reference = spec.get("reference")
    for item in [*spec.get("weights", ()), *([reference] if reference else [])]:
        if files.get(item["file"]) != item["sha256"]:
            raise ConfigurationError(f"{name}: its spec names {item['file']}, which is not among its files as it is")


def versions(connection: Connection, model: str | None = None) -> list[TrainedVersion]:
    """The versions trained here, of one model or of all, in the order they were made; not those removed."""
    query = select(TrainedModelRow.__table__).where(TrainedModelRow.state != REMOVED).order_by(TrainedModelRow.id)
    if model is not None:
        query = query.where(TrainedModelRow.model == model)
    return [_record(row) for row in connection.execute(query).mappings()]


def one(connection: Connection, model: str, version: str) -> TrainedVersion:
    """One version.

    Raises
    ------
    ConfigurationError
        There is none of that name; the message lists those that there are.
    """
    known = versions(connection, model)
    for item in known:
        if item.version == version:
            return item
    listed = ", ".join(item.version for item in known) or "none"
    raise ConfigurationError(
        f"no version {version} of {model} was trained here; there are: {listed}; what the plugin brings is 'installed'"
    )


def promoted(connection: Connection) -> list[TrainedVersion]:
    """The versions that are to be served in the place of what the plugins bring: at most one of each model."""
    query = select(TrainedModelRow.__table__).where(TrainedModelRow.state == PROMOTED).order_by(TrainedModelRow.id)
    return [_record(row) for row in connection.execute(query).mappings()]


def stamp(connection: Connection) -> tuple[tuple[int, int], ...]:
    """What differs whenever `promoted` does, and costs little to ask for."""
    query = select(TrainedModelRow.id, TrainedModelRow.promoted_us).where(TrainedModelRow.state == PROMOTED)
    return tuple((row.id, row.promoted_us or 0) for row in connection.execute(query.order_by(TrainedModelRow.id)))


def is_served(connection: Connection, model: str, version: str) -> bool:
    """Whether this version of a model may answer now: the promoted one, else whatever was not trained here."""
    query = select(TrainedModelRow.version, TrainedModelRow.state).where(TrainedModelRow.model == model)
    states = {row.version: row.state for row in connection.execute(query)}
    return states.get(version) == PROMOTED or (PROMOTED not in states.values() and version not in states)


def stays_served(connection: Connection, model: str, version: str) -> bool:
    """Whether this version of a model may answer now, and does until the transaction ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": TRAINED_LOCK})
    return is_served(connection, model, version)


def promote(connection: Connection, model: str, version: str | None) -> TrainedVersion | None:
    """Have a version served from now on; None: what the plugin brings. Returns what was promoted until now.

    Raises
    ------
    ConfigurationError
        There is no such version; the message lists those that there are.
    """
    _alone(connection)
    wanted = one(connection, model, version) if version is not None else None
    before = next((item for item in promoted(connection) if item.model == model), None)
    if before is not None and (wanted is None or before.id != wanted.id):
        connection.execute(update(TrainedModelRow).where(TrainedModelRow.id == before.id).values(state=RETIRED))
    if wanted is not None and (before is None or before.id != wanted.id):
        now = {"state": PROMOTED, "promoted_us": now_us()}
        connection.execute(update(TrainedModelRow).where(TrainedModelRow.id == wanted.id).values(**now))
    return before


def remove(connection: Connection, model: str, version: str) -> tuple[str, ...]:
    """Let go of a candidate; returns the SHA-256 of files that no other version has.

    Raises
    ------
    ConfigurationError
        There is no such version, or it is, or has been, served: results name it.
    """
    _alone(connection)
    gone = one(connection, model, version)
    if gone.state != CANDIDATE:
        raise ConfigurationError(
            f"{model} {version} is {gone.state}: patients' results name it, so it is kept; only candidates are removed"
        )
    connection.execute(update(TrainedModelRow).where(TrainedModelRow.id == gone.id).values(state=REMOVED, files={}))
    kept = {digest for item in versions(connection) for digest in item.files.values()}
    return tuple(sorted(set(gone.files.values()) - kept))


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What somebody decided about a model's versions: ``action`` promote or remove; ``detail`` as it was audited."""

    at_us: int
    actor: str
    action: str
    detail: Mapping[str, Any]


def decisions(connection: Connection, model: str) -> list[Decision]:
    """What was decided about a model, and by whom, the first first."""
    query = (
        select(AuditRow.at_us, AuditRow.action, AuditRow.detail, RunRow.actor)
        .join(RunRow, RunRow.id == AuditRow.run_id)
        .where(RunRow.command == DECIDING, AuditRow.subject == subject_of(model))
        .order_by(AuditRow.id)
    )
    return [Decision(**row) for row in connection.execute(query).mappings()]


def subject_of(model: str) -> str:
    """What the audit trail calls a model."""
    return f"model {model}"


def _alone(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":  # SQLite has one writer anyway
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": TRAINED_LOCK})


def _record(row: RowMapping) -> TrainedVersion:
    return TrainedVersion(**row)
