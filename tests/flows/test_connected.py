"""Sources and targets that are servers, in flows: by name, in forms and in runs. Tasks are plain calls here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from medflow import steps
from medflow.config import Settings, load_settings
from medflow.flows import deliver, ingest, nightly
from medflow.flows.forms import form
from medflow.registry import Registry
from medflow.store import Store
from tests.factories_dicom import slice_of, write_series
from tests.services.orthanc import Orthanc

NOBODY = Registry(models={}, broken=())


@pytest.fixture
def settings(tmp_path: Path, orthanc: Orthanc, fhir_server: str) -> Settings:
    auth = {"type": "basic", "user": "somebody", "password": "SECRET"}
    return load_settings(
        home=tmp_path / "home",
        sources={
            "web": {"kind": "dicomweb", "url": orthanc.dicomweb, "auth": auth, "days": None},
            "pacs": {"kind": "pacs", "address": orthanc.address, "days": None},
            "ehr": {"kind": "fhir-server", "url": fhir_server, "types": ["Patient"]},
        },
        targets={
            "ehr": {"kind": "fhir", "url": fhir_server, "auth": auth},
            "web": {"kind": "dicomweb", "url": orthanc.dicomweb},
            "pacs": {"kind": "pacs", "address": orthanc.address},
        },
        deliver_to="ehr",
    )


@pytest.fixture
def _site(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    here = steps.Site(settings=settings, store=Store(settings).open(), registry=NOBODY)
    for module in (ingest, deliver):
        monkeypatch.setattr(module, "site", lambda: here)
        monkeypatch.setattr(module, "report", lambda *_: None)
    monkeypatch.setattr(ingest, "ingest_source", ingest.ingest_source.fn)
    monkeypatch.setattr(deliver, "deliver_results", deliver.deliver_results.fn)
    yield
    here.store.close()


def test_a_form_shows_names_and_kinds_and_no_more(settings: Settings) -> None:
    shown = json.dumps(form(nightly.nightly, settings, NOBODY).model_dump())

    assert shown.count("- web: dicomweb") == 2 and "- ehr: fhir-server" in shown and "- pacs: pacs" in shown
    for hidden in ("127.0.0.1", "http", "ORTHANC", "somebody", "SECRET"):
        assert hidden not in shown


@pytest.mark.usefixtures("_site")
def test_runs_read_from_servers_and_deliver_to_them_by_name(tmp_path: Path, orthanc: Orthanc, fhir_server: str) -> None:
    orthanc.upload(*write_series(tmp_path, [slice_of()]))
    httpx.post(f"{fhir_server}/Patient", json={"resourceType": "Patient"}, timeout=10).raise_for_status()

    taken = ingest.take_in(["web", "pacs", "ehr"])
    sent = [deliver.send(name) for name in ("ehr", "web", "pacs", None)]

    assert {name: (each["stored"], each["unchanged"]) for name, each in taken["sources"].items()} == {
        "web": (1, 0),
        "pacs": (0, 1),  # the same study again
        "ehr": (1, 0),
    }
    assert "errors" not in taken
    assert [each["failed"] + each["dead"] for each in sent] == [0, 0, 0, 0]
