"""Several schedulers, workers and senders at once on one PostgreSQL: everything once, whoever does it."""

import subprocess
import sys
import time

import orjson
import pytest

from tests.distributions import environment, medflow, write_distribution
from tests.models import sequences

SLOW_MODEL = """
import time
from dataclasses import replace
from tests.models import GcContent

class SlowGc(GcContent):
    spec = replace(GcContent.spec, name="slow-gc")

    def predict(self, batch):
        time.sleep(0.02)
        return super().predict(batch)
"""
CASES = 600

pytestmark = pytest.mark.postgres


def test_nothing_is_scored_or_delivered_twice(tmp_path, postgres_url):
    plugins = write_distribution(tmp_path / "plugins", "slow-gc", SLOW_MODEL, {"slow-gc": "SlowGc"})
    env = environment(
        tmp_path / "home", plugins, MEDFLOW_DATABASE_URL=postgres_url, MEDFLOW_CHUNK_SIZE="16", OMP_NUM_THREADS="1"
    )
    fasta = sequences(tmp_path / "some.fasta", CASES)
    command = [sys.executable, "-m", "medflow.cli"]

    takers = [_started([*command, "ingest", "fasta", str(fasta), "--json"], env) for _ in range(2)]
    taken = [orjson.loads(process.communicate(timeout=120)[0]) for process in takers]
    scorers = [_started([*command, "score", "--model", "slow-gc", "--json"], env) for _ in range(3)]
    senders = []
    while any(process.poll() is None for process in scorers):
        senders += [_started([*command, "deliver", "--to", str(tmp_path / "out"), "--json"], env) for _ in range(2)]
        for process in senders[-2:]:
            process.wait(timeout=120)
        time.sleep(0.1)
    scored = [orjson.loads(process.communicate(timeout=120)[0]) for process in scorers]
    medflow(env, "deliver", "--to", tmp_path / "out")

    assert sum(count["stored"] for count in taken) == CASES
    assert sum(count["done"] for count in scored) == CASES
    lines = (tmp_path / "out" / "Observation.ndjson").read_bytes().splitlines()
    assert len(lines) == len({orjson.loads(line)["id"] for line in lines}) == CASES
    assert {process.returncode for process in senders} <= {0, 1}  # 1: another was sending to the folder just then


def _started(command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
