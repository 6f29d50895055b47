"""Chunks on Dask: a cluster of the run's own, and one that is there already."""

import json
import subprocess
import sys

import pytest

from tests.distributions import environment, medflow, write_distribution
from tests.models import sequences
from tests.services import free_port

GC = "from tests import models\n\nclass GcContent(models.GcContent):\n    pass\n"
CASES = 120

pytestmark = pytest.mark.slow


@pytest.fixture
def env(tmp_path):
    plugins = write_distribution(tmp_path / "plugins", "gc-plugin", GC, {"gc-content": "GcContent"})
    fasta = sequences(tmp_path / "some.fasta", CASES)
    return environment(
        tmp_path / "home",
        plugins,
        PREFECT_HOME=str(tmp_path / "prefect"),
        MEDFLOW_EXECUTOR="dask",
        MEDFLOW_WORKERS="2",
        MEDFLOW_CHUNK_SIZE="16",
        MEDFLOW_SOURCES=json.dumps({"sequences": {"kind": "fasta", "paths": [str(fasta)]}}),
        MEDFLOW_DELIVER_TO=str(tmp_path / "out"),
    )


def test_a_night_is_scored_by_a_local_cluster(env, tmp_path):
    done = medflow(env, "nightly", "--model", "gc-content", "--json")

    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["score"]["done"] == CASES
    assert len((tmp_path / "out" / "Observation.ndjson").read_text().splitlines()) == CASES


def test_a_night_is_scored_by_the_cluster_at_an_address(env, tmp_path):
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--host", "127.0.0.1", "--nthreads", "1"]
    cluster = [
        subprocess.Popen([*command, "--no-dashboard"], env=env, stderr=subprocess.DEVNULL)
        for command in (scheduler, worker)
    ]
    try:
        done = medflow({**env, "MEDFLOW_DASK_ADDRESS": address}, "nightly", "--model", "gc-content", "--json")
    finally:
        for process in cluster:
            process.terminate()
            process.wait(timeout=30)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["score"]["done"] == CASES


def test_without_prefect_dask_it_is_said_what_to_install(env, tmp_path):
    hidden = tmp_path / "hidden" / "prefect_dask"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ModuleNotFoundError(name='prefect_dask')\n")
    path = f"{hidden.parent}:{env['PYTHONPATH']}"

    done = medflow({**env, "PYTHONPATH": path}, "nightly", "--model", "gc-content", "--json")

    assert done.returncode == 1
    assert "medflow[dask]" in done.stderr
