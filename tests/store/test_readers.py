"""Processes that read time series: the same arrays, and nothing lost when one dies."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medflow.config import Settings
from medflow.store import Store
from medflow.store.readers import FROM, Readers
from medflow.store.timeseries import load_series
from tests.store.test_timeseries import END, SPEC, Value, admit, measure


@pytest.fixture
def readers(store: Store, settings: Settings):
    opened = Readers(settings.model_copy(update={"workers": 2}))
    yield opened
    opened.close()


def until_ready(readers: Readers, wanted, units):
    readers.start(FROM)
    until = time.monotonic() + 60
    while (asked := readers.load(wanted, units)) is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    return asked


def process_of(readers: Readers) -> int:
    (pid,) = readers._pool._processes
    return pid


def test_a_process_reads_what_this_one_would(store: Store, readers: Readers):
    with store.writing() as connection:
        full, empty = admit(connection), admit(connection)
        measure(connection, full, [Value(hour=hour, value=60 + hour) for hour in range(40)])
    units = [(full, END), (empty, END)]

    there = until_ready(readers, SPEC, units).result()

    with store.reading() as connection:
        here = load_series(connection, SPEC, units)
    np.testing.assert_array_equal(there.values, here.values)
    np.testing.assert_array_equal(there.statics, here.statics)
    assert {place: error.code for place, error in there.refused.items()} == {1: "too-few-measurements"}


def test_few_cases_start_no_process(store: Store, readers: Readers):
    readers.start(FROM - 1)

    assert readers._pool is None
    assert readers.load(SPEC, []) is None


def test_one_worker_reads_here(store: Store, settings: Settings):
    readers = Readers(settings.model_copy(update={"workers": 1}))

    readers.start(10 * FROM)

    assert readers.load(SPEC, []) is None


def test_after_a_process_was_killed_this_one_reads(store: Store, readers: Readers):
    until_ready(readers, SPEC, []).result()
    os.kill(process_of(readers), signal.SIGKILL)

    with pytest.raises(BrokenProcessPool):
        while asked := readers.load(SPEC, []):
            asked.result()
            time.sleep(0.05)
    while readers.load(SPEC, []) is not None:
        time.sleep(0.05)
    readers.start(FROM)

    assert readers.load(SPEC, []) is None


def test_an_error_of_reading_comes_back(store: Store, readers: Readers):
    broken = replace(SPEC, statics=("no-such-static",))
    with store.writing() as connection:
        encounter = admit(connection)

    with pytest.raises(ValueError, match="no static input"):
        until_ready(readers, broken, [(encounter, END)]).result()


PARENT = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
import os, time
from medflow.processes import follow_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=follow_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path):
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())

    parent.kill()
    parent.wait()

    until = time.monotonic() + 20
    while Path(f"/proc/{child}/stat").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < until, "it lives on"
        time.sleep(0.05)
