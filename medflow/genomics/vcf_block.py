"""Thousands of lines of a VCF file checked at once: the same rules as `RecordCheck` and `Order`, line by line.

A block is taken only when every line of it is right, and then leaves the same behind as its lines one by one would.
Anything else is left to the check of single lines, which finds the line and the reason.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from medflow.errors import InputRejected
from medflow.genomics.reference import Reference
from medflow.genomics.vcf_counts import MULTIALLELIC, allele_types
from medflow.genomics.vcf_header import Header
from medflow.genomics.vcf_order import Order
from medflow.genomics.vcf_pattern import LinePattern
from medflow.genomics.vcf_record import MAX_POSITION, RecordCheck, Site

_TO_LEARN = 200  # lines of the first block that are checked one by one, for what they look like
_LONGEST_CONTIG = 250
_TAB, _LF, _STAR, _DOT = b"\t\n*."


@dataclass(kw_only=True, slots=True)
class Taken:
    """What a file's records came to so far: where they end, how many, and what they hold."""

    order: Order
    counts: Counter[str]
    records: int = 0


class BlockCheck:
    """Checks blocks of the data lines of one file."""

    def __init__(self, header: Header, check: RecordCheck, genome: Reference | None) -> None:
        self._header = header
        self._check = check
        self._genome = genome
        self._tabs = 8 + len(header.samples) if header.samples else 7
        self._pattern = LinePattern(header)

    def take(self, block: bytes, taken: Taken) -> Taken | None:
        """What ``taken`` becomes by a block of whole lines; None when one of them is, or may be, wrong."""
        text = np.frombuffer(block, np.uint8)
        ends, tabs = np.flatnonzero(text == _LF), np.flatnonzero(text == _TAB)
        if len(tabs) != len(ends) * self._tabs:
            return None
        starts = np.concatenate(([0], ends[:-1] + 1))
        tabs = tabs.reshape(len(ends), self._tabs)
        if (tabs[:, 0] < starts).any() or (tabs[:, -1] > ends).any():
            return None
        lines = _Lines(block=block, text=text, starts=starts, tabs=tabs[:, :7])
        try:
            self._forms(block, starts)
            return self._together(lines, taken)
        except (InputRejected, UnicodeDecodeError):
            return None

    def _forms(self, block: bytes, starts: np.ndarray) -> None:
        """Each line by itself; raises when one is wrong."""
        at = 0
        if not self._pattern.compiled:
            for start in starts[:_TO_LEARN].tolist():
                at, _ = self._one(block, start)
            self._pattern.compile()
        while (at := self._pattern.end_of_match(block, at)) < len(block):
            at, learned = self._one(block, at)
            if learned:
                self._pattern.compile()

    def _one(self, block: bytes, start: int) -> tuple[int, bool]:
        """Check the line at ``start``; where it ends, and whether it showed a form that the pattern did not know."""
        end = block.index(b"\n", start)
        text = block[start:end].rstrip(b"\r\n").decode("utf-8")
        if "\0" in text:
            raise UnicodeDecodeError("utf-8", block, start, end, "a byte that no text has")
        self._check.check(0, text)
        return end + 1, self._pattern.learn(text.split("\t"))

    def _together(self, lines: _Lines, taken: Taken) -> Taken | None:
        """The lines one after the other, and what they hold; raises, or gives None, when they do not go together."""
        order, counts = taken.order.copy(), Counter(taken.counts)
        positions = _numbers(lines.text, lines.tabs[:, 0] + 1, lines.tabs[:, 1])
        changes = lines.changes_of_contig()
        if changes is None or (positions > MAX_POSITION).any():
            return None
        for first, end in zip([0, *changes], [*changes, len(positions)], strict=True):
            contig = lines.cell(first, 0).strip("<>")
            order.enter(0, contig)
            run = positions[first:end]
            length = self._header.contigs.get(contig)
            if run[0] < order.position or (run[1:] < run[:-1]).any():
                return None
            if length is not None and run[-1] > length + 1:
                return None
            self._alleles(lines, first, run, order, counts)
            order.position = int(run[-1])
        self._agree(lines, positions)
        _filters(lines, counts)
        return Taken(order=order, counts=counts, records=taken.records + len(positions))

    def _alleles(self, lines: _Lines, first: int, run: np.ndarray, order: Order, counts: Counter[str]) -> None:
        """Alleles of the records of one contig: their types, and none of them twice; raises InputRejected."""
        tabs = lines.tabs[first : first + len(run)]
        refs, alts = tabs[:, 3] - tabs[:, 2] - 1, tabs[:, 4] - tabs[:, 3] - 1
        # an allele is trimmed to the right only where both are longer than a base: no further than REF goes
        reaches = np.maximum.accumulate(np.append(order.reach, run + np.where(alts > 1, refs - 1, 0)))
        close = run <= reaches[:-1]
        close[:-1] |= reaches[1:-1] >= run[1:]
        close[-1] = True  # what comes after it is not known yet
        order.reach = int(reaches[-1])
        bases, single = lines.text[tabs[:, 3] + 1], (refs == 1) & (alts == 1)
        missing = (bases == _STAR) | (bases == _DOT) | (bases | 32 == lines.text[tabs[:, 2] + 1] | 32)
        counts["missing"] += int((single & missing).sum())
        counts["snv"] += int((single & ~missing).sum())
        longer = ~single
        chosen = np.flatnonzero(longer | close)
        columns = (run[chosen], longer[chosen], close[chosen], tabs[chosen, 2], tabs[chosen, 3], tabs[chosen, 4])
        for position, is_longer, is_close, before, between, after in zip(*(c.tolist() for c in columns), strict=True):
            ref, alt = lines.block[before + 1 : between].decode(), lines.block[between + 1 : after].decode()
            if is_longer:
                counts.update(allele_types(ref, alt))
                counts[MULTIALLELIC] += "," in alt
            if is_close or "," in alt:
                order.alleles(0, Site(contig=order.contig, position=position, ref=ref, alts=tuple(alt.split(","))))

    def _agree(self, lines: _Lines, positions: np.ndarray) -> None:
        """REF of each record with the reference, if one was given; raises InputRejected."""
        if self._genome is not None:
            for at, position in enumerate(positions.tolist()):
                self._genome.check(0, lines.cell(at, 0).strip("<>"), position, lines.cell(at, 3))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Lines:
    """Lines of one block: its bytes, where each line starts, and its first seven tabs."""

    block: bytes
    text: np.ndarray
    starts: np.ndarray
    tabs: np.ndarray

    def cell(self, line: int, column: int) -> str:
        """The text of one of the first seven columns."""
        start = self.starts[line] if column == 0 else self.tabs[line, column - 1] + 1
        return self.block[start : self.tabs[line, column]].decode("utf-8")

    def changes_of_contig(self) -> list[int] | None:
        """Lines whose CHROM differs from the one before; None when a name is too long to be compared so."""
        widths = self.tabs[:, 0] - self.starts
        longest = int(widths.max())
        if longest > _LONGEST_CONTIG:
            return None
        offsets = np.arange(longest)
        names = self.text[np.minimum(self.starts[:, None] + offsets, len(self.text) - 1)]
        names = np.where(offsets < widths[:, None], names, 0)
        return (np.flatnonzero((names[1:] != names[:-1]).any(axis=1)) + 1).tolist()


def _numbers(text: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Whole numbers from their digits."""
    values, widths = np.zeros(len(begins), np.int64), ends - begins
    for place in range(int(widths.max())):
        digits = text[np.minimum(begins + place, ends - 1)].astype(np.int64) - ord("0")
        values = np.where(place < widths, values * 10 + digits, values)
    return values


def _filters(lines: _Lines, counts: Counter[str]) -> None:
    """Count records by what their filters say: `filter_outcome`."""
    starts = lines.tabs[:, 5] + 1
    widths = lines.tabs[:, 6] - starts
    passed = (widths == 4) & (lines.text[starts[:, None] + np.arange(4)] == np.frombuffer(b"PASS", np.uint8)).all(
        axis=1
    )
    none = (widths == 1) & (lines.text[starts] == _DOT)
    counts["passed"] += int(passed.sum())
    counts["unfiltered"] += int(none.sum())
    counts["filtered"] += int((~passed & ~none).sum())
