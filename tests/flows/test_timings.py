import pytest

from medflow.flows.timings import SECOND_US, inner_stages, stages, wall_s
from medflow.store.history import ChunkLine, RunLine


def run(command, start, end, **counts):
    ended = None if end is None else end * SECOND_US
    return RunLine(
        id=1, command=command, source=None, started_us=start * SECOND_US, finished_us=ended, status="", counts=counts
    )


def chunk(start, end, *, asked=None, done=10, **seconds):
    asked_us = (start if asked is None else asked) * SECOND_US
    times = {"asked_us": asked_us, "started_us": start * SECOND_US, "finished_us": end * SECOND_US}
    return ChunkLine(model="m", version="1", state="done", done=done, seconds=seconds, **times)


def test_two_workers_at_once_take_their_time_on_the_clock_once_and_summed_twice():
    score = next(stage for stage in stages([], [chunk(0, 10), chunk(5, 15)], 0) if stage.name == "score")

    assert (score.wall_s, score.work_s, score.cases) == (15.0, 20.0, 20)
    assert score.rate == pytest.approx(20 / 15)


def test_a_pause_is_nobodys_time():
    assert wall_s([(0, 2 * SECOND_US), (5 * SECOND_US, 6 * SECOND_US)]) == 3.0


def test_the_stages_come_in_the_order_of_the_path():
    runs = [
        run("nightly", 0, 30),
        run("ingest fhir", 0, 4, offered=8),
        run("score", 4, 20),
        run("deliver", 20, 22, delivered=3),
    ]
    found = stages(runs, [chunk(6, 10, asked=5, commit=1.0, predict=2.0, read=0.5, score=3.5)], 10)

    assert [(stage.name, stage.wall_s, stage.work_s, stage.cases) for stage in found] == [
        ("ingest", 4.0, 4.0, 8),
        ("select", 1.0, 1.0, 10),
        ("score", 4.0, 4.0, 10),
        ("read", None, 0.5, 10),
        ("predict", None, 2.0, 10),
        ("commit", None, 1.0, 10),
        ("deliver", 2.0, 2.0, 3),
    ]


def test_a_run_that_has_not_ended_takes_no_time_yet():
    assert stages([run("deliver", 0, None)], [], 0) == []


def test_a_stage_without_time_or_cases_has_no_rate():
    read, loading = inner_stages({"load": 5.0, "read": 0.0}, 4)[::-1]

    assert read.rate is None
    assert (loading.name, loading.rate) == ("load", None)


def test_selecting_comes_before_what_it_selects_for():
    assert [stage.name for stage in inner_stages({"read": 1.0, "select": 2.0, "commit": 1.0}, 1)] == [
        "select",
        "read",
        "commit",
    ]
