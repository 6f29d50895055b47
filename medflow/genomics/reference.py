"""A reference genome, read through a FASTA index: what REF alleles are checked against and windows are cut from."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from pyfaidx import Faidx, FastaIndexingError, UnsupportedCompressionFormat

from medflow.errors import ConfigurationError, InputRejected, RejectCode

# IUPAC: VCF writes A, C, G, T or N where the reference has a code for several bases (section 1.6.1, REF)
IUPAC = {
    "A": "A", "C": "C", "G": "G", "T": "T", "R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC",
    "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT",
}  # fmt: skip

_BLOCK = 1 << 16  # bases that are read and kept at once
_BLOCKS = 256  # of them in memory: 16 MiB
_SPAN = 4 * _BLOCK  # what is longer is read past the cache, which it would sweep out
_PROBES = 16  # places of a long contig, and the bases of each, whose letters tell one genome from another
_PROBE = 500
_AT_ONCE = 1 << 22  # letters whose places are computed at once: 32 MiB
MITOCHONDRION = frozenset({"M", "MT", "chrM", "chrMT"})
_REVISED_CAMBRIDGE = 16_569  # bases of the one of both assemblies; hg19's chrM has 16,571

_KNOWN = np.full(256, ord("N"), dtype=np.uint8)
for _letter in b"ACGT":
    _KNOWN[[_letter, _letter + 32]] = _letter  # and the same in lower case


class Reference:
    """Random access to one FASTA file, from any thread; lower case (soft-masked) reads as upper.

    An index beside it (``.fai``) is used when it is not older than the file; otherwise one is made in a temporary
    folder, which takes about a minute for a human genome.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError when the file cannot be used."""
        self._folder = tempfile.TemporaryDirectory(prefix="medflow-index-")
        try:
            _check_plain(path)
            index = str(_fresh_index(path) or Path(self._folder.name, "index.fai"))
            self._index = Faidx(str(path), indexname=index, as_raw=True, sequence_always_upper=True)
        except (OSError, ValueError, FastaIndexingError, UnsupportedCompressionFormat, ImportError) as error:
            self._folder.cleanup()
            raise ConfigurationError(f"the reference {path.name} cannot be used: {_why(path, error)}") from None
        self.lengths: Mapping[str, int] = {name: record.rlen for name, record in self._index.index.items()}
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")
        self._block = lru_cache(maxsize=_BLOCKS)(self._read_block)

    def __enter__(self) -> Reference:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file and the index back."""
        self._index.close()
        self._bytes = np.empty(0, dtype=np.uint8)  # unmapped when the last view of it is gone
        self._block.cache_clear()
        self._folder.cleanup()

    @cached_property
    def identity(self) -> str:
        """SHA-256 (hex) over the names, lengths and some bases of every contig: another genome has another.

        Bases are looked at in up to 16 places of a contig, so that it takes no pass over the file.
        """
        total = sha256()
        for name, length in self.lengths.items():
            total.update(f"{name}\t{length}\n".encode())
            for start in range(0, length, max(_PROBE, -(-length // _PROBES))):
                total.update(self._read(name, start, min(start + _PROBE, length)).encode())
        return total.hexdigest()

    def name_of(self, contig: str, length: int | None = None) -> str | None:
        """What the reference calls a contig of a file, or None where it has none, or that is not certain.

        1 is chr1 and chr1 is 1 where only one of them is there; M, MT, chrM and chrMT are each other where ``length``
        says that they are the same (hg19's differs from that of GRCh37).
        """
        if contig in self.lengths:
            return contig
        bare = contig.removeprefix("chr")
        if contig in MITOCHONDRION:
            names = [name for name in ("M", "MT", "chrM", "chrMT") if self.lengths.get(name) == length]
            return names[0] if length is not None and len(names) == 1 else None
        other = bare if contig != bare else f"chr{contig}"
        return other if other in self.lengths else None

    def has(self, contig: str, assembly: str | None) -> bool:
        """Whether a contig of regions (BED tells no length) is one of these, if need be by another name."""
        if self.name_of(contig) is not None:
            return True
        return any(contig in mitochondrion_elsewhere(name, self.lengths.get(name), assembly) for name in MITOCHONDRION)

    def fetch(self, contig: str, start0: int, end0: int) -> np.ndarray:
        """Letters as the file has them, in upper case: uint8 (end0 - start0,) of ASCII codes, N beyond the ends.

        Raises
        ------
        KeyError
            No such contig.
        """
        length = self.lengths[contig]
        start, end = min(max(start0, 0), length), max(min(end0, length), 0)
        bases = np.full(max(end0 - start0, 0), ord("N"), dtype=np.uint8)
        if start < end:
            bases[start - start0 : end - start0] = np.frombuffer(self.text(contig, start, end).encode(), dtype=np.uint8)
        return bases

    def text(self, contig: str, start0: int, end0: int) -> str:
        """The same as text, and nothing beyond the ends. Raises KeyError."""
        start, end = max(start0, 0), min(end0, self.lengths[contig])
        if end <= start:
            return ""
        if end - start > _SPAN:
            return self._read(contig, start, end)
        first, last = start // _BLOCK, (end - 1) // _BLOCK
        if first == last:
            return self._block(contig, first)[start - first * _BLOCK : end - first * _BLOCK]
        blocks = "".join(self._block(contig, number) for number in range(first, last + 1))
        return blocks[start - first * _BLOCK : end - first * _BLOCK]

    def cut(self, contig: str, starts0: np.ndarray, width: int) -> np.ndarray:
        """Windows of ``width`` bases from each start: uint8 (starts, width) of A, C, G, T, and N for all else.

        Letters are taken from the file's bytes at computed places, all windows at once. Raises KeyError.
        """
        record = self._index.index[contig]
        windows = np.empty((len(starts0), width), dtype=np.uint8)
        inside = (starts0 >= 0) & (starts0 + width <= record.rlen)
        for row in np.flatnonzero(~inside):
            windows[row] = _KNOWN[self.fetch(contig, int(starts0[row]), int(starts0[row]) + width)]
        if not inside.any():
            return windows
        rows = np.flatnonzero(inside)
        # from the first letter of a line on, letter i of the contig is byte steps[i] of the file
        letters = np.arange(record.lenc + width, dtype=np.int64)
        steps = sliding_window_view(letters + letters // record.lenc * (record.lenb - record.lenc), width)
        each = max(1, _AT_ONCE // max(width, 1))
        for some in (rows[at : at + each] for at in range(0, len(rows), each)):
            line, column = np.divmod(starts0[some], record.lenc)
            places = steps[column]
            places += (record.offset + line * record.lenb)[:, None]
            windows[some] = _KNOWN[self._bytes[places]]
        return windows

    def agrees(self, contig: str, position: int, ref: str) -> bool:
        """Whether ``ref`` may stand at the 1-based ``position``; N stands for any base. Raises KeyError."""
        found = self.text(contig, position - 1, position - 1 + len(ref))
        ref = ref.upper()
        if found == ref:
            return True
        return len(found) == len(ref) and all(
            base == "N" or base in IUPAC.get(wanted, "") for base, wanted in zip(ref, found, strict=True)
        )

    def check(self, line: int, contig: str, position: int, ref: str) -> None:
        """Whether ``ref`` stands at the 1-based ``position``; N stands for any base. Raises InputRejected."""
        length = self.lengths.get(contig)
        if length is None:
            raise _mismatch(line, "CHROM is not in the reference: is this the assembly that the file was called on?")
        if position == 0:  # the telomere, before the first base
            return
        if position > length:
            raise _mismatch(line, "POS lies beyond the contig of the reference")
        if position - 1 + len(ref) > length:
            raise _mismatch(line, "REF goes beyond the end of the contig of the reference")
        if not self.agrees(contig, position, ref):
            raise _mismatch(line, "REF differs from the reference: is this the assembly that the file was called on?")

    def _read_block(self, contig: str, number: int) -> str:
        return self._read(contig, number * _BLOCK, min((number + 1) * _BLOCK, self.lengths[contig]))

    def _read(self, contig: str, start0: int, end0: int) -> str:
        found = str(self._index.fetch(contig, start0 + 1, end0))  # it holds a lock while it reads
        if len(found) != end0 - start0 or not found.isascii():
            raise ConfigurationError("the reference's index does not fit the file: delete the .fai beside it")
        return found


def _why(path: Path, error: Exception) -> str:
    """What is wrong with the file and the way out; its folder is known where it was configured."""
    if isinstance(error, OSError) and error.errno is not None and not _opens(path):
        return f"{os.strerror(error.errno)}; correct MEDFLOW_REFERENCES, or the path that was given"
    if path.suffix in (".gz", ".bgz", ".zip"):
        return "it is compressed: gunzip it, and name the uncompressed file"
    return "give an uncompressed FASTA file with lines of one length (gunzip it, or samtools faidx says what is wrong)"


def _opens(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False


def _check_plain(path: Path) -> None:
    with path.open("rb") as file:
        if not file.read(1) == b">":
            raise ValueError("compressed, or no FASTA")


def _fresh_index(path: Path) -> Path | None:
    index = path.with_name(path.name + ".fai")
    return index if index.exists() and index.stat().st_mtime >= path.stat().st_mtime else None


def mitochondrion_elsewhere(contig: str, length: int | None, assembly: str | None) -> tuple[str, ...]:
    """What else a file without lengths (BED) may call this contig of the reference, where that is certain.

    MT is the revised Cambridge sequence; so is chrM in GRCh38, while in GRCh37 it may be hg19's.
    """
    if contig not in MITOCHONDRION or length != _REVISED_CAMBRIDGE:
        return ()
    return ("MT", "chrMT", "chrM", "M") if assembly == "GRCh38" else ("MT", "chrMT")


def _mismatch(line: int, reason: str) -> InputRejected:
    return InputRejected(RejectCode.REF_MISMATCH, f"line {line}: {reason}", line=line)
