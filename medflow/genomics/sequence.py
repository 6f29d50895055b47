"""FASTA, streamed: one record after the other, each either a sequence or the reason why it is refused.

The letters taken are IUPAC's for DNA (NC-IUB 1984); lower case (soft-masked) counts as upper. U is refused: medflow's
models read DNA, and an RNA silently rewritten would be somebody else's sequence. Lenient readers pass such letters on.

A record may say whom it is about: ``>name patient=<system>|<value>`` (percent-encoded where they hold spaces).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote

from medflow.errors import InputRejected, RejectCode
from medflow.genomics.stream import LineReader
from medflow.records import MAX_BASES, NUCLEOTIDES, Identifier, Sequence

_RAW = 4 * MAX_BASES  # bytes of a record that are kept, should it be refused

MAX_NAME = 250  # characters of a name, or of a patient's identifier: what a database's index takes

_NOT_IUPAC = re.compile(f"[^{NUCLEOTIDES}]".encode(), re.IGNORECASE)
_PATIENT = "patient="
_COMPLEMENT = str.maketrans("ACGTRYSWKMBDHVNacgtryswkmbdhvn", "TGCAYRSWMKVHDBNtgcayrswmkvhdbn")


@dataclass(frozen=True, kw_only=True, slots=True)
class FastaRecord:
    """One record of a FASTA file: ``number`` counts from 1; ``raw`` is its text as received, up to a limit."""

    number: int
    outcome: Sequence | InputRejected
    raw: bytes


class FastaFile:
    """The records of a FASTA file (plain or gzip), or of its bytes, in one pass.

    After the last record ``sha256`` and ``size`` are those of the file as received. Memory grows with the number of
    names only: each is remembered, to notice one that comes again with another content.
    """

    def __init__(self, source: Path | bytes) -> None:
        self._reader = LineReader(source)
        self._contents: dict[bytes, str] = {}

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the file; empty before the last record was read."""
        return self._reader.sha256

    @property
    def size(self) -> int:
        """Bytes of the file as received."""
        return self._reader.size

    def __iter__(self) -> Iterator[FastaRecord]:
        """Records in order.

        Raises
        ------
        InputRejected
            NOT_FASTA, or what `LineReader` raises; the record that it broke off in is not given.
        """
        parts: _Parts | None = None
        for number, line in enumerate(self._reader, start=1):
            if line.startswith(b">"):
                if parts is not None:
                    yield self._record(parts)
                parts = _Parts(number=parts.number + 1 if parts else 1, header=line)
            elif parts is not None:
                parts.add(number, line)
            elif line.strip():
                raise InputRejected(RejectCode.NOT_FASTA, _not_fasta(line), line=number)
        if parts is None:
            raise InputRejected(RejectCode.NOT_FASTA, "the file has no line that begins with >")
        yield self._record(parts)

    def _record(self, parts: _Parts) -> FastaRecord:
        try:
            outcome: Sequence | InputRejected = self._sequence(parts)
        except InputRejected as error:
            outcome = error
        return FastaRecord(number=parts.number, outcome=outcome, raw=parts.raw())

    def _sequence(self, parts: _Parts) -> Sequence:
        name, subject = _title(parts.header)
        bases = parts.bases()
        digest = sha256(bases.encode()).hexdigest()
        key = sha256(name.encode()).digest()[:12]
        if self._contents.setdefault(key, digest) != digest:
            raise InputRejected(
                RejectCode.DUPLICATE_SEQUENCE, "an earlier record of this file has the same name and other bases"
            )
        return Sequence(name=name, bases=bases, sha256=digest, subject=subject)


@dataclass(kw_only=True, slots=True)
class _Parts:
    """A record while its lines come in; what goes beyond the limit is counted, not kept."""

    number: int
    header: bytes
    lines: list[bytes] = field(default_factory=list)
    length: int = 0
    error: InputRejected | None = None

    def add(self, number: int, line: bytes) -> None:
        text = line.strip()
        if self.error is None and (wrong := _NOT_IUPAC.search(text)):
            self.error = _wrong_letter(wrong[0].upper(), self.length + wrong.start() + 1, number)
        self.length += len(text)
        if self.length <= _RAW:
            self.lines.append(text)

    def raw(self) -> bytes:
        return b"\n".join([self.header[:_RAW], *self.lines, b""])

    def bases(self) -> str:
        if self.error is not None:
            raise self.error
        if not self.length:
            raise InputRejected(RejectCode.INVALID_SEQUENCE, "the record has no bases")
        if self.length > MAX_BASES:
            raise InputRejected(
                RejectCode.TOO_LARGE,
                f"{self.length} bases, a record may have {MAX_BASES}: cut out the region that a model is to read "
                "(samtools faidx)",
            )
        return b"".join(self.lines).decode("ascii").upper()


def _title(header: bytes) -> tuple[str, Identifier | None]:
    """Name and patient of a record from the line that begins it."""
    try:
        words = header[1:].decode("utf-8").split()
    except UnicodeDecodeError:
        raise InputRejected(RejectCode.WRONG_ENCODING, "the record's title line is not UTF-8 text") from None
    if not words or header[1:2].isspace():
        raise InputRejected(RejectCode.INVALID_SEQUENCE, "the record has no name after its >")
    _check_text(words[0])
    claims = [word.removeprefix(_PATIENT) for word in words[1:] if word.startswith(_PATIENT)]
    if not claims:
        return words[0], None
    system, bar, value = claims[0].partition("|")
    if len(claims) > 1 or not (system and bar and value):
        raise InputRejected(
            RejectCode.INVALID_SEQUENCE, "the record's title must name its patient once, as patient=<system>|<value>"
        )
    subject = Identifier(system=unquote(system), value=unquote(value))
    _check_text(subject.system, subject.value)
    return words[0], subject


def _check_text(*texts: str) -> None:
    if any(len(text) > MAX_NAME or not text.isprintable() for text in texts):
        raise InputRejected(
            RejectCode.INVALID_SEQUENCE,
            f"the record's name or patient is longer than {MAX_NAME} characters, or holds some that do not print",
        )


def _wrong_letter(letter: bytes, position: int, line: int) -> InputRejected:
    if letter == b"U":
        reason = "is U: RNA is not taken, give the DNA (T for U)"
    elif letter in b"-.*":
        reason = "is a gap: give the sequence itself, not a row of an alignment"
    else:
        reason = "is none of IUPAC's letters for DNA (ACGTRYSWKMBDHVN)"
    return InputRejected(
        RejectCode.INVALID_SEQUENCE, f"position {position} (line {line}) {reason}", position=position, line=line
    )


def _not_fasta(line: bytes) -> str:
    if line.startswith(b"@"):
        return "the file begins with @, as FASTQ does: turn it into FASTA (seqtk seq -A)"
    return "the first line does not begin with >"


def centre_window(bases: str, length: int) -> str:
    """The ``length`` bases in the middle; of an odd surplus the last base is cut. A shorter sequence stays whole.

    The boundary in the middle of an even window stays in the middle: between the two central bases.
    """
    start = max(0, len(bases) - length) // 2
    return bases[start : start + length]


def reverse_complement(bases: str) -> str:
    """The other strand, 5' to 3'; IUPAC's codes for several bases are complemented as sets."""
    return bases.translate(_COMPLEMENT)[::-1]
