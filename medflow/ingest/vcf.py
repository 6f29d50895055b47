"""One VCF file into the store: read once from where it lies, checked from its copy, its samples given to patients."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from hashlib import sha256

from medflow.config import Settings
from medflow.errors import InputRejected, RejectCode
from medflow.genomics.index import build_index
from medflow.genomics.reference import Reference
from medflow.genomics.stream import LineReader
from medflow.genomics.vcf import read_vcf
from medflow.ingest.genomic_files import Ledger, checked_blocks
from medflow.ingest.offers import Offer
from medflow.ingest.sample_patients import SamplePatients
from medflow.records import VariantFile
from medflow.store.genomics import (
    find_variant_file,
    has_variant_file,
    held_samples,
    is_described,
    store_variant_file,
)
from medflow.store.ledger import settle_entries
from medflow.store.objects import Staged
from medflow.store.session import Store

OF_SAMPLES = (
    RejectCode.SAMPLE_UNKNOWN,
    RejectCode.SAMPLE_AMBIGUOUS,
    RejectCode.AMBIGUOUS_PATIENT,
    RejectCode.PATIENT_MISMATCH,
)
_ENTRY = re.compile(r"(.*)#sample \d+", re.DOTALL)


def file_of_sample(origin: str) -> str | None:
    """Where the file lies whose sample a reject of this origin is about; None of any other reject."""
    found = _ENTRY.fullmatch(origin)
    return found[1] if found else None


@dataclass(frozen=True, kw_only=True, slots=True)
class VcfIntake:
    """Takes VCF files in, one transaction each; with a ``genome`` every REF is checked, of stored files too."""

    store: Store
    settings: Settings
    ledger: Ledger
    patients: SamplePatients
    genome: Reference | None = None

    def take(self, item: Offer) -> None:
        """Store what is offered, or record why not."""
        try:
            digest = self._known(item)
            if digest is not None:
                self._file(item.origin, self._stored(item, digest))
                return
            with self.store.objects.staged(checked_blocks(item, self.settings.max_input_bytes)) as staged:
                self._staged(item, staged)
        except InputRejected as error:
            self.ledger.refuse(item.origin, error, item)

    def _known(self, item: Offer) -> str | None:
        """The SHA-256 of what need not be looked into; only a file as large as a stored one is read to know that."""
        if self.genome is not None:
            return None
        size = _size(item)
        with self.store.reading() as connection:
            if not has_variant_file(connection, size):
                return None
        total = sha256()
        for block in checked_blocks(item, self.settings.max_input_bytes):
            total.update(block)
        digest = total.hexdigest()
        with self.store.reading() as connection:
            described = is_described(connection, digest)
        return digest if described and digest in self.store.objects else None

    def _stored(self, item: Offer, digest: str) -> VariantFile:
        """A stored file, with the samples that its header names: not each of them may have been taken."""
        with self.store.reading() as connection:
            file = find_variant_file(connection, digest)
        assert file is not None  # noqa: S101 - it was described a moment ago, and no variant file is ever removed
        return replace(file, samples=_sample_names(item))

    def _staged(self, item: Offer, staged: Staged) -> None:
        objects = self.store.objects
        try:
            file = read_vcf(staged.path, reference=self.genome)
        except InputRejected as error:
            self.ledger.refuse(item.origin, error, staged)
            return
        index = _index(staged)
        digest = objects.put(index) if index is not None else None
        objects.keep(staged)
        self._file(item.origin, replace(file, sha256=staged.sha256, size=staged.size, index=digest))

    def _file(self, origin: str, file: VariantFile) -> None:
        """One transaction: the file, the samples whose patients are known, and the refusal of the others."""
        with self.store.writing() as connection:
            held = held_samples(connection, file.sha256)
            # what was refused because nobody knew whose it is does not become nobody's where a sheet is left out
            refused = settle_entries(connection, "vcf", file.sha256, OF_SAMPLES) > 0
            owners = self.patients.owners(connection, file.samples, held, expected=refused)
            taken = [
                (name, owner)
                for name, owner in zip(file.samples, owners, strict=True)
                if not isinstance(owner, InputRejected)
            ]
            outcome = store_variant_file(
                connection,
                replace(file, samples=tuple(name for name, _ in taken)),
                [owner.patient_id for _, owner in taken],
                [owner.specimen for _, owner in taken],
            )
            self.ledger.count(outcome)
            for number, owner in enumerate(owners, start=1):
                if isinstance(owner, InputRejected):
                    self.ledger.note(f"{origin}#sample {number}", owner, file.sha256, kept=True)
            self.ledger.record(connection)


def _index(staged: Staged) -> bytes | None:
    """Not before the file is known to be right: htslib would print the lines that it finds wrong."""
    try:
        return build_index(staged.path)
    except InputRejected:
        return None  # right, but in no order that htslib has an index for: it is read from start to end


def _size(item: Offer) -> int:
    if item.data is not None:
        return len(item.data)
    try:
        return item.path.stat().st_size if item.path is not None else 0
    except OSError:
        return 0  # reading it will say why


def _sample_names(item: Offer) -> tuple[str, ...]:
    """The samples that the header of a file names, which was checked when the file was stored."""
    for line in LineReader(item.path if item.data is None and item.path is not None else item.data or b""):
        if line.startswith(b"#CHROM"):
            return tuple(name.decode() for name in line.split(b"\t")[9:])
    return ()
