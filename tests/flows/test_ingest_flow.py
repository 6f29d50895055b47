"""What the ingest flow makes of its sources; the flow on a Prefect server is in test_nightly."""

from dataclasses import replace

import pytest

from medflow import steps
from medflow.config import load_settings
from medflow.flows import ingest
from medflow.flows.report import final_state
from medflow.registry import Registry
from medflow.status import look_at_links
from medflow.store import Store
from tests.services import free_port
from tests.services.paging_fhir import paging_fhir


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A site of one source that nobody answers for, and one of files after it; tasks are plain calls."""
    (tmp_path / "in.fasta").write_text(">one\nACGTACGT\n")
    settings = load_settings(
        home=tmp_path / "home",
        http_timeout_s=1,
        sources={
            "away": {"kind": "pacs", "address": f"PACS@127.0.0.1:{free_port()}"},
            "files": {"kind": "fasta", "paths": [str(tmp_path / "in.fasta")]},
        },
    )
    here = steps.Site(settings=settings, store=Store(settings).open(), registry=Registry(models={}, broken=()))
    monkeypatch.setattr(ingest, "site", lambda: here)
    monkeypatch.setattr(ingest, "report", lambda *_: None)
    monkeypatch.setattr(ingest, "ingest_source", ingest.ingest_source.fn)
    yield here
    here.store.close()


def test_a_source_that_does_not_answer_keeps_no_other_waiting_and_fails_the_run(site):
    counts = ingest.take_in(["away", "files"])

    assert counts["sources"]["files"]["stored"] == counts["stored"] == 1
    assert counts["failed"] == 1
    assert [said.split()[0] for said in counts["errors"]] == ["away"]
    assert "127.0.0.1" not in str(counts)
    assert final_state(counts).name == "Failed"
    with site.store.reading() as connection:
        [link] = look_at_links(connection, site.settings)
    assert (link.name, link.up) == ("away", False)


def test_a_type_that_a_server_refuses_is_a_problem_of_the_run_and_named(site, monkeypatch):
    with paging_fhir(refused={"Observation": 403}) as server:
        ehr = {"kind": "fhir-server", "url": server.url, "types": ["Patient", "Observation"]}
        server.put({"resourceType": "Patient", "id": "p1"})
        here = replace(site, settings=load_settings(home=site.settings.home, sources={"ehr": ehr}))
        monkeypatch.setattr(ingest, "site", lambda: here)
        counts = ingest.take_in(["ehr"])

    assert (counts["stored"], counts["refused"], counts["failed"]) == (1, 1, 0)
    assert next(iter(counts["errors"])).startswith("ehr does not give Observation")
    assert final_state(counts).name == "CompletedWithProblems"
