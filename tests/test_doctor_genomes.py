"""medflow doctor on what variants are scored with: real FASTA, BED and CSV files, well and otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from medflow.config import load_settings
from medflow.doctor import Finding, examine
from medflow.doctor.genomes import SMALL
from medflow.genomics.assembly import LENGTHS


def found(home: Path, check: str, **settings: Any) -> list[Finding]:
    """What one check says."""
    return [each for each in examine(load_settings(home=home, **settings), {}) if each.name == check]


def told(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(str(each.state), each.message) for each in findings]


def fasta(folder: Path, contigs: dict[str, int], *, indexed: bool = True) -> Path:
    """A FASTA file whose index gives its contigs these lengths: a file with holes, which takes no room."""
    path, at, rows = folder / "reference.fa", 0, []
    with path.open("wb") as file:
        for name, length in contigs.items():
            header = f">{name}\n".encode()
            file.seek(at)
            file.write(header)
            rows.append(f"{name}\t{length}\t{at + len(header)}\t{length}\t{length + 1}\n")
            at += len(header) + length + 1
            file.seek(at - 1)
            file.write(b"\n")
    if indexed:
        (folder / "reference.fa.fai").write_text("".join(rows))
    return path


def chromosomes(assembly: str, *names: str) -> dict[str, int]:
    return {f"chr{name}": LENGTHS[assembly][name] for name in names}


def test_a_reference_of_the_assembly_it_is_configured_as(tmp_path: Path) -> None:
    path = fasta(tmp_path, chromosomes("GRCh38", "1", "X") | {"chrM": 16569})

    said = told(found(tmp_path, "reference GRCh38", references={"GRCh38": path}))

    assert said == [
        ("ok", "2 chromosomes are as long as in GRCh38"),
        ("ok", "reference.fa: 3 contigs; its index lies beside it"),
    ]


def test_a_reference_of_the_other_assembly_is_refused(tmp_path: Path) -> None:
    path = fasta(tmp_path, chromosomes("GRCh37", "1", "2"))

    (first, *_) = told(found(tmp_path, "reference GRCh38", references={"GRCh38": path}))

    assert first[0] == "failed"
    assert first[1].startswith("chr1, chr2 are as long as in GRCh37, and it is configured as GRCh38")


@pytest.mark.parametrize(
    ("contigs", "warned"),
    [
        ({"chr22": 51304}, "chr22 are of another length than in GRCh37: is this a part"),
        ({"scaffold7": 900}, "none of its contigs is called as a chromosome"),
    ],
)
def test_contigs_that_tell_nothing_are_warned_of(tmp_path: Path, contigs: dict[str, int], warned: str) -> None:
    said = told(found(tmp_path, "reference GRCh37", references={"GRCh37": fasta(tmp_path, contigs)}))

    assert [state for state, _ in said] == ["warning", "ok"]
    assert warned in said[0][1]


def test_a_large_reference_without_an_index_says_what_that_costs_and_how_to_make_one(tmp_path: Path) -> None:
    path = fasta(tmp_path, {"chr1": SMALL + 1}, indexed=False)

    ((state, message),) = told(found(tmp_path, "reference GRCh38", references={"GRCh38": path}))

    assert state == "warning"
    assert "no index reference.fa.fai lies beside it" in message
    assert "whether its contigs are of GRCh38 is not checked" in message and "about a minute" in message
    assert f"samtools faidx {path}" in message


def test_an_index_older_than_its_reference_is_no_index(tmp_path: Path) -> None:
    path = fasta(tmp_path, {"chr1": 4})
    path.write_text(">chr1\nACGT\n")
    os.utime(tmp_path / "reference.fa.fai", (1, 1))

    said = told(found(tmp_path, "reference GRCh38", references={"GRCh38": path}))

    assert "reference.fa.fai is older than the file, and it is small enough" in said[-1][1]


@pytest.mark.parametrize(
    ("name", "content", "refused"),
    [
        ("GRCh38", None, "is not there, or no file"),
        ("GRCh38", "no fasta", "the reference reference.fa cannot be used: give an uncompressed FASTA file"),
        ("hg19", ">chr1\nACGT\n", "no model asks for an assembly hg19: name it GRCh37 or GRCh38"),
    ],
)
def test_a_reference_that_cannot_be_used_says_why(tmp_path: Path, name: str, content: str | None, refused: str) -> None:
    path = tmp_path / "reference.fa"
    if content is not None:
        path.write_text(content)

    said = told(found(tmp_path, f"reference {name}", references={name: path}))

    assert any(state == "failed" and refused in message for state, message in said), said


# --- regions -----------------------------------------------------------------------------------------------------


def test_regions_are_counted_and_looked_for_on_the_references(tmp_path: Path) -> None:
    (bed := tmp_path / "panel.bed").write_text("chr1\t10\t20\nchr1\t15\t30\n7\t0\t5\n")
    references = {"GRCh38": fasta(tmp_path, chromosomes("GRCh38", "1"))}

    said = told(found(tmp_path, "regions", regions=bed, references=references))

    assert said[0] == ("ok", "2 intervals of 25 bases on 2 contigs")
    assert said[1][0] == "warning" and said[1][1].startswith("the reference of GRCh38 has no 7: what lies there")


@pytest.mark.parametrize(("assembly", "states"), [("GRCh38", ["ok"]), ("GRCh37", ["ok", "warning"])])
def test_the_mitochondrion_of_regions_is_found_by_another_name_where_that_is_certain(
    tmp_path: Path, assembly: str, states: list[str]
) -> None:
    (bed := tmp_path / "panel.bed").write_text("chrM\t10\t20\n")

    said = told(found(tmp_path, "regions", regions=bed, references={assembly: fasta(tmp_path, {"MT": 16569})}))

    assert [state for state, _ in said] == states


def test_contigs_of_regions_that_no_index_lets_compare_are_said_to_be_unchecked(tmp_path: Path) -> None:
    (bed := tmp_path / "panel.bed").write_text("chr1\t10\t20\n")
    references = {"GRCh38": fasta(tmp_path, {"chr1": SMALL + 1}, indexed=False)}

    said = told(found(tmp_path, "regions", regions=bed, references=references))

    assert said[1][0] == "warning" and "not compared with the contigs of GRCh38" in said[1][1]
    assert "faidx --no-output" in said[1][1]


def test_a_gene_without_a_place_is_named(tmp_path: Path) -> None:
    (bed := tmp_path / "genes.bed").write_text("chr17\t43044294\t43125364\tBRCA1\n")
    (genes := tmp_path / "genes.txt").write_text("BRCA1\nBRCA9\n")

    ((state, message),) = told(found(tmp_path, "regions", genes=genes, gene_bed=bed))

    assert state == "failed"
    assert "BRCA9" in message and "BRCA1" not in message.replace("BRCA9", "")


@pytest.mark.parametrize(
    ("settings", "state", "said"),
    [
        ({"regions": "all"}, "ok", "wherever they are"),
        ({"regions": "no such.bed"}, "failed", "MEDFLOW_REGIONS cannot be read"),
        ({"references": {}, "gene_bed": "genes.bed"}, "warning", "nothing says which variants are wanted"),
    ],
)
def test_what_is_wanted_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], state: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "genes.bed").write_text("chr17\t43044294\t43125364\tBRCA1\n")

    ((how, message),) = told(found(tmp_path, "regions", **settings))

    assert (how, said in message) == (state, True), message


def test_nothing_is_said_of_genomes_where_none_are_configured(tmp_path: Path) -> None:
    names = {each.name for each in examine(load_settings(home=tmp_path), {})}

    assert names == {"configuration", "database", "objects"}


# --- the sample sheet --------------------------------------------------------------------------------------------


def test_a_sample_sheet_is_counted_and_no_patient_told(tmp_path: Path) -> None:
    (sheet := tmp_path / "sheet.csv").write_text("sample,system,value\nNA1,urn:mrn,SECRET\nNA2,urn:mrn,SECRET\n")

    said = told(found(tmp_path, "sample sheet", sample_sheet=sheet))

    assert said == [("ok", "2 samples of 1 patients")]


@pytest.mark.parametrize(
    ("content", "state", "words"),
    [
        (None, "failed", "cannot be read"),
        ("name,system,value\nNA1,urn:mrn,SECRET\n", "failed", "column sample is missing"),
        ("sample,system,value\nNA1,urn:mrn,SECRET\nNA1,urn:mrn,OTHER\n", "failed", "line 3"),
        ("sample,system,value\n", "warning", "it names no sample"),
    ],
)
def test_a_sample_sheet_that_does_not_serve_says_why(
    tmp_path: Path, content: str | None, state: str, words: str
) -> None:
    sheet = tmp_path / "sheet.csv"
    if content is not None:
        sheet.write_text(content)

    ((how, message),) = told(found(tmp_path, "sample sheet", sample_sheet=sheet))

    assert (how, words in message) == (state, True), message
    assert "SECRET" not in message and "OTHER" not in message
