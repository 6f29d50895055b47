"""Where a site wants variants scored: the intervals of a BED file, of a list of genes, or everywhere.

BED counts from 0 and leaves the end out (UCSC; GA4GH BED v1). An exome is not scored whole unless that is asked for.
"""

from __future__ import annotations

import gzip
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medflow.errors import ConfigurationError
from medflow.genomics.site import GenomeSite

_NOT_DATA = ("#", "track", "browser")
_NAMED = 10  # symbols that a message lists
MAX_END = 2**31 - 1


class Interval(NamedTuple):
    """Bases start0 to end0 - 1 of a contig, counted from 0; ``name`` is BED's fourth column."""

    contig: str
    start0: int
    end0: int
    name: str = ""


class Regions:
    """Intervals of a genome, merged; with the genes that lie where.

    ``by_contig`` has the merged intervals by contig as two int64 arrays: starts and ends, both rising. Contigs are
    those of the files; chr1 finds 1 and the other way round. ``everything`` regions leave nothing out.
    """

    def __init__(
        self, intervals: Iterable[Interval], *, genes: Iterable[Interval] = (), everything: bool = False
    ) -> None:
        self.everything = everything
        self.by_contig: Mapping[str, tuple[np.ndarray, np.ndarray]] = _merged(intervals)
        self._ends = {contig: pair[1].tolist() for contig, pair in self.by_contig.items()}
        self._starts = {contig: pair[0].tolist() for contig, pair in self.by_contig.items()}
        self._genes = {contig: _GeneMap.of(rows) for contig, rows in _grouped(genes).items()}
        self.digest = self._digest()

    def named(self, *names: str) -> str | None:
        """What the regions call the contig of these names, the first that they have; None where they have nothing."""
        return next(filter(None, (_found(name, self.by_contig) for name in names)), None)

    def genes_named(self, *names: str) -> str | None:
        """The same of the genes."""
        return next(filter(None, (_found(name, self._genes) for name in names)), None)

    def overlaps(self, contig: str, start0: int, end0: int) -> bool:
        """Whether one interval shares a base with the regions."""
        if self.everything:
            return True
        name = self.named(contig)
        if name is None:
            return False
        at = bisect_right(self._ends[name], start0)
        starts = self._starts[name]
        return at < len(starts) and starts[at] < end0

    def contains(self, contig: str, start0: np.ndarray | int, end0: np.ndarray | int) -> np.ndarray:
        """Which of the intervals [start0, end0) of a contig share a base with the regions: boolean, as many."""
        start, end = np.broadcast_arrays(np.asarray(start0, dtype=np.int64), np.asarray(end0, dtype=np.int64))
        if self.everything:
            return np.ones(start.shape, dtype=bool)
        name = self.named(contig)
        if name is None:
            return np.zeros(start.shape, dtype=bool)
        starts, ends = self.by_contig[name]
        at = np.searchsorted(ends, start, side="right")
        return (at < len(starts)) & (starts[np.minimum(at, len(starts) - 1)] < end)

    def gene_at(self, contig: str, position: int) -> str | None:
        """The symbol of the gene at a 1-based position: of several the shortest, then the first by name."""
        name = _found(contig, self._genes)
        return None if name is None else self._genes[name].at(position - 1)

    def gene_over(self, contig: str, start0: int, end0: int) -> str | None:
        """Of the genes that hold a base of [start0, end0) the one that `gene_at` gives for the first such base."""
        name = _found(contig, self._genes)
        return None if name is None else self._genes[name].over(start0, end0)

    def _digest(self) -> str:
        """SHA-256 (hex) of what is in and which gene is where, however the files were written."""
        total = sha256(b"all\n" if self.everything else b"")
        for contig in sorted(self.by_contig):
            rows = zip(self._starts[contig], self._ends[contig], strict=True)
            total.update("".join(f"{contig}\t{start}\t{end}\n" for start, end in rows).encode())
        for contig in sorted(self._genes):
            genes = self._genes[contig]
            rows = zip(genes.starts, genes.symbols, strict=True)
            total.update("".join(f"gene\t{contig}\t{start}\t{symbol or ''}\n" for start, symbol in rows).encode())
        return total.hexdigest()


def regions_of(site: GenomeSite, *, whole: bool = False) -> Regions | None:
    """The regions that a site is configured with; None where it says nothing of them.

    A BED file and a list of genes together give what is in both. ``whole`` makes everything of nothing, with the
    genes' names where there is a BED file of genes: for a file small enough to be scored whole.

    Raises
    ------
    ConfigurationError
        A file cannot be read, is no BED, or has no gene of a name on the list.
    """
    genes = list(_bed(site.gene_bed, "MEDFLOW_GENE_BED", named=True)) if site.gene_bed is not None else []
    wanted = _listed(site.genes, site.gene_bed, genes) if site.genes is not None else None
    if isinstance(site.regions, Path):
        inside = Regions(_bed(site.regions, "MEDFLOW_REGIONS"))
        _check_some(inside, "MEDFLOW_REGIONS")
        intervals = _merged_rows(inside)
        if wanted is not None:
            intervals = _common(inside, Regions(wanted))
        return Regions(intervals, genes=wanted if wanted is not None else genes)
    if wanted is not None:
        return Regions(wanted, genes=wanted)
    if site.regions == "all" or whole:
        return Regions((), genes=genes, everything=True)
    return None


# --- reading -----------------------------------------------------------------------------------------------------


def _bed(path: Path, setting: str, *, named: bool = False) -> Iterator[Interval]:
    for number, line in enumerate(_lines(path, setting), start=1):
        text = line.strip()
        if not text or text.startswith("#") or text.split(None, 1)[0] in _NOT_DATA:
            continue
        columns = line.rstrip("\r\n").split("\t") if "\t" in line else text.split()
        if len(columns) < 3 + named or not (columns[1].isdecimal() and columns[2].isdecimal()):
            wanted = "contig, start, end and symbol" if named else "contig, start and end"
            raise ConfigurationError(f"{setting}: line {number} is no BED: {wanted}, separated by tabs")
        start, end = int(columns[1]), int(columns[2])
        if start > end or end > MAX_END:
            raise ConfigurationError(f"{setting}: line {number}: the end must be after the start, and below 2^31")
        if start < end:  # BED v1 allows empty features, which hold no base
            yield Interval(columns[0], start, end, columns[3].strip() if named else "")


def _listed(path: Path, gene_bed: Path | None, genes: list[Interval]) -> list[Interval]:
    """The rows of the genes on the list."""
    if gene_bed is None:
        raise ConfigurationError("MEDFLOW_GENES needs MEDFLOW_GENE_BED, a BED file with the places of genes")
    symbols = {line.strip() for line in _lines(path, "MEDFLOW_GENES") if line.strip() and not line.startswith("#")}
    if not symbols:
        raise ConfigurationError("MEDFLOW_GENES names no gene: give one symbol a line")
    unknown = sorted(symbols - {row.name for row in genes})
    if unknown:
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        raise ConfigurationError(
            f"MEDFLOW_GENES: {', '.join(unknown[:_NAMED])}{more} not in MEDFLOW_GENE_BED: "
            "correct the symbols, or give a BED file that has them in its fourth column"
        )
    return [row for row in genes if row.name in symbols]


def _lines(path: Path, setting: str) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8") as text:
            yield from text
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        kind = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigurationError(f"{setting} cannot be read ({kind}): give a text file, plain or gzip") from None


def _check_some(regions: Regions, setting: str) -> None:
    if not regions.by_contig:
        raise ConfigurationError(f"{setting} has no interval: give a BED file, or all")


# --- intervals ---------------------------------------------------------------------------------------------------


def _grouped(intervals: Iterable[Interval]) -> dict[str, list[Interval]]:
    rows: dict[str, list[Interval]] = {}
    for interval in intervals:
        rows.setdefault(interval.contig, []).append(interval)
    both = sorted(name for name in rows if not name.startswith("chr") and f"chr{name}" in rows)
    if both:
        raise ConfigurationError(f"a BED file has both {both[0]} and chr{both[0]}: name contigs in one way")
    return rows


def _merged(intervals: Iterable[Interval]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Starts and ends by contig, sorted, those that overlap or touch made one."""
    merged: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for contig, rows in _grouped(intervals).items():
        bounds = np.array(sorted((row.start0, row.end0) for row in rows), dtype=np.int64)
        reach = np.maximum.accumulate(bounds[:, 1])
        first = np.r_[True, bounds[1:, 0] > reach[:-1]]
        last = np.r_[first[1:], True]
        merged[contig] = bounds[first, 0], reach[last]
    return merged


def _merged_rows(regions: Regions) -> list[Interval]:
    return [
        Interval(contig, start, end)
        for contig, (starts, ends) in regions.by_contig.items()
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]


def _common(one: Regions, other: Regions) -> list[Interval]:
    """What lies in both, on the first one's contigs."""
    rows: list[Interval] = []
    for contig, (starts, ends) in one.by_contig.items():
        name = other.named(contig)
        if name is None:
            continue
        theirs, their_ends = other.by_contig[name]
        first = np.searchsorted(their_ends, starts, side="right")
        after = np.searchsorted(theirs, ends, side="left")
        for start, end, low, high in zip(starts.tolist(), ends.tolist(), first.tolist(), after.tolist(), strict=True):
            rows += [
                Interval(contig, max(start, int(theirs[at])), min(end, int(their_ends[at]))) for at in range(low, high)
            ]
    return rows


def _found(contig: str, there: Container[str]) -> str | None:
    """The name that stands for a contig: its own, or that with or without chr."""
    if contig in there:
        return contig
    other = contig.removeprefix("chr") if contig.startswith("chr") else f"chr{contig}"
    return other if other in there else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _GeneMap:
    """From ``starts[i]`` on, up to the next, lies ``symbols[i]``."""

    starts: list[int] = field(default_factory=list)
    symbols: list[str | None] = field(default_factory=list)

    @classmethod
    def of(cls, genes: list[Interval]) -> _GeneMap:
        """Sweep along the contig: at each bound the best of the genes that lie there."""
        events: dict[int, list[tuple[bool, tuple[int, str, int]]]] = {}
        for number, gene in enumerate(genes):
            key = (gene.end0 - gene.start0, gene.name, number)
            events.setdefault(gene.start0, []).append((True, key))
            events.setdefault(gene.end0, []).append((False, key))
        found, here = cls(), set[tuple[int, str, int]]()
        for place in sorted(events):
            for begins, key in events[place]:
                (here.add if begins else here.discard)(key)
            symbol = min(here)[1] if here else None
            if not found.symbols or found.symbols[-1] != symbol:
                found.starts.append(place)
                found.symbols.append(symbol)
        return found

    def over(self, start0: int, end0: int) -> str | None:
        """The first symbol there is from one place, counted from 0, to before another."""
        first, last = bisect_right(self.starts, start0), bisect_left(self.starts, end0)
        return next((symbol for symbol in self.symbols[max(first - 1, 0) : last] if symbol is not None), None)

    def at(self, place0: int) -> str | None:
        """The symbol at a place counted from 0."""
        number = bisect_right(self.starts, place0) - 1
        return self.symbols[number] if number >= 0 else None
