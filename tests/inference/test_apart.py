"""The process apart: it answers as this one would, and what happens to it costs no case and no other model."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from medflow import steps
from medflow.config import load_settings
from medflow.sample import write_sample

ROOT = Path(__file__).parents[2]
SET_UP = """
import os, signal, threading
from medflow.inference import apart

apart.begin()
from functools import partial
from itertools import chain
from medflow.config import load_settings
from medflow.errors import MedflowError
from medflow.inference.resident import LoadedModels
from medflow.inference.runner_apart import RunnerApart, models
from tests.models import Fragile, GcContent, Unloadable, registered, sequence_case, stay_case

settings = load_settings(device="cpu")

def outcomes(loaded, model, cases, **options):
    with loaded.running(model, threads=2, **options) as runner:
        where = type(runner).__name__
        found = list(chain.from_iterable(runner.run([partial(lambda case: case, case) for case in cases])))
    return where, found, runner.seconds
"""


def run(script: str, **environment: str) -> list[str]:
    """What a script prints that begins the process apart first of all."""
    command = [sys.executable, "-c", SET_UP + textwrap.dedent(script)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_it_answers_as_this_process_would_and_each_case_for_itself():
    said = run("""
        cases = [stay_case(number, value) for number, value in enumerate([1.0, -1.0, 2.0, 13.0, 4.0, 5.0, -2.0])]
        model = registered(Fragile)
        with models(settings, set_up_logging=int) as loaded:
            where, there, seconds = outcomes(loaded, model, cases)
        assert where == "RunnerApart", where
        assert seconds["predict"] > 0 and seconds["wait"] > 0
        where, here, _ = outcomes(LoadedModels(settings), model, cases)
        assert where == "Runner", where
        for one, other in zip(there, here, strict=True):
            assert (one.index, one.prediction) == (other.index, other.prediction)
            assert (one.error and one.error.message) == (other.error and other.error.message)
            assert one.error or one.case is cases[one.index]
        print(*[one.error.code if one.error else one.prediction.values["mean"] for one in there])
    """)

    assert said == ["1.0 negative 2.0 plugin-error 4.0 5.0 negative"]


def test_it_explains_where_that_is_asked_for():
    said = run("""
        with models(settings, set_up_logging=int) as loaded:
            for explain in (False, True):
                _, (one,), seconds = outcomes(loaded, registered(Fragile), [stay_case(1, 3.0)], explain=explain)
                print(*[found.values.sum() for found in one.explanation.values()], "explain" in seconds)
    """)

    assert said == ["False", "3.0 True"]


def test_a_model_of_anything_else_or_one_that_cannot_travel_runs_here():
    said = run("""
        class OfThisScript(Fragile):
            pass

        with models(settings, set_up_logging=int) as loaded:
            print(outcomes(loaded, registered(GcContent), [sequence_case(1, "ACGTACGT")])[0])
            print(outcomes(loaded, registered(OfThisScript), [stay_case(1, 1.0)])[0])
            print(outcomes(loaded, registered(Fragile), [stay_case(1, 1.0)])[0])
    """)

    assert said == ["Runner", "Runner", "RunnerApart"]


def test_where_memory_is_counted_all_models_stay_in_one_process():
    said = run("""
        with models(settings.model_copy(update={"memory_mib": 4096}), set_up_logging=int) as loaded:
            print(outcomes(loaded, registered(Fragile), [stay_case(1, 1.0)])[0])
    """)

    assert said == ["Runner"]


def test_a_model_that_does_not_load_says_why():
    (said,) = run("""
        with models(settings, set_up_logging=int) as loaded:
            try:
                outcomes(loaded, registered(Unloadable), [stay_case(1, 1.0)])
            except MedflowError as error:
                print(type(error).__name__, error.message)
    """)

    assert said.startswith("PluginBroken fragile of tests 1 does not load: the model raised ValueError at models.py:")


def test_when_it_dies_the_cases_that_it_had_are_tried_again_later_and_the_others_are_run_here():
    said = run("""
        values = [1.0] * 4 + [2.0, 666.0, 2.0, 2.0] + [3.0] * 2
        cases = [stay_case(number, value) for number, value in enumerate(values)]
        with models(settings, set_up_logging=int) as loaded:
            _, found, _ = outcomes(loaded, registered(Fragile), cases)
            print([outcome.error is None and outcome.prediction.values["mean"] for outcome in found])
            print({(type(outcome.error).__name__, outcome.error.message) for outcome in found if outcome.error})
            print(outcomes(loaded, registered(Fragile), [stay_case(1, 1.0)])[0])
    """)

    assert said == [
        "[1.0, 1.0, 1.0, 1.0, False, False, False, False, 3.0, 3.0]",
        "{('TransientError', 'the process that ran fragile was ended by signal 9, perhaps for want of memory')}",
        "Runner",
    ]


def test_one_that_died_before_anything_was_asked_of_it_is_done_without():
    said = run("""
        os.kill(apart.begun().ask(os.getpid), signal.SIGKILL)
        with models(settings, set_up_logging=int) as loaded:
            where, (one,), _ = outcomes(loaded, registered(Fragile), [stay_case(1, 1.0)])
            print(where, one.prediction.values["mean"])
    """)

    assert said == ["Runner 1.0"]


@pytest.mark.parametrize(
    ("before", "environment"),
    [
        ("threading.Thread(target=threading.Event().wait, daemon=True).start()", {}),
        ("", {"MEDFLOW_DEVICE": "cuda"}),
        ("os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})", {}),
    ],
    ids=["a thread", "another device", "one processor"],
)
def test_it_is_not_begun_where_it_would_be_of_no_use_or_unsafe(before: str, environment: dict[str, str]):
    script = f"import os, threading\nfrom medflow.inference import apart\n{before}\napart.begin()\nprint(apart.begun())"

    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | environment, capture_output=True, text=True, check=True
    )

    assert done.stdout == "None\n"


@pytest.fixture
def parent() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process with a process apart that is ready, and the id of that."""
    script = SET_UP + "print(apart.begun().ask(os.getpid), flush=True); threading.Event().wait()"
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


def test_it_ends_with_the_process_that_began_it(parent):
    process, there = parent

    process.kill()

    until = time.monotonic() + 20
    while _lives(there):
        assert time.monotonic() < until, "it lives on"
        time.sleep(0.05)


def test_what_asks_a_group_of_processes_to_stop_leaves_it_to_the_one_that_began_it(parent):
    _, there = parent

    os.kill(there, signal.SIGTERM)
    os.kill(there, signal.SIGINT)

    time.sleep(0.3)
    assert _lives(there)


def _lives(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and "Z" not in status.read_text().split()[2]


def test_the_command_line_scores_stays_there_to_the_same_numbers(tmp_path: Path):
    folder = write_sample(tmp_path / "sample", stays=6, odd=False)
    here = steps.open_site(load_settings(home=tmp_path / "here", device="cpu"))
    steps.ingest(here, steps.source_of("fhir", [folder.fhir]))
    here.store.close()
    shutil.copytree(tmp_path / "here", tmp_path / "there")

    steps.score(here, ["icu-mortality"])
    command = [sys.executable, "-m", "medflow.cli", "-v", "score", "--model", "icu-mortality"]
    environment = os.environ | {"MEDFLOW_HOME": str(tmp_path / "there"), "MEDFLOW_DEVICE": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    there = steps.open_site(load_settings(home=tmp_path / "there"))
    assert _answers(there) == _answers(here) != []
    assert "INFO loaded icu-mortality on cpu" in done.stderr  # as the other process writes its log


def _answers(site: steps.Site) -> list[tuple[int, str, float]]:
    with site.store.reading() as connection:
        return [tuple(row) for row in connection.execute(text("SELECT job_id, output, value FROM prediction"))]
