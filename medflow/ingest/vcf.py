"""One VCF file into the store: read once from where it lies, checked from its copy, its samples given to patients."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from medflow.config import Settings
from medflow.errors import InputRejected, RejectCode
from medflow.genomics.index import build_index
from medflow.genomics.reference import Reference
from medflow.genomics.stream import LineReader
from medflow.genomics.vcf import read_vcf
from medflow.ingest.genomic_files import Ledger, changed, checked_blocks
from medflow.ingest.offers import Offer
from medflow.ingest.sample_patients import SHEET, Owner, SamplePatients
from medflow.records import VariantFile
from medflow.store import Connection
from medflow.store.genomics import (
    Held,
    find_variant_file,
    has_variant_file,
    held_samples,
    is_described,
    release_samples,
    store_variant_file,
)
from medflow.store.ledger import open_entries, settle_entries
from medflow.store.objects import Staged
from medflow.store.session import Store
from medflow.store.withdrawn_files import StoredFile, restore_file, stored_file

log = logging.getLogger(__name__)
WITHDRAWN = "was-withdrawn"  # the note of a file that is left as it is
OF_SAMPLES = (
    RejectCode.SAMPLE_UNKNOWN,
    RejectCode.SAMPLE_AMBIGUOUS,
    RejectCode.AMBIGUOUS_PATIENT,
    RejectCode.PATIENT_MISMATCH,
)
_ENTRY = re.compile(r"(.*)#sample (\d+)", re.DOTALL)


def file_of_sample(origin: str) -> str | None:
    """Where the file lies whose sample a reject of this origin is about; None of any other reject."""
    found = _ENTRY.fullmatch(origin)
    return found[1] if found else None


@dataclass(frozen=True, kw_only=True, slots=True)
class VcfIntake:
    """Takes VCF files in, one transaction each; with a ``genome`` every REF is checked, of stored files too.

    A file that was withdrawn is unchanged, and stays withdrawn, unless it is to ``restore``.
    """

    store: Store
    settings: Settings
    ledger: Ledger
    patients: SamplePatients
    genome: Reference | None = None
    restore: bool = False

    def take(self, item: Offer) -> None:
        """Store what is offered, or record why not."""
        try:
            before = _state(item)
            digest = self._known(item)
            if digest is not None:
                names = _sample_names(item)
                if _state(item) != before:
                    raise changed()  # whose samples these are would be told of another file
                self._file(item.origin, self._stored(digest, names))
                return
            with self.store.objects.staged(checked_blocks(item, self.settings.max_input_bytes)) as staged:
                self._staged(item, staged)
        except InputRejected as error:
            self.ledger.refuse(item.origin, error, item)

    def _known(self, item: Offer) -> str | None:
        """The SHA-256 of what need not be looked into; only a file as large as a stored one is read to know that."""
        if self.genome is not None or self.restore:
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

    def _stored(self, digest: str, names: tuple[str, ...]) -> VariantFile:
        """A stored file, with the samples that its header names: not each of them may have been taken."""
        with self.store.reading() as connection:
            file = find_variant_file(connection, digest)
        assert file is not None  # noqa: S101 - it was described a moment ago, and no variant file is ever removed
        return replace(file, samples=names)

    def _staged(self, item: Offer, staged: Staged) -> None:
        objects = self.store.objects
        with self.store.reading() as connection:
            found = stored_file(connection, sha256=staged.sha256)
        if found is not None and found.withdrawn and not self.restore:
            self._left(found)  # whatever a reference or the specification says of it today
            return
        try:
            file = read_vcf(staged.path, reference=self.genome)
        except InputRejected as error:
            self.ledger.refuse(item.origin, error, staged)
            return
        index = _index(staged)
        digest = objects.put(index) if index is not None else None
        objects.keep(staged)
        self._file(item.origin, replace(file, sha256=staged.sha256, size=staged.size, index=digest))

    def _left(self, file: StoredFile) -> None:
        """A withdrawn file that is offered as any other."""
        self.ledger.count("unchanged")
        self.ledger.tally.notes[WITHDRAWN] += 1
        log.info("%s was withdrawn, and stays so", file)

    def _file(self, origin: str, file: VariantFile) -> None:
        """One transaction: the file, the samples whose patients are known, and the refusal of the others."""
        with self.store.writing() as connection:
            found = stored_file(connection, sha256=file.sha256, lock=True)
            if found is not None and found.withdrawn:
                if not self.restore:
                    self._left(found)
                    return
                restore_file(connection, found, self.ledger.run_id)
                self.ledger.tally.notes["restored"] += 1
            held = held_samples(connection, file.sha256)
            contested = _contested(connection, file)
            # what was refused because nobody knew whose it is does not become nobody's where a sheet is left out
            refused = settle_entries(connection, "vcf", file.sha256, OF_SAMPLES) > 0
            owners = self.patients.owners(connection, file.samples, held, contested=contested, expected=refused)
            release_samples(connection, file.sha256, _doubted(file.samples, owners, held))
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
            if outcome == "stored":
                self.ledger.tally.notes.update(_worth_saying(file))
            for number, owner in enumerate(owners, start=1):
                if isinstance(owner, InputRejected):
                    self.ledger.note(f"{origin}#sample {number}", owner, file.sha256, kept=True)
            self.ledger.record(connection)


def _worth_saying(file: VariantFile) -> list[str]:
    """Why no model will be given a file, as far as the file itself is the reason: its sender can mend that."""
    found = [] if file.build is not None else ["assembly-unknown"]
    return found if file.samples else [*found, "without-samples"]


def _contested(connection: Connection, file: VariantFile) -> set[str]:
    """The samples of a file that a sample sheet gave to another patient than the other ways did, and that are open."""
    found = open_entries(connection, "vcf", file.sha256, RejectCode.SAMPLE_AMBIGUOUS)
    numbers = {int(entry[2]) for origin, reason in found if SHEET in reason and (entry := _ENTRY.fullmatch(origin))}
    return {name for number, name in enumerate(file.samples, start=1) if number in numbers}


def _doubted(names: Sequence[str], owners: Sequence[Owner | InputRejected], held: Mapping[str, Held]) -> list[str]:
    """Refused samples whose patient nothing speaks for any more."""
    return [
        name
        for name, owner in zip(names, owners, strict=True)
        if isinstance(owner, InputRejected)
        and (before := held.get(name)) is not None
        and before.patient_id is not None
        and before.patient_id not in owner.fields.get("patient_ids", ())
    ]


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


def _state(item: Offer) -> tuple[int, int, int] | None:
    """What is another once the file was written to or replaced; None where it is not there, or is no file."""
    try:
        found = item.path.stat() if item.data is None and item.path is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_ino, found.st_size, found.st_mtime_ns)


def _sample_names(item: Offer) -> tuple[str, ...]:
    """The samples that the header of a file names, which was checked when the file was stored."""
    for line in LineReader(item.path if item.data is None and item.path is not None else item.data or b""):
        if line.startswith(b"#CHROM"):
            return tuple(name.decode() for name in line.split(b"\t")[9:])
    return ()
