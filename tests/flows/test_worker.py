"""`medflow worker` and `medflow serve` as an operator meets them: what they refuse, what they tell, how they stop."""

import json
import signal
import subprocess
import sys
import time

import httpx
import pytest

from tests.distributions import environment, medflow, write_distribution
from tests.services import free_port

UP = 'medflow_worker_up{device="cpu",worker="w1"} 1.0'
GC = "from tests import models\n\nclass GcContent(models.GcContent):\n    pass\n"


@pytest.fixture
def env(tmp_path):
    plugins = write_distribution(tmp_path / "plugins", "gc-plugin", GC, {"gc-content": "GcContent"})
    nobody = f"http://127.0.0.1:{free_port()}/api"
    return environment(tmp_path / "home", plugins, PREFECT_HOME=str(tmp_path / "prefect"), PREFECT_API_URL=nobody)


@pytest.mark.parametrize("command", ["worker", "serve"])
def test_without_a_prefect_server_it_is_said_how_to_name_one(env, command):
    del env["PREFECT_API_URL"]

    done = medflow(env, command)

    assert done.returncode == 1
    assert "set PREFECT_API_URL" in done.stderr


def test_a_model_that_is_not_installed_is_answered_with_those_that_are(env):
    done = medflow(env, "worker", "--model", "no-such-model")

    assert done.returncode == 1
    assert "gc-content" in done.stderr


def test_a_device_that_is_not_there_is_answered_with_those_that_are(env):
    done = medflow(env, "worker", "--device", "cuda:99")

    assert done.returncode == 1
    assert "this machine has: cpu" in done.stderr


def test_a_worker_whose_server_is_away_is_listed_serves_metrics_and_stops_when_asked(env):
    port = free_port()
    command = [sys.executable, "-m", "medflow.cli", "worker", "--name", "w1", "--model", "gc-content"]
    worker = subprocess.Popen([*command, "--metrics-port", str(port)], env=env, stderr=subprocess.PIPE, text=True)
    try:
        metrics = scraped(f"http://127.0.0.1:{port}/metrics", UP)
        (line,) = json.loads(medflow(env, "status", "--json").stdout)["workers"]
        worker.send_signal(signal.SIGTERM)
        _, said = worker.communicate(timeout=30)
    finally:
        worker.kill()

    assert UP in metrics
    assert (line["name"], line["device"], line["models"]) == ("w1", "cpu", ["gc-content"])
    assert worker.returncode == 0, said
    assert json.loads(medflow(env, "status", "--json").stdout)["workers"] == []


def test_two_workers_of_one_machine_have_names_of_their_own(env):
    command = [sys.executable, "-m", "medflow.cli", "worker", "--model", "gc-content"]
    both = []
    try:
        for count in (1, 2):
            both.append(subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL))
            names = listed(env, count)
        refused = medflow(env, "worker", "--name", names[0], "--model", "gc-content")
    finally:
        for worker in both:
            worker.kill()
            worker.wait(timeout=20)

    assert len(set(names)) == 2
    assert refused.returncode == 1
    assert "give this one another --name" in refused.stderr


def listed(env: dict[str, str], count: int) -> list[str]:
    """The workers' names, once there are so many."""
    deadline, names = time.monotonic() + 60, []
    while time.monotonic() < deadline and len(names) < count:
        names = [worker["name"] for worker in json.loads(medflow(env, "status", "--json").stdout)["workers"]]
    return names


def scraped(url: str, wanted: str) -> str:
    """The metrics, once they have what is wanted."""
    deadline, text = time.monotonic() + 60, ""
    while time.monotonic() < deadline and wanted not in text:
        try:
            text = httpx.get(url, timeout=10).text
        except httpx.TransportError:
            time.sleep(0.1)
    return text
