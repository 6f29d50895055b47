"""``kill -9`` in the middle of a night: what is started again completes it, and every result is there exactly once."""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
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
        time.sleep(0.08)
        return super().predict(batch)
"""
SEQUENCES = 320  # new ones each night: at 4 a batch and two workers, it lasts more than three seconds

pytestmark = pytest.mark.slow


@dataclass(kw_only=True)
class Nights:
    """An installation on PostgreSQL, and night after night with new work."""

    installation: Installation
    postgres: PostgresServer
    prefect: PrefectServer
    store: Store
    folder: Path
    total: int = 0

    def begun(self) -> str:
        """Trigger a night with new work; its run's id, once some of that is scored and some is not."""
        letters = random.Random(self.total)
        bases = ["".join(letters.choices("ACGT", k=12)) for _ in range(SEQUENCES)]
        names = range(self.total, self.total + SEQUENCES)
        lines = (f">s{n} patient=urn:test|{n % 50}\n{text}\n" for n, text in zip(names, bases, strict=True))
        (self.folder / "offered" / f"from-{self.total}.fasta").write_text("".join(lines))
        before, self.total = self.total, self.total + SEQUENCES
        run_id = self.installation.trigger("nightly/nightly")
        self.installation.until(lambda: self.done() >= before + 40, "the middle of the night")
        assert self.done() < self.total - 40
        return run_id

    def states(self) -> dict[str, int]:
        """Jobs by state."""
        with self.store.reading() as connection:
            return jobs.count_jobs(connection).get("slow-gc", {})

    def done(self) -> int:
        """How many cases are scored."""
        return self.states().get("done", 0)

    def next_night_completes_it(self) -> None:
        """Run another night; then every result is there exactly once."""
        ended = self.installation.ended(self.installation.trigger("nightly/nightly"))
        assert ended["state_type"] == "COMPLETED", ended["state"]["message"]
        self.is_complete()

    def is_complete(self) -> None:
        """Every case is scored, and every result delivered exactly once."""
        assert self.states() == {"done": self.total}
        assert sum(kind == "Observation" for kind, _ in delivered(self.folder / "out")) == self.total


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


@pytest.fixture(scope="module")
def night(tmp_path_factory) -> Iterator[Nights]:
    folder = tmp_path_factory.mktemp("nights")
    (folder / "offered").mkdir()
    plugins = write_distribution(folder / "plugins", "slow-gc", SLOW_MODEL, {"slow-gc": "SlowGc"})
    with postgres_server(fsync=True) as postgres:
        for name in ("medflow_nights", "prefect_nights"):
            postgres.execute(f"CREATE DATABASE {name}")
        env = environment(
            folder / "home",
            plugins,
            MEDFLOW_DATABASE_URL=postgres.url("medflow_nights"),
            MEDFLOW_EXECUTOR="workers",
            MEDFLOW_CHUNK_SIZE="32",
            MEDFLOW_WORKER_WAIT_S="60",
            MEDFLOW_SOURCES=json.dumps({"sequences": {"kind": "fasta", "paths": [str(folder / "offered")]}}),
            MEDFLOW_TARGETS=json.dumps({"chart": str(folder / "out")}),
            MEDFLOW_DELIVER_TO="chart",
        )
        with prefect_server(database_url=postgres.url("prefect_nights")) as prefect:
            with installation(folder / "logs", prefect, env) as made:
                store = Store(load_settings(database_url=postgres.url("medflow_nights"), home=folder / "home"))
                store.upgrade()
                made.start_flows()
                yield Nights(installation=made, postgres=postgres, prefect=prefect, store=store, folder=folder)
                store.close()


@pytest.fixture(autouse=True)
def _two_workers(night):
    for name in ("w1", "w2"):
        if name not in night.installation.names:
            night.installation.start_worker(name, "--model", "slow-gc")


def flow_process(night: Nights, run_id: str) -> int:
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
    night.is_complete()


def test_a_worker_is_asked_to_stop(night):
    run_id = night.begun()
    asked = time.monotonic()

    status = night.installation.stop("w1")

    assert status == 0
    assert time.monotonic() - asked < 20
    assert night.installation.ended(run_id)["state_type"] == "COMPLETED"
    night.is_complete()


def test_prefects_server_is_killed(night):
    run_id = night.begun()

    night.prefect.kill()
    time.sleep(1)
    night.prefect.start()

    ended = night.installation.ended(run_id)
    if ended["state_type"] == "COMPLETED":  # it came through, and then it must be true
        night.is_complete()
    night.next_night_completes_it()


def test_the_database_is_killed(night):
    run_id = night.begun()

    night.postgres.kill()
    time.sleep(1)
    night.postgres.start()

    ended = night.installation.ended(run_id)
    if ended["state_type"] == "COMPLETED":
        night.is_complete()
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
