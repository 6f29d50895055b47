import pytest

from medflow.genomics.vcf_build import _LENGTHS, GRCH37, GRCH38, build_of
from medflow.genomics.vcf_header import Header


def header(*words: str, **lengths: int | None) -> Header:
    return Header(minor=2, assemblies=set(words), contigs=dict(lengths))


@pytest.mark.parametrize(
    ("words", "build"),
    [
        ("GRCh38", GRCH38),
        ("file:///data/GRCh38_full_analysis_set_plus_decoy_hla.fa", GRCH38),
        ("GRCh38.p14", GRCH38),
        ("Homo_sapiens_assembly38.fasta", GRCH38),
        ("hg38.fa.gz", GRCH38),
        ("GCA_000001405.15", GRCH38),
        ("GCF_000001405.26_GRCh38_genomic.fna", GRCH38),
        ("GRCh37", GRCH37),
        ("file:///refs/hs37d5.fa", GRCH37),
        ("human_g1k_v37.fasta", GRCH37),
        ("b37", GRCH37),
        ("ucsc.hg19.fasta", GRCH37),
        ("GCF_000001405.25", GRCH37),
        ("1000GenomesPilot-NCBI36", None),
        ("T2T-CHM13v2.0", None),
        ("mm10", None),
        ("hg384", None),
        ("the genome", None),
        ("hg19_to_hg38", None),
    ],
)
def test_the_assembly_is_known_by_words_of_the_header(words: str, build: str | None) -> None:
    assert build_of(header(words)) == build


def test_words_that_contradict_each_other_leave_it_unknown() -> None:
    assert build_of(header("hg19", "GRCh38")) is None
    assert build_of(header("hg38", "GRCh38")) == GRCH38


@pytest.mark.parametrize("name", ["chr21", "21", "NC_000021.9"])
def test_without_words_the_length_of_a_chromosome_tells(name: str) -> None:
    assert build_of(header(**{name: 46709983})) == GRCH38
    assert build_of(header(**{name: 48129895})) == GRCH37
    assert build_of(header(**{name: 45090682})) is None  # of CHM13
    assert build_of(header(**{name: None})) is None


def test_lengths_that_contradict_the_words_or_each_other_leave_it_unknown() -> None:
    assert build_of(header("GRCh38", chr21=48129895)) is None
    assert build_of(header("GRCh38", chr21=45090682)) is None
    assert build_of(header(chr21=48129895, chr22=50818468)) is None


def test_an_excerpt_under_the_name_of_a_chromosome_says_nothing() -> None:
    assert build_of(header("GRCh38", chr21=1000)) == GRCH38
    assert build_of(header(chr21=1000)) is None


def test_the_lengths_are_those_of_the_assemblies() -> None:
    # NCBI: total length of the primary assembly's 24 chromosomes
    assert {build: sum(lengths) for build, lengths in _LENGTHS.items()} == {GRCH37: 3095677412, GRCH38: 3088269832}
