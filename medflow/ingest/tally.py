"""The account of one ingest: every input offered is stored, unchanged or rejected, and never anything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

from medflow.errors import InputRejected, MedflowError

Progress = Callable[[int], None]  # called with the number of inputs just accounted for


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """An input that is not taken: where it came from, why, and its bytes if they are worth keeping for a replay."""

    origin: str
    error: InputRejected
    sha256: str | None = None
    data: bytes | None = None

    @classmethod
    def of(cls, origin: str, error: InputRejected, data: bytes | None = None) -> Refused:
        """With the SHA-256 of ``data``, when there are any bytes."""
        return cls(origin=origin, error=error, sha256=sha256(data).hexdigest() if data else None, data=data)


@dataclass(kw_only=True, slots=True)
class Tally:
    """Counts of one ingest. ``reasons`` counts reject codes; ``notes`` what is worth saying and is no reject.

    ``broken``: parts of a source that could not be read at all (a resource type), and why.
    """

    offered: int = 0
    stored: int = 0
    unchanged: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Count another ingest's inputs as well."""
        self.offered += other.offered
        self.stored += other.stored
        self.unchanged += other.unchanged
        self.rejected += other.rejected
        self.reasons.update(other.reasons)
        self.notes.update(other.notes)
        self.broken.update(other.broken)

    def check(self) -> None:
        """Raise if an input was lost: offered = stored + unchanged + rejected."""
        if self.offered != self.stored + self.unchanged + self.rejected:
            raise MedflowError(
                f"inputs are unaccounted for: {self.offered} offered, {self.stored} stored, "
                f"{self.unchanged} unchanged, {self.rejected} rejected; this is a defect of medflow, please report it"
            )

    def as_json(self) -> dict[str, object]:
        """The object that ``medflow ingest --json`` prints."""
        return {
            "offered": self.offered,
            "stored": self.stored,
            "unchanged": self.unchanged,
            "rejected": self.rejected,
            "reasons": dict(sorted(self.reasons.items())),
            "notes": dict(sorted(self.notes.items())),
            **({"broken": dict(sorted(self.broken.items()))} if self.broken else {}),
        }
