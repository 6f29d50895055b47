from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pyfaidx import Fasta

from medflow.errors import ConfigurationError, InputRejected, RejectCode
from medflow.genomics.reference import Reference


def fasta(folder: Path, contigs: dict[str, str], line: int = 60, end: str = "\n") -> Path:
    path = folder / "genome.fa"
    rows = [
        row
        for name, bases in contigs.items()
        for row in (f">{name} described", *(bases[at : at + line] for at in range(0, len(bases), line)))
    ]
    path.write_bytes("".join(row + end for row in rows).encode())
    return path


def long_contig(size: int) -> str:
    return "".join(np.random.default_rng(3).choice(list("ACGTacgtN"), size))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_fetches_upper_case_and_n_beyond_the_ends(tmp_path: Path, end: str) -> None:
    with Reference(fasta(tmp_path, {"1": "acgtR", "2": "TTTT"}, line=3, end=end)) as reference:
        assert reference.fetch("1", -2, 8).tobytes() == b"NNACGTRNNN"
        assert reference.fetch("1", 1, 3).tobytes() == b"CG"
        assert reference.fetch("1", 9, 12).tobytes() == reference.fetch("1", -9, -6).tobytes() == b"NNN"
        assert reference.fetch("1", 3, 3).size == 0
        assert reference.cut("1", np.array([-2, 1, 4]), 3).tobytes() == b"NNACGTNNN"  # R is known to no model


def test_agrees_with_pyfaidx_across_its_blocks_from_many_threads(tmp_path: Path) -> None:
    path = fasta(tmp_path, {"1": "ACGT", "2": long_contig(300_000)})
    rng = np.random.default_rng(4)
    spans = [(start, start + int(rng.integers(1, 90_000))) for start in rng.integers(0, 300_000, 40).tolist()]
    spans += [(65_530, 65_540), (65_536, 131_072), (0, 300_000), (299_999, 300_000)]
    whole = str(Fasta(str(path), indexname=str(tmp_path / "other.fai"))["2"][:]).upper()

    with Reference(path) as reference, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda span: reference.text("2", *span), spans))
        starts = np.array([start for start, _ in spans if start < 299_900])
        windows = reference.cut("2", starts, 100)

    assert found == [whole[start:end] for start, end in spans]
    assert [row.tobytes().decode() for row in windows] == [whole[start : start + 100] for start in starts]


def test_identity_is_that_of_the_genome_however_its_file_is_written(tmp_path: Path) -> None:
    bases = long_contig(40_000)

    def identity(contigs: dict[str, str], line: int = 60) -> str:
        with Reference(fasta(tmp_path, contigs, line)) as reference:
            return reference.identity

    same = identity({"1": bases, "2": "ACGT"})
    others = [
        identity({"1": bases, "2": "ACGTA"}),
        identity({"1": bases, "3": "ACGT"}),
        identity({"1": bases, "2": "ACGA"}),
        identity({"1": bases.translate(str.maketrans("ac", "tg")), "2": "ACGT"}),
    ]

    assert identity({"1": bases.upper(), "2": "acgt"}, line=77) == same
    assert len({same, *others}) == 5


@pytest.mark.parametrize(
    ("contigs", "asked", "expected"),
    [
        (["chr1"], ("1", None), "chr1"),
        (["1"], ("chr1", None), "1"),
        (["1", "chr1"], ("chr1", None), "chr1"),
        (["1"], ("2", None), None),
        (["MT"], ("chrM", 4), "MT"),
        (["chrM"], ("MT", 4), "chrM"),
        (["MT"], ("chrM", 5), None),
        (["MT"], ("chrM", None), None),
        (["NC_000001.11"], ("1", 4), None),
    ],
)
def test_contigs_go_by_another_name_only_where_that_is_certain(
    contigs: list[str], asked: tuple[str, int | None], expected: str | None, tmp_path: Path
) -> None:
    with Reference(fasta(tmp_path, dict.fromkeys(contigs, "ACGT"))) as reference:
        assert reference.name_of(*asked) == expected


@pytest.mark.parametrize(
    ("position", "ref", "right"),
    [
        (1, "ac", True),
        (1, "AN", True),
        (3, "A", True),
        (3, "C", False),
        (4, "TA", False),
        (0, "N", True),
        (9, "A", False),
    ],
)
def test_checks_a_ref(position: int, ref: str, right: bool, tmp_path: Path) -> None:
    with Reference(fasta(tmp_path, {"1": "AcRT"})) as reference:
        if right:
            reference.check(7, "1", position, ref)
            return
        with pytest.raises(InputRejected, match="line 7") as caught:
            reference.check(7, "1", position, ref)
    assert caught.value.code == RejectCode.REF_MISMATCH


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b\x08\x00", b"ACGT\n", b">1\nACGT\nAC\nACGT\n"])
def test_a_file_that_cannot_be_read_at_random_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "genome.fa"
    path.write_bytes(data)

    with pytest.raises(ConfigurationError, match="uncompressed FASTA"):
        Reference(path)


@pytest.mark.parametrize(
    ("name", "why"),
    [("absent.fa", "absent.fa cannot be used: No such file.*MEDFLOW_REFERENCES"), ("genome.fa.gz", "gunzip it")],
)
def test_what_is_missing_or_compressed_is_said_of_the_file_by_its_name(name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "genome.fa.gz").write_bytes(b"\x1f\x8b\x08\x00")

    with pytest.raises(ConfigurationError, match=why):
        Reference(tmp_path / name)


def test_an_index_of_another_file_is_noticed(tmp_path: Path) -> None:
    path = fasta(tmp_path, {"1": "ACGT" * 10})
    (tmp_path / "genome.fa.fai").write_text("1\t4000\t13\t60\t61\n")

    with Reference(path) as reference, pytest.raises(ConfigurationError, match="fai"):
        reference.fetch("1", 0, 4000)


@pytest.mark.parametrize(
    ("contig", "assembly", "here"),
    [("1", "GRCh37", True), ("2", "GRCh37", False), ("chrM", "GRCh38", True), ("chrM", "GRCh37", False)],
)
def test_says_whether_it_has_a_contig_of_regions(contig: str, assembly: str, here: bool, tmp_path: Path) -> None:
    (tmp_path / "genome.fa").write_text(f">chr1\nACGT\n>MT\n{'A' * 16569}\n")

    with Reference(tmp_path / "genome.fa") as genome:
        assert genome.has(contig, assembly) is here
