"""``kill -9`` in the middle of a night: what is started again completes it, and every result is there exactly once."""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from medflow.config import load_settings
from medflow.store import Store, jobs
from tests.distributions import environment, write_distribution
from tests.installation import Installation, installation
from tests.services.postgres import PostgresServer, postgres_server
from tests.services.prefect_server import PrefectServer, prefect_server

SLOW_MODEL = """
import os
import time
from dataclasses import replace
from tests.models import GcContent

class SlowGc(GcContent):
    spec = replace(GcContent.spec, name="slow-gc")

    def predict(self, batch):
        time.sleep(0.05)
        return super().predict(batch)
"""
SEQUENCES = 600  # at 4 a batch and two workers, the night lasts about four seconds at least

pytestmark = pytest.mark.slow


@dataclass(frozen=True, kw_only=True)
class Night:
    """An installation on PostgreSQL, with work for a night."""

    installation: Installation
    postgres: PostgresServer
    prefect: PrefectServer
    store: Store
    out: Path

    def begun(self) -> str:
        """Trigger the night; its run's id, once some of it is scored and some is not."""
        run_id = self.installation.trigger("nightly/nightly")
        self.installation.until(lambda: self.states().get("done", 0) >= 40, "the middle of the night")
        assert self.states()["done"] < SEQUENCES - 100
        return run_id

    def states(self) -> dict[str, int]:
        """Jobs by state."""
        with self.store.reading() as connection:
            return jobs.count_jobs(connection).get("slow-gc", {})

    def next_night_completes_it(self) -> None:
        """Run another night; then every result is there exactly once."""
        ended = self.installation.ended(self.installation.trigger("nightly/nightly"))
        assert ended["state_type"] == "COMPLETED", ended["state"]["message"]
        results = delivered(self.out)
        assert self.states() == {"done": SEQUENCES}
        assert sum(kind == "Observation" for kind, _ in results) == SEQUENCES


def delivered(folder: Path) -> dict[tuple[str, str], dict]:
    """Every delivered resource; fails if one is there twice."""
    found = {}
    for path in folder.glob("*.ndjson"):
        for line in path.read_bytes().splitlines():
            resource = orjson.loads(line)
            key = (resource["resourceType"], resource["id"])
            assert key not in found, f"{key} was delivered twice"
            found[key] = resource
    return found


@contextmanager
def a_night(folder: Path) -> Iterator[Night]:
    letters = random.Random(1)
    fasta = folder / "sequences.fasta"
    bases = ("".join(letters.choices("ACGT", k=12)) for _ in range(SEQUENCES))
    fasta.write_text("".join(f">s{n} patient=urn:test|{n % 50}\n{text}\n" for n, text in enumerate(bases)))
    plugins = write_distribution(folder / "plugins", "slow-gc", SLOW_MODEL, {"slow-gc": "SlowGc"})
    with postgres_server(fsync=True) as postgres:
        for name in ("medflow", "prefect"):
            postgres.execute(f"CREATE DATABASE {name}_night")
        env = environment(
            folder / "home",
            plugins,
            MEDFLOW_DATABASE_URL=postgres.url("medflow_night"),
            MEDFLOW_EXECUTOR="workers",
            MEDFLOW_CHUNK_SIZE="32",
            MEDFLOW_WORKER_WAIT_S="60",
            MEDFLOW_SOURCES=json.dumps({"sequences": {"kind": "fasta", "paths": [str(fasta)]}}),
            MEDFLOW_TARGETS=json.dumps({"chart": str(folder / "out")}),
            MEDFLOW_DELIVER_TO="chart",
        )
        with prefect_server(database_url=postgres.url("prefect_night")) as prefect:
            with installation(folder / "logs", prefect, env) as made:
                assert made.run("db", "upgrade").returncode == 0
                made.start_flows()
                for name in ("w1", "w2"):
                    made.start_worker(name, "--model", "slow-gc")
                store = Store(load_settings(database_url=postgres.url("medflow_night"), home=folder / "home"))
                yield Night(installation=made, postgres=postgres, prefect=prefect, store=store, out=folder / "out")


@pytest.fixture
def night(tmp_path) -> Iterator[Night]:
    with a_night(tmp_path) as made:
        yield made


def flow_process(night: Night, run_id: str) -> int:
    """The process of a flow run."""
    name = f"flow-run-{run_id}"
    return int(night.installation.flow_run(run_id)["infrastructure_pid"] or pytest.fail(f"no process of {name}"))


def test_the_flow_is_killed(night):
    run_id = night.begun()

    os.kill(flow_process(night, run_id), signal.SIGKILL)

    assert night.installation.ended(run_id)["state_type"] == "CRASHED"
    night.next_night_completes_it()


def test_a_worker_is_killed(night):
    run_id = night.begun()

    night.installation.kill("w1")

    ended = night.installation.ended(run_id)
    assert ended["state_type"] == "COMPLETED", ended["state"]["message"]  # the other worker took over
    assert night.states() == {"done": SEQUENCES}
    night.next_night_completes_it()


def test_a_worker_is_asked_to_stop(night):
    run_id = night.begun()
    asked = time.monotonic()

    status = night.installation.stop("w1")

    assert status == 0
    assert time.monotonic() - asked < 20
    assert night.installation.ended(run_id)["state_type"] == "COMPLETED"
    assert night.states() == {"done": SEQUENCES}


def test_prefects_server_is_killed(night):
    run_id = night.begun()

    night.prefect.kill()
    time.sleep(1)
    night.prefect.start()

    ended = night.installation.ended(run_id)
    if ended["state_type"] == "COMPLETED":  # it came through, and then it must be true
        assert night.states() == {"done": SEQUENCES}
    night.next_night_completes_it()


def test_the_database_is_killed(night):
    run_id = night.begun()

    night.postgres.kill()
    time.sleep(1)
    night.postgres.start()

    ended = night.installation.ended(run_id)
    if ended["state_type"] == "COMPLETED":
        assert night.states() == {"done": SEQUENCES}
    night.next_night_completes_it()


def test_everything_is_killed(night):
    run_id = night.begun()

    for name in ("serve", "w1", "w2"):
        night.installation.kill(name)
    night.prefect.kill()
    night.postgres.kill()
    night.postgres.start()
    night.prefect.start()
    assert night.installation.flow_run(run_id)["state_type"] != "COMPLETED"
    night.installation.start_flows()
    for name in ("w1", "w2"):
        night.installation.start_worker(name, "--model", "slow-gc")

    # the run that died with its flow server: Prefect learns of it from the heartbeat that is missing, or from a person
    night.installation.cancel(run_id)
    night.next_night_completes_it()
