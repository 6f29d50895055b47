"""Where things stand, as the store answers it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import pytest

from medflow.records import DueUnit, Instant, Unit, UnitKind
from medflow.store import Connection, Store, chunks, jobs, ledger, outbox, standing
from medflow.store.ledger import now_us
from medflow.store.standing import HOUR_US, SETTLED_US, Totals
from tests.results import catalog, risk_of

ME = "somewhere|1|1|me"  # of another host: whether it lives cannot be known


def model(connection: Connection, name: str = "one", digest: str = "d1") -> int:
    return jobs.register_model(connection, name=name, version="1", digest=digest, distribution="tests 1", spec={})


def due(count: int, first: int = 0) -> list[DueUnit]:
    return [
        DueUnit(
            unit=Unit(kind=UnitKind.SERIES, id=number),
            revision=1,
            input_key=f"k{number}",
            prediction_time=Instant(utc_us=0),
        )
        for number in range(first, first + count)
    ]


def run(
    store: Store,
    command: str,
    *,
    source: str | None = None,
    status: str | None = "completed",
    owner: str = ME,
    **counts: int,
) -> int:
    with store.writing() as connection:
        key = ledger.begin_run(connection, command=command, actor="me", versions={}, source=source, owner=owner)
        if status:
            ledger.finish_run(connection, key, status=status, counts=counts)
    return key


def chunk(store: Store, name: str, counts: Mapping[str, object], *, state: str | None = "done") -> None:
    with store.writing() as connection:
        key = chunks.begin(connection, None, model(connection, name, digest=f"d-{name}"), ME, seconds=60)
        chunks.record(connection, key, ME, seconds=60, counts=counts)
        if state:
            chunks.finish(connection, key, ME, state=state)


def test_jobs_are_counted_by_model_and_state_whatever_its_version(store: Store) -> None:
    before = now_us()
    with store.writing() as connection:
        old, new = model(connection), model(connection, digest="d2")
        jobs.enqueue(connection, old, due(3))
        jobs.enqueue(connection, new, due(4))
        jobs.lease(connection, new, ME, limit=1, seconds=60, max_attempts=5)

    with store.reading() as connection:
        (found,) = standing.work(connection)

    assert (found.model, dict(found.jobs)) == ("one", {"ready": 6, "leased": 1})
    assert found.oldest_ready_us is not None and before <= found.oldest_ready_us <= now_us()


def test_superseded_jobs_are_no_backlog(store: Store) -> None:
    with store.writing() as connection:
        key = model(connection)
        jobs.enqueue(connection, key, due(1))
        (late,) = due(1)
        jobs.enqueue(
            connection,
            key,
            [DueUnit(unit=late.unit, revision=2, input_key="other", prediction_time=late.prediction_time)],
        )

    with store.reading() as connection:
        (found,) = standing.work(connection)

    assert dict(found.jobs) == {"ready": 1}


def test_a_source_has_its_last_attempt_and_its_last_success(store: Store) -> None:
    good = run(store, "ingest fhir", source="ehr", stored=7)
    bad = run(store, "ingest fhir", source="ehr", status="failed")
    run(store, "ingest fhir", source="other")

    with store.reading() as connection:
        attempt, success = standing.last_of_source(connection, "ehr")
        never = standing.last_of_source(connection, "never")

    assert attempt is not None and (attempt.id, attempt.status) == (bad, "failed")
    assert success is not None and (success.id, success.counts) == (good, {"stored": 7})
    assert never == (None, None)


def test_received_is_the_last_run_that_stored_anything(store: Store) -> None:
    brought = run(store, "ingest dicom", stored=2)
    run(store, "ingest dicom", stored=0, unchanged=2)

    with store.reading() as connection:
        found = standing.last_received(connection, ("dicom", "fhir"))

    assert {kind: line.id for kind, line in found.items()} == {"dicom": brought}


def test_a_run_whose_process_has_ended_was_killed(store: Store) -> None:
    code = "from medflow.store.jobs import process_owner; print(process_owner())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    run(store, "score", status=None, owner=ended)
    run(store, "deliver", status=None, owner=jobs.process_owner())
    run(store, "nightly", status=None, owner=ME)

    with store.reading() as connection:
        found = {line.command: line.status for line in standing.last_runs(connection)}

    assert found == {"score": "killed", "deliver": "running", "nightly": "running"}


def test_rates_are_those_of_the_last_hour_and_day(store: Store) -> None:
    chunk(store, "one", {"done": 8, "dead": 2, "seconds": {"read": 0.5, "predict": 1.5}})
    chunk(store, "one", {"done": 10, "seconds": {"predict": 0.5}}, state=None)

    with store.reading() as connection:
        (now,) = standing.rates(connection, at_us=now_us())
        (later,) = standing.rates(connection, at_us=now_us() + 2 * HOUR_US)
        none = standing.rates(connection, at_us=now_us() + 25 * HOUR_US)

    assert (now.model, now.hour, now.day) == ("one", 20, 20)
    assert dict(now.seconds) == pytest.approx({"read": 0.5, "predict": 2.0})
    assert (later.hour, later.day) == (0, 20)
    assert none == []


def test_totals_are_the_same_whether_carried_on_or_summed_anew(store: Store) -> None:
    carried = Totals()
    chunk(store, "one", {"done": 5, "failed": 1, "seconds": {"read": 1.0}})
    for at_us in (now_us(), now_us() + 2 * SETTLED_US):  # seen while it might change, and after
        with store.reading() as connection:
            carried.look(connection, at_us=at_us)
    with store.reading() as connection:
        cases, seconds = carried.look(connection, at_us=now_us() + 2 * SETTLED_US)
        anew = Totals().look(connection, at_us=now_us())

    assert dict(cases) == {("one", "done"): 5, ("one", "failed"): 1}
    assert dict(seconds) == {("one", "read"): 1.0}
    assert anew == (cases, seconds)


def test_totals_follow_a_chunk_that_is_being_scored(store: Store) -> None:
    totals = Totals()
    with store.writing() as connection:
        key = chunks.begin(connection, None, model(connection), ME, seconds=60)
    seen = []
    for done in (1, 2):
        with store.writing() as connection:
            chunks.record(connection, key, ME, seconds=60, counts={"done": done, "seconds": {"read": done / 2}})
        with store.reading() as connection:
            cases, seconds = totals.look(connection, at_us=now_us())
            seen.append((cases["one", "done"], seconds["one", "read"]))

    assert seen == [(1, 0.5), (2, 1.0)]


def test_a_target_waits_since_its_oldest_undelivered_result_was_made(store: Store) -> None:
    with store.writing() as connection:
        outbox.queue(connection, None, [*catalog(), *risk_of(1)])
        outbox.claim_target(connection, "/out", ME, seconds=60, kind="folder")
        envelopes = outbox.pending_envelopes(connection, "/out", at_us=now_us())
        found = outbox.load_resources(connection, "/out", [key for keys in envelopes for key in keys])
        outbox.record_delivered(connection, "/out", list(found.values()))
    between = now_us()
    with store.writing() as connection:
        outbox.queue(connection, None, risk_of(2))

    with store.reading() as connection:
        (line,) = standing.deliveries(connection, at_us=now_us())

    assert dict(line.states) == {"pending": 3, "delivered": len(found), "failed": 0, "dead": 0, "withheld": 0}
    assert line.oldest_us is not None and line.oldest_us >= between
    assert (line.hour, line.day) == (len(found), len(found))


def test_a_changed_result_waits_since_it_changed(store: Store) -> None:
    with store.writing() as connection:
        outbox.queue(connection, None, risk_of(1))
        outbox.claim_target(connection, "/out", ME, seconds=60, kind="folder")
        envelopes = outbox.pending_envelopes(connection, "/out", at_us=now_us())
        found = outbox.load_resources(connection, "/out", [key for keys in envelopes for key in keys])
        outbox.record_delivered(connection, "/out", list(found.values()))
    changed = now_us()
    with store.writing() as connection:
        outbox.queue(connection, None, risk_of(1, 0.75))

    with store.reading() as connection:
        (line,) = standing.deliveries(connection, at_us=now_us())

    assert line.states["pending"] == 2
    assert line.oldest_us is not None and line.oldest_us >= changed


@pytest.mark.parametrize("sampled", [1, 10_000])
def test_what_is_not_enrolled_is_counted_alike_however_much_it_is(
    store: Store, monkeypatch: pytest.MonkeyPatch, sampled: int
) -> None:
    monkeypatch.setattr(standing, "SAMPLED", sampled)
    with store.writing() as connection:
        outbox.queue(connection, None, risk_of(1))
        outbox.claim_target(connection, "/out", ME, seconds=60, kind="folder")
        outbox.queue(connection, None, [*risk_of(1, 0.75), *risk_of(2)])

    with store.reading() as connection:
        (line,) = standing.deliveries(connection, at_us=now_us())

    assert line.states["pending"] == 6


def test_a_target_that_is_expected_lacks_everything_until_it_is_used(store: Store) -> None:
    with store.writing() as connection:
        outbox.queue(connection, None, risk_of(1))

    with store.reading() as connection:
        (line,) = standing.deliveries(connection, at_us=now_us(), expected={"/new": "folder"})

    assert (line.target, line.states["pending"]) == ("/new", 3)
    assert line.oldest_us is not None
