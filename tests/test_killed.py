"""What a killed process leaves behind: running the command again gives what an undisturbed run would have given."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from tests.distributions import environment, medflow, write_distribution

SLOW_MODEL = """
import os
import time
from dataclasses import replace
from tests.models import GcContent

class SlowGc(GcContent):
    spec = replace(GcContent.spec, name="slow-gc")

    def predict(self, batch):
        time.sleep(float(os.environ.get("BATCH_TAKES_S", "0.01")))
        return super().predict(batch)
"""
SEQUENCES = 600


@pytest.fixture(scope="module")
def plugins(tmp_path_factory) -> Path:
    return write_distribution(tmp_path_factory.mktemp("plugins"), "slow-gc", SLOW_MODEL, {"slow-gc": "SlowGc"})


@pytest.fixture(scope="module")
def fasta(tmp_path_factory) -> Path:
    rng = random.Random(1)
    lines = (
        f">s{number} patient=urn:test|{number % 50}\n{''.join(rng.choices('ACGT', k=12))}"
        for number in range(SEQUENCES)
    )
    path = tmp_path_factory.mktemp("input") / "sequences.fasta"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def ingested(tmp_path_factory, plugins, fasta) -> Path:
    """A home with the sequences in it: what each run starts from, so that all speak of the same moment of receipt."""
    home = tmp_path_factory.mktemp("ingested") / "home"
    done = medflow(environment(home, plugins), "ingest", "fasta", fasta)
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture
def home(tmp_path, ingested) -> Path:
    return shutil.copytree(ingested, tmp_path / "home")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, plugins, ingested) -> dict[tuple[str, str], bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    env = environment(shutil.copytree(ingested, folder / "home"), plugins)
    for words in (("score", "--model", "slow-gc"), ("deliver", "--to", folder / "out")):
        done = medflow(env, *words)
        assert done.returncode == 0, done.stderr
    return delivered(folder / "out")


def delivered(folder: Path) -> dict[tuple[str, str], bytes]:
    """Every delivered resource, without the moment it was issued; fails if one is there twice."""
    found = {}
    for path in folder.glob("*.ndjson"):
        for line in path.read_bytes().splitlines():
            resource = orjson.loads(line)
            for name in ("issued", "recorded", "meta"):
                resource.pop(name, None)
            key = (resource["resourceType"], resource["id"])
            assert key not in found, f"{key} was delivered twice"
            found[key] = orjson.dumps(resource, option=orjson.OPT_SORT_KEYS)
    return found


def killed_until_done(env: dict[str, str], *words: object) -> int:
    """Run a command, killing it after ever longer moments, until it ends by itself; returns how often it was killed."""
    command = [sys.executable, "-m", "medflow.cli", *map(str, words)]
    kills = 0
    wait = 1.5
    while True:
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            wait += 0.4
            continue
        assert process.returncode == 0, process.stderr.read().decode()
        process.stderr.close()
        return kills


def test_score_and_deliver_killed_again_and_again_give_the_same_set(tmp_path, plugins, home, undisturbed):
    env = environment(home, plugins, MEDFLOW_MAX_ATTEMPTS="50")

    kills = killed_until_done(env, "score", "--model", "slow-gc")
    killed_until_done(env, "deliver", "--to", tmp_path / "out")

    assert kills >= 2
    assert delivered(tmp_path / "out") == undisturbed
    assert sum(1 for kind, _ in undisturbed if kind == "Observation") == SEQUENCES


def test_two_processes_scoring_at_once_score_nothing_twice(tmp_path, plugins, home, undisturbed):
    env = environment(home, plugins, MEDFLOW_CHUNK_SIZE="16")
    command = [sys.executable, "-m", "medflow.cli", "score", "--model", "slow-gc", "--json"]

    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    counts = [orjson.loads(process.communicate(timeout=120)[0]) for process in both]

    assert sum(count["done"] for count in counts) == SEQUENCES
    medflow(env, "deliver", "--to", tmp_path / "out")
    assert delivered(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_asked_to_stop_gives_its_jobs_back(plugins, home, asked):
    env = environment(home, plugins, BATCH_TAKES_S="1")  # still at it when it is asked, however busy the machine
    command = [sys.executable, "-m", "medflow.cli", "score", "--model", "slow-gc"]
    process = subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and b'"leased"' not in medflow(env, "status", "--json").stdout.encode():
        pass
    process.send_signal(asked)

    assert process.wait(timeout=30) != 0
    states = orjson.loads(medflow(env, "status", "--json").stdout)["jobs"]["slow-gc"]
    assert "leased" not in states
