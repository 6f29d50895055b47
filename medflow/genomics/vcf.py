"""A VCF file read in one pass: whether every line is what the specification asks for, and what the file holds.

Parsers accept much that the specification forbids (htslib mends silently), and a wrong file that is read is worse
than one that is refused; so every line is checked here before anything else may use it. Memory is bounded by the
longest line and by the records that share one position.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from medflow.errors import InputRejected, RejectCode
from medflow.genomics.reference import Reference
from medflow.genomics.stream import LineReader
from medflow.genomics.vcf_header import Header, bad_header, columns_line, first_line, meta_line
from medflow.genomics.vcf_record import RecordCheck, Site, bad_record
from medflow.records import Variant, VariantFile


def read_vcf(source: Path | bytes, *, reference: Path | Reference | None = None) -> VariantFile:
    """What a VCF file (4.1 to 4.5; plain, gzip or bgzip) holds, after a full check of it.

    Parameters
    ----------
    source
        The file, whatever its name, or its bytes.
    reference
        Uncompressed FASTA that every REF must agree with; opened already where many files are checked against it.

    Raises
    ------
    InputRejected
        BAD_VCF_HEADER, BAD_VCF_RECORD or REF_MISMATCH with the line number, WRONG_ENCODING, UNSUPPORTED_TYPE for BCF,
        or what `LineReader` raises.
    ConfigurationError
        The reference cannot be used.
    """
    with ExitStack() as stack:
        genome = stack.enter_context(Reference(reference)) if isinstance(reference, Path) else reference
        reader = LineReader(source)
        lines = _numbered(reader)
        header = _read_header(lines)
        check, order, records = RecordCheck(header), _Order(), 0
        for line, text in lines:
            site = check.check(line, text)
            order.check(line, site)
            if genome is not None:
                genome.check(line, site.contig, site.position, site.ref)
            records += 1
    return VariantFile(
        sha256=reader.sha256,
        size=reader.size,
        version=header.version,
        samples=header.samples,
        records=records,
        contigs=tuple(order.contigs) or tuple(header.contigs),
        assembly=header.assembly,
    )


def _numbered(reader: LineReader) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; empty ones are allowed at the end only."""
    empty = 0
    for number, line in enumerate(reader, start=1):
        if number == 1 and line.startswith(b"BCF"):
            raise InputRejected(RejectCode.UNSUPPORTED_TYPE, "BCF is not read: bcftools view turns it into VCF")
        if not line:
            empty = empty or number
            continue
        if empty:
            raise bad_record(empty, "an empty line")
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            raise InputRejected(RejectCode.WRONG_ENCODING, f"line {number}: not UTF-8 text", line=number)
        yield number, text


def _read_header(lines: Iterator[tuple[int, str]]) -> Header:
    number, text = next(lines, (1, ""))
    header = first_line(text)
    for number, text in lines:
        if text.startswith("##"):
            meta_line(header, number, text)
        elif text.startswith("#"):
            columns_line(header, number, text)
            return header
        else:
            raise bad_header(number, "before the #CHROM line every line must begin with ##")
    raise bad_header(number, "the file ends without a #CHROM line")


class _Order:
    """Records stand in order of position, contigs in one piece each, and no allele comes twice (section 1.6)."""

    def __init__(self) -> None:
        self.contigs: dict[str, None] = {}
        self._contig = ""
        self._position = 0
        self._recent: dict[Variant, None] = {}

    def check(self, line: int, site: Site) -> None:
        """Raises InputRejected when ``site`` may not follow those before it."""
        if site.contig != self._contig:
            if site.contig in self.contigs:
                raise bad_record(line, "the records of one CHROM must stand together")
            self.contigs[site.contig] = None
            self._contig, self._recent = site.contig, {}
        elif site.position < self._position:
            raise bad_record(line, "the records of one CHROM must be sorted by POS")
        if site.position != self._position:
            # trimming moves an allele to the right only, so those left of this record cannot come again
            self._recent = {seen: None for seen in self._recent if seen.position >= site.position}
            self._position = site.position
        for variant in site.variants():
            if variant in self._recent:
                raise bad_record(line, "an allele of this record was already given, here or by an earlier record")
            self._recent[variant] = None
