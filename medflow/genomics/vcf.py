"""A VCF file read in one pass: whether every line is what the specification asks for, and what the file holds.

Parsers accept much that the specification forbids (htslib mends silently), and a wrong file that is read is worse
than one that is refused; so every line is checked here before anything else may use it: a block of lines at once
where all of them look as such lines do (`vcf_block`), one by one where any does not. Memory is bounded by the block,
the longest line and the records that share one position.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from medflow.errors import InputRejected, RejectCode
from medflow.genomics.reference import Reference
from medflow.genomics.stream import LineReader
from medflow.genomics.vcf_block import BlockCheck, Taken
from medflow.genomics.vcf_build import build_of
from medflow.genomics.vcf_counts import MULTIALLELIC, allele_types, filter_outcome
from medflow.genomics.vcf_header import Header, bad_header, columns_line, first_line, meta_line
from medflow.genomics.vcf_order import Order
from medflow.genomics.vcf_record import RecordCheck, bad_record
from medflow.records import VariantFile

SMALL = 128 << 10  # bytes of records below which lines are checked one by one: nothing is to be learned for them


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
        lines = _Lines(stack.enter_context(closing(reader.blocks())))
        header = _read_header(lines)
        taken = _read_records(lines, header, genome)
    return VariantFile(
        sha256=reader.sha256,
        size=reader.size,
        version=header.version,
        samples=header.samples,
        records=taken.records,
        contigs=tuple(taken.order.contigs) or tuple(header.contigs),
        assembly=header.assembly,
        build=build_of(header),
        counts={name: count for name, count in sorted(taken.counts.items()) if count},
    )


class _Lines:
    """Blocks of lines, taken line by line or as they are; ``number`` is that of the last line taken."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = b""
        self._empty = 0  # the first empty line: they are allowed at the end only
        self.number = 0

    def one(self) -> str | None:
        """The next line that is not empty, without its end; None after the last."""
        while self._rest or self._next():
            line, _, self._rest = self._rest.partition(b"\n")
            self.number += 1
            line = line.rstrip(b"\r\n")
            if self.number == 1 and line.startswith(b"BCF"):
                raise InputRejected(RejectCode.UNSUPPORTED_TYPE, "BCF is not read: bcftools view turns it into VCF")
            if line:
                return self._text(line)
            self._empty = self._empty or self.number
        return None

    def block(self) -> bytes:
        """What is left of the block at hand, or else the next one; nothing after the last."""
        if not self._rest:
            self._next()
        block, self._rest = self._rest, b""
        return block

    def whole(self, block: bytes) -> bool:
        """Whether all its lines have their ends, and no empty one came before them."""
        return not self._empty and block.endswith(b"\n")

    def each(self, block: bytes) -> Iterator[str]:
        """The lines of what `block` gave, as `one` gives them."""
        for line in block.removesuffix(b"\n").split(b"\n"):
            self.number += 1
            line = line.rstrip(b"\r\n")
            if line:
                yield self._text(line)
            else:
                self._empty = self._empty or self.number

    def _next(self) -> bool:
        self._rest = next(self._blocks, b"")
        return bool(self._rest)

    def _text(self, line: bytes) -> str:
        if self._empty:
            raise bad_record(self._empty, "an empty line")
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            raise InputRejected(RejectCode.WRONG_ENCODING, f"line {self.number}: not UTF-8 text", line=self.number)
        return text


def _read_header(lines: _Lines) -> Header:
    header = first_line(lines.one() or "")
    while (text := lines.one()) is not None:
        if text.startswith("##"):
            meta_line(header, lines.number, text)
        elif text.startswith("#"):
            columns_line(header, lines.number, text)
            return header
        else:
            raise bad_header(lines.number, "before the #CHROM line every line must begin with ##")
    raise bad_header(lines.number, "the file ends without a #CHROM line")


def _read_records(lines: _Lines, header: Header, genome: Reference | None) -> Taken:
    taken = Taken(order=Order(), counts=Counter())
    check = RecordCheck(header)
    blocks: BlockCheck | None = None
    while block := lines.block():
        if blocks is None and len(block) >= SMALL:
            blocks = BlockCheck(header, check, genome)
        after = blocks.take(block, taken) if blocks is not None and lines.whole(block) else None
        if after is not None:
            lines.number += after.records - taken.records
            taken = after
            continue
        for text in lines.each(block):
            _read_record(lines.number, text, check, taken, genome)
    return taken


def _read_record(line: int, text: str, check: RecordCheck, taken: Taken, genome: Reference | None) -> None:
    site = check.check(line, text)
    taken.order.check(line, site)
    if genome is not None:
        genome.check(line, site.contig, site.position, site.ref)
    taken.records += 1
    taken.counts.update(allele_types(site.ref, ",".join(site.alts)))
    taken.counts[MULTIALLELIC] += len(site.alts) > 1
    taken.counts[filter_outcome(text.split("\t", 7)[6])] += 1
