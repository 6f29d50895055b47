"""A VCF file opened for one of its samples: read from start to end, or near some regions through its index.

htslib looks at what a file holds, not at its name, so that objects of the store, which have no extension, need none.
An index it finds by its name only: both get names in a temporary folder.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from medflow.errors import InputNotUsable, InputRejected
from medflow.genomics.annotation import Annotation
from medflow.genomics.regions import Regions
from medflow.genomics.stream import LineReader

_JOIN = 1 << 14  # bases that an index cannot tell apart: nearer intervals are asked for at once
REACH = _JOIN  # right of a region: from so far an insertion or deletion is found that lies inside when aligned
_RECORDS_PER_QUERY = 200  # streamed in the time that one query of the index takes

_CONTIG = re.compile(r"##contig=<(?:[^\"]*,)?ID=([^,>]+)")
_LENGTH = re.compile(r"[<,]length=([0-9]{1,18})[,>]")


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleFile:
    """``contigs`` are those of the header with their lengths, where they are given; ``indexed``: an index is there.

    ``annotation`` is None of a file in which no annotator named genes.
    """

    contigs: Mapping[str, int | None]
    indexed: bool
    annotation: Annotation | None
    _vcf: Any

    def records(self) -> Iterator[Any]:
        """All records as cyvcf2 gives them, with the genotype of the one sample; raises InputNotUsable."""
        with _readable():
            yield from self._vcf

    def indexed_records(self) -> int:
        """How many records the index knows of; raises InputNotUsable."""
        with _readable():
            return self._vcf.num_records

    def near(self, queries: list[tuple[str, int, int]]) -> Iterator[Any]:
        """Records that overlap intervals (contig, start0, end0), which are apart and rise by contig; each once."""
        contig, before = "", 0
        for name, start0, end0 in queries:
            if name != contig:
                contig, before = name, 0
            with _readable():
                found = self._vcf(f"{{{name}}}:{start0 + 1}-{end0}")
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # of a contig without records
                    first = next(found, None)
                for record in () if first is None else chain((first,), found):
                    if record.start >= before:  # others came with the interval before
                        yield record
            before = end0


def queries_of(file: SampleFile, regions: Regions, records: int | None) -> list[tuple[str, int, int]] | None:
    """What to ask the index for; None where reading everything is faster."""
    if not file.indexed or regions.everything:
        return None
    queries: list[tuple[str, int, int]] = []
    for region_contig, (starts, ends) in regions.by_contig.items():
        for name in _names(file, regions, region_contig):
            begin, end = int(starts[0]), int(ends[0])
            for start, stop in zip(starts.tolist(), ends.tolist(), strict=True):
                if start > end + REACH + _JOIN:
                    queries.append((name, begin, end + REACH))
                    begin = start
                end = stop
            queries.append((name, begin, end + REACH))
    return queries if records is None or records > _RECORDS_PER_QUERY * len(queries) else None


def _names(file: SampleFile, regions: Regions, contig: str) -> list[str]:
    """What the file may call a contig of the regions."""
    bare = contig.removeprefix("chr")
    names = {contig, bare, f"chr{bare}"} | ({"M", "MT", "chrM", "chrMT"} if bare in ("M", "MT") else set())
    names -= regions.by_contig.keys() - {contig}  # asked for on their own
    return sorted(name for name in names if name in file.contigs) or sorted(names)


@contextmanager
def opened(path: Path, sample: str, index: Path | None) -> Iterator[SampleFile]:
    """A file for one of its samples; raises InputNotUsable (sample-missing, unreadable-file)."""
    with tempfile.TemporaryDirectory(prefix="medflow-vcf-") as folder:
        if index is not None:
            link = Path(folder, "file")
            link.symlink_to(path.resolve())
            Path(folder, "file.csi").symlink_to(index.resolve())
            path = link
        with _readable():
            # its own warnings quote contigs and places; not needed by whoever reads no genomes
            from cyvcf2 import VCF
            from cyvcf2.cyvcf2 import set_htslib_log_level  # type: ignore[attr-defined]  # a compiled module

            set_htslib_log_level(0)
            vcf = VCF(str(path))
        try:
            if sample not in vcf.samples:
                raise InputNotUsable("sample-missing", "the file has no sample of the name that is stored for it")
            vcf.set_samples([sample])
            header = vcf.raw_header
            yield SampleFile(
                contigs=_contigs(header), indexed=index is not None, annotation=Annotation.of(header), _vcf=vcf
            )
        finally:
            vcf.close()


@contextmanager
def without_leading_phase(path: Path, sample: str) -> Iterator[Path | None]:
    """A copy of a file for one sample, its genotypes without the / or | that they may begin with since VCF 4.4.

    It says whether the first allele is phased, which nothing here asks for, and cyvcf2's htslib does not know it. None
    for a file of an earlier version.
    """
    with tempfile.TemporaryDirectory(prefix="medflow-vcf-") as folder:
        copy = Path(folder, "file")
        try:
            with copy.open("wb") as file:
                copied = _copy(file, iter(LineReader(path)), sample.encode())
        except (InputRejected, ValueError, IndexError) as error:
            raise _unreadable(error) from None
        yield copy if copied else None


def _copy(file: BinaryIO, lines: Iterator[bytes], sample: bytes) -> bool:
    """One sample's columns; False for a file of VCF 4.3 or before, of which nothing is written."""
    column = 0
    for number, line in enumerate(lines):
        if number == 0 and not line.startswith((b"##fileformat=VCFv4.4", b"##fileformat=VCFv4.5")):
            return False
        if not line.startswith(b"##") and line:
            columns = line.split(b"\t")
            column = column or columns.index(sample, 9)
            value = columns[column]
            if columns[8].startswith(b"GT") and not line.startswith(b"#"):
                value = value.lstrip(b"/|")
            line = b"\t".join([*columns[:9], value])
        file.write(line + b"\n")
    return True


def _contigs(header: str) -> dict[str, int | None]:
    contigs: dict[str, int | None] = {}
    for line in header.splitlines():
        if found := _CONTIG.match(line):
            length = _LENGTH.search(line)
            contigs[found[1]] = int(length[1]) if length else None
    return contigs


@contextmanager
def _readable() -> Iterator[None]:
    """cyvcf2 raises plain exceptions, whose texts may quote the file."""
    try:
        yield
    except InputNotUsable:
        raise
    except Exception as error:
        raise _unreadable(error) from None


def _unreadable(error: Exception) -> InputNotUsable:
    kind = type(error).__name__
    return InputNotUsable("unreadable-file", f"the VCF file cannot be read ({kind}): ingest it again")
