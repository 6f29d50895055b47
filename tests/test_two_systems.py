"""One stay as two systems know it: what is said of the other system's goes under its own name, and by identifier."""

import orjson
import pytest

from medflow import steps
from medflow.ingest.fhir import ingest_fhir
from medflow.registry import Registry
from tests.models import registered
from tests.stays import HeartRisk, Stay, write_stays


@pytest.fixture
def engine():
    """One engine will do: what is sent is made of rows that both have."""
    return "sqlite"


def test_no_result_refers_to_a_resource_of_another_system_as_if_it_were_the_targets(store, settings, tmp_path):
    for system in ("local", "warehouse"):
        ingest_fhir(store, settings, [write_stays(tmp_path / system, [Stay(number=7, rate=90)])], source=system)
    registry = Registry(models={"heart-risk": registered(HeartRisk)}, broken=())
    site = steps.Site(settings=settings, store=store, registry=registry)
    assert steps.score(site).done == 2

    steps.deliver(site, str(tmp_path / "out"))

    sent = (tmp_path / "out" / "RiskAssessment.ndjson").read_bytes().splitlines()
    here, there = sorted(map(orjson.loads, sent), key=lambda item: "encounter" not in item)
    assert here["encounter"] == {"reference": "Encounter/e7"}
    assert {here["subject"]["reference"], there["subject"]["reference"]} == {"Patient/p7"}
    assert b"Encounter/e7" not in orjson.dumps([item.get("reference") for item in there["basis"]])
    assert there["basis"][0]["identifier"] == {"system": "urn:medflow:fhir:warehouse", "value": "Encounter/e7"}
    assert here["id"] != there["id"]
