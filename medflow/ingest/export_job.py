"""A Bulk Data export that was asked for, and how far exports have been taken: what outlives the process.

The status address is kept before anything else is done with it, so that a process that dies goes on with the same
export. Marks are kept by type: one that is wanted later than others is exported from its own beginning.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medflow.connections.endpoints import FhirSource
from medflow.records import Instant
from medflow.store import Store, watermarks
from medflow.store.watermarks import Watermark

EVERY_TYPE = "*"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportJob:
    """One export. ``status`` is its status address; ``done`` are the keys of files that the store has."""

    status: str = field(repr=False)
    types: tuple[str, ...]
    since_us: int | None
    asked_us: int
    done: frozenset[str] = frozenset()


class ExportJobs:
    """Jobs and marks of one source at one level, in its watermarks."""

    def __init__(self, store: Store, source: FhirSource, name: str) -> None:
        self._store, self._source, self._name = store, source, name
        self._kind = f"export {source.level}"

    def current(self) -> ExportJob | None:
        """The export that runs, or whose files are not all taken."""
        with self._store.reading() as connection:
            return _job(watermarks.read_mark(connection, self._name, self._kind).state)

    def keep(self, job: ExportJob) -> None:
        """Note how far it is."""
        state = {
            "status": job.status,
            "types": list(job.types),
            "since_us": job.since_us,
            "asked_us": job.asked_us,
            "done": sorted(job.done),
        }
        with self._store.writing() as connection:
            watermarks.set_mark(connection, self._name, self._kind, Watermark(state=state))

    def forget(self) -> None:
        """There is none any more; marks stay where they are."""
        with self._store.writing() as connection:
            watermarks.drop_mark(connection, self._name, self._kind)

    def finish(self, job: ExportJob, until_us: int) -> None:
        """All of it is stored: the marks of its types move, and it is forgotten, in one transaction."""
        with self._store.writing() as connection:
            for kind in job.types:
                watermarks.set_mark(connection, self._name, self._mark(kind), Watermark(until_us=until_us))
            watermarks.drop_mark(connection, self._name, self._kind)

    def due(self, covered: Collection[str]) -> Sequence[tuple[int | None, tuple[str, ...]]]:
        """Which exports are to be asked for: since when, and of which types but those ``covered``."""
        types = [kind for kind in self._source.types or (EVERY_TYPE,) if kind not in covered]
        with self._store.reading() as connection:
            marks = {kind: watermarks.read_mark(connection, self._name, self._mark(kind)).until_us for kind in types}
        known = {kind: until_us for kind, until_us in marks.items() if until_us is not None}
        new = tuple(kind for kind in types if kind not in known)
        found: list[tuple[int | None, tuple[str, ...]]] = []
        if known:
            found.append((min(known.values()) - round(self._source.overlap_s * 1e6), tuple(known)))
        if new:
            found.append((Instant.of(self._source.since).utc_us if self._source.since else None, new))
        return found

    def reaches(self, job: ExportJob) -> bool:
        """Whether a job begins no later than what is due of its types, as it did when it was asked for."""
        if job.since_us is None:
            return True
        starts = [since_us for since_us, types in self.due(()) if set(types) & set(job.types)]
        return all(since_us is not None and since_us >= job.since_us for since_us in starts)

    def _mark(self, kind: str) -> str:
        return f"{self._kind} {kind}"


def wanted(types: tuple[str, ...]) -> tuple[str, ...]:
    """The types as a server is asked for them: none are all."""
    return () if types == (EVERY_TYPE,) else types


def _job(state: Mapping[str, Any]) -> ExportJob | None:
    if not state:
        return None
    return ExportJob(
        status=state["status"],
        types=tuple(state["types"]),
        since_us=state["since_us"],
        asked_us=state["asked_us"],
        done=frozenset(state["done"]),
    )
