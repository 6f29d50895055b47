"""The reference genome that a VCF's REF alleles are checked against, read through a FASTA index."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

from pyfaidx import Faidx, FastaIndexingError, FetchError, UnsupportedCompressionFormat

from medflow.errors import ConfigurationError, InputRejected, RejectCode

# IUPAC: VCF writes A, C, G, T or N where the reference has a code for several bases (section 1.6.1, REF)
IUPAC = {
    "A": "A", "C": "C", "G": "G", "T": "T", "R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC",
    "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT",
}  # fmt: skip


class Reference:
    """Random access to one FASTA file.

    An index beside it (``.fai``) is used when it is not older than the file; otherwise one is made in a temporary
    folder, which takes about a minute for a human genome.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError when the file cannot be used."""
        self._folder = tempfile.TemporaryDirectory(prefix="medflow-index-")
        try:
            self._index = Faidx(str(path), indexname=str(_fresh_index(path) or Path(self._folder.name, "index.fai")))
        except (OSError, FastaIndexingError, UnsupportedCompressionFormat, ImportError, UnicodeDecodeError):
            self._folder.cleanup()
            raise ConfigurationError(
                "the reference cannot be used: give an uncompressed FASTA file with lines of one length "
                "(gunzip it, or samtools faidx says what is wrong)"
            ) from None

    def __enter__(self) -> Reference:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._index.close()
        self._folder.cleanup()

    def check(self, line: int, contig: str, position: int, ref: str) -> None:
        """Whether ``ref`` stands at the 1-based ``position``; N stands for any base. Raises InputRejected."""
        if contig not in self._index.index:
            raise _mismatch(line, "CHROM is not in the reference: is this the assembly that the file was called on?")
        if position == 0:  # the telomere, before the first base
            return
        try:
            found = str(self._index.fetch(contig, position, position + len(ref) - 1)).upper()
        except FetchError:
            raise _mismatch(line, "POS lies beyond the contig of the reference") from None
        if len(found) != len(ref):
            raise _mismatch(line, "REF goes beyond the end of the contig of the reference")
        for base, wanted in zip(ref.upper(), found, strict=True):
            if base != "N" and base not in IUPAC.get(wanted, ""):
                raise _mismatch(
                    line, "REF differs from the reference: is this the assembly that the file was called on?"
                )


def _fresh_index(path: Path) -> Path | None:
    index = path.with_name(path.name + ".fai")
    return index if index.exists() and index.stat().st_mtime >= path.stat().st_mtime else None


def _mismatch(line: int, reason: str) -> InputRejected:
    return InputRejected(RejectCode.REF_MISMATCH, f"line {line}: {reason}", line=line)
