"""Genes as SnpEff and VEP name them: of one allele, of one gene, or none."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from medflow.genomics.annotation import Annotation

SNPEFF = (
    '##INFO=<ID=ANN,Number=.,Type=String,Description="Functional annotations: '
    "'Allele | Annotation | Annotation_Impact | Gene_Name | Gene_ID' \">"
)
VEP = (
    '##INFO=<ID=CSQ,Number=.,Type=String,Description="Consequence annotations from Ensembl VEP. '
    'Format: Allele|Consequence|IMPACT|SYMBOL|Gene">'
)


def gene(header: str, value: object, *, ref: str = "C", alts: Sequence[str] = ("T",), number: int = 1) -> str | None:
    annotation = Annotation.of(header)
    assert annotation is not None
    return annotation.gene({field.key: value for field in annotation.fields}, ref, list(alts), number)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("T|missense_variant|MODERATE|BRCA1|g", "BRCA1"),
        ("T|missense_variant|MODERATE|BRCA1|g,T|intron_variant|MODIFIER|BRCA1|g2", "BRCA1"),
        ("T|missense_variant|MODERATE|BRCA1|g,T|upstream_gene_variant|MODIFIER|NBR2|g", "BRCA1"),  # beside it
        ("T|missense_variant|MODERATE|BRCA1|g,T|intron_variant|MODIFIER|NBR2|g", None),  # in two
        ("T|intergenic_region|MODIFIER|BRCA1-NBR2|g", None),
        ("T|missense_variant|MODERATE|BRCA1|g,G|missense_variant|MODERATE|NBR2|g", "BRCA1"),  # of another allele
        ("G|missense_variant|MODERATE|BRCA1|g", None),
        ("T|gene_fusion|HIGH|BRCA1&NBR2|g", None),
        ("T|missense_variant|MODERATE|BRCA1", None),  # not as many as the header says
        ("T|missense_variant|MODERATE|BRCA1|g,T", None),
        ("T|missense_variant|MODERATE||g", None),
        ("T|missense_variant|MODERATE|<b>Mr Smith</b>|g", None),
        ("T|missense_variant|MODERATE|" + 51 * "A" + "|g", None),
        ("", None),
        (None, None),
        (7, None),
    ],
)
@pytest.mark.parametrize("header", [SNPEFF, VEP])
def test_one_gene_is_named_where_all_that_is_said_of_the_allele_is_of_one(
    header: str, value: object, expected: str | None
) -> None:
    assert gene(header, value) == expected


@pytest.mark.parametrize(
    ("ref", "alts", "number", "whole", "ensembl"),
    [
        ("CA", ["C"], 1, "C", "-"),
        ("C", ["CAG"], 1, "CAG", "AG"),
        ("CA", ["C", "CT"], 2, "CT", "T"),
        ("CA", ["CT"], 1, "CT", "CT"),  # of equal length
        ("CA", ["C", "G"], 1, "C", "C"),  # not all begin alike
        ("CA", ["C", "*"], 1, "C", "-"),
        ("C", ["CA", "<DEL>"], 1, "CA", None),
    ],
)
def test_alleles_are_told_as_each_annotator_writes_them(
    ref: str, alts: list[str], number: int, whole: str, ensembl: str | None
) -> None:
    asked = {"ref": ref, "alts": alts, "number": number}

    assert gene(SNPEFF, f"{whole}|exon_variant|LOW|TP53|g", **asked) == "TP53"
    assert gene(VEP, f"{ensembl}|exon_variant|LOW|TP53|g", **asked) == ("TP53" if ensembl else None)


def test_the_number_of_the_allele_goes_before_how_it_is_written() -> None:
    header = VEP.replace("|Gene", "|ALLELE_NUM")

    assert gene(header, "-|exon_variant|LOW|TP53|2,-|exon_variant|LOW|EGFR|1", alts=["T", "G"], number=2) == "TP53"


def test_two_annotators_must_agree() -> None:
    assert gene(f"{SNPEFF}\n{VEP}", "T|exon_variant|LOW|TP53|g") == "TP53"
    annotation = Annotation.of(f"{SNPEFF}\n{VEP}")
    assert annotation is not None
    said = {"ANN": "T|exon_variant|LOW|TP53|g", "CSQ": "T|exon_variant|LOW|EGFR|g"}
    assert annotation.gene(said, "C", ["T"], 1) is None


@pytest.mark.parametrize(
    "header",
    ["", '##INFO=<ID=ANN,Number=.,Type=String,Description="Annotations">', SNPEFF.replace("Gene_Name", "Allele")],
)
def test_a_file_whose_header_tells_no_order_is_not_annotated(header: str) -> None:
    assert Annotation.of(header) is None
