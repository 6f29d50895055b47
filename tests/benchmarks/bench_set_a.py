"""Set A through the whole path by the command line: do the delivered risks equal the plugin's own, and how fast?

    python tests/benchmarks/bench_set_a.py SET_A_DIR LOINC_CSV [--postgres] [--half] [--limit N] [--work DIR] [--json]

Rates are given against peers measured in the same run: ingest against orjson + fhir.resources alone (the same number
of processes), scoring against the bare model's forward pass (same batches, inputs already prepared). With --postgres
all of it a second time on a PostgreSQL server of its own; with --half also with half the stays, for the peak memory of
each command's largest process. Seconds are by the clock, and mean little on a busy machine; so CPU time is given too.
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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from fhir.resources.R4B import get_fhir_model_class
from sqlalchemy import create_engine, text

# one thread a process, in the CLI and for its peer alike: with small networks more threads wait more than they work
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
from challenge2012 import SYSTEM, convert

SAMPLE = 100_000  # resources that the peer of ingest validates, before it and again after it
PIECE = 500
NOTHING_WRONG = (0, 3)  # 3: some stays have too few measurements to be scored
MODEL = "icu-mortality"
ASKED = {
    "ingest_share_of_validation_alone": "at least 0.8",
    "array_s": "less than 10 for 4,000 stays",
    "score_share_of_bare_forward": "at least 0.5",
    "ingest_peak_growth": "about 1",
    "score_peak_growth": "about 1",
    "array_peak_growth": "about 1",
}
ARRAY = """
import json, sys, time
from sqlalchemy import text
from medflow.config import load_settings
from medflow.records import Instant
from medflow.steps import open_site
from medflow.store.timeseries import load_series

site = open_site(load_settings())
wanted = site.registry.get(sys.argv[1]).spec.accepts[0]
with site.store.reading() as connection:
    jobs = connection.execute(text("SELECT unit_id, prediction_time_us FROM job ORDER BY unit_id")).all()
    started = time.monotonic()
    block = load_series(connection, wanted, [(key, Instant(utc_us=moment)) for key, moment in jobs])
    seconds = time.monotonic() - started
print(json.dumps({"shape": block.values.shape, "mib": block.values.nbytes / 2**20, "seconds": seconds}))
"""
# between this process and the measured one: what the parent of a process took counts in its peak, too
LAUNCH = """
import json, resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What a command printed, the clock's and the processors' seconds, and the peak of its largest process in MiB."""

    said: dict[str, Any]
    seconds: float
    cpu_s: float
    peak_mib: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """An installation: its home, and its database if that is not SQLite's."""

    home: Path
    database: str | None = None

    def run(self, *arguments: str) -> Done:
        """One medflow command in a process of its own."""
        return self.process("-m", "medflow.cli", *arguments, "--json")

    def process(self, *arguments: str) -> Done:
        """Python in a process of its own, whose last line is JSON."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MEDFLOW_")}
        environment["MEDFLOW_HOME"] = str(self.home)
        if self.database is not None:
            environment["MEDFLOW_DATABASE_URL"] = self.database
        command = [sys.executable, "-I", "-c", LAUNCH, sys.executable, *arguments]
        os.sync()  # what the command before has written is on disk, and not still on its way there
        started = time.monotonic()
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        taken_s = time.monotonic() - started
        *printed, used = done.stdout.splitlines()
        status, cpu_s, peak_mib = orjson.loads(used)
        if status not in NOTHING_WRONG:
            sys.exit(f"{' '.join(arguments[:4])} ended with {status}")
        return Done(said=orjson.loads(printed[-1]), seconds=taken_s, cpu_s=cpu_s, peak_mib=peak_mib)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set_a", type=Path, help="folder with set A's text files and outcomes, at any depth")
    parser.add_argument("loinc", type=Path)
    parser.add_argument("--limit", type=int, help="only the first stays")
    parser.add_argument("--work", type=Path, help="an empty folder to work in; a temporary one otherwise")
    parser.add_argument("--postgres", action="store_true", help="on PostgreSQL as well, by a server of its own")
    parser.add_argument("--half", action="store_true", help="with half the stays as well: is peak memory the same?")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    options = parser.parse_args()
    if not any(options.set_a.rglob("Outcomes-a.txt")):
        parser.error(f"{options.set_a} holds no Outcomes-a.txt: name the folder that holds it and the stays")
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="medflow-set-a-") as temporary:
        for engine in ("sqlite", "postgresql") if options.postgres else ("sqlite",):
            work = (options.work or Path(temporary)) / engine
            with databases(engine) as (database, second):
                found[engine] = run(options.set_a, options.loinc, work, limit=options.limit, database=database)
                if options.half:
                    half = found[engine]["stays"] // 2
                    found[engine] |= growth(found[engine], options, work / "half", limit=half, database=second)
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        sys.stdout.writelines(_lines(found))
    if not all(one["auroc_equal"] for one in found.values()):
        sys.exit("the delivered risks are not the plugin's own")


@contextmanager
def databases(engine: str) -> Iterator[tuple[str | None, str | None]]:
    """Two empty databases, without a server where SQLite's files are meant."""
    if engine == "sqlite":
        yield None, None
        return
    from tests.services.postgres import postgres_server

    with postgres_server() as server:
        for name in ("whole", "half"):
            server.execute(f"CREATE DATABASE {name}")
        yield server.url("whole"), server.url("half")


def run(set_a: Path, loinc: Path, work: Path, *, limit: int | None, database: str | None = None) -> dict[str, Any]:
    """Convert, ingest, score, build the array, deliver; and what came of it."""
    stays = next(set_a.rglob("[0-9]*.txt")).parent
    fhir, target, place = work / "fhir", work / "delivered", Place(home=work / "home", database=database)
    written = sum(convert(stays, loinc, fhir, limit=limit).written.values())
    prepare_database(place)
    before_per_s, peer_cpu_s = validation_rate(fhir)
    ingest = place.run("ingest", "fhir", str(fhir))
    alone_per_s = (before_per_s + validation_rate(fhir)[0]) / 2  # a shared machine is not as fast at every moment
    again = place.run("ingest", "fhir", str(fhir))
    settle(place)
    bare = BareModel(set_a, loinc, limit)
    own, before_s = bare.forward()
    score = place.run("score", "--model", MODEL)
    forward_s = (before_s + bare.forward()[1]) / 2
    idle = place.run("score", "--model", MODEL)
    array = place.process("-c", ARRAY, MODEL)
    delivery = place.run("deliver", "--to", str(target))

    delivered = delivered_risks(target)
    died = outcomes_of(next(set_a.rglob("Outcomes-a.txt")))
    labels = label_table(died, work / "returned.csv")
    evaluated = place.run("evaluate", MODEL, "--labels", str(labels))
    common = sorted(own.keys() & delivered.keys())
    own_auroc, delivered_auroc = auroc_of(own, died), auroc_of(delivered, died)
    scored_s = max(score.seconds - idle.seconds, 1e-9)
    return {
        "stays": len(own),
        "resources": written,
        "ingest": ingest.said,
        "ingest again": again.said,
        "score": score.said,
        "score again": idle.said,
        "deliver": delivery.said,
        "auroc_plugin": own_auroc,
        "auroc_delivered": delivered_auroc,
        "auroc_evaluated": evaluated.said["metrics"]["auroc"],
        "evaluated": evaluated.said["cases"],
        "auroc_equal": own.keys() == delivered.keys() and abs(own_auroc - delivered_auroc) < 1e-6,
        "largest_difference": max((abs(own[key] - delivered[key]) for key in common), default=0.0),
        "ingest_s": ingest.seconds,
        "ingest_per_s": written / ingest.seconds,
        "validation_alone_per_s": alone_per_s,
        "ingest_share_of_validation_alone": written / ingest.seconds / alone_per_s,
        "ingest_cpu_us": ingest.cpu_s / written * 1e6,
        "validation_alone_cpu_us": peer_cpu_s * 1e6,
        "ingest_peak_mib": ingest.peak_mib,
        "ingest_again_per_s": written / again.seconds,
        "array_shape": array.said["shape"],
        "array_s": array.said["seconds"],
        "array_peak_mib": array.peak_mib - array.said["mib"],  # beyond the array itself
        "score_s": score.seconds,
        "score_start_up_s": idle.seconds,
        "score_stays_per_s": len(own) / score.seconds,
        "score_stays_per_s_after_start_up": len(own) / scored_s,
        "bare_forward_stays_per_s": len(own) / forward_s,
        "bare_prepare_stays_per_s": len(own) / bare.prepare_s,
        "score_share_of_bare_forward": forward_s / score.seconds,
        "score_share_of_bare_forward_after_start_up": forward_s / scored_s,
        "score_cpu_ms": score.cpu_s / len(own) * 1e3,
        "score_start_up_cpu_s": idle.cpu_s,
        "bare_forward_ms": forward_s / len(own) * 1e3,
        "score_peak_mib": score.peak_mib,
        "deliver_s": delivery.seconds,
        "evaluate_s": evaluated.seconds,
    }


def prepare_database(place: Place) -> None:
    """A server's database needs its schema; SQLite's makes it itself."""
    if place.database is not None:
        place.process("-c", "from medflow.config import load_settings as s; from medflow.store import Store; "
                      "Store(s()).upgrade(); print('{}')")  # fmt: skip


def settle(place: Place) -> None:
    """A server cleans up by itself after a load, for a minute or so: here at once, and not while something is timed."""
    if place.database is not None:
        with create_engine(place.database, isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(text("VACUUM (ANALYZE)"))


def growth(
    whole: dict[str, Any], options: argparse.Namespace, work: Path, *, limit: int, database: str | None
) -> dict[str, float]:
    """How many times as much memory the whole takes as half of it, each command's largest process."""
    stays = next(options.set_a.rglob("[0-9]*.txt")).parent
    place = Place(home=work / "home", database=database)
    convert(stays, options.loinc, work / "fhir", limit=limit)
    prepare_database(place)
    ingest = place.run("ingest", "fhir", str(work / "fhir")).peak_mib
    score = place.run("score", "--model", MODEL).peak_mib
    array = place.process("-c", ARRAY, MODEL)
    return {
        "ingest_peak_growth": whole["ingest_peak_mib"] / ingest,
        "score_peak_growth": whole["score_peak_mib"] / score,
        "array_peak_growth": whole["array_peak_mib"] / (array.peak_mib - array.said["mib"]),
    }


# --- peers -------------------------------------------------------------------------------------------------------


def validation_rate(folder: Path) -> tuple[float, float]:
    """Orjson.loads and fhir.resources alone, on every core, once the models are built.

    Returns resources a second, and the CPU seconds of one.
    """
    pieces = list(_pieces(folder / "Observation.ndjson"))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_validate, pieces[:1] * (os.cpu_count() or 1) * 2))
        started = time.monotonic()
        counted = list(pool.map(_validate, pieces))
        taken_s = time.monotonic() - started
    count = sum(size for size, _ in counted)
    return count / taken_s, sum(cpu_s for _, cpu_s in counted) / count


def _pieces(path: Path) -> Iterable[list[bytes]]:
    with path.open("rb") as file:
        lines = islice(file, SAMPLE)
        while piece := list(islice(lines, PIECE)):
            yield piece


def _validate(lines: list[bytes]) -> tuple[int, float]:
    started = time.process_time()
    for line in lines:
        resource = orjson.loads(line)
        get_fhir_model_class(resource["resourceType"]).model_validate(resource)
    return len(lines), time.process_time() - started


class BareModel:
    """The plugin without medflow: its cases prepared beforehand, and torch warmed up by the first batch."""

    def __init__(self, set_a: Path, loinc: Path, limit: int | None) -> None:
        from medflow_risk.data import read_cohort
        from medflow_risk.evaluate import cases_of, predicted
        from medflow_risk.mortality import IcuMortality

        cohort = read_cohort(set_a, loinc, limit=limit)
        self.records = cohort.records.tolist()
        self._model, self._predicted = IcuMortality(), predicted
        self._model.load("cpu")
        cases = cases_of(cohort)
        self._ready, self.prepare_s = _timed(lambda: [self._model.prepare(case) for case in cases])
        self._forward(self._ready[: self._model.spec.batch_size])

    def forward(self) -> tuple[dict[int, float], float]:
        """The risk by RecordID, and the seconds of forward passes alone."""
        risks, forward_s = _timed(lambda: self._forward(self._ready))
        return dict(zip(self.records, risks.tolist(), strict=True)), forward_s

    def _forward(self, ready: Any) -> Any:
        import torch

        with torch.inference_mode():  # as medflow calls it
            return self._predicted(self._model, ready)


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


def _lines(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Name, a column an engine, what was asked."""
    yield f"{'':44}" + "".join(f"{engine:>14}" for engine in found) + "\n"
    for name in next(iter(found.values())):
        shown = [_shown(one[name]) for one in found.values()]
        if max(map(len, shown)) > 13:
            yield from (f"{name:30} {engine}: {text}\n" for engine, text in zip(found, shown, strict=True))
        else:
            asked = f"   asked: {ASKED[name]}" if name in ASKED else ""
            yield f"{name:44}" + "".join(f"{text:>14}" for text in shown) + asked + "\n"


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.6f}" if abs(value) < 1 else f"{value:,.2f}"
    return json.dumps(value) if isinstance(value, dict) else str(value)


if __name__ == "__main__":
    main()
