"""The alleles that one sample of a VCF file carries, with the windows that a model reads them in.

Genotypes are taken as numbers, never as one of cyvcf2's four types, which know neither a haploid genotype nor one
with half of it missing. Every REF in the regions is checked: one that differs means another assembly, and then no
score of the file means anything.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medflow.errors import InputNotUsable
from medflow.genomics.annotation import Annotation
from medflow.genomics.genotype import Genotype, depths, phase_set, refused
from medflow.genomics.reference import MITOCHONDRION, Reference, mitochondrion_elsewhere
from medflow.genomics.regions import Regions
from medflow.genomics.sample_file import REACH, opened, queries_of, without_leading_phase
from medflow.genomics.windows import normalised, variant_windows
from medflow.plugin.cases import VariantWindows
from medflow.plugin.inputs import SequenceInput
from medflow.records import CalledVariant

log = logging.getLogger(__name__)
MAX_VARIANTS = 1_000_000
MAX_BYTES = 4 << 30  # of all windows

_BASES = re.compile(r"[ACGTNacgtn]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleVariants:
    """One sample's alleles in order of place, their windows in the same order, and what was left out by reason.

    ``counts`` are of records where a whole one is left out, of alleles else:

    - ``outside-regions``; ``unknown-contig``: the reference has none of that name, or not certainly the same;
      ``telomere``: POS is 0;
    - ``reference-genotype``; ``no-genotype``: none, or not all of it known and no other allele in it;
    - ``filtered``: by FILTER, or by the sample's FT; ``low-quality``; ``no-quality``: QUAL is missing where the model
      asks for one;
    - ``symbolic``, ``breakend``; ``spanning-deletion``: the allele *; ``missing-allele``: the ALT is a dot;
      ``unknown-bases``: N in it; ``too-long``; ``same-as-reference``; ``duplicate``: an earlier record has it already.
    """

    variants: list[CalledVariant]
    windows: VariantWindows
    counts: Counter[str]


def read_variants(
    path: Path,
    sample: str,
    *,
    wanted: SequenceInput,
    reference: Reference,
    regions: Regions | None,
    index: Path | None,
    records: int | None = None,
) -> SampleVariants:
    """What a sample carries inside the regions that fits a model's input.

    Parameters
    ----------
    path
        A VCF file that `medflow.genomics.vcf.read_vcf` took: plain, gzip or bgzip, whatever its name.
    sample
        Its name in the header.
    wanted
        What the model takes: length, filters, the longest allele.
    reference
        The site's genome of the model's assembly.
    regions
        Where; None is everywhere. An allele is inside where its normal form shares a base with them.
    index
        CSI index of a file in bgzip's format: only what is near the regions is read then. One that is missing, damaged
        or of another file is passed over, with a warning in the log.
    records
        How many records the file has: one that breaks off is noticed by it, and what an index spares reading is counted
        as outside-regions.

    Raises
    ------
    InputNotUsable
        reference-mismatch (REF, the length of a contig, or the names of all), too-many-variants, sample-missing, or
        unreadable-file.
    """

    def over(source: Path, by: Path | None) -> _Reading:
        read = _Reading(wanted=wanted, reference=reference, regions=regions)
        read.pass_over(source, sample, by, records)
        return read

    read = _passed_over(over, path, sample, index)
    order = {name: number for number, name in enumerate(reference.lengths)}
    variants = sorted(read.variants, key=lambda found: (order[found.contig], found.position, found.ref, found.alt))
    windows = variant_windows(reference, variants, wanted.length)
    return SampleVariants(variants=variants, windows=windows, counts=+read.counts)


def _passed_over(
    over: Callable[[Path, Path | None], _Reading], path: Path, sample: str, index: Path | None
) -> _Reading:
    """By the index, which only spares reading; without it where that fails; then from a copy that htslib reads."""
    if index is not None:
        try:
            return over(path, index)
        except InputNotUsable as error:
            if error.code != "unreadable-file":
                raise
    try:
        read = over(path, None)
    except InputNotUsable as error:
        if error.code != "unreadable-file":
            raise
        with without_leading_phase(path, sample) as copy:
            if copy is None:
                raise
            return over(copy, None)
    if index is not None:
        log.warning("the index of a VCF file is of no use, missing or damaged: the file was read from start to end")
    return read


@dataclass(frozen=True, kw_only=True, slots=True)
class _Contig:
    """A contig of the file: what the reference calls it, what the regions do, and what the places of genes do."""

    name: str | None
    genes: str | None
    region: str | None


@dataclass(kw_only=True, slots=True)
class _Reading:
    """What was taken so far. ``records`` counts those that were read; with an index others were not."""

    wanted: SequenceInput
    reference: Reference
    regions: Regions | None
    lengths: Mapping[str, int | None] = field(default_factory=dict)
    variants: list[CalledVariant] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    records: int = 0
    annotation: Annotation | None = None
    _contigs: dict[str, _Contig] = field(default_factory=dict)
    _seen: set[tuple[str, int, str, str]] = field(default_factory=set)

    def pass_over(self, path: Path, sample: str, index: Path | None, records: int | None) -> None:
        """All of a file that is near the regions. Raises InputNotUsable."""
        with opened(path, sample, index) as file:
            self.lengths, self.annotation = file.contigs, file.annotation
            queries = queries_of(file, self.regions, records) if self.regions is not None else None
            if queries is not None and records is not None and file.indexed_records() != records:
                raise InputNotUsable("unreadable-file", "the index is not of all records of the VCF file")
            for record in file.records() if queries is None else file.near(queries):
                self.take(record)
        if records or self.records:
            self._check_contigs()
        if records is None:
            return
        if queries is not None:
            self.counts["outside-regions"] += max(0, records - self.records)
        elif records != self.records:
            raise InputNotUsable("unreadable-file", "the VCF file has not the records that it had: ingest it again")

    def take(self, record: Any) -> None:
        """One record: its alleles, or the reason why there are none. Raises InputNotUsable."""
        self.records += 1
        chrom, start0, ref, alts = record.CHROM, record.start, record.REF, record.ALT
        contig = self._contigs.get(chrom) or self._contig(chrom)
        if not self._inside(contig, start0, ref, alts):
            self.counts["outside-regions"] += 1
        elif contig.name is None:
            self.counts["unknown-contig"] += 1
        elif start0 < 0:
            self.counts["telomere"] += 1
        else:
            self._check(contig.name, start0, ref)
            self._alleles(contig, record, ref, alts)

    def _check_contigs(self) -> None:
        """That no score were found of a file whose contigs go by other names would be read as that there is nothing."""
        named = {**dict.fromkeys(self._contigs), **self.lengths}
        if not any(self.reference.name_of(chrom, length) for chrom, length in named.items()):
            raise InputNotUsable(
                "reference-mismatch",
                f"the reference of {self.wanted.assembly} has no contig of the file, or none that is certainly the "
                "same: configure one whose contigs have the file's names, with or without chr",
            )

    def _contig(self, chrom: str) -> _Contig:
        length, name = self.lengths.get(chrom), None
        name = self.reference.name_of(chrom, length)
        if name is not None and length is not None and self.reference.lengths[name] != length:
            if chrom not in MITOCHONDRION:  # of which two are in use with one assembly
                raise InputNotUsable(
                    "reference-mismatch",
                    f"contig {name} is not as long in the file's header as in the reference of "
                    f"{self.wanted.assembly}: it was called on another assembly",
                )
            name = None
        region = genes = None
        if self.regions is not None:
            same: tuple[str, ...] = ()
            if name is not None:
                same = (name, *mitochondrion_elsewhere(name, self.reference.lengths[name], self.wanted.assembly))
            region, genes = self.regions.named(chrom, *same), self.regions.genes_named(*same)
        found = self._contigs[chrom] = _Contig(name=name, region=region, genes=genes)
        return found

    def _inside(self, contig: _Contig, start0: int, ref: str, alts: Sequence[str]) -> bool:
        """Whether the record, or an allele of it when aligned, shares a base with the regions."""
        if self.regions is None or self.regions.everything:
            return True
        if contig.region is None:
            return False
        end0 = start0 + len(ref)
        if self.regions.overlaps(contig.region, start0, end0):
            return True
        if contig.name is None or start0 < 0 or not self.regions.overlaps(contig.region, start0 - REACH, end0):
            return False
        indels = [alt for alt in alts if len(alt) != len(ref) and _BASES.fullmatch(alt)]
        if not indels:
            return False
        self._check(contig.name, start0, ref)
        return any(self._lies(contig, *normalised(self.reference, contig.name, start0 + 1, ref, alt)) for alt in indels)

    def _lies(self, contig: _Contig, position: int, ref: str, alt: str) -> bool:
        if self.regions is None or self.regions.everything:
            return True
        return contig.region is not None and self.regions.overlaps(contig.region, position - 1, position - 1 + len(ref))

    def _check(self, contig: str, start0: int, ref: str) -> None:
        if not self.reference.agrees(contig, start0 + 1, ref):
            raise InputNotUsable(
                "reference-mismatch",
                f"a REF on contig {contig} differs from the reference of {self.wanted.assembly}: the file was called "
                "on another assembly, or is damaged",
            )

    def _alleles(self, contig: _Contig, record: Any, ref: str, alts: Sequence[str]) -> None:
        keys = record.FORMAT or ()
        genotype = Genotype.of(record, keys)
        carried = genotype.carried
        if not carried:
            self.counts["reference-genotype" if genotype.known else "no-genotype"] += 1
            return
        if reason := self._refused(record, keys):
            self.counts[reason] += 1
            return
        phase = phase_set(record, keys) if genotype.phased else None
        reads = depths(record, keys, 1 + len(alts))
        for number in carried:
            alt = alts[number - 1] if number <= len(alts) else "."  # a genotype may name what ALT leaves out
            found = self._allele(contig, record.start + 1, ref, alt)
            if isinstance(found, str):
                self.counts[found] += 1
                continue
            position, short_ref, short_alt = found
            self.variants.append(
                CalledVariant(
                    contig=str(contig.name),
                    position=position,
                    ref=short_ref,
                    alt=short_alt,
                    zygosity=genotype.zygosity(number),
                    phase=None if phase is None else genotype.phase(number, phase),
                    depths=None if reads is None else _pair(reads[0], reads[number]),
                    gene=self._gene(contig, position, short_ref, short_alt)
                    or (self.annotation.gene(record.INFO, ref, alts, number) if self.annotation else None),
                )
            )
        if len(self.variants) > min(MAX_VARIANTS, MAX_BYTES // (2 * self.wanted.length)):
            raise InputNotUsable(
                "too-many-variants",
                f"more than {len(self.variants) - 1} variants of one sample: name the regions to score "
                "(MEDFLOW_REGIONS, or MEDFLOW_GENES with MEDFLOW_GENE_BED)",
            )

    def _gene(self, contig: _Contig, position: int, ref: str, alt: str) -> str | None:
        """The gene whose bases an allele changes; if there is none, that of the base which a deletion keeps."""
        if self.regions is None or contig.genes is None:
            return None
        kept = int(len(ref) > len(alt) and ref[0] == alt[0])
        changed = self.regions.gene_over(contig.genes, position - 1 + kept, position - 1 + len(ref))
        return changed or self.regions.gene_at(contig.genes, position)

    def _refused(self, record: Any, keys: Sequence[str]) -> str | None:
        """Why a record with an allele that the sample carries is left out."""
        if self.wanted.passing_only and (record.FILTER is not None or refused(record, keys)):
            return "filtered"
        if self.wanted.min_quality is not None:
            quality = record.QUAL
            if quality is None or quality != quality:  # not a number
                return "no-quality"
            if quality < float(np.float32(self.wanted.min_quality)):  # htslib keeps it in single precision
                return "low-quality"
        return None

    def _allele(self, contig: _Contig, position: int, ref: str, alt: str) -> tuple[int, str, str] | str:
        """An allele in normal form, or the reason why it is left out."""
        if not _BASES.fullmatch(alt):
            return _kind(alt)
        if "N" in alt.upper():
            return "unknown-bases"
        if alt.upper() == ref.upper():
            return "same-as-reference"
        found = normalised(self.reference, str(contig.name), position, ref, alt)
        if not self._lies(contig, *found):
            return "outside-regions"
        if max(len(found[1]), len(found[2])) > self.wanted.max_allele:
            return "too-long"
        key = (str(contig.name), *found)
        if key in self._seen:
            return "duplicate"
        self._seen.add(key)
        return found


def _pair(reference: int | None, allele: int | None) -> tuple[int, int] | None:
    return None if reference is None or allele is None else (reference, allele)


def _kind(alt: str) -> str:
    if alt == ".":
        return "missing-allele"
    if alt == "*":
        return "spanning-deletion"
    return "breakend" if "[" in alt or "]" in alt or alt.startswith(".") or alt.endswith(".") else "symbolic"
