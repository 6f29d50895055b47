"""Processes beside this one: what they do is what this one would, and nothing is lost when one dies."""

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
from medflow.fhir.write import resources_of_many, result_resources
from medflow.store import Store
from medflow.store.beside import FROM, Beside
from medflow.store.timeseries import load_series
from tests.every_kind import KINDS
from tests.store.test_timeseries import END, SPEC, Value, admit, measure


@pytest.fixture
def beside(store: Store, settings: Settings):
    opened = Beside(settings.model_copy(update={"workers": 2}))
    yield opened
    opened.close()


def until_ready(beside: Beside, wanted, units):
    beside.start(FROM)
    until = time.monotonic() + 60
    while (asked := beside.load(wanted, units)) is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    return asked


def process_of(beside: Beside) -> int:
    assert beside._pool is not None
    (pid,) = beside._pool._processes
    return pid


def test_a_process_reads_what_this_one_would(store: Store, beside: Beside):
    with store.writing() as connection:
        full, empty = admit(connection), admit(connection)
        measure(connection, full, [Value(hour=hour, value=60 + hour) for hour in range(40)])
    units = [(full, END), (empty, END)]

    there = until_ready(beside, SPEC, units).result()

    with store.reading() as connection:
        here = load_series(connection, SPEC, units)
    np.testing.assert_array_equal(there.values, here.values)
    np.testing.assert_array_equal(there.statics, here.statics)
    assert {place: error.code for place, error in there.refused.items()} == {1: "too-few-measurements"}


def test_what_is_asked_of_a_process_that_starts_is_done_when_it_has(store: Store, beside: Beside):
    with store.writing() as connection:
        stay = admit(connection)
        measure(connection, stay, [Value(hour=hour, value=60 + hour) for hour in range(40)])
    beside.start(FROM)

    now = beside.load(SPEC, [(stay, END)], starting=True)

    assert now is not None
    assert np.nanmax(now.result(60).values) == 99


def test_few_cases_start_no_process(store: Store, beside: Beside):
    beside.start(FROM - 1)

    assert beside._pool is None
    assert beside.load(SPEC, []) is None


BEGUN = """
import os, threading
from medflow.config import load_settings
from medflow.store.beside import FROM, Beside

{before}
beside = Beside(load_settings(workers=2))
beside.begin()
begun = beside._begun and list(beside._begun._processes)
print(bool(begun), beside.start(FROM - 1), beside.start(FROM), list(beside._pool._processes) == begun)
print(beside.ask(os.getpid, starting=True).result(60) in beside._pool._processes)
beside.close()
"""


@pytest.mark.parametrize(
    ("before", "copies"), [("", True), ("threading.Thread(target=threading.Event().wait, daemon=True).start()", False)]
)
def test_copies_are_begun_before_there_is_a_thread_and_used_when_many_cases_come(before: str, copies: bool):
    done = subprocess.run(
        [sys.executable, "-c", BEGUN.format(before=before)], capture_output=True, text=True, timeout=120
    )

    assert done.stdout.splitlines() == [f"{copies} False True {copies}", "True"], done.stderr


def test_one_worker_reads_here(store: Store, settings: Settings):
    beside = Beside(settings.model_copy(update={"workers": 1}))

    beside.start(10 * FROM)

    assert beside.load(SPEC, []) is None


def test_after_a_process_was_killed_this_one_reads(store: Store, beside: Beside):
    until_ready(beside, SPEC, []).result()
    os.kill(process_of(beside), signal.SIGKILL)

    with pytest.raises(BrokenProcessPool):
        while asked := beside.load(SPEC, []):
            asked.result()
            time.sleep(0.05)
    while beside.load(SPEC, []) is not None:
        time.sleep(0.05)
    beside.start(FROM)

    assert beside.load(SPEC, []) is None


def test_an_error_of_reading_comes_back(store: Store, beside: Beside):
    broken = replace(SPEC, statics=("no-such-static",))
    with store.writing() as connection:
        encounter = admit(connection)

    with pytest.raises(ValueError, match="no static input"):
        until_ready(beside, broken, [(encounter, END)]).result()


def test_a_process_makes_the_resources_that_this_one_would(beside: Beside):
    nobody = replace(KINDS["risk"][0], subject=None)
    contexts, results = zip(*KINDS.values(), (nobody, KINDS["risk"][1]), strict=True)

    until_ready(beside, SPEC, []).result()
    asked = beside.ask(resources_of_many, contexts, results)

    assert asked is not None
    assert asked.result() == [*(result_resources(*kind) for kind in KINDS.values()), None]


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
