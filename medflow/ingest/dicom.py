"""DICOM files into the store: bytes as received, headers read beside each other, SQL in bulk, each one accounted for.

A chunk of some hundred files goes through four steps: hash and drop what is stored already; read the header and drop
what is stored in another file; put the bytes into the object store; one transaction. Threads do: hashing,
files and flushing to disk release the interpreter.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from medflow.config import Settings
from medflow.dicom.directory import read_directory
from medflow.dicom.read import Reading, read_object
from medflow.dicom.spool import NAME as RECEIVED
from medflow.errors import InputRejected, RejectCode
from medflow.ingest.offers import Offer, offers
from medflow.ingest.same import Stored
from medflow.ingest.tally import Progress, Refused, Tally
from medflow.store import Store
from medflow.store.imaging import known_objects, lock_imaging, relocate_objects, store_objects
from medflow.store.ledger import Reject, record_rejects
from medflow.store.patients import resolve_patients

CHUNK = 256  # inputs in one transaction
CHUNK_BYTES = 256 << 20  # of files held in memory at once
HELD = 16 << 20  # a larger file is never in memory as a whole
PAYLOAD = 64 << 20  # a larger reject is recorded without its bytes
BLOCK = 1 << 20


def ingest_dicom(
    store: Store,
    settings: Settings,
    paths: Iterable[Path | str | Offer],
    *,
    run_id: int | None = None,
    in_place: bool = False,
    progress: Progress | None = None,
) -> Tally:
    """Ingest DICOM files, folders, zip archives and DICOMDIRs.

    Parameters
    ----------
    store, settings
        Where to, and the zone, identifier systems and limits to read by.
    paths
        What to ingest; see `medflow.ingest.offers.offers`.
    run_id
        The run that rejects are recorded under.
    in_place
        Leave files where they are and remember their path; members of archives are stored all the same.
    progress
        Called with the number of inputs after each chunk.

    Raises
    ------
    ConfigurationError
        The object store or the database cannot be written; the chunk that was under way is not in the database.
    """
    tally = Tally()
    workers = max(settings.workers or os.cpu_count() or 1, store.objects.parallel)
    with ThreadPoolExecutor(workers, thread_name_prefix="medflow-dicom") as pool:
        chunk_of = partial(_Chunk, store=store, settings=settings, pool=pool, run_id=run_id, in_place=in_place)
        for offered in _chunks(offers(paths, index=read_directory)):
            counted = chunk_of(offered=offered).ingest()
            counted.check()
            tally.add(counted)
            if progress is not None:
                progress(counted.offered)
    tally.check()
    return tally


def _chunks(offered: Iterable[Offer | Refused]) -> Iterator[list[Offer | Refused]]:
    """Lists of at most CHUNK inputs and about CHUNK_BYTES bytes."""
    chunk: list[Offer | Refused] = []
    held = 0
    for item in offered:
        chunk.append(item)
        held += min(_size(item), HELD) if isinstance(item, Offer) and item.data is None else _size(item)
        if len(chunk) >= CHUNK or held >= CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _size(item: Offer | Refused) -> int:
    """Bytes of an input; 0 where that cannot be told, reading it will then say why."""
    if item.data is not None:
        return len(item.data)
    try:
        return item.path.stat().st_size if isinstance(item, Offer) and item.path is not None else 0
    except OSError:
        return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Input:
    """One file that could be read. ``data`` is None for what is too large to hold."""

    origin: str
    path: Path | None
    data: bytes | None
    digest: str
    size: int

    @classmethod
    def of(cls, offer: Offer, settings: Settings) -> _Input | Refused:
        """Read and hash what is offered."""
        try:
            size = _size(offer)
            if size <= HELD or size > settings.max_input_bytes or offer.path is None:
                data = offer.read(settings.max_input_bytes)
                digest = sha256(data).hexdigest()
                return cls(origin=offer.origin, path=offer.path, data=data, digest=digest, size=len(data))
            total, size = sha256(), 0
            for block in _blocks(offer.path):
                total.update(block)
                size += len(block)
            return cls(origin=offer.origin, path=offer.path, data=None, digest=total.hexdigest(), size=size)
        except InputRejected as error:
            return Refused.of(offer.origin, error)

    def opened(self) -> BinaryIO:
        """Its bytes as an open file; raises InputRejected."""
        return BytesIO(self.data) if self.data is not None else _opened(self.path or Path())

    def blocks(self) -> Iterable[bytes]:
        """Its bytes; raises InputRejected (VANISHED) at the end if they are no longer those that were hashed."""
        return [self.data] if self.data is not None else self._same(_blocks(self.path or Path()))

    def _same(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        total = sha256()
        for block in blocks:
            total.update(block)
            yield block
        if total.hexdigest() != self.digest:
            raise InputRejected(RejectCode.VANISHED, "the file changed while it was read")

    def lasting_path(self) -> str | None:
        """The absolute path of a file that may stay where it is; None for members and names that are no text."""
        path = str(self.path.absolute()) if self.path is not None else None
        return path if path is not None and path.isprintable() else None

    def read(self, settings: Settings, *, in_place: bool) -> Reading:
        """Its header; raises InputRejected."""
        path = self.lasting_path() if in_place else None
        with self.opened() as file:
            return read_object(file, size=self.size, digest=self.digest, settings=settings, path=path)


def _blocks(path: Path) -> Iterator[bytes]:
    with _opened(path) as file:
        try:
            while block := file.read(BLOCK):
                yield block
        except OSError as error:
            raise InputRejected(RejectCode.UNREADABLE, f"the file cannot be read: {error.strerror}") from None


def _opened(path: Path):  # noqa: ANN202 - a buffered reader
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise InputRejected(RejectCode.VANISHED, "the file is no longer there") from None
    except OSError as error:
        raise InputRejected(RejectCode.UNREADABLE, f"the file cannot be read: {error.strerror}") from None


Taken = tuple[_Input, Reading]


def uid_of(reading: Reading) -> str:
    """The SOP Instance UID of what was read."""
    return reading.object.instance.sop_instance_uid


def _copy(pair: Taken, stored: Stored) -> str | None:
    """How a file differs from the stored one of the same instance; None where it is none."""
    item, reading = pair
    if uid_of(reading) not in stored:
        return None
    try:
        with item.opened() as file:
            return stored.has(uid_of(reading), file)
    except (InputRejected, OSError):
        return None  # gone by now: whoever reads it next says so


def _count_copy(note: str, tally: Tally) -> None:
    tally.unchanged += 1
    tally.notes[note] += 1


@dataclass(kw_only=True, slots=True)
class _Chunk:
    """The four steps of one chunk."""

    offered: Sequence[Offer | Refused]
    store: Store
    settings: Settings
    pool: ThreadPoolExecutor
    run_id: int | None
    in_place: bool

    def ingest(self) -> Tally:
        """Take the chunk in, and count it."""
        tally = Tally(offered=len(self.offered))
        refused: list[Reject] = []
        inputs: list[_Input] = []
        for item in self._each(self._input, self.offered):
            if isinstance(item, Refused):
                refused.append(self._reject(item))
            else:
                inputs.append(item)
        known = self._known(inputs)
        tally.unchanged = sum(item.digest in known for item in inputs)
        read = self._sorted(self._each(self._read, [item for item in inputs if item.digest not in known]), refused)
        taken = self._sorted(self._each(self._keep, self._without_copies(read, tally)), refused)
        refused = self._without_taken(refused, tally)
        self._write(taken, refused, tally)
        tally.rejected = len(refused)
        tally.reasons.update(item.code for item in refused)
        return tally

    def _each(self, step: Callable, items: Sequence) -> Iterable:
        """``step`` for each item, in order, beside each other when there are enough of them."""
        return self.pool.map(step, items) if len(items) > 1 else map(step, items)

    def _input(self, item: Offer | Refused) -> _Input | Refused:
        return item if isinstance(item, Refused) else _Input.of(item, self.settings)

    def _known(self, inputs: Sequence[_Input]) -> set[str]:
        """The digests that are stored already; a stored object whose file is gone gets it back."""
        with self.store.reading() as connection:
            known = known_objects(connection, {item.digest for item in inputs})
        stored = [item for item in inputs if item.digest in known]
        restored = self._each(lambda item: self._restored(item, known[item.digest]), stored)
        moved = dict(pair for pair in restored if pair is not None)
        if moved:
            with self.store.writing() as connection:
                relocate_objects(connection, moved)
        return set(known)

    def _restored(self, item: _Input, where: str | None) -> tuple[str, str | None] | None:
        """Give a stored object its file back if that is gone; its digest and new path where the path changes."""
        if where is not None and Path(where).is_file():
            return None
        if where is not None and self.in_place and (path := item.lasting_path()) is not None:
            return item.digest, path
        try:
            self.store.objects.put_chunks(item.blocks(), item.digest)
        except InputRejected:
            return None  # the stored object stays as it was; this copy of it is no longer there
        return (item.digest, None) if where is not None else None

    def _sorted(self, items: Iterable[Taken | Reject], refused: list[Reject]) -> list[Taken]:
        """Those that were taken; the others are added to ``refused``."""
        taken: list[Taken] = []
        for item in items:
            if isinstance(item, Reject):
                refused.append(item)
            else:
                taken.append(item)
        return taken

    def _read(self, item: _Input) -> Taken | Reject:
        """Read the header."""
        try:
            return item, item.read(self.settings, in_place=self.in_place)
        except InputRejected as error:
            return self._refusal(item, error)

    def _without_copies(self, taken: Sequence[Taken], tally: Tally) -> list[Taken]:
        """Without those that are stored already in another file, which are counted."""
        with self.store.reading() as connection:
            stored = Stored(self.store, connection, (uid_of(reading) for _, reading in taken))
        left: list[Taken] = []
        for pair, note in zip(taken, self._each(lambda pair: _copy(pair, stored), taken), strict=True):
            if note is None:
                left.append(pair)
            else:
                _count_copy(note, tally)
        return left

    def _keep(self, pair: Taken) -> Taken | Reject:
        """Put the bytes into the object store, unless the file stays where it is."""
        item, reading = pair
        try:
            if reading.object.instance.path is None:
                self.store.objects.put_chunks(item.blocks(), item.digest)
            return pair
        except InputRejected as error:
            return self._refusal(item, error)

    def _refusal(self, item: _Input, error: InputRejected) -> Reject:
        kept = False
        if item.size <= PAYLOAD:
            try:
                self.store.objects.put_chunks(item.blocks(), item.digest)
                kept = True
            except InputRejected:
                pass  # gone by now: the reject is recorded without its bytes
        return self._row(item.origin, error, item.digest, kept)

    def _without_taken(self, refused: list[Reject], tally: Tally) -> list[Reject]:
        """All but the received files that another ingest took and removed meanwhile: those are unchanged."""
        gone = {
            item.origin: name.partition(".")[0]
            for item in refused
            if item.code == RejectCode.VANISHED and RECEIVED.fullmatch(name := item.origin.rpartition("/")[2])
        }
        if not gone:
            return refused
        with self.store.reading() as connection:
            known = known_objects(connection, set(gone.values()))
        left = [item for item in refused if gone.get(item.origin) not in known]
        tally.unchanged += len(refused) - len(left)
        return left

    def _reject(self, item: Refused) -> Reject:
        kept = item.data is not None and len(item.data) <= PAYLOAD
        if kept and item.data is not None:
            self.store.objects.put(item.data)
        return self._row(item.origin, item.error, item.sha256, kept)

    def _row(self, origin: str, error: InputRejected, digest: str | None, kept: bool) -> Reject:
        return Reject(
            kind="dicom",
            source=self.settings.source,
            origin=origin,
            code=str(error.code),
            reason=error.message,
            sha256=digest,
            payload=kept,
        )

    def _write(self, taken: Sequence[Taken], refused: list[Reject], tally: Tally) -> None:
        """One transaction: patients, objects, rejects. Adds to ``refused`` and ``tally``."""
        if not taken and not refused:
            return
        with self.store.writing() as connection:
            lock_imaging(connection)
            patients = resolve_patients(connection, [reading.object.patient for _, reading in taken])
            accepted: list[tuple[Taken, int | None]] = []
            for pair, patient in zip(taken, patients, strict=True):
                if isinstance(patient, InputRejected):
                    refused.append(self._refusal(pair[0], patient))
                else:
                    accepted.append((pair, patient))
            outcomes = store_objects(connection, [(reading.object, patient) for (_, reading), patient in accepted])
            clashing = [
                pair for (pair, _), one in zip(accepted, outcomes, strict=True) if isinstance(one, InputRejected)
            ]
            uids = [uid_of(reading) for _, reading in clashing]
            stored = Stored(self.store, connection, uids)  # of this chunk too, and what others wrote meanwhile
            for ((item, reading), _), outcome in zip(accepted, outcomes, strict=True):
                if isinstance(outcome, InputRejected) and (note := _copy((item, reading), stored)) is not None:
                    _count_copy(note, tally)
                elif isinstance(outcome, InputRejected):
                    refused.append(self._refusal(item, outcome))
                elif outcome == "stored":
                    tally.stored += 1
                    tally.notes.update(reading.notes)
                else:
                    tally.unchanged += 1
            record_rejects(connection, self.run_id, refused)
