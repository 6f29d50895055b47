"""What a process that stays makes of reference files that change under it, or are not what they are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medflow.errors import ConfigurationError
from medflow.genomics.assembly import LENGTHS
from medflow.genomics.opened import opened_reference
from medflow.genomics.site import GenomeSite


def replaced(path: Path, text: str) -> None:
    """Another file of the same name, at once, as a mirror does it."""
    path.with_suffix(".new").write_text(text)
    os.replace(path.with_suffix(".new"), path)


def test_a_file_that_was_replaced_is_opened_anew_and_one_that_was_not_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "genome.fa"
    path.write_text(">c1\nACGT\n")
    site = GenomeSite(references={"GRCh38": path})

    first, same = (opened_reference(site, "GRCh38") for _ in range(2))
    replaced(path, ">c1\nTTTT\n")
    second = opened_reference(site, "GRCh38")

    assert first is same and second is not None and second.text("c1", 0, 4) == "TTTT"


def test_an_index_that_was_removed_as_told_is_no_longer_used(tmp_path: Path) -> None:
    path = tmp_path / "genome.fa"
    path.write_text(">c1\nACGT\n")
    index = path.with_name("genome.fa.fai")
    index.write_text("c1\t90\t4\t90\t91\n")
    site = GenomeSite(references={"GRCh38": path})
    wrong = opened_reference(site, "GRCh38")
    assert wrong is not None
    with pytest.raises(ConfigurationError, match="delete the .fai"):
        _ = wrong.identity

    index.unlink()

    mended = opened_reference(site, "GRCh38")
    assert mended is not None and dict(mended.lengths) == {"c1": 4}


def test_a_reference_with_the_chromosomes_of_another_assembly_is_refused(tmp_path: Path) -> None:
    path, length = tmp_path / "genome.fa", LENGTHS["GRCh37"]["21"]
    with path.open("wb") as file:  # a file with a hole, which takes no room
        file.write(b">chr21\n")
        file.truncate(7 + length)
    path.with_name("genome.fa.fai").write_text(f"chr21\t{length}\t7\t{length}\t{length + 1}\n")

    with pytest.raises(ConfigurationError, match="as long as in GRCh37: correct MEDFLOW_REFERENCES"):
        opened_reference(GenomeSite(references={"GRCh38": path}), "GRCh38")
    assert opened_reference(GenomeSite(references={"GRCh37": path}), "GRCh37") is not None
