"""`medflow receive` against its peers: four storescu at once send CT files to each of them, in one run.

    python tests/benchmarks/bench_receive.py [FILES] [ROUNDS]

FILES (2,000) go over four associations, 39 KB and then 512 KB each. The peers are dcmtk's `storescp --fork`, writing to
disk, and Orthanc. They take turns, ROUNDS (3) times, so that a busy machine slows all alike; a figure is the median.
What medflow does more: every file is flushed to disk, and hashed, before it is acknowledged; the others flush nothing.
Senders and peers run with TCP_NODELAY=1, which dcmtk needs to be told: without it they wait 40 ms for one another.
"""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

sys.path.insert(0, str(Path(__file__).parents[2]))  # the tests' services

from tests.services import free_port  # noqa: E402
from tests.services.dcmtk import program  # noqa: E402
from tests.services.orthanc import orthanc  # noqa: E402

SENDERS = 4
SIDES = {"39 KB": 128, "512 KB": 512}  # pixels of a square image, two bytes each

Server = Callable[[Path], object]  # a context manager that gives the AE title and port


def main(count: int = 2000, rounds: int = 3) -> None:
    """Print one line a server and size."""
    logging.disable(logging.WARNING)
    os.environ["TCP_NODELAY"] = "1"
    servers: dict[str, Server] = {"storescp --fork": _storescp, "Orthanc": _orthanc, "medflow receive": _medflow}
    for size, side in SIDES.items():
        with tempfile.TemporaryDirectory() as made:
            folders = _files(Path(made), count, side)
            times: dict[str, list[float]] = {name: [] for name in servers}
            for _ in range(rounds):
                for name, server in servers.items():
                    times[name].append(_timed(server, folders))
        medians = {name: statistics.median(found) for name, found in times.items()}
        for name, seconds in medians.items():
            beside = ", ".join(f"{medians[peer] / seconds:5.2f} x {peer}" for peer in servers if peer != name)
            print(f"{size:>6}  {name:16} {count / seconds:7.0f} files/s   {beside}", flush=True)


def _timed(server: Server, folders: list[Path]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        os.sync()  # what the one before left to be written is not this one's
        with server(Path(folder)) as (aet, port):  # type: ignore[attr-defined]  # a context manager
            words = program("storescu"), "-aec", aet, "127.0.0.1", str(port), "+sd"
            start = time.perf_counter()
            senders = [subprocess.Popen([*words, str(part)], stderr=subprocess.DEVNULL) for part in folders]
            if any(sender.wait() for sender in senders):
                raise SystemExit(f"a sender to {aet} failed")
            return time.perf_counter() - start


def _files(folder: Path, count: int, side: int) -> list[Path]:
    """A folder a sender, each a series of its own."""
    image = dcmread(str(get_testdata_file("CT_small.dcm")))
    image.Rows = image.Columns = side
    noise = np.random.default_rng(7)
    parts = [folder / f"sender{number}" for number in range(SENDERS)]
    for part in parts:
        part.mkdir()
        image.StudyInstanceUID, image.SeriesInstanceUID = generate_uid(), generate_uid()
        for number in range(count // SENDERS):
            image.InstanceNumber = number + 1
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            image.PixelData = noise.integers(0, 4096, (side, side), dtype=np.uint16).tobytes()
            image.save_as(part / f"{number:05}.dcm")
    return parts


@contextmanager
def _storescp(folder: Path) -> Iterator[tuple[str, int]]:
    port = free_port()
    process = subprocess.Popen([program("storescp"), "--fork", "-od", str(folder), str(port)])
    try:
        _wait(port, process)
        yield "STORESCP", port
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _orthanc(folder: Path) -> Iterator[tuple[str, int]]:
    with orthanc(folder) as running:
        yield "ORTHANC", running.dicom_port


@contextmanager
def _medflow(folder: Path) -> Iterator[tuple[str, int]]:
    port = free_port()
    words = "-m", "medflow.cli", "--home", str(folder), "receive", "--port", str(port)
    process = subprocess.Popen([sys.executable, *words], stderr=subprocess.DEVNULL)
    try:
        _wait(port, process)
        yield "MEDFLOW", port
    finally:
        process.terminate()
        process.wait()


def _wait(port: int, process: subprocess.Popen) -> None:
    echo = program("echoscu"), "-aec", "MEDFLOW", "127.0.0.1", str(port)
    while subprocess.run(echo, capture_output=True).returncode:
        if process.poll() is not None:
            raise SystemExit(f"{process.args} ended")
        time.sleep(0.1)


if __name__ == "__main__":
    if not shutil.which("storescp"):
        raise SystemExit("dcmtk is not installed")
    main(*map(int, sys.argv[1:]))
