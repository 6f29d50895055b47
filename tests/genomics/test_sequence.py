import gzip
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyfaidx import Fasta

from medflow.errors import InputRejected, RejectCode
from medflow.genomics.sequence import MAX_BASES, FastaFile, centre_window, reverse_complement
from medflow.records import Identifier, Sequence

BASES = st.text("ACGTRYSWKMBDHVN", min_size=1, max_size=300)


def read(data: bytes | str | Path) -> list[Sequence | InputRejected]:
    return [record.outcome for record in FastaFile(data.encode() if isinstance(data, str) else data)]


def refused(data: bytes | str) -> InputRejected:
    (outcome,) = read(data)
    assert isinstance(outcome, InputRejected)
    return outcome


def test_reads_records_over_several_lines() -> None:
    first, second = read(">one some words\nACGT\nacgtn\n\n>two\r\nRYSWKM\r\nBDHV\r\n")

    assert first == Sequence(name="one", bases="ACGTACGTN", sha256=sha256(b"ACGTACGTN").hexdigest())
    assert isinstance(second, Sequence) and second.bases == "RYSWKMBDHV"


def test_reads_compressed_files_and_knows_them_as_received(tmp_path: Path) -> None:
    path = tmp_path / "some.fa.gz"
    path.write_bytes(gzip.compress(b">one\nACGT\n"))
    file = FastaFile(path)

    (record,) = file

    assert record.raw == b">one\nACGT\n"
    assert (file.sha256, file.size) == (sha256(path.read_bytes()).hexdigest(), path.stat().st_size)


def test_agrees_with_pyfaidx(tmp_path: Path) -> None:
    path = tmp_path / "some.fa"
    path.write_text(">one\nACGTA\nCGT\n>two x\nNNRY\n")

    ours = {record.name: record.bases for record in read(path) if isinstance(record, Sequence)}

    assert ours == {record.name: str(record) for record in Fasta(str(path))}


@pytest.mark.parametrize(
    ("title", "subject"),
    [
        (">one", None),
        (">one patient=urn:oid:1.2.3|4711 more", Identifier(system="urn:oid:1.2.3", value="4711")),
        (">one patient=http://hospital/mrn|A%20B%7CC", Identifier(system="http://hospital/mrn", value="A B|C")),
    ],
)
def test_a_title_may_name_the_patient(title: str, subject: Identifier | None) -> None:
    (record,) = read(f"{title}\nACGT\n")

    assert isinstance(record, Sequence) and (record.name, record.subject) == ("one", subject)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (">one\nACGT\nAC1T\n", RejectCode.INVALID_SEQUENCE, "position 7 (line 3)"),
        (">one\nACGU\n", RejectCode.INVALID_SEQUENCE, "RNA"),
        (">one\nAC-GT\n", RejectCode.INVALID_SEQUENCE, "gap"),
        (">one\nACGT*\n", RejectCode.INVALID_SEQUENCE, "gap"),
        (">one\nAC GT\n", RejectCode.INVALID_SEQUENCE, "position 3"),
        (">one\nMKTAYIAKQR\n", RejectCode.INVALID_SEQUENCE, "IUPAC"),
        (">one\nAC\u00dfT\n", RejectCode.INVALID_SEQUENCE, "position 3"),
        (">one\n\n", RejectCode.INVALID_SEQUENCE, "no bases"),
        (">\nACGT\n", RejectCode.INVALID_SEQUENCE, "no name"),
        ("> one\nACGT\n", RejectCode.INVALID_SEQUENCE, "no name"),
        (">" + "n" * 251 + "\nACGT\n", RejectCode.INVALID_SEQUENCE, "longer"),
        (">one patient=4711\nACGT\n", RejectCode.INVALID_SEQUENCE, "patient=<system>|<value>"),
        (">one patient=a|b patient=a|c\nACGT\n", RejectCode.INVALID_SEQUENCE, "once"),
        (">one patient=a|%00\nACGT\n", RejectCode.INVALID_SEQUENCE, "print"),
        (f">one\n{'A' * (MAX_BASES + 1)}\n", RejectCode.TOO_LARGE, "samtools faidx"),
    ],
)
def test_refuses_a_wrong_record_with_its_reason(text: str, code: RejectCode, words: str) -> None:
    error = refused(text)

    assert error.code == code
    assert words in error.message


def test_a_title_that_is_no_text_is_refused() -> None:
    assert refused(b">\xff\nACGT\n").code == RejectCode.WRONG_ENCODING


def test_a_wrong_record_takes_only_itself_down() -> None:
    outcomes = read(">one\nACGT\n>two\nAC!T\n>three\nGGG\n")

    assert [isinstance(outcome, Sequence) for outcome in outcomes] == [True, False, True]


def test_a_name_with_other_bases_is_refused_and_with_the_same_is_not() -> None:
    first, again, other = read(">one\nACGT\n>one\nacgt\n>one\nACGG\n")

    assert isinstance(first, Sequence) and isinstance(again, Sequence)
    assert isinstance(other, InputRejected) and other.code == RejectCode.DUPLICATE_SEQUENCE


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", RejectCode.EMPTY),
        (b"\n\n", RejectCode.NOT_FASTA),
        (b"ACGT\n", RejectCode.NOT_FASTA),
        (b"@read\nACGT\n+\nIIII\n", RejectCode.NOT_FASTA),
        (b"\x89PNG\r\n\x1a\n", RejectCode.NOT_FASTA),
        (gzip.compress(b"ACGT", mtime=0), RejectCode.NOT_FASTA),
        (gzip.compress(b">one\nACGT\n", mtime=0)[:-8], RejectCode.TRUNCATED),
    ],
)
def test_refuses_what_is_no_fasta(data: bytes, code: RejectCode) -> None:
    with pytest.raises(InputRejected) as caught:
        read(data)

    assert caught.value.code == code


def test_the_record_that_a_file_breaks_off_in_is_not_given() -> None:
    data = gzip.compress(b">one\nACGT\n>two\nAC", compresslevel=0)[:-8]
    records = iter(FastaFile(data))

    assert next(records).number == 1
    with pytest.raises(InputRejected):
        next(records)


def test_memory_is_bounded_by_the_limit_not_by_the_record() -> None:
    (record,) = FastaFile(b">one\n" + (b"ACGT" * 15 + b"\n") * 100_000)

    assert len(record.raw) < 5 * MAX_BASES


@pytest.mark.parametrize(
    ("bases", "length", "window"), [("ABCDEF", 4, "BCDE"), ("ABCDE", 2, "BC"), ("ABC", 3, "ABC"), ("AB", 4, "AB")]
)
def test_the_window_is_cut_from_the_middle(bases: str, length: int, window: str) -> None:
    assert centre_window(bases, length) == window


@given(BASES)
def test_two_complements_are_the_sequence_itself(bases: str) -> None:
    assert reverse_complement(reverse_complement(bases)) == bases


def test_the_other_strand() -> None:
    assert reverse_complement("AACGTRYKMBDHVSWN") == "NWSBDHVKMRYACGTT"


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for text in (b">one\n" + data, data):
        with suppress(InputRejected):
            read(text)
