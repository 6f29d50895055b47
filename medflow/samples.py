"""From the samples of variant files to what a model of variants asked for: which are due, and the case of each."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

from medflow.errors import ConfigurationError, InputNotUsable, PluginBroken, TransientError
from medflow.genomics.opened import opened_reference, opened_regions
from medflow.genomics.reference import Reference
from medflow.genomics.regions import Regions
from medflow.genomics.site import GenomeSite
from medflow.genomics.variants import SampleVariants, read_variants
from medflow.plugin import Case, SequenceInput
from medflow.records import DueUnit, Instant
from medflow.store import Connection, Store
from medflow.store.genomics import WHOLE_RECORDS, SampleScope, StoredSample, due_samples, load_samples
from medflow.store.jobs import Job

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CalledCase:
    """The variants behind the windows of a case, and what they were read with; the model is given none of it.

    ``file`` is the SHA-256 of the VCF file, ``reference`` the identity of the genome, ``regions`` their digest.
    """

    found: SampleVariants
    build: str
    file: str
    reference: str
    regions: str


def due_samples_of(
    connection: Connection, wanted: SequenceInput, genomes: GenomeSite, *, as_of: Instant, model_id: int
) -> Iterator[DueUnit]:
    """The samples whose case may be new to a model of variants.

    Raises
    ------
    PluginBroken
        The reference or the regions that are configured cannot be used: then this model cannot be run, others can.
    """
    return due_samples(connection, wanted, Opened(genomes, wanted).scope, as_of=as_of, model_id=model_id)


class SampleOpener:
    """Reads the case of one job's sample when it is called, and holds the variants behind it until they are taken."""

    def __init__(self, store: Store, wanted: SequenceInput, genomes: GenomeSite, job: Job) -> None:
        self._store, self._wanted, self._genomes, self._job = store, wanted, genomes, job
        self._called: CalledCase | None = None

    def __call__(self) -> Case:
        """The case.

        Raises
        ------
        InputNotUsable
            sample-missing, input-changed, no-reference, no-regions, file-missing, or as for `read_variants`.
        PluginBroken
            As for `due_samples_of`.
        TransientError
            The reference or the regions were replaced meanwhile.
        """
        opened = Opened(self._genomes, self._wanted)
        sample = self._sample(opened.scope)
        reference, regions = opened.ready(sample)
        with self._unchanged(opened.scope):
            found = read_variants(
                self._file(sample),
                sample.name,
                wanted=self._wanted,
                reference=reference,
                regions=regions,
                index=self._index(sample),
                records=sample.records,
            )
        self._called = CalledCase(
            found=found,
            build=sample.build or "",
            file=sample.sha256,
            reference=reference.identity,
            regions=regions.digest,
        )
        return Case(
            unit=self._job.unit,
            prediction_time=self._job.prediction_time.datetime(),
            inputs={self._wanted.name: found.windows},
        )

    def take(self) -> CalledCase:
        """The variants of the case that was read last, which are let go of."""
        assert self._called is not None  # noqa: S101 - asked only of a case that was read
        called, self._called = self._called, None
        return called

    @contextmanager
    def _unchanged(self, scope: SampleScope) -> Iterator[None]:
        """What was read, or refused, of files that were replaced meanwhile may be of both: it is not taken."""
        try:
            yield
        except InputNotUsable:
            self._check_unchanged(scope)
            raise
        self._check_unchanged(scope)

    def _check_unchanged(self, scope: SampleScope) -> None:
        try:
            same = Opened(self._genomes, self._wanted).scope == scope
        except PluginBroken:  # half of it is there
            same = False
        if not same:
            said = f"the reference or the regions were replaced while {self._job.unit} was read"
            raise TransientError(f"{said}: it is tried again", code="input-changed")

    def _sample(self, scope: SampleScope) -> StoredSample:
        job = self._job
        with self._store.reading() as connection:
            sample = load_samples(connection, [job.unit.id]).get(job.unit.id)
        if sample is None:
            raise InputNotUsable("sample-missing", f"{job.unit} is no longer in the store")
        if scope.key(sample) != job.input_key:
            raise InputNotUsable(
                "input-changed",
                f"whose {job.unit} is, the reference or the regions changed after the job was made, or differ between "
                "the processes: the next selection makes another of them",
            )
        return sample

    def _file(self, sample: StoredSample) -> Path:
        path = Path(sample.path) if sample.path else self._store.objects.path(sample.sha256)
        if not path.exists():
            raise InputNotUsable("file-missing", f"the file of {self._job.unit} is no longer there")
        return path

    def _index(self, sample: StoredSample) -> Path | None:
        """The index of the file; None where it has none or it is not what was stored: it only spares reading."""
        if sample.index is None:
            return None
        path = self._store.objects.path(sample.index)
        try:
            with path.open("rb") as file:
                whole = file_digest(file, "sha256").hexdigest() == sample.index
        except OSError:
            whole = False
        if not whole:
            log.warning("%s: the index of its file is missing or damaged: read from start to end", self._job.unit)
        return path if whole else None


class Opened:
    """What the site gives a model of variants."""

    def __init__(self, genomes: GenomeSite, wanted: SequenceInput) -> None:
        self._assembly = wanted.assembly or ""
        try:
            self._reference = opened_reference(genomes, self._assembly)
            self._regions = opened_regions(genomes)
            self._whole = opened_regions(genomes, whole=True)
        except ConfigurationError as error:
            raise PluginBroken(error.message) from None

    @property
    def scope(self) -> SampleScope:
        """What cases are made with, as digests."""
        return SampleScope(
            reference=self._reference.identity if self._reference else "",
            regions=self._regions.digest if self._regions else "",
            whole=self._whole.digest if self._whole else "",
        )

    def ready(self, sample: StoredSample) -> tuple[Reference, Regions]:
        """The reference and the regions that a sample is read with; raises InputNotUsable where one is missing."""
        regions = self._regions or (self._whole if sample.records <= WHOLE_RECORDS else None)
        if self._reference is None:
            raise InputNotUsable(
                "no-reference",
                f"there is no reference genome of {self._assembly}: name its FASTA file in MEDFLOW_REFERENCES",
            )
        if regions is None:
            raise InputNotUsable(
                "no-regions",
                f"the file has {sample.records} records and is not scored whole unasked: name a BED file in "
                "MEDFLOW_REGIONS, genes in MEDFLOW_GENES and MEDFLOW_GENE_BED, or set MEDFLOW_REGIONS to all",
            )
        if not regions.everything and not any(self._reference.has(name, self._assembly) for name in regions.by_contig):
            raise InputNotUsable(
                "no-regions",
                f"the reference of {self._assembly} has no contig of the regions: name them in MEDFLOW_REGIONS or "
                "MEDFLOW_GENE_BED as it does, with or without chr",
            )
        return self._reference, regions
