"""Records of a VCF file one after the other: sorted, contigs in one piece, no allele twice (section 1.6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from medflow.genomics.vcf_record import Site, bad_record
from medflow.records import Variant


@dataclass(kw_only=True, slots=True)
class Order:
    """Where the records read so far end. ``reach`` is the last position that an allele of them can be trimmed to."""

    contigs: dict[str, None] = field(default_factory=dict)
    contig: str = ""
    position: int = 0
    reach: int = -1
    recent: dict[Variant, None] = field(default_factory=dict)
    swept: int = 0  # the position that nothing of ``recent`` lies left of

    def copy(self) -> Order:
        """Another one, that goes its own way from here."""
        return Order(
            contigs=dict(self.contigs),
            contig=self.contig,
            position=self.position,
            reach=self.reach,
            recent=dict(self.recent),
            swept=self.swept,
        )

    def check(self, line: int, site: Site) -> None:
        """Raises InputRejected when ``site`` may not follow those before it."""
        self.enter(line, site.contig)
        if site.position < self.position:
            _refuse(line, "the records of one CHROM must be sorted by POS")
        self.alleles(line, site)
        self.position = site.position
        self.reach = max(self.reach, site.position + len(site.ref) - 1)

    def enter(self, line: int, contig: str) -> None:
        """A record of ``contig`` comes; raises InputRejected when that one was left before."""
        if contig == self.contig:
            return
        if contig in self.contigs:
            _refuse(line, "the records of one CHROM must stand together")
        self.contigs[contig] = None
        self.contig, self.position, self.reach, self.recent, self.swept = contig, 0, -1, {}, 0

    def alleles(self, line: int, site: Site) -> None:
        """Raises InputRejected for an allele that was given before, at this site or at one to the left."""
        # trimming moves an allele to the right only, so those left of this record cannot come again
        if site.position != self.swept:
            self.recent = {seen: None for seen in self.recent if seen.position >= site.position}
            self.swept = site.position
        for variant in site.variants():
            if variant in self.recent:
                _refuse(line, "an allele of this record was already given, here or by an earlier record")
            self.recent[variant] = None


def _refuse(line: int, reason: str) -> NoReturn:
    raise bad_record(line, reason)
