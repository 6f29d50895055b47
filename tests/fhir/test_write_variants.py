"""Scores of variants as FHIR: what is said of the variant, what of the score, and what of all that is not reported."""

import re
import time
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from medflow.errors import PredictionInvalid
from medflow.fhir.write import result_resources
from medflow.fhir.write.genome import CHROMOSOMES, place_of
from medflow.plugin import Coding
from medflow.records import CalledVariant, Instant, Result, VariantScore
from tests.every_kind import BARE, KINDS, MITOCHONDRIAL, SPLICE_MODEL
from tests.results import CALLED, SPLICING, VARIANTS, context, effects_on, model, parsed, variant_file

JOB = context(SPLICE_MODEL, inputs=(variant_file(),))


def of(variant: CalledVariant, build: str | None = "GRCh38") -> dict[str, dict]:
    """The components of a variant, by LOINC code."""
    [found, *_] = parsed(result_resources(JOB, [effects_on(variant, build=build)]))
    return {part["code"]["coding"][0]["code"]: part for part in found["component"]}


def answer(part: dict) -> str:
    return part["valueCodeableConcept"]["coding"][0]["code"]


def test_a_variant_says_where_it_is_and_how_the_sample_carries_it() -> None:
    found = of(CALLED)

    assert answer(found["62374-4"]) == "LA26806-2"
    assert answer(found["48000-4"]) == "LA21260-7"
    [sequence] = found["48013-7"]["valueCodeableConcept"]["coding"]
    assert sequence == {"system": "http://www.ncbi.nlm.nih.gov/nuccore", "code": "NC_000007.14"}
    assert answer(found["92822-6"]) == "LA30102-0"
    assert found["81254-5"]["valueRange"] == {"low": {"value": 117559590}, "high": {"value": 117559593}}
    assert (found["69547-8"]["valueString"], found["69551-0"]["valueString"]) == ("ATCT", "A")
    assert answer(found["53034-5"]) == "LA6706-1"
    assert (found["82121-5"]["valueQuantity"]["value"], found["82121-5"]["valueQuantity"]["code"]) == (17, "1")
    assert found["48018-6"]["valueCodeableConcept"] == {"text": "CFTR"}
    assert found["82120-7"]["valueCodeableConcept"] == {"text": "phase set 117559590, haplotype 2"}


def test_a_variant_is_the_laboratorys_and_its_score_the_models() -> None:
    job, results = KINDS["variants"]

    variant, score, *_, provenance = parsed(result_resources(job, results))

    assert variant["code"]["coding"][0]["code"] == "69548-6"
    assert [item["coding"][0]["code"] for item in variant["category"]] == ["laboratory", "GE"]
    assert variant["valueCodeableConcept"]["coding"][0]["code"] == "LA9633-4"
    assert not {"meta", "device", "method", "interpretation"} & variant.keys()
    file = variant_file().identifier
    assert file is not None
    assert [item["identifier"]["value"] for item in variant["derivedFrom"]] == [file.value]
    assert variant["specimen"] == score["specimen"] == {"reference": "Specimen/s1", "type": "Specimen"}
    assert score["derivedFrom"] == [{"reference": f"Observation/{variant['id']}"}, *variant["derivedFrom"]]
    assert score["code"]["coding"][0]["code"] == "splice-effect"
    assert score["valueQuantity"]["value"] == 0.5
    assert {part["code"]["text"]: part["valueQuantity"]["value"] for part in score["component"]} == {
        "donor change": -0.5,
        "acceptor change": 0.125,
    }
    assert score["meta"]["security"][0]["code"] == "AIAST"
    assert score["device"]["reference"] == f"Device/{job.model.device_id}"
    assert score["method"]["text"] == "test-model@1.2.0"
    assert "interpretation" not in score
    assert {entity["what"].get("type") for entity in provenance["entity"]} == {"DocumentReference", "Specimen", None}


def test_the_provenance_names_all_of_them() -> None:
    *made, provenance = parsed(result_resources(*KINDS["variants"]))

    assert len(made) == 7  # two each of three variants, and the summary
    assert provenance["target"] == [{"reference": f"Observation/{item['id']}"} for item in made]


def test_nothing_to_report_is_a_result() -> None:
    summary, _ = parsed(result_resources(*KINDS["no variant to report"]))

    assert summary["code"]["coding"][0]["code"] == "variant-scores"
    assert summary["valueQuantity"]["value"] == 0
    told = {part["code"]["text"]: part.get("valueQuantity", {}).get("value") for part in summary["component"]}
    assert told["variants: scored"] == 40 and told["variants: low-quality"] == 3 and told["variants: reported"] == 0
    assert told["largest score"] == 0.125 and told["reported from this score on"] == 0.2
    assert summary["component"][-1]["valueString"] == f"urn:sha256:{'ef' * 32}"
    assert "hasMember" not in summary
    assert summary["meta"]["security"][0]["code"] == "AIAST"


def test_the_summary_counts_and_names_the_scores() -> None:
    *pairs, summary, _ = parsed(result_resources(*KINDS["variants"]))

    assert summary["valueQuantity"]["value"] == 3
    assert summary["hasMember"] == [{"reference": f"Observation/{score['id']}"} for score in pairs[1::2]]


def test_two_models_share_the_variant_and_nothing_else() -> None:
    other = replace(model(SPLICING, accepts=VARIANTS, name="other"), digest="e" * 64)
    later = context(other, inputs=JOB.inputs, input_key="other", issued=Instant(utc_us=1_800_000_000_000_000))

    first = result_resources(JOB, [effects_on(CALLED)])
    second = result_resources(later, [effects_on(CALLED, score=0.25)])

    assert (first[0].id, first[0].sha256) == (second[0].id, second[0].sha256)
    assert len({item.id for item in (*first, *second)}) == 7


@pytest.mark.parametrize(
    "change",
    [{"contig": "chr8"}, {"position": 9}, {"ref": "ATC"}, {"alt": "AT"}],
)
def test_another_allele_is_another_variant_with_a_score_of_its_own(change: dict) -> None:
    found = result_resources(JOB, [effects_on(CALLED, replace(CALLED, **change))])

    assert len({item.id for item in found}) == 6


def test_another_sample_file_patient_or_assembly_is_another_variant() -> None:
    moved = replace(variant_file(), display="sample s2")
    jobs = [JOB, replace(JOB, inputs=(moved,)), replace(JOB, inputs=(variant_file("x"),)), replace(JOB, subject=None)]

    found = {result_resources(job, [effects_on(CALLED)])[0].id for job in jobs}

    assert len(found) == 4
    assert result_resources(JOB, [effects_on(CALLED, build="GRCh37")])[0].id not in found


def test_how_the_sample_carries_it_is_no_part_of_the_id() -> None:
    corrected = replace(CALLED, zygosity="homozygous", depths=(0, 40), gene=None)

    first, second = (result_resources(JOB, [effects_on(item)])[0] for item in (CALLED, corrected))

    assert first.id == second.id and first.sha256 != second.sha256


def test_what_is_not_known_is_not_said() -> None:
    found = of(BARE)

    assert found.keys() == {"62374-4", "48013-7", "92822-6", "81254-5", "69547-8", "69551-0"}
    assert found["48013-7"]["valueCodeableConcept"] == {"text": "HLA-A*01:01"}
    assert "62374-4" not in of(BARE, build=None)


def test_a_mitochondrion_has_no_zygosity_and_no_chromosome_of_the_answer_list() -> None:
    for contig in ("MT", "chrM", "M"):
        found = of(replace(MITOCHONDRIAL, contig=contig))

        assert answer(found["48013-7"]) == "NC_012920.1"
        assert not {"48000-4", "53034-5"} & found.keys()
        assert found["82121-5"]["valueQuantity"]["value"] == 17


@pytest.mark.parametrize(
    ("contig", "build", "place"),
    [
        ("1", "GRCh37", ("1", "NC_000001.10")),
        ("chr19", "GRCh37", ("19", "NC_000019.9")),
        ("chr19", "GRCh38", ("19", "NC_000019.10")),
        ("X", "GRCh37", ("X", "NC_000023.10")),
        ("chrY", "GRCh38", ("Y", "NC_000024.10")),
        ("MT", "GRCh37", ("MT", "NC_012920.1")),
        ("chrM", "GRCh37", (None, None)),  # hg19's is NC_001807
        ("NC_000007.14", "GRCh38", ("7", "NC_000007.14")),
        ("NC_000007.13", "GRCh38", (None, "NC_000007.13")),  # of the other assembly: the sequence it names, no more
        ("KI270706.1", "GRCh38", (None, "KI270706.1")),
        ("chrUn_KI270302v1", "GRCh38", (None, None)),
        ("chr1", None, (None, None)),
    ],
)
def test_contigs_are_named_only_where_they_are_beyond_doubt(contig: str, build: str | None, place: tuple) -> None:
    assert place_of(contig, build) == place


def test_every_chromosome_has_an_answer_and_an_accession_of_its_own() -> None:
    for build in ("GRCh37", "GRCh38"):
        assert len({place_of(name, build)[1] for name in CHROMOSOMES}) == len(set(CHROMOSOMES.values())) == 24


@pytest.mark.parametrize(("zygosity", "code"), [("homozygous", "LA6705-3"), ("hemizygous", "LA6707-9")])
def test_zygosity_is_loincs_answer(zygosity, code: str) -> None:
    assert answer(of(replace(CALLED, zygosity=zygosity))["53034-5"]) == code


def test_a_sample_out_of_scope_has_a_reason_and_no_value() -> None:
    summary, _ = parsed(result_resources(*KINDS["variants out of scope"]))

    assert summary["dataAbsentReason"]["coding"][0]["code"] == "not-performed"
    assert not {"valueQuantity", "component", "hasMember"} & summary.keys()


def test_an_effect_with_the_code_of_the_score_is_told_by_its_name() -> None:
    code = Coding(system="urn:test:sequence", code="splice-effect")
    same = replace(SPLICING, effects=(replace(SPLICING.effects[0], code=code), SPLICING.effects[1]))

    _, score, *_ = parsed(
        result_resources(context(model(same, accepts=VARIANTS), inputs=JOB.inputs), [effects_on(CALLED)])
    )

    assert score["component"][0]["code"] == {"text": "donor change"}  # R4 obs-7


def test_a_score_with_too_few_effects_is_no_result() -> None:
    short = Result(output="splicing", variants=(VariantScore(variant=CALLED, score=1.0, effects=(1.0,)),))

    with pytest.raises(PredictionInvalid, match="declares 2 effects"):
        result_resources(JOB, [short])


def test_a_thousand_variants_are_mapped_in_seconds() -> None:
    variants = [replace(CALLED, position=1000 + 17 * place, gene=f"G{place}") for place in range(1000)]

    started = time.process_time()
    found = result_resources(JOB, [effects_on(*variants)])

    assert time.process_time() - started < 8  # a tenth of that, on a core of its own
    assert len({item.id for item in found}) == 2002


def test_the_page_shows_what_is_sent() -> None:
    page = (Path(__file__).parents[2] / "docs" / "users" / "results.md").read_text()
    [shown] = (orjson.loads(text) for text in re.findall("```json\n(.*?)```", page, re.DOTALL) if "69548-6" in text)
    sent = parsed(result_resources(*KINDS["variants"]))[0]

    components = {part["code"]["coding"][0]["code"]: part for part in sent["component"]}
    assert len(components) == len(shown["component"]) + 5
    for part in shown.pop("component"):
        real = components[part["code"]["coding"][0]["code"]]
        assert {name: value for name, value in part.items() if name != "code"}.items() <= real.items()
    assert shown.items() <= sent.items()
