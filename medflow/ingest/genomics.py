"""VCF and FASTA files into the store: each VCF file and each FASTA record is one input, and each is accounted for.

Files are kept in the object store as they were received. What is known by its bytes is not read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TypedDict

from medflow.config import Settings
from medflow.errors import InputRejected
from medflow.genomics.reference import Reference
from medflow.genomics.sequence import FastaFile, FastaRecord
from medflow.ingest.genomic_files import Ledger, Received, changed
from medflow.ingest.offers import Offer, offers
from medflow.ingest.sample_patients import SamplePatients
from medflow.ingest.tally import Progress, Refused, Tally
from medflow.ingest.vcf import VcfIntake
from medflow.records import Identifier, Patient
from medflow.records import Sequence as Bases
from medflow.store.genomics import SequenceItem, store_sequences
from medflow.store.patients import resolve_patients
from medflow.store.session import Store

BATCH = 1000  # FASTA records in one transaction
BATCH_BYTES = 32 << 20


class VcfTerms(TypedDict, total=False):
    """How VCF files are taken in; see `ingest_vcf`."""

    reference: Path | None
    samples: Path | None
    restore: bool
    run_id: int | None
    progress: Progress | None


def ingest_vcf(
    store: Store,
    settings: Settings,
    paths: Iterable[Path | str | Offer],
    *,
    reference: Path | None = None,
    samples: Path | None = None,
    restore: bool = False,
    run_id: int | None = None,
    progress: Progress | None = None,
) -> Tally:
    """Take in VCF files; ``reference`` is the uncompressed FASTA that their REF alleles must agree with.

    With a reference every file is read again, even one that is stored: it may have been taken without. ``samples`` is
    the sheet that says whose each sample is; it goes before the configured one. With ``restore`` a file that was
    withdrawn is taken in again; else it is unchanged, and stays withdrawn. A sample that cannot be given to its
    patient counts as one input more, refused; its file and the other samples are taken.

    Raises
    ------
    ConfigurationError
        The reference or the sample sheet cannot be used, or the store cannot be written.
    """
    ledger = Ledger(kind="vcf", store=store, settings=settings, run_id=run_id, progress=progress)
    patients = SamplePatients.of(settings, samples)
    with Reference(reference) if reference is not None else nullcontext() as genome:
        intake = VcfIntake(
            store=store, settings=settings, ledger=ledger, patients=patients, genome=genome, restore=restore
        )
        for item in offers(paths):
            if isinstance(item, Refused):
                ledger.refuse(item.origin, item.error, item)
            else:
                intake.take(item)
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
    ledger = Ledger(kind="fasta", store=store, settings=settings, run_id=run_id, progress=progress)
    for item in offers(paths):
        received: Received | None = None
        try:
            if isinstance(item, Refused):
                raise item.error
            received = Received.of(item, settings)
            for batch in _batches(received, store):
                _take_records(ledger, item, batch)
        except InputRejected as error:
            ledger.refuse(item.origin, error, received or item)
        ledger.write()
    ledger.tally.check()
    return ledger.tally


def _claim(subject: Identifier | None) -> Patient:
    return Patient(identifiers=(subject,) if subject is not None else (), complete=False)


# --- FASTA -------------------------------------------------------------------------------------------------------


def _batches(received: Received, store: Store) -> Iterator[list[FastaRecord]]:
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


def _take_records(ledger: Ledger, offer: Offer, batch: Sequence[FastaRecord]) -> None:
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
