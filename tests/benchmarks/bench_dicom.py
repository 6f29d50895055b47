"""DICOM ingest against its peer: files a second, beside pydicom reading the same headers in the same run.

    python tests/benchmarks/bench_dicom.py FOLDER

FOLDER is any tree of DICOM files (the published set dcm_qa_nih has 608). Each figure is the median of five rounds that
take turns, so that a busy machine slows both alike. What medflow does more: hashing, checking that each file is
whole, a durable copy of each file, patients, SQL.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from medflow.config import Settings
from medflow.dicom.read import read_bytes
from medflow.errors import InputRejected
from medflow.ingest.dicom import ingest_dicom
from medflow.store import Store

ROUNDS = 5
PEER = "pydicom.dcmread(stop_before_pixels=True)"


def main(folder: Path) -> None:
    """Print one line a figure."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_dicom(path)]
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as home:
            settings = Settings(home=Path(home), timezone="UTC")  # type: ignore[call-arg]  # the rest has defaults
            store = Store(settings).open()
            rounds: dict[str, Callable[[], object]] = {
                "pydicom.dcmread(stop_before_pixels=True)": lambda: [
                    dcmread(p, stop_before_pixels=True) for p in paths
                ],
                "medflow, headers only": lambda settings=settings: [
                    read_bytes(p.read_bytes(), settings) for p in paths
                ],
                "medflow ingest": lambda store=store, settings=settings: ingest_dicom(store, settings, paths),
                "medflow ingest, all unchanged": lambda store=store, settings=settings: ingest_dicom(
                    store, settings, paths
                ),
            }
            for name, run in rounds.items():
                start = time.perf_counter()
                run()
                times.setdefault(name, []).append(time.perf_counter() - start)
            store.close()
    peer = statistics.median(times[PEER])
    for name, found in times.items():
        seconds = statistics.median(found)
        print(f"{name:45} {len(paths) / seconds:8.0f} files/s   {peer / seconds:6.2f} x the peer")


def _headers(paths: list[Path], settings: Settings) -> None:
    for path in paths:
        read_bytes(path.read_bytes(), settings)


def _is_dicom(path: Path) -> bool:
    try:
        dcmread(path, stop_before_pixels=True)
        read_bytes(path.read_bytes(), Settings(home=Path("unused")))  # type: ignore[call-arg]  # the rest has defaults
    except (InvalidDicomError, InputRejected):
        return False
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]))
