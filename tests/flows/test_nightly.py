"""The nightly flow on Prefect's own temporary server: what it does, how it ends, and what Prefect gets to see."""

import json
import re
import sqlite3
from pathlib import Path

import pytest

from medflow.errors import ConfigurationError
from medflow.flows.nightly import tried
from medflow.sample import write_sample
from tests.distributions import environment, medflow, write_distribution

GC = "from tests import models\n\nclass GcContent(models.GcContent):\n    pass\n"


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """One night over the sample data: its environment, its sample, what the command printed, its Prefect database."""
    root = tmp_path_factory.mktemp("night")
    sample = write_sample(root / "sample", stays=8)
    plugins = write_distribution(root / "plugins", "gc-plugin", GC, {"gc-content": "GcContent"})
    sources = {
        "records": {"kind": "fhir", "paths": [str(sample.fhir)]},
        "imaging": {"kind": "dicom", "paths": [str(sample.dicom)]},
        "sequences": {"kind": "fasta", "paths": [str(sample.fasta)]},
    }
    env = environment(
        root / "home",
        plugins,
        PREFECT_HOME=str(root / "prefect"),
        MEDFLOW_SOURCES=json.dumps(sources),
        MEDFLOW_ISSUER_SYSTEMS=json.dumps(dict(sample.issuer_systems)),
        MEDFLOW_TARGETS=json.dumps({"chart": str(root / "out")}),
        MEDFLOW_DELIVER_TO="chart",
    )
    done = medflow(env, "nightly", "--model", "gc-content", "--json", timeout=240)
    return env, sample, done, root


def test_the_night_ingests_scores_and_delivers(night):
    _, _, done, root = night

    counts = json.loads(done.stdout)

    assert done.returncode == 3, done.stderr  # the sample holds input that must be refused
    assert counts["ingest"]["offered"] == sum(counts["ingest"][name] for name in ("stored", "unchanged", "rejected"))
    assert counts["ingest"]["rejected"] == sum(counts["ingest"]["reasons"].values()) > 0
    assert counts["score"]["done"] > 0
    assert counts["deliver"]["delivered"] == sum(
        len(path.read_text().splitlines()) for path in (root / "out").glob("*.ndjson")
    )


def prefect_database(root: Path) -> str:
    with sqlite3.connect(root / "prefect" / "prefect.db") as connection:
        return "\n".join(connection.iterdump())


def test_its_state_says_that_something_needs_a_look(night):
    dump = prefect_database(night[3])

    assert "CompletedWithProblems" in dump
    assert "What the night did" in dump  # the artifact
    assert re.search(r"'nightly \d{4}-\d\d-\d\d \d\d:\d\d UTC'", dump)  # the run's name


def test_prefect_knows_nothing_about_a_patient(night):
    _, sample, _, root = night
    dump = prefect_database(root)
    secrets = set()
    for line in (path for file in sample.fhir.glob("*.ndjson") for path in file.read_text().splitlines()):
        try:
            resource = json.loads(line)
        except ValueError:
            continue
        if isinstance(resource, dict) and resource.get("resourceType") == "Patient":
            secrets.update(item["value"] for item in resource.get("identifier", []))
            secrets.update(item.get("family", "") for item in resource.get("name", []))
            secrets.update([resource.get("birthDate", ""), resource["id"]])

    found = [secret for secret in secrets if len(secret) > 3 and secret in dump]

    assert len(secrets) > 8
    assert found == []
    assert str(sample.root) not in dump  # no path either


def test_a_second_night_finds_nothing_to_do(night):
    env, _, _, _ = night

    done = medflow(env, "nightly", "--model", "gc-content", "--json", timeout=240)

    counts = json.loads(done.stdout)
    assert (counts["ingest"]["stored"], counts["score"]["selected"], counts["deliver"]["delivered"]) == (0, 0, 0)


@pytest.fixture(scope="module")
def failing(night):
    """A night whose target is away and whose reference genome is not there: its status, and its account."""
    env, _, _, root = night
    away = env | {
        "MEDFLOW_HOME": str(root / "away"),
        "MEDFLOW_DELIVER_TO": "http://127.0.0.1:1/fhir",
        "MEDFLOW_REFERENCES": json.dumps({"GRCh38": str(root / "absent.fa")}),
    }
    models = ("--model", "splice-variant", "--model", "gc-content")
    done = medflow(away, "nightly", "--source", "sequences", *models, "--json", timeout=400)
    return done.returncode, json.loads(done.stdout)


def test_a_target_that_is_away_fails_the_night_but_not_its_scoring(failing):
    status, counts = failing

    assert status == 3
    assert counts["score"]["done"] > 0
    assert counts["deliver"]["failed"] == 1
    assert "cannot be reached" in next(iter(counts["deliver"]["errors"]))


def test_a_reference_that_is_not_there_stops_the_models_that_need_it_and_no_other(failing):
    _, counts = failing

    [why] = counts["score"]["broken"].values()
    assert why.startswith("the reference absent.fa cannot be used: No such file")
    assert counts["score"]["models"]["splice-variant@1.0.0"]["broken"] == {"splice-variant": why}
    assert [model["done"] > 0 for name, model in counts["score"]["models"].items() if "gc-" in name] == [True]


def test_a_target_that_refuses_us_fails_the_delivery_and_leaves_the_night_its_account():
    def refused() -> dict:
        raise ConfigurationError("chart wants other credentials (HTTP 401)")

    counts = tried(refused, also=ConfigurationError)

    assert counts == {"failed": 1, "errors": {"chart wants other credentials (HTTP 401)": 1}}
    with pytest.raises(ConfigurationError):
        tried(refused)


def test_a_source_that_is_not_configured_is_named(night):
    env, _, _, _ = night

    done = medflow(env, "nightly", "--source", "pacs", timeout=240)

    assert done.returncode == 1
    assert "no source is called 'pacs'" in done.stderr
