"""What a Prefect server keeps of nights that ran on it: nothing about a patient, on either of its databases."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from medflow.sample import write_sample
from tests.distributions import environment, write_distribution
from tests.flows.test_night_report import secrets_of
from tests.installation import installation
from tests.services.prefect_server import PrefectServer, prefect_server

MODELS = """
from tests import imaging_models, models

class FastHeart(imaging_models.FastHeart):
    pass

class GcContent(models.GcContent):
    pass
"""
pytestmark = pytest.mark.slow


@contextmanager
def server_on(engine: str, request: pytest.FixtureRequest) -> Iterator[PrefectServer]:
    if engine == "sqlite":
        with prefect_server() as server:
            yield server
        return
    postgres = request.getfixturevalue("postgres")
    postgres.execute("CREATE DATABASE prefect_privacy")
    with prefect_server(database_url=postgres.url("prefect_privacy")) as server:
        yield server


@pytest.mark.parametrize("engine", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_prefects_database_holds_nothing_of_a_patient_after_a_night(engine, request, tmp_path):
    sample = write_sample(tmp_path / "sample", stays=8)
    names = {"fast-heart": "FastHeart", "gc-content": "GcContent"}
    sources = {
        "records": {"kind": "fhir", "paths": [str(sample.fhir)]},
        "imaging": {"kind": "dicom", "paths": [str(sample.dicom)]},
        "sequences": {"kind": "fasta", "paths": [str(sample.fasta)]},
    }
    env = environment(
        tmp_path / "home",
        write_distribution(tmp_path / "plugins", "privacy-plugin", MODELS, names),
        MEDFLOW_SOURCES=json.dumps(sources),
        MEDFLOW_ISSUER_SYSTEMS=json.dumps(dict(sample.issuer_systems)),
        MEDFLOW_TARGETS=json.dumps({"chart": str(tmp_path / "out")}),
        MEDFLOW_DELIVER_TO="chart",
        PREFECT_LOGGING_LEVEL="DEBUG",  # what is logged lies in the database as well
    )
    with server_on(engine, request) as server, installation(tmp_path / "logs", server, env) as site:
        site.start_flows()
        night = site.ended(site.trigger("nightly/nightly", models=list(names)))
        failed = site.ended(site.trigger("evaluate/evaluate", model="gc-content"))
        dump = server.dump()

    secrets = secrets_of(sample)
    assert night["name"] in dump and failed["name"] in dump
    assert "CompletedWithProblems" in dump and "What the night did" in dump  # it is the night's own database
    assert len(secrets) > 40
    assert [secret for secret in secrets if secret in dump] == []
    assert str(tmp_path) not in dump.replace(str(server.home), "")
