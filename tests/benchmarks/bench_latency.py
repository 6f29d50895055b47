"""One new study, and somebody waits: from `score` triggered to the Observation on the FHIR server, by each path.

    python tests/benchmarks/bench_latency.py [--times 5] [--json]

warm: `medflow serve` and a `medflow worker` that has the model loaded. process: the same deployment in a Prefect pool
of type process, the model loaded by the run itself. embedded: `medflow nightly` without a server. What is reported is
the time beyond the model's own (its calls of predict), the median and the worst of several.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from medflow import steps  # noqa: E402
from medflow.config import load_settings  # noqa: E402
from medflow.sample import cohort, imaging  # noqa: E402
from medflow.store import history  # noqa: E402
from tests.distributions import environment  # noqa: E402
from tests.installation import Installation, installation  # noqa: E402
from tests.services.fhir_server import fhir_server  # noqa: E402
from tests.services.postgres import postgres_server  # noqa: E402
from tests.services.prefect_server import prefect_server  # noqa: E402

MODEL = "pneumonia-xray"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="medflow-latency-") as work:
        found = run(Path(work), options.times)
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        for path, figures in found.items():
            sys.stdout.write(f"{path:10} {', '.join(f'{name} {value}' for name, value in figures.items())}\n")


def run(work: Path, times: int) -> dict[str, dict[str, float]]:
    """Every path, so many times each."""
    with postgres_server(fsync=True) as postgres, fhir_server() as chart:
        for name in ("medflow_bench", "prefect_bench"):
            postgres.execute(f"CREATE DATABASE {name}")
        settings = {
            "MEDFLOW_DATABASE_URL": postgres.url("medflow_bench"),
            "MEDFLOW_ISSUER_SYSTEMS": json.dumps({imaging.ISSUER: cohort.MRN_SYSTEM}),
            "MEDFLOW_TARGETS": json.dumps({"chart": chart}),
            "MEDFLOW_DELIVER_TO": "chart",
        }
        env = environment(work / "home", MEDFLOW_EXECUTOR="workers", **settings)
        site = steps.open_site(
            _migrated(load_settings(home=work / "home", database_url=settings["MEDFLOW_DATABASE_URL"]))
        )
        bench = Bench(work, site, chart)
        with (
            prefect_server(database_url=postgres.url("prefect_bench")) as server,
            installation(work / "logs", server, env) as made,
        ):
            made.start_flows()
            made.start_worker("w1", "--model", MODEL)
            parameters = {"models": [MODEL], "deliver_to": "chart"}
            found = {"warm": bench.measure(lambda: made.trigger("score/score", **parameters), times)}
            made.stop("serve")
            made.stop("w1")
            with _process_worker(made):
                found["process"] = bench.measure(lambda: made.trigger("score/score", **parameters), times)
        embedded = environment(work / "home", PREFECT_HOME=str(work / "prefect"), **settings)
        command = [sys.executable, "-m", "medflow.cli", "nightly", "--model", MODEL]
        found["embedded"] = bench.measure(
            lambda: subprocess.run(command, env=embedded, capture_output=True, check=True), min(times, 3)
        )
    return found


def _migrated(settings: Any) -> Any:
    from medflow.store import Store

    Store(settings).upgrade()
    return settings


class Bench:
    """Makes new studies, and watches for what is said of them."""

    def __init__(self, work: Path, site: steps.Site, chart: str) -> None:
        self._work, self._site, self._chart = work, site, chart
        self._rng = np.random.default_rng(1)
        self._person = cohort.draw_stays(self._rng, 4)[0].person
        self._studies = 0

    def measure(self, trigger: Callable[[], object], times: int) -> dict[str, float]:
        """Seconds beyond the model's own, of so many studies; one more goes before, which does not count."""
        overheads, model_s = [], []
        for _ in range(times + 1):
            self._new_study()
            before, since_us = self._observations(), time.time_ns() // 1000
            started = time.perf_counter()
            trigger()
            while self._observations() == before:
                time.sleep(0.02)
            elapsed = time.perf_counter() - started
            model_s.append(self._predict_seconds(since_us))
            overheads.append(elapsed - model_s[-1])
        return {
            "median s": round(statistics.median(overheads[1:]), 2),
            "worst s": round(max(overheads[1:]), 2),
            "model s": round(statistics.median(model_s[1:]), 2),
        }

    def _new_study(self) -> None:
        self._studies += 1
        study = imaging.Study(
            key=f"latency/{self._studies}",
            person=self._person,
            taken=datetime(2026, 3, 1, tzinfo=UTC) + timedelta(hours=self._studies),
            description="Chest radiograph",
            number=self._studies,
        )
        path = self._work / "new" / f"{self._studies}.dcm"
        imaging.write_radiograph(path, study, imaging.chest(self._rng), modality="DX", inverted=False)
        assert steps.ingest(self._site, steps.source_of("dicom", [path])).stored == 1

    def _observations(self) -> int:
        answer = httpx.get(f"{self._chart}/Observation", params={"_count": "0", "_total": "accurate"}, timeout=30)
        return answer.raise_for_status().json()["total"]

    def _predict_seconds(self, since_us: int) -> float:
        while True:
            with self._site.store.reading() as connection:
                ended = history.chunks(connection, since_us=since_us)
            if ended:
                return sum(chunk.seconds.get("predict", 0.0) for chunk in ended)
            time.sleep(0.05)


class _process_worker:
    """Prefect's own worker of a process pool, with the same deployments in it."""

    def __init__(self, made: Installation) -> None:
        self._made = made

    def __enter__(self) -> None:
        made = self._made
        done = made.run("deploy", "--pool", "processes", "--pool-type", "process")
        assert done.returncode == 0, done.stderr
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "processes", "--type", "process"]
        env = {**made.env, "PREFECT_WORKER_QUERY_SECONDS": "1", "MEDFLOW_EXECUTOR": "process"}
        with (made.folder / "process-worker.log").open("ab") as said:
            self._process = subprocess.Popen(command, env=env, stdout=said, stderr=subprocess.STDOUT)
        made.until(lambda: "started!" in made.log("process-worker"), "Prefect's worker")

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=60)


if __name__ == "__main__":
    main()
