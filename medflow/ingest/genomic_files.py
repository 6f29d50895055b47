"""What ingest of VCF and FASTA files shares: reading a file that may be huge, and the account of what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from medflow.config import Settings
from medflow.errors import InputRejected, RejectCode
from medflow.ingest.offers import Offer
from medflow.ingest.tally import Progress, Refused, Tally
from medflow.store import Connection
from medflow.store.ledger import Reject, record_rejects
from medflow.store.objects import Staged
from medflow.store.session import Store

BLOCK = 1 << 20
PAYLOAD = 64 << 20  # bytes of a refused input that are kept for a replay


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """A file, or an archive's member, that could be read. ``sha256`` and ``size`` are of its bytes as received."""

    source: Path | bytes
    sha256: str
    size: int

    @classmethod
    def of(cls, item: Offer, settings: Settings) -> Received:
        """Hash what is offered; raises InputRejected."""
        total, size = sha256(), 0
        for block in checked_blocks(item, settings.max_input_bytes):
            total.update(block)
            size += len(block)
        return cls(source=item.path or item.data or b"", sha256=total.hexdigest(), size=size)

    def keep(self, store: Store) -> None:
        """Its bytes into the object store; raises InputRejected (VANISHED) if they changed since they were hashed."""
        store.objects.put_chunks(self._same(), self.sha256)

    def _same(self) -> Iterator[bytes]:
        total = sha256()
        for block in blocks(self.source):
            total.update(block)
            yield block
        if total.hexdigest() != self.sha256:
            raise changed()


def changed() -> InputRejected:
    """The refusal of a file that was written to meanwhile."""
    return InputRejected(RejectCode.VANISHED, "the file changed while it was read: offer it again when it is complete")


def checked_blocks(item: Offer, max_bytes: int) -> Iterator[bytes]:
    """All that is offered, block by block; raises InputRejected where it cannot be read, is empty or too large."""
    size = 0
    for block in blocks(item.path if item.data is None and item.path is not None else item.data or b""):
        size += len(block)
        if size > max_bytes:
            raise InputRejected(RejectCode.TOO_LARGE, f"MEDFLOW_MAX_INPUT_BYTES allows {max_bytes} bytes")
        yield block
    if not size:
        raise InputRejected(RejectCode.EMPTY, "the file has no bytes")


def blocks(source: Path | bytes) -> Iterator[bytes]:
    """The bytes of a file in pieces; raises InputRejected (VANISHED, UNREADABLE)."""
    if isinstance(source, bytes):
        yield source
        return
    try:
        with source.open("rb") as file:
            while block := file.read(BLOCK):
                yield block
    except FileNotFoundError:
        raise InputRejected(RejectCode.VANISHED, "the file is no longer there") from None
    except OSError as error:
        raise InputRejected(RejectCode.UNREADABLE, f"the file cannot be read: {error.strerror}") from None


@dataclass(kw_only=True, slots=True)
class Ledger:
    """Counts what happened, and records what was refused."""

    kind: str
    store: Store
    settings: Settings
    run_id: int | None
    progress: Progress | None
    tally: Tally = field(default_factory=Tally)
    rejects: list[Reject] = field(default_factory=list)
    reported: int = 0

    def count(self, outcome: str) -> None:
        """One input that is in the store now, or was already."""
        self.tally.offered += 1
        if outcome == "stored":
            self.tally.stored += 1
        else:
            self.tally.unchanged += 1

    def refuse(self, origin: str, error: InputRejected, source: Received | Staged | Offer | Refused | bytes) -> None:
        """One input that is not taken; its bytes are kept when there are any and not too many."""
        digest, kept = None, False
        if isinstance(source, Staged):
            digest, kept = source.sha256, source.size <= PAYLOAD
            if kept:
                self.store.objects.keep(source)
        if isinstance(source, Refused):
            source = source.data or b""
        if isinstance(source, bytes) and source:
            source = Received(source=source, sha256=sha256(source).hexdigest(), size=len(source))
        if isinstance(source, Received):
            digest = source.sha256
            kept = source.size <= PAYLOAD and self._keep(source)
        self.note(origin, error, digest, kept=kept)

    def note(self, origin: str, error: InputRejected, digest: str | None, *, kept: bool) -> None:
        """One input that is not taken, of bytes that are in the object store already, or will not be."""
        self.tally.offered += 1
        self.tally.rejected += 1
        self.tally.reasons[str(error.code)] += 1
        self.rejects.append(
            Reject(
                kind=self.kind,
                source=self.settings.source,
                origin=origin,
                code=str(error.code),
                reason=error.message,
                sha256=digest,
                payload=kept,
            )
        )

    def record(self, connection: Connection) -> None:
        """Record the rejects so far in a transaction of the caller's."""
        record_rejects(connection, self.run_id, self.rejects)
        self.rejects.clear()

    def _keep(self, received: Received) -> bool:
        try:
            received.keep(self.store)
        except InputRejected:
            return False  # gone by now: the reject is recorded without its bytes
        return True

    def write(self) -> None:
        """Record the rejects so far and report progress."""
        if self.rejects:
            with self.store.writing() as connection:
                self.record(connection)
        if self.progress is not None and self.tally.offered > self.reported:
            self.progress(self.tally.offered - self.reported)
            self.reported = self.tally.offered
