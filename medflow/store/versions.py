"""What is known of FHIR resources, and which of two versions of one stands.

An older version never takes a newer one's place; what was deleted does not come back with old files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from medflow.errors import InputRejected, RejectCode
from medflow.store.bulk import among
from medflow.store.corrections import Place, places_of
from medflow.store.packed import Packed
from medflow.store.tables import FhirResourceRow

CHUNK = 2000  # parameters in one IN list


class Outcome(StrEnum):
    """What became of one resource; a rejected one has its `InputRejected` instead."""

    STORED = "stored"
    UNCHANGED = "unchanged"
    OLDER = "older-version"  # unchanged: a newer version, or its deletion, is known


@dataclass(slots=True)
class Stored:
    """A row of fhir_resource that exists, as far as deciding needs it."""

    id: int
    sha256: str
    version: str | None
    last_updated_us: int | None
    deleted: bool


def known_contents(
    connection: Connection, source: str, keys: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], tuple[int, str]]:
    """Surrogate id and SHA-256 of the content known of these (type, id) of a source; what is not known is absent."""
    found = {}
    for kind, chunk in by_type(keys):
        query = select(FhirResourceRow.fhir_id, FhirResourceRow.id, FhirResourceRow.sha256).where(
            FhirResourceRow.source == source,
            FhirResourceRow.type == kind,
            among(connection, FhirResourceRow.fhir_id, chunk),
        )
        found.update({(kind, fhir_id): (key, digest) for fhir_id, key, digest in connection.execute(query)})
    return found


def has_resources(connection: Connection, source: str) -> bool:
    """Whether anything of this source is stored."""
    query = select(FhirResourceRow.id).where(FhirResourceRow.source == source).limit(1)
    return connection.scalar(query) is not None


def absent_resources(connection: Connection, source: str, references: Iterable[str]) -> Counter[str]:
    """How many of these references are to resources that the source has not sent, by type ("" where unknown).

    ``Type/id`` may be known; an absolute URL or a urn is not.
    """
    keys = [(kind, fhir_id) for kind, _, fhir_id in (item.rpartition("/") for item in references)]
    known = known_contents(connection, source, [key for key in keys if key[0] and "/" not in key[0]])
    return Counter(kind.rpartition("/")[2] for kind, fhir_id in keys if (kind, fhir_id) not in known)


def existing_resources(
    connection: Connection, source: str, keys: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], Stored]:
    """What there is of these (type, id) of a source, deleted or not."""
    table = FhirResourceRow
    found: dict[tuple[str, str], Stored] = {}
    for kind, part in by_type(keys):
        query = select(
            table.fhir_id, table.id, table.sha256, table.version, table.last_updated_us, table.deleted
        ).where(table.source == source, table.type == kind, among(connection, table.fhir_id, part))
        for fhir_id, *row in connection.execute(query):
            found[kind, fhir_id] = Stored(*row)
    return found


def decide(offered: Packed, stored: Stored, *, met: bool = False) -> Outcome | InputRejected:
    """What is to become of a resource that is known; ``met``: the stored one came in the same ingest."""
    if offered.deleted and stored.deleted:
        return Outcome.UNCHANGED
    if not offered.deleted and stored.sha256 == offered.sha256:
        return Outcome.UNCHANGED  # a tombstone remembers what was deleted
    age = _compare(offered, stored)
    if age < 0:
        return Outcome.OLDER
    if age == 0 and not offered.deleted:
        if stored.deleted and not stored.sha256:
            return Outcome.OLDER  # deleted before it was ever seen
        if met and not stored.deleted:
            reason = "another content with this type and id came in the same ingest, and nothing says which is newer"
            return InputRejected(RejectCode.IDENTITY_CONFLICT, reason, resource_id=stored.id)
    return Outcome.STORED


def _compare(one: Packed, other: Stored) -> int:
    """Negative: ``one`` is older; by meta.versionId if both are numbers, else by meta.lastUpdated; 0 if unknown."""
    if one.version and other.version and one.version.isdecimal() and other.version.isdecimal():
        difference = int(one.version) - int(other.version)
        if difference:
            return difference
    if one.last_updated_us is None or other.last_updated_us is None:
        return 0
    return one.last_updated_us - other.last_updated_us


def settle_tombstones(
    connection: Connection, resources: Sequence[Packed], existing: dict[tuple[str, str], Stored]
) -> None:
    """A deletion that came before its resource learns what was deleted, so that only that stays away."""
    learned = [
        {"key": stored.id, "new_sha256": item.sha256}
        for item in resources
        if (stored := existing.get((item.type, item.id))) is not None
        and stored.deleted
        and not stored.sha256
        and not item.deleted
        and decide(item, stored) is Outcome.OLDER
    ]
    if learned:
        statement = update(FhirResourceRow).where(FhirResourceRow.id == bindparam("key"))
        connection.execute(statement.values(sha256=bindparam("new_sha256")), learned)


def late_versions(
    connection: Connection,
    resources: Sequence[Packed],
    outcomes: Sequence[Outcome | InputRejected],
    existing: dict[tuple[str, str], Stored],
) -> list[tuple[Packed, Place]]:
    """Older versions that came after newer ones, and where their measurements belong."""
    older = {
        existing[item.type, item.id].id: item
        for item, outcome in zip(resources, outcomes, strict=True)
        if outcome is Outcome.OLDER and item.measurements
    }
    if not older:
        return []
    places = places_of(connection, {key: item.measurements[0].available_us for key, item in older.items()})
    return [(older[key], place) for key, place in places.items()]


def content_of(item: Packed, stored: Stored | None) -> tuple[str | None, int | None, str, bytes]:
    """Version, last update, SHA-256 and bytes of a row; a tombstone keeps the first three of what it was."""
    if item.deleted and stored is not None:
        updated = item.last_updated_us if item.last_updated_us is not None else stored.last_updated_us
        return item.version or stored.version, updated, stored.sha256, b""
    return item.version, item.last_updated_us, item.sha256, item.raw


def without_repeats(resources: Sequence[Packed]) -> Iterator[Sequence[Packed]]:
    """Parts in order, none of which has two versions of one resource."""
    start, seen = 0, set()
    for index, item in enumerate(resources):
        if (item.type, item.id) in seen:
            yield resources[start:index]
            start, seen = index, set()
        seen.add((item.type, item.id))
    if start < len(resources):
        yield resources[start:]


def by_type(keys: Iterable[tuple[str, str]]) -> Iterator[tuple[str, Sequence[str]]]:
    """The names of each type, as many as fit one statement at a time."""
    groups: dict[str, list[str]] = {}
    for kind, name in keys:
        groups.setdefault(kind, []).append(name)
    for kind, names in groups.items():
        for part in chunks_of(names):
            yield kind, part


def chunks_of(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """As many as fit one statement at a time."""
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]
