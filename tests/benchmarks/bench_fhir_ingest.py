"""How fast FHIR is ingested, against parsing and validating alone (orjson and fhir.resources), in the same run.

    python tests/benchmarks/bench_fhir_ingest.py FILE... [--lines N] [--processes 1 2]

takes NDJSON (the first N lines of each file) and whole Bundles. Each line printed is resources per second of wall time,
end to end (files to committed rows), beside the peer on the same resources and as many processes, and their ratio.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import orjson
from fhir.resources.R4B import get_fhir_model_class
from pydantic import ValidationError

from medflow.config import load_settings
from medflow.ingest.fhir import ingest_fhir
from medflow.store import Store

CHUNK = 2000


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        sample = Path(name) / "sample.ndjson"
        count = 0
        with sample.open("wb") as out:
            for line in _resources(chosen.files, chosen.lines):
                out.write(line + b"\n")
                count += 1
        size = sample.stat().st_size
        sys.stdout.write(f"{count} resources, {size / 1e6:.1f} MB\n")
        for processes in chosen.processes:
            peer = _peer(sample, processes)
            first, again = _ingest(sample, Path(name) / f"home-{processes}", processes)
            sys.stdout.write(
                f"{processes} process(es): orjson + fhir.resources {count / peer:8.0f}/s | "
                f"ingest {count / first:8.0f}/s, ratio {peer / first:.2f} | "
                f"again, all known {count / again:8.0f}/s, ratio {peer / again:.2f}\n"
            )


def _resources(files: list[Path], lines: int) -> Iterator[bytes]:
    for path in files:
        if path.suffix == ".ndjson":
            with path.open("rb") as file:
                yield from (line.rstrip() for line in islice(file, lines))
        else:
            entries = orjson.loads(path.read_bytes())["entry"]
            yield from (orjson.dumps(entry["resource"]) for entry in entries)


def _peer(sample: Path, processes: int) -> float:
    """Seconds to parse and validate, the processes already started and warm."""
    with sample.open("rb") as file:
        lines = list(file)
    chunks = [lines[start : start + CHUNK] for start in range(0, len(lines), CHUNK)]
    if processes == 1:
        _validate(lines[:50])
        began = time.perf_counter()
        for chunk in chunks:
            _validate(chunk)
        return time.perf_counter() - began
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(_validate, [lines[:50]] * processes))
        began = time.perf_counter()
        list(pool.map(_validate, chunks))
        return time.perf_counter() - began


def _validate(lines: list[bytes]) -> int:
    refused = 0
    for line in lines:
        resource = orjson.loads(line)
        try:
            get_fhir_model_class(resource["resourceType"]).model_validate(resource)
        except ValidationError:
            refused += 1
    return refused


def _ingest(sample: Path, home: Path, processes: int) -> tuple[float, float]:
    """Seconds of the first ingest, process start included, and of the same once more."""
    settings = load_settings(home=home, workers=processes)
    store = Store(settings).open()
    times = []
    for _ in range(2):
        began = time.perf_counter()
        tally = ingest_fhir(store, settings, [sample])
        times.append(time.perf_counter() - began)
        sys.stdout.write(f"    {tally.as_json()}\n")
    store.close()
    return times[0], times[1]


if __name__ == "__main__":
    main()
