"""A night as deployed: Prefect's server and both databases on PostgreSQL, a flow server, two workers; what does
orchestration cost a case?

    python tests/benchmarks/bench_night.py [--stays 10000] [--series 200] [--per-case 400] [--json]

Orchestration is what is left of the flow run's time when the time is taken away in which something was read, selected,
scored or delivered: each ingest, select and delivery, and the time in which at least one worker had a chunk in hand.
Its peer, in the same run: the same scoring with a Prefect task for every case, in the flow's own process, where tasks
are cheapest; the time inside the tasks is taken away there as well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on a few cores: more threads wait more than they work

from medflow.config import load_settings  # noqa: E402
from medflow.sample import cohort, imaging  # noqa: E402
from medflow.store import Store, chunks, history  # noqa: E402
from tests.distributions import environment, write_distribution  # noqa: E402
from tests.installation import Installation, installation  # noqa: E402
from tests.services.postgres import postgres_server  # noqa: E402
from tests.services.prefect_server import prefect_server  # noqa: E402

EVERY = 4  # of the measurements that the sample makes: about a hundred are left for each stay
MODELS = ("icu-mortality", "pneumonia-xray")
SINGLE = """
from dataclasses import replace
from medflow_risk.mortality import IcuMortality

class Single(IcuMortality):
    spec = replace(IcuMortality.spec, name="icu-mortality-single", batch_size=1)
"""
PER_CASE = """
import sys, time
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from medflow import steps
from medflow.flows.installation import loaded_models, site

inside = []

@task(cache_policy=NO_CACHE, persist_result=False)
def score_case():
    started = time.perf_counter()
    here = site()
    steps.score_chunk(here, here.registry.get("icu-mortality-single"), loaded_models())
    inside.append(time.perf_counter() - started)

@flow(name="a-task-a-case")
def night(cases):
    started = time.perf_counter()
    for _ in range(cases):
        score_case()
    return time.perf_counter() - started

here = site()
model = here.registry.get("icu-mortality-single")
steps.select(here, model)
with loaded_models().using(model):
    pass
cases = int(sys.argv[1])
total = night(cases)
print((total - sum(inside)) / cases * 1000)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stays", type=int, default=10_000)
    parser.add_argument("--series", type=int, default=200)
    parser.add_argument("--per-case", type=int, default=400, help="cases of the task-per-case version")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="medflow-night-") as work:
        found = run(Path(work), options.stays, options.series, options.per_case)
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        sys.stdout.writelines(f"{name:40} {value}\n" for name, value in found.items())


def run(work: Path, stays: int, series: int, per_case: int) -> dict[str, Any]:
    """A night, and its peer."""
    write_input(work, stays, series)
    plugins = write_distribution(work / "plugins", "single", SINGLE, {"icu-mortality-single": "Single"})
    sources = {
        "records": {"kind": "fhir", "paths": [str(work / "fhir")]},
        "imaging": {"kind": "dicom", "paths": [str(work / "dicom")]},
    }
    with postgres_server(fsync=True) as postgres:
        for name in ("medflow_bench", "prefect_bench"):
            postgres.execute(f"CREATE DATABASE {name}")
        env = environment(
            work / "home",
            plugins,
            MEDFLOW_DATABASE_URL=postgres.url("medflow_bench"),
            MEDFLOW_EXECUTOR="workers",
            MEDFLOW_ISSUER_SYSTEMS=json.dumps({imaging.ISSUER: cohort.MRN_SYSTEM}),
            MEDFLOW_SOURCES=json.dumps(sources),
            MEDFLOW_TARGETS=json.dumps({"chart": str(work / "out")}),
            MEDFLOW_DELIVER_TO="chart",
        )
        store = Store(load_settings(database_url=postgres.url("medflow_bench"), home=work / "home"))
        store.upgrade()
        with (
            prefect_server(database_url=postgres.url("prefect_bench")) as server,
            installation(work / "logs", server, env) as made,
        ):
            made.start_flows()
            for name in ("w1", "w2"):
                made.start_worker(name, *(word for model in MODELS for word in ("--model", model)))
            found = night(made, store)
            peer = task_per_case(made, per_case)
        store.close()
    found["task per case, ms a case"] = round(peer, 3)
    found["ratio"] = round(peer / found["orchestration, ms a case"], 1)
    return found


def write_input(work: Path, stays: int, series: int) -> None:
    """The cohort as NDJSON, and radiographs of its people."""
    rng = np.random.default_rng(2026)
    drawn = cohort.draw_stays(rng, stays)
    (work / "fhir").mkdir()
    with (
        (work / "fhir" / "Patient.ndjson").open("wb") as patients,
        (work / "fhir" / "Encounter.ndjson").open("wb") as encounters,
        (work / "fhir" / "Observation.ndjson").open("wb") as observations,
    ):
        for stay in drawn:
            patients.write(orjson.dumps(cohort.patient(stay), option=orjson.OPT_APPEND_NEWLINE))
            encounters.write(orjson.dumps(cohort.encounter(stay), option=orjson.OPT_APPEND_NEWLINE))
            for found in islice(cohort.observations(rng, stay), None, None, EVERY):
                observations.write(orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE))
    for number in range(series):
        stay = drawn[number % len(drawn)]
        study = imaging.Study(
            key=f"bench/{number}",
            person=stay.person,
            taken=stay.admitted + timedelta(hours=2, seconds=number),
            description="Chest radiograph",
            number=number + 1,
        )
        picture = imaging.chest(rng, opacity=float(number % 2))
        imaging.write_radiograph(work / "dicom" / f"{number}.dcm", study, picture, modality="DX", inverted=False)


def night(made: Installation, store: Store) -> dict[str, Any]:
    """Trigger the night, wait, and take its account apart."""
    run_id = made.trigger("nightly/nightly", models=list(MODELS))
    flow_run = made.ended(run_id, timeout=3600)
    wall = _moment(flow_run["end_time"]) - _moment(flow_run["start_time"])
    with store.reading() as connection:
        runs = history.runs(connection, since_us=0)
        of_night = [chunk for line in runs for chunk in chunks.of_run(connection, line.id)]
        hands = _union([(item.started_us, item.finished_us) for item in history.chunks(connection, since_us=0)])
    done = sum(chunk.done + chunk.dead for chunk in of_night)
    reading = sum(_seconds(line) for line in runs if line.command.startswith("ingest"))
    sending = sum(_seconds(line) for line in runs if line.command == "deliver")
    selecting = sum(line.counts.get("seconds", {}).get("select", 0.0) for line in runs if line.command == "score")
    overhead = wall - reading - selecting - hands - sending
    delivered = sum(line.counts["delivered"] for line in runs if line.command == "deliver")
    return {
        "state": f"{flow_run['state']['name']}: {flow_run['state']['message']}",
        "cases": done,
        "chunks": len(of_night),
        "workers": len({chunk.worker for chunk in of_night}),
        "delivered": delivered,
        "wall s": round(wall, 2),
        "ingest s": round(reading, 2),
        "select s": round(selecting, 2),
        "chunks in hand s": round(hands, 2),
        "deliver s": round(sending, 2),
        "orchestration s": round(overhead, 2),
        "orchestration, ms a case": round(overhead / done * 1000, 3),
    }


def task_per_case(made: Installation, cases: int) -> float:
    """Milliseconds a case that a task for each costs, beyond the time inside it."""
    env = {**made.env, "MEDFLOW_EXECUTOR": "process", "MEDFLOW_CHUNK_SIZE": "1", "PREFECT_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, "-c", PER_CASE, str(cases)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=1800)
    return float(done.stdout.split()[-1])


def _union(spans: list[tuple[int, int]]) -> float:
    """Seconds covered by at least one of these spans, in microseconds."""
    total, reached = 0, 0
    for start, end in sorted(spans):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total / 1e6


def _seconds(line: history.RunLine) -> float:
    return (line.finished_us - line.started_us) / 1e6


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    main()
