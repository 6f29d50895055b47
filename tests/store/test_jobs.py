import os
import subprocess
import sys
import threading

import pytest

from medflow.records import DueUnit, Instant, Result, Unit, UnitKind
from medflow.store import Store, jobs
from medflow.store.ledger import now_us


def due(unit_id: int, key: str = "k", revision: int = 0) -> DueUnit:
    unit = Unit(kind=UnitKind.SEQUENCE, id=unit_id)
    return DueUnit(unit=unit, revision=revision, input_key=key, prediction_time=Instant(utc_us=0))


def add_model(store: Store, *, name: str = "m", digest: str = "d1") -> int:
    with store.writing() as connection:
        return jobs.register_model(
            connection, name=name, version="1", digest=digest, distribution="dist 1", spec={"name": name}
        )


def enqueue(store: Store, model: int, *units: DueUnit) -> int:
    with store.writing() as connection:
        return jobs.enqueue(connection, model, units)


def lease(store: Store, model: int, owner: str, *, limit: int = 100, seconds: int = 60, max_attempts: int = 3):
    with store.writing() as connection:
        return jobs.lease(connection, model, owner, limit=limit, seconds=seconds, max_attempts=max_attempts)


def finish(store: Store, owner: str, *leased: jobs.Job) -> int:
    with store.writing() as connection:
        held = jobs.held(connection, owner, [job.id for job in leased])
        jobs.complete(connection, {job_id: [Result(output="x", value=1.0)] for job_id in held})
        jobs.supersede_older(connection, sorted(held))
        return len(held)


def fail(store: Store, owner: str, job: jobs.Job, *, retry: bool, max_attempts: int = 3) -> str:
    with store.writing() as connection:
        return jobs.fail(connection, owner, job.id, code="c", error="e", retry=retry, max_attempts=max_attempts)


def states(store: Store) -> dict[str, int]:
    with store.reading() as connection:
        return jobs.count_jobs(connection).get("m", {})


def test_a_model_is_registered_once_per_digest(store):
    assert add_model(store) == add_model(store)
    assert add_model(store) != add_model(store, digest="d2")


def test_the_same_input_is_enqueued_once(store):
    model = add_model(store)

    assert enqueue(store, model, due(1), due(2)) == 2
    assert enqueue(store, model, due(1, revision=5), due(2)) == 0
    assert states(store) == {"ready": 2}


def test_a_changed_input_supersedes_the_job_that_waits_for_the_old_one(store):
    model = add_model(store)
    enqueue(store, model, due(1, "old"))

    enqueue(store, model, due(1, "new"))

    assert [job.input_key for job in lease(store, model, "me")] == ["new"]


def test_an_input_that_returns_to_what_it_was_is_scored_again(store):
    model = add_model(store)
    for key in ("old", "new"):
        enqueue(store, model, due(1, key))
        finish(store, "me", *lease(store, model, "me"))

    enqueue(store, model, due(1, "old"))

    assert [job.input_key for job in lease(store, model, "me")] == ["old"]


def test_two_owners_never_hold_one_job(store):
    model = add_model(store)
    enqueue(store, model, *(due(number) for number in range(200)))
    held: list[int] = []

    def work(owner: str) -> None:
        while found := lease(store, model, owner, limit=7):
            held.extend(job.id for job in found)

    threads = [threading.Thread(target=work, args=(f"owner{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(held) == len(set(held)) == 200


def test_a_lease_that_ran_out_is_taken_by_someone_else_and_the_first_owner_writes_nothing(store):
    model = add_model(store)
    enqueue(store, model, due(1))
    first = lease(store, model, "elsewhere|1|1|a", seconds=-1)

    second = lease(store, model, "elsewhere|2|1|b")

    assert [job.id for job in first] == [job.id for job in second]
    assert finish(store, "elsewhere|1|1|a", *first) == 0
    assert finish(store, "elsewhere|2|1|b", *second) == 1


def test_the_lease_of_a_process_that_was_killed_here_is_free_at_once(store):
    model = add_model(store)
    enqueue(store, model, due(1), due(2))
    code = (
        "import time; from medflow.store.jobs import process_owner; print(process_owner(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        owner = process.stdout.readline().strip()
        lease(store, model, owner, seconds=3600)
        assert lease(store, model, jobs.process_owner()) == []
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
        zombie = lease(store, model, jobs.process_owner(), limit=1)

    assert len(zombie) == 1
    assert len(lease(store, model, jobs.process_owner())) == 1


def test_a_job_that_ends_every_process_that_scores_it_is_dead(store):
    model = add_model(store)
    enqueue(store, model, due(1))
    for _ in range(3):
        assert lease(store, model, "elsewhere|1|1|a", seconds=-1)

    assert lease(store, model, "me") == []
    assert states(store) == {"dead": 1}


def test_an_error_in_the_data_is_dead_at_once_and_can_be_replayed(store):
    model = add_model(store)
    enqueue(store, model, due(1))
    job = lease(store, model, "me")[0]

    assert fail(store, "me", job, retry=False) == "dead"
    assert lease(store, model, "me") == []
    with store.writing() as connection:
        assert jobs.retry_jobs(connection) == 1
    assert len(lease(store, model, "me")) == 1


def test_an_infrastructure_error_waits_and_is_dead_in_the_end(store):
    model = add_model(store)
    enqueue(store, model, due(1))
    job = lease(store, model, "me")[0]

    assert fail(store, "me", job, retry=True) == "failed"
    assert lease(store, model, "me") == []  # backing off
    with store.writing() as connection:
        connection.exec_driver_sql("UPDATE job SET not_before_us = 0")
    job = lease(store, model, "me")[0]
    assert job.attempts == 2
    assert fail(store, "me", job, retry=True, max_attempts=2) == "dead"


def test_released_jobs_count_as_no_attempt(store):
    model = add_model(store)
    enqueue(store, model, due(1))
    leased = lease(store, model, "me")
    with store.writing() as connection:
        jobs.release(connection, "me", [job.id for job in leased])

    assert lease(store, model, "me")[0].attempts == 1


def test_a_newer_result_supersedes_the_older_of_the_same_unit_and_model_name(store):
    old, new = add_model(store), add_model(store, digest="d2")
    enqueue(store, old, due(1), due(2))
    done = lease(store, old, "me")
    finish(store, "me", *done)
    enqueue(store, new, due(1))
    newer = lease(store, new, "me")

    with store.writing() as connection:
        jobs.complete(connection, {newer[0].id: [Result(output="x", value=2.0)]})
        older = jobs.supersede_older(connection, [newer[0].id])

    assert older == [done[0].id]
    with store.reading() as connection:
        assert [line[2] for line in jobs.predictions(connection, "m")] == [2.0, 1.0]


def test_what_an_earlier_version_left_behind_is_superseded_by_a_result_of_a_later_one(store):
    old, new = add_model(store), add_model(store, digest="d2")
    enqueue(store, old, due(1), due(2), due(3))
    broken, _ = lease(store, old, "me", limit=2)
    fail(store, "me", broken, retry=False)
    enqueue(store, new, due(1), due(2), due(3))

    finish(store, "you", *lease(store, new, "you"))

    assert states(store) == {"done": 3, "leased": 1}


def test_a_result_of_an_earlier_version_leaves_the_jobs_of_a_later_one(store):
    old, new = add_model(store), add_model(store, digest="d2")
    enqueue(store, old, due(1))
    enqueue(store, new, due(1))

    finish(store, "me", *lease(store, old, "me"))

    assert states(store) == {"done": 1, "ready": 1}


def test_the_jobs_of_a_model_are_listed_with_those_made_last_first(store):
    enqueue(store, add_model(store), *(due(number) for number in range(3)))
    enqueue(store, add_model(store, name="other", digest="d2"), due(9))

    with store.reading() as connection:
        units = [line.unit for line in jobs.list_jobs(connection, states=["ready"], model="m", limit=2)]

    assert units == ["sequence/2", "sequence/1"]


def test_selection_of_an_unchanged_unit_does_not_grow_the_queue(store):
    model = add_model(store)
    enqueue(store, model, due(1))
    finish(store, "me", *lease(store, model, "me"))

    assert enqueue(store, model, due(1, revision=9)) == 0
    assert states(store) == {"done": 1}


@pytest.mark.parametrize("count", [6000])
def test_a_large_chunk_fits_every_engine(store, count):
    model = add_model(store)
    started = now_us()

    assert enqueue(store, model, *(due(number) for number in range(count))) == count
    leased = lease(store, model, "me", limit=count)
    assert finish(store, "me", *leased) == count

    assert now_us() - started < 30e6
