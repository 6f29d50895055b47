"""Decoding processes: one that dies costs a frame, and none outlives who asked it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Timer

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import JPEG2000Lossless

from medflow.dicom.codecs import FrameDamaged
from medflow.dicom.decoders import Decoders
from medflow.errors import ConfigurationError, TransientError
from tests.dicom.encoded import encoded, header_of, picture


@pytest.fixture
def pool() -> Decoders:
    return Decoders(2)


def _frame() -> tuple[np.ndarray, bytes, Dataset]:
    pixels = picture(12)
    return pixels, encoded(pixels, 12, JPEG2000Lossless), header_of(pixels, 12)


def _decode(pool: Decoders) -> None:
    pixels, codestream, header = _frame()
    options = as_pixel_options(header, pixel_keyword="PixelData")
    np.testing.assert_array_equal(pool.decompress(codestream, JPEG2000Lossless, options), pixels)


def _children() -> set[int]:
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def _process_of(pool: Decoders) -> int:
    before = _children()
    _decode(pool)
    (pid,) = _children() - before
    return pid


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGSEGV, FrameDamaged), (signal.SIGALRM, FrameDamaged), (signal.SIGKILL, TransientError)],
    ids=["a crash", "a frame that never ends", "a host without memory"],
)
def test_a_process_that_dies_over_a_frame_costs_that_frame(
    pool: Decoders, number: signal.Signals, error: type[Exception]
) -> None:
    pid = _process_of(pool)
    os.kill(pid, signal.SIGSTOP)  # in the midst of a frame, however fast it decodes

    def end() -> None:
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)

    Timer(0.2, end).start()
    with pytest.raises(error):
        _decode(pool)

    _decode(pool)


def test_a_process_that_went_for_want_of_work_is_replaced(pool: Decoders) -> None:
    pid = _process_of(pool)
    os.kill(pid, signal.SIGSEGV)
    _until(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z")

    _decode(pool)


def test_who_asks_may_finish_what_it_began_when_all_are_told_to_stop(pool: Decoders) -> None:
    pid = _process_of(pool)
    os.kill(pid, signal.SIGTERM)  # systemd tells every process of a service

    _decode(pool)

    assert pid in _children()


def test_processes_start_before_they_are_needed_and_no_more_than_are(pool: Decoders) -> None:
    before = _children()
    pool.start(1)
    pool.start(100)
    pool.start(100)
    started = _children() - before

    _decode(pool)

    assert len(started) == pool.workers
    assert _children() - before == started


def test_a_frame_that_is_refused_leaves_the_process_fit_for_the_next(pool: Decoders) -> None:
    pid = _process_of(pool)
    _, codestream, header = _frame()

    with pytest.raises(FrameDamaged):
        pool.decompress(codestream[:500], JPEG2000Lossless, as_pixel_options(header, pixel_keyword="PixelData"))

    _decode(pool)
    assert pid in _children()


def test_a_daemon_that_was_forked_after_the_pool_was_used_decodes() -> None:
    from medflow.dicom.decoders import decoders

    context = multiprocessing.get_context("fork")
    decoded = context.Event()  # its exit status is also that of what other tests' libraries left to be done at exit

    def decode() -> None:
        _decode(decoders(2))
        decoded.set()

    _decode(decoders(2))
    daemon = context.Process(target=decode, daemon=True)
    daemon.start()
    daemon.join(60)

    assert decoded.is_set()


def test_no_process_outlives_who_asked() -> None:
    script = (
        "import os, signal; from tests.dicom.test_decoders import _process_of; from medflow.dicom.decoders import *;"
        "print(_process_of(Decoders(1)), flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[2]

    asked = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)

    assert asked.returncode == -signal.SIGKILL
    _until(lambda: not Path(f"/proc/{int(asked.stdout)}").exists())


def test_a_process_that_does_not_start_is_no_fault_of_the_data(pool: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ConfigurationError, match="does not start"):
        _decode(pool)

    monkeypatch.setattr(sys, "executable", "/no/such/program")
    with pytest.raises(TransientError, match="cannot be started"):
        _decode(pool)

    monkeypatch.undo()
    _decode(pool)


def _until(done: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not done():
        assert time.monotonic() < ends
        time.sleep(0.02)
