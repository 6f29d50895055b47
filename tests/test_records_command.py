"""`medflow ingest fhir` with a server: what is meant by its argument, and what running it leaves."""

import json

import pytest

from medflow.cli.records import chosen_source
from medflow.config import load_settings
from medflow.connections.endpoints import FhirSource, Files
from medflow.errors import ConfigurationError
from tests.distributions import environment, medflow
from tests.services.paging_fhir import paging_fhir

EHR = {"kind": "fhir-server", "url": "https://ehr.example/r4", "types": ["Patient"], "overlap_s": 7}
IMAGES = {"kind": "dicomweb", "url": "https://pacs.example/dicom-web"}
EXPORTED = {"kind": "fhir", "paths": ["/in/fhir"]}


@pytest.fixture
def settings(tmp_path):
    return load_settings(home=tmp_path, sources={"ehr": EHR, "export": EXPORTED, "pacs": IMAGES})


def test_an_address_that_is_configured_is_used_as_configured(settings):
    source, name = chosen_source(settings, ["https://ehr.example/r4/"], {"mode": "export"})
    assert (name, source) == ("ehr", settings.sources["ehr"].model_copy(update={"mode": "export"}))


def test_an_address_that_is_not_is_a_source_without_a_name(settings):
    source, name = chosen_source(settings, ["https://other.example/fhir"], {})
    assert name is None
    assert isinstance(source, FhirSource) and source.mode == "search"


@pytest.mark.parametrize(("word", "kind"), [("ehr", FhirSource), ("export", Files)])
def test_a_configured_name_is_that_source(settings, word, kind):
    source, name = chosen_source(settings, [word], {})
    assert (name, type(source)) == (word, kind)


def test_a_path_that_exists_wins_over_a_name(settings, tmp_path, monkeypatch):
    (tmp_path / "ehr").mkdir()
    monkeypatch.chdir(tmp_path)
    source, name = chosen_source(settings, ["ehr"], {})
    assert (name, type(source)) == (None, Files)


@pytest.mark.parametrize(
    ("what", "given", "said"),
    [
        (["in/"], {"types": ("Patient",)}, "--type: for FHIR servers only"),
        (["in/", "https://ehr.example/r4"], {}, "one FHIR server at a time"),
        (["https://user:secret@ehr.example/r4"], {}, "no credentials"),
        (["https://ehr.example/r4"], {"mode": "guess"}, "mode"),
        (["pacs"], {}, "of kind dicomweb"),
    ],
)
def test_what_cannot_be_meant_is_said(settings, what, given, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        chosen_source(settings, what, given)
    assert "secret@" not in caught.value.message


def test_a_server_is_read_by_its_address_and_again_from_a_moment_on(tmp_path):
    with paging_fhir() as server:
        server.put({"resourceType": "Patient", "id": "p1"})
        env = environment(tmp_path / "home")
        first = medflow(env, "ingest", "fhir", server.url, "--type", "Patient", "--json")
        again = medflow(
            env, "ingest", "fhir", server.url, "--type", "Patient", "--since", "2026-01-01T00:00Z", "--json"
        )
        status = json.loads(medflow(env, "status", "--json").stdout)
    assert (first.returncode, json.loads(first.stdout)["stored"]) == (0, 1)
    assert json.loads(again.stdout)["unchanged"] == 1
    assert any("_lastUpdated=ge2025-12-31T23" in path for path in server.requests)
    assert server.url in json.dumps(status)
