"""VCF and FASTA files into the store: each VCF file and each FASTA record is one input, and each is accounted for.

Files are kept in the object store as they were received. What is known by its bytes is not read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from medflow.config import Settings
from medflow.errors import InputRejected, RejectCode
from medflow.genomics.reference import Reference
from medflow.genomics.sequence import FastaFile, FastaRecord
from medflow.genomics.vcf import read_vcf
from medflow.ingest.offers import Offer, offers
from medflow.ingest.tally import Progress, Refused, Tally
from medflow.records import Identifier, Patient, VariantFile
from medflow.records import Sequence as Bases
from medflow.store.genomics import SequenceItem, find_variant_file, store_sequences, store_variant_file
from medflow.store.ledger import Reject, record_rejects
from medflow.store.patients import resolve_patients
from medflow.store.session import Store

BLOCK = 1 << 20
BATCH = 1000  # FASTA records in one transaction
BATCH_BYTES = 32 << 20
PAYLOAD = 64 << 20  # bytes of a refused input that are kept for a replay


def ingest_vcf(
    store: Store,
    settings: Settings,
    paths: Iterable[Path | str],
    *,
    reference: Path | None = None,
    run_id: int | None = None,
    progress: Progress | None = None,
) -> Tally:
    """Take in VCF files; ``reference`` is the uncompressed FASTA that their REF alleles must agree with.

    With a reference every file is read again, even one that is stored: it may have been taken without.

    Raises
    ------
    ConfigurationError
        The reference cannot be used, or the store cannot be written.
    """
    ledger = _Ledger(kind="vcf", store=store, settings=settings, run_id=run_id, progress=progress)
    with Reference(reference) if reference is not None else nullcontext() as genome:
        for item in offers(paths):
            received: _Received | None = None
            try:
                if isinstance(item, Refused):
                    raise item.error
                received = _Received.of(item, settings)
                ledger.count(_take_vcf(store, settings, received, genome))
            except InputRejected as error:
                ledger.refuse(item.origin, error, received or item)
            ledger.write()
    ledger.tally.check()
    return ledger.tally


def ingest_fasta(
    store: Store,
    settings: Settings,
    paths: Iterable[Path | str],
    *,
    run_id: int | None = None,
    progress: Progress | None = None,
) -> Tally:
    """Take in FASTA files; a file that is none, or that breaks off, counts as one input more, refused.

    Raises
    ------
    ConfigurationError
        The store cannot be written.
    """
    ledger = _Ledger(kind="fasta", store=store, settings=settings, run_id=run_id, progress=progress)
    for item in offers(paths):
        received: _Received | None = None
        try:
            if isinstance(item, Refused):
                raise item.error
            received = _Received.of(item, settings)
            for batch in _batches(received, store):
                _take_records(ledger, item, batch)
        except InputRejected as error:
            ledger.refuse(item.origin, error, received or item)
        ledger.write()
    ledger.tally.check()
    return ledger.tally


@dataclass(frozen=True, kw_only=True, slots=True)
class _Received:
    """A file, or an archive's member, that could be read. ``sha256`` and ``size`` are of its bytes as received."""

    source: Path | bytes
    sha256: str
    size: int

    @classmethod
    def of(cls, item: Offer, settings: Settings) -> _Received:
        """Hash what is offered; raises InputRejected."""
        if item.path is None:
            data = item.read(settings.max_input_bytes)
            return cls(source=data, sha256=sha256(data).hexdigest(), size=len(data))
        total, size = sha256(), 0
        for block in _blocks(item.path):
            total.update(block)
            size += len(block)
            if size > settings.max_input_bytes:
                allowed = settings.max_input_bytes
                raise InputRejected(RejectCode.TOO_LARGE, f"MEDFLOW_MAX_INPUT_BYTES allows {allowed} bytes")
        if not size:
            raise InputRejected(RejectCode.EMPTY, "the file has no bytes")
        return cls(source=item.path, sha256=total.hexdigest(), size=size)

    def keep(self, store: Store) -> None:
        """Its bytes into the object store; raises InputRejected (VANISHED) if they changed since they were hashed."""
        store.objects.put_chunks(self._same(), self.sha256)

    def _same(self) -> Iterator[bytes]:
        total = sha256()
        for block in _blocks(self.source):
            total.update(block)
            yield block
        if total.hexdigest() != self.sha256:
            raise changed()


def changed() -> InputRejected:
    """The refusal of a file that was written to meanwhile."""
    return InputRejected(RejectCode.VANISHED, "the file changed while it was read: offer it again when it is complete")


def _blocks(source: Path | bytes) -> Iterator[bytes]:
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
class _Ledger:
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

    def refuse(self, origin: str, error: InputRejected, source: _Received | Offer | Refused | bytes) -> None:
        """One input that is not taken; its bytes are kept when there are any and not too many."""
        digest, kept = None, False
        if isinstance(source, Refused):
            source = source.data or b""
        if isinstance(source, bytes) and source:
            source = _Received(source=source, sha256=sha256(source).hexdigest(), size=len(source))
        if isinstance(source, _Received):
            digest = source.sha256
            kept = source.size <= PAYLOAD and self._keep(source)
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

    def _keep(self, received: _Received) -> bool:
        try:
            received.keep(self.store)
        except InputRejected:
            return False  # gone by now: the reject is recorded without its bytes
        return True

    def write(self) -> None:
        """Record the rejects so far and report progress."""
        if self.rejects:
            with self.store.writing() as connection:
                record_rejects(connection, self.run_id, self.rejects)
            self.rejects.clear()
        if self.progress is not None and self.tally.offered > self.reported:
            self.progress(self.tally.offered - self.reported)
            self.reported = self.tally.offered


# --- VCF ---------------------------------------------------------------------------------------------------------


def _take_vcf(store: Store, settings: Settings, received: _Received, genome: Reference | None) -> str:
    with store.reading() as connection:
        file = find_variant_file(connection, received.sha256)
    if file is None or genome is not None:
        file = read_vcf(received.source, reference=genome)
        if file.sha256 != received.sha256:
            raise changed()
    received.keep(store)
    with store.writing() as connection:
        owners = resolve_patients(connection, _claims(settings, file))
        for owner in owners:
            if isinstance(owner, InputRejected):
                raise owner
        return store_variant_file(connection, file, [owner for owner in owners if not isinstance(owner, InputRejected)])


def _claims(settings: Settings, file: VariantFile) -> list[Patient]:
    system = settings.sample_system
    if system is None:
        return [Patient(complete=False) for _ in file.samples]
    return [_claim(Identifier(system=system, value=name)) for name in file.samples]


def _claim(subject: Identifier | None) -> Patient:
    return Patient(identifiers=(subject,) if subject is not None else (), complete=False)


# --- FASTA -------------------------------------------------------------------------------------------------------


def _batches(received: _Received, store: Store) -> Iterator[list[FastaRecord]]:
    """The records of a file, which is kept once it turns out to be FASTA; what came before an error comes first."""
    file = FastaFile(received.source)
    batch: list[FastaRecord] = []
    held = 0
    error: InputRejected | None = None
    try:
        for record in file:
            if record.number == 1:
                received.keep(store)
            batch.append(record)
            held += len(record.raw)
            if len(batch) >= BATCH or held >= BATCH_BYTES:
                yield batch
                batch, held = [], 0
        if file.sha256 != received.sha256:
            error = changed()
    except InputRejected as stopped:
        error = stopped
    if batch:
        yield batch
    if error is not None:
        raise error


def _take_records(ledger: _Ledger, offer: Offer, batch: Sequence[FastaRecord]) -> None:
    """One transaction. Each record is an input of its own, named by its number in the file."""
    read: list[tuple[FastaRecord, Bases]] = []
    for record in batch:
        if isinstance(record.outcome, InputRejected):
            ledger.refuse(offer.entry_origin(record.number), record.outcome, record.raw)
        else:
            read.append((record, record.outcome))
    with ledger.store.writing() as connection:
        owners = resolve_patients(connection, [_claim(sequence.subject) for _, sequence in read])
        items: list[SequenceItem] = []
        for (record, sequence), owner in zip(read, owners, strict=True):
            if isinstance(owner, InputRejected):
                ledger.refuse(offer.entry_origin(record.number), owner, record.raw)
            else:
                items.append(SequenceItem(sequence=sequence, patient_id=owner))
        outcomes = store_sequences(connection, items)
    for outcome in outcomes:
        ledger.count(outcome)
    ledger.write()
