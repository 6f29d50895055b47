"""Set A through the whole path by the command line: do the delivered risks equal the plugin's own, and how fast?

    python tests/benchmarks/bench_set_a.py SET_A_DIR LOINC_CSV [--limit N] [--work DIR] [--json]

Rates are given against peers measured in the same run: ingest against orjson + fhir.resources alone (the same number
of processes), scoring against the bare model's forward pass (same batches, inputs already prepared).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from fhir.resources.R4B import get_fhir_model_class

# one thread a process, in the CLI and for its peer alike: with small networks more threads wait more than they work
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))
from challenge2012 import SYSTEM, convert

SAMPLE = 100_000  # resources that the peer of ingest validates, before it and again after it
PIECE = 500
NOTHING_WRONG = (0, 3)  # 3: some stays have too few measurements to be scored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set_a", type=Path, help="folder with set A's text files and outcomes, at any depth")
    parser.add_argument("loinc", type=Path)
    parser.add_argument("--limit", type=int, help="only the first stays")
    parser.add_argument("--work", type=Path, help="an empty folder to work in; a temporary one otherwise")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="medflow-set-a-") as temporary:
        work = options.work or Path(temporary)
        found = run(options.set_a, options.loinc, work, limit=options.limit)
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        sys.stdout.writelines(f"{name:34} {_shown(value)}\n" for name, value in found.items())
    if not found["auroc_equal"]:
        sys.exit("the delivered risks are not the plugin's own")


def run(set_a: Path, loinc: Path, work: Path, *, limit: int | None) -> dict[str, Any]:
    """Convert, ingest, score, deliver; and what came of it."""
    stays = next(set_a.rglob("[0-9]*.txt")).parent
    outcomes = next(set_a.rglob("Outcomes-a.txt"))
    fhir, home, target = work / "fhir", work / "home", work / "delivered"
    written = sum(convert(stays, loinc, fhir, limit=limit).written.values())
    before_per_s = validation_rate(fhir)
    ingest, ingest_s = medflow(home, "ingest", "fhir", str(fhir))
    alone_per_s = (before_per_s + validation_rate(fhir)) / 2  # a shared machine is not as fast at every moment
    again, again_s = medflow(home, "ingest", "fhir", str(fhir))
    score, score_s = medflow(home, "score", "--model", "icu-mortality")
    idle, idle_s = medflow(home, "score", "--model", "icu-mortality")
    delivery, deliver_s = medflow(home, "deliver", "--to", str(target))
    own, forward_s, prepare_s = bare_model(set_a, loinc, limit)

    delivered = delivered_risks(target)
    died = outcomes_of(outcomes)
    labels = label_table(died, work / "returned.csv")
    evaluated, evaluate_s = medflow(home, "evaluate", "icu-mortality", "--labels", str(labels))
    common = sorted(own.keys() & delivered.keys())
    own_auroc, delivered_auroc = auroc_of(own, died), auroc_of(delivered, died)
    return {
        "stays": len(own),
        "resources": written,
        "ingest": ingest,
        "ingest again": again,
        "score": score,
        "score again": idle,
        "deliver": delivery,
        "auroc_plugin": own_auroc,
        "auroc_delivered": delivered_auroc,
        "auroc_evaluated": evaluated["metrics"]["auroc"],
        "evaluated": evaluated["cases"],
        "auroc_equal": own.keys() == delivered.keys() and abs(own_auroc - delivered_auroc) < 1e-6,
        "largest_difference": max((abs(own[key] - delivered[key]) for key in common), default=0.0),
        "ingest_s": ingest_s,
        "ingest_per_s": written / ingest_s,
        "validation_alone_per_s": alone_per_s,
        "ingest_share_of_validation_alone": written / ingest_s / alone_per_s,
        "ingest_again_per_s": written / again_s,
        "score_s": score_s,
        "score_start_up_s": idle_s,
        "score_stays_per_s": len(own) / score_s,
        "score_stays_per_s_after_start_up": len(own) / max(score_s - idle_s, 1e-9),
        "bare_forward_stays_per_s": len(own) / forward_s,
        "bare_prepare_stays_per_s": len(own) / prepare_s,
        "deliver_s": deliver_s,
        "evaluate_s": evaluate_s,
    }


def medflow(home: Path, *arguments: str) -> tuple[dict[str, Any], float]:
    """One medflow command in a process of its own: what it printed, and the wall-clock seconds it took."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MEDFLOW_")}
    command = [sys.executable, "-m", "medflow.cli", *arguments, "--json"]
    started = time.monotonic()
    done = subprocess.run(
        command, env=environment | {"MEDFLOW_HOME": str(home)}, stdout=subprocess.PIPE, text=True, check=False
    )
    taken_s = time.monotonic() - started
    if done.returncode not in NOTHING_WRONG:
        sys.exit(f"medflow {' '.join(arguments[:2])} ended with {done.returncode}")
    return json.loads(done.stdout), taken_s


# --- peers -------------------------------------------------------------------------------------------------------


def validation_rate(folder: Path) -> float:
    """Resources a second of orjson.loads and fhir.resources alone, on every core, once the models are built."""
    pieces = list(_pieces(folder / "Observation.ndjson"))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_validate, pieces[:1] * (os.cpu_count() or 1) * 2))
        started = time.monotonic()
        count = sum(pool.map(_validate, pieces))
        return count / (time.monotonic() - started)


def _pieces(path: Path) -> Iterable[list[bytes]]:
    with path.open("rb") as file:
        lines = islice(file, SAMPLE)
        while piece := list(islice(lines, PIECE)):
            yield piece


def _validate(lines: list[bytes]) -> int:
    for line in lines:
        resource = orjson.loads(line)
        get_fhir_model_class(resource["resourceType"]).model_validate(resource)
    return len(lines)


def bare_model(set_a: Path, loinc: Path, limit: int | None) -> tuple[dict[str, float], float, float]:
    """The plugin without medflow: the risk by RecordID, seconds of forward passes alone, and of preparing alone."""
    from medflow_risk.data import read_cohort
    from medflow_risk.evaluate import cases_of, predicted
    from medflow_risk.mortality import IcuMortality

    cohort = read_cohort(set_a, loinc, limit=limit)
    model = IcuMortality()
    model.load("cpu")
    cases = cases_of(cohort)
    ready, prepare_s = _timed(lambda: [model.prepare(case) for case in cases])
    predicted(model, ready[: model.spec.batch_size])  # the first batch also warms torch up
    risks, forward_s = _timed(lambda: predicted(model, ready))
    return dict(zip(cohort.records.tolist(), risks.tolist(), strict=True)), forward_s, prepare_s


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.monotonic()
    result = work()
    return result, time.monotonic() - started


# --- what was delivered ------------------------------------------------------------------------------------------


def delivered_risks(folder: Path) -> dict[int, float]:
    """The probability in each delivered RiskAssessment, by the RecordID of its patient."""
    risks: dict[int, float] = {}
    with (folder / "RiskAssessment.ndjson").open("rb") as file:
        for resource in map(orjson.loads, file):
            chance = resource["prediction"][0]["probabilityRange"]["low"]
            record = int(resource["subject"]["reference"].removeprefix("Patient/p"))
            if record in risks:
                sys.exit("a stay was delivered twice")
            risks[record] = chance["value"] / 100
    return risks


def outcomes_of(path: Path) -> dict[int, bool]:
    with path.open(newline="") as file:
        return {int(row["RecordID"]): row["In-hospital_death"] == "1" for row in csv.DictReader(file)}


def label_table(died: dict[int, bool], path: Path) -> Path:
    """The outcomes as a table for `medflow evaluate`."""
    lines = [f"{SYSTEM}:record|{record},{int(outcome)}\n" for record, outcome in died.items()]
    path.write_text("patient,outcome\n" + "".join(lines))
    return path


def auroc_of(risks: dict[int, float], died: dict[int, bool]) -> float:
    from medflow_risk.metrics import auroc

    records = sorted(risks)
    return auroc(np.array([died[record] for record in records]), np.array([risks[record] for record in records]))


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.6f}" if abs(value) < 1 else f"{value:,.2f}"
    return json.dumps(value) if isinstance(value, dict) else str(value)


if __name__ == "__main__":
    main()
