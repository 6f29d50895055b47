"""Chunks on both databases: asked for, taken once, held alive, lost and given up."""

import pytest

from medflow.store import chunks, jobs
from medflow.store.ledger import begin_run


@pytest.fixture
def asked(store):
    """A run that has asked for two chunks of a model: the store, the run's id and the model's."""
    with store.writing() as connection:
        run_id = begin_run(connection, command="score", actor="tests", versions={})
        model_id = jobs.register_model(
            connection, name="one", version="1", digest="d1", distribution="tests 1", spec={}
        )
        chunks.ask(connection, run_id, model_id, 2, seconds=60)
    return store, run_id, model_id


def states(store, run_id: int) -> list[str]:
    with store.reading() as connection:
        return [chunk.state for chunk in chunks.of_run(connection, run_id)]


def test_what_is_asked_for_is_taken_once_in_order_and_then_there_is_none(asked):
    store, run_id, model_id = asked

    with store.writing() as connection:
        taken = [chunks.take(connection, model_id, jobs.process_owner(), "w1", seconds=60) for _ in range(3)]

    assert taken[0].id < taken[1].id
    assert taken[2] is None
    assert states(store, run_id) == ["running", "running"]


def test_a_chunk_remembers_whether_its_run_asked_for_explanations(asked):
    store, run_id, model_id = asked

    with store.writing() as connection:
        chunks.ask(connection, run_id, model_id, 1, seconds=60, explain=True)
        taken = [chunks.take(connection, model_id, jobs.process_owner(), "w1", seconds=60) for _ in range(3)]

    assert [chunk.explain for chunk in taken] == [False, False, True]


def test_what_nobody_holds_alive_is_void(asked):
    store, run_id, model_id = asked
    with store.writing() as connection:
        chunks.ask(connection, run_id, model_id, 1, seconds=-1)
        taken = [chunks.take(connection, model_id, jobs.process_owner(), "w1", seconds=60) for _ in range(3)]

    assert taken[2] is None


def test_holding_renews_what_is_due_and_loses_what_a_dead_process_took(asked):
    store, run_id, model_id = asked
    host, pid, *_ = jobs.process_owner().split("|")
    gone = f"{host}|{pid}|1|abcd"  # the id was another process's, which began at another time
    with store.writing() as connection:
        chunks.take(connection, model_id, gone, "w1", seconds=900)
        chunks.ask(connection, run_id, model_id, 1, seconds=-1)

        chunks.hold(connection, run_id, seconds=60)

        again = [chunks.take(connection, model_id, jobs.process_owner(), "w2", seconds=60) for _ in range(3)]
    assert None not in again[:2] and again[2] is None
    assert states(store, run_id) == ["lost", "running", "running"]


def test_a_process_gives_up_what_it_no_longer_does_and_nothing_of_another(asked):
    store, run_id, model_id = asked
    mine, other = jobs.process_owner(), "elsewhere|1|2|abcd"
    with store.writing() as connection:
        chunks.take(connection, model_id, mine, "w1", seconds=900)
        chunks.take(connection, model_id, other, "w1", seconds=900)

        chunks.abandon(connection, jobs.process_of(mine), but=[mine])
        kept = [chunk.state for chunk in chunks.of_run(connection, run_id)]
        chunks.abandon(connection, jobs.process_of(mine), but=[])

    assert kept == ["running", "running"]
    assert states(store, run_id) == ["lost", "running"]


def test_withdrawing_takes_back_what_was_not_taken(asked):
    store, run_id, model_id = asked
    with store.writing() as connection:
        chunks.take(connection, model_id, jobs.process_owner(), "w1", seconds=60)

        assert chunks.withdraw(connection, run_id) == 1

    assert states(store, run_id) == ["running", "lost"]
