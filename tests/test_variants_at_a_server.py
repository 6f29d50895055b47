"""Two models of variants and one VCF: what a genomics reader finds on a FHIR server that nobody here wrote."""

from dataclasses import replace

import httpx
import pytest

from medflow import steps
from medflow.config import load_settings
from medflow.plugin import Coding
from medflow.registry import Registry
from tests.models import registered
from tests.variant_models import GcShift, genome, vcf


class OtherShift(GcShift):
    """The same by another name, under a code of its own, which reports more."""

    spec = replace(
        GcShift.spec,
        name="other-shift",
        outputs=(
            replace(GcShift.spec.outputs[0], code=Coding(system="urn:test", code="other-shift"), report_from=0.0),
        ),
    )


class FirstShift(GcShift):
    """As it is, under a code of its own."""

    spec = replace(
        GcShift.spec, outputs=(replace(GcShift.spec.outputs[0], code=Coding(system="urn:test", code="first-shift")),)
    )


@pytest.fixture
def site(local, tmp_path):
    bases = genome(tmp_path / "genome.fa")
    settings = load_settings(home=tmp_path / "home", references={"GRCh38": tmp_path / "genome.fa"})
    models = {"gc-shift": registered(FirstShift), "other-shift": registered(OtherShift, digest="d2")}
    found = steps.Site(settings=settings, store=local, registry=Registry(models=models, broken=()))
    assert steps.ingest(found, steps.source_of("vcf", [vcf(tmp_path / "in.vcf", bases)])).rejected == 0
    return found


def search(url: str, **terms: str) -> list[dict]:
    answer = httpx.get(f"{url}/Observation", params={**terms, "_count": "100"}, timeout=30)
    return [entry["resource"] for entry in answer.raise_for_status().json().get("entry", [])]


def test_both_models_scores_lead_to_one_variant_and_a_second_delivery_changes_nothing(site, fhir_server):
    assert steps.score(site).done == 4  # two samples, two models

    first, again = (steps.deliver(site, fhir_server) for _ in range(2))

    assert (first.failed, first.dead, again.delivered) == (0, 0, 0)
    variants = {item["id"]: item for item in search(fhir_server, code="http://loinc.org|69548-6")}
    mine, others = ([*search(fhir_server, code=f"urn:test|{code}")] for code in ("first-shift", "other-shift"))
    basis = [
        {item["derivedFrom"][0]["reference"].removeprefix("Observation/") for item in its} for its in (mine, others)
    ]
    assert basis[0] < basis[1] == variants.keys()
    assert all(item["valueCodeableConcept"]["coding"][0]["code"] == "LA9633-4" for item in variants.values())
    assert all("device" in item and item["meta"]["security"] for item in (*mine, *others))
    summaries = search(fhir_server, code="urn:medflow:observation|variant-scores")
    assert sorted(item["valueQuantity"]["value"] for item in summaries) == sorted(
        sum(item["derivedFrom"][-1] == file and item["device"] == device for item in (*mine, *others))
        for file, device in ((item["derivedFrom"][0], item["device"]) for item in summaries)
    )
