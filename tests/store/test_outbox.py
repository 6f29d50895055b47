"""The outbox: what is queued once, what each target still needs, who may write to it, and what became of it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence

import orjson
import pytest

from medflow.errors import TargetUnavailable
from medflow.records import DueUnit, Instant, Outgoing, Unit, UnitKind
from medflow.store import Store, jobs, outbox
from medflow.store.ledger import now_us
from medflow.store.outbox import Failure, PendingResource
from tests.results import catalog, risk_of

TARGET = "/results"
ME = "somewhere|1|1|me"  # of another host: whether it lives cannot be known


def queue(store: Store, *items: Outgoing, job_id: int | None = None) -> None:
    with store.writing() as connection:
        outbox.queue(connection, job_id, items)


def claim(store: Store, owner: str = ME, target: str = TARGET, seconds: int = 60) -> dict[str, int]:
    with store.writing() as connection:
        return outbox.claim_target(
            connection, target, owner, seconds=seconds, kind="fhir" if "://" in target else "folder"
        )


def pending(store: Store, target: str = TARGET, at_us: int | None = None) -> list[list[PendingResource]]:
    with store.reading() as connection:
        envelopes = outbox.pending_envelopes(connection, target, at_us=at_us or now_us())
        found = outbox.load_resources(connection, target, [key for keys in envelopes for key in keys])
    return [[found[key] for key in keys] for keys in envelopes]


def send(store: Store, resources: Sequence[PendingResource], target: str = TARGET) -> None:
    with store.writing() as connection:
        outbox.record_delivered(connection, target, resources)


def refuse(store: Store, resources: Sequence[PendingResource], wait_us: int = 0, max_attempts: int = 5) -> int:
    failures = [Failure(resource=item, error="HTTP 400", not_before_us=now_us() + wait_us) for item in resources]
    with store.writing() as connection:
        return outbox.record_failed(connection, TARGET, failures, max_attempts=max_attempts)


def flat(envelopes: Sequence[Sequence[PendingResource]]) -> list[PendingResource]:
    return [item for envelope in envelopes for item in envelope]


def counts(store: Store) -> dict[str, dict[str, int]]:
    with store.reading() as connection:
        return outbox.counts(connection)


def test_envelopes_come_whole_with_the_catalog_first(store: Store) -> None:
    queue(store, *risk_of(2), *risk_of(1)[:1])
    queue(store, *risk_of(1)[1:], *catalog())
    claim(store)

    found = pending(store)

    assert [{item.envelope for item in envelope} for envelope in found] == [{"catalog"}, {"patient/1"}, {"patient/2"}]
    assert [len(envelope) for envelope in found] == [2, 3, 3]
    assert {item.id: item.body for item in flat(found)} == {
        item.id: item.body for item in [*catalog(), *risk_of(1), *risk_of(2)]
    }


def test_what_a_target_has_is_not_pending_for_it_but_for_others(store: Store) -> None:
    queue(store, *risk_of(1))
    claim(store)
    send(store, flat(pending(store)))
    claim(store, target="/other")

    assert pending(store) == []
    assert len(flat(pending(store, "/other"))) == 3
    assert counts(store)[TARGET] == {"pending": 0, "delivered": 3, "failed": 0, "dead": 0, "withheld": 0}


def test_the_same_result_again_is_no_change(store: Store) -> None:
    queue(store, *risk_of(1))
    claim(store)
    send(store, flat(pending(store)))

    queue(store, *risk_of(1, issued=Instant(utc_us=1_800_000_000_000_000)))
    claim(store)

    assert pending(store) == []


def test_a_changed_result_is_a_new_version_for_whoever_has_the_old_one(store: Store) -> None:
    queue(store, *risk_of(1))
    claim(store)
    send(store, flat(pending(store)))

    queue(store, *risk_of(1, 0.75))

    found = flat(pending(store))
    assert {item.type for item in found} == {"Observation", "RiskAssessment"}  # the Provenance says the same
    assert {item.version for item in found} == {2}


def test_a_version_made_while_the_older_was_under_way_stays_pending(store: Store) -> None:
    queue(store, *risk_of(1))
    claim(store)
    under_way = flat(pending(store))
    queue(store, *risk_of(1, 0.75))

    send(store, under_way)

    assert [item.version for item in flat(pending(store))] == [2, 2]


def test_what_is_queued_after_a_claim_waits_for_the_next_one(store: Store) -> None:
    claim(store)
    queue(store, *risk_of(1))

    before = pending(store)
    waiting = counts(store)[TARGET]["pending"]
    claim(store)

    assert before == [] and waiting == 3
    assert len(flat(pending(store))) == 3


def test_a_claim_waits_for_what_is_being_queued(store: Store) -> None:
    claimed = threading.Thread(target=claim, args=(store,))
    with store.writing() as connection:
        outbox.queue(connection, None, risk_of(1))
        with pytest.raises(TimeoutError):
            claimed.start()
            claimed.join(timeout=0.3)
            if claimed.is_alive():
                raise TimeoutError
    queue(store, *risk_of(2))
    claimed.join()
    claim(store)

    assert len(flat(pending(store))) == 6  # a row with a lower id is not passed over


def test_what_was_refused_waits_and_is_dead_in_the_end(store: Store) -> None:
    queue(store, *risk_of(1))
    claim(store)
    taken, *refused = flat(pending(store))
    send(store, [taken])

    assert refuse(store, refused, wait_us=60_000_000, max_attempts=2) == 0
    assert pending(store) == []
    later = flat(pending(store, at_us=now_us() + 61_000_000))
    assert [item.attempts for item in later] == [1, 1]
    assert refuse(store, later, max_attempts=2) == 2
    assert pending(store, at_us=now_us() + 10**12) == []
    assert counts(store)[TARGET] == {"pending": 0, "delivered": 1, "failed": 0, "dead": 2, "withheld": 0}
    with store.reading() as connection:
        assert [line[2:] for line in outbox.list_errors(connection, TARGET)] == [("dead", 2, "HTTP 400")] * 2


def test_what_nobody_answered_is_never_given_up(store: Store) -> None:
    queue(store, *risk_of(1))
    claim(store)
    silent = [Failure(resource=item, error="", not_before_us=0, counted=False) for item in flat(pending(store))]

    with store.writing() as connection:
        assert outbox.record_failed(connection, TARGET, silent, max_attempts=1) == 0

    assert [item.attempts for item in flat(pending(store))] == [0, 0, 0]


def test_dead_deliveries_can_be_replayed(store: Store) -> None:
    queue(store, *risk_of(1))
    claim(store)
    taken, *refused = flat(pending(store))
    send(store, [taken])
    refuse(store, refused, max_attempts=1)

    with store.writing() as connection:
        assert outbox.retry_deliveries(connection, TARGET) == 2

    assert [item.attempts for item in flat(pending(store))] == [0, 0]


def test_replaying_a_folder_writes_it_anew(store: Store) -> None:
    queue(store, *risk_of(1))
    claim(store)
    send(store, flat(pending(store)))
    with store.writing() as connection:
        outbox.renew_target(connection, TARGET, ME, seconds=60, committed={"Observation.ndjson": 123})

    with store.writing() as connection:
        everywhere = outbox.retry_deliveries(connection)
        here = outbox.retry_deliveries(connection, TARGET)

    assert (everywhere, here) == (0, 3)
    assert claim(store) == {"Observation.ndjson": 0}
    assert len(flat(pending(store))) == 3


def test_one_process_writes_to_a_target_at_a_time(store: Store) -> None:
    claim(store, "elsewhere|1|1|first")

    with pytest.raises(TargetUnavailable) as caught:
        claim(store, "elsewhere|2|2|second")

    assert 0 < caught.value.retry_after_s <= 60
    claim(store, "elsewhere|2|2|second", target="/other")


def test_a_lease_that_ran_out_is_taken_over_and_the_late_one_told(store: Store) -> None:
    claim(store, "elsewhere|1|1|late", seconds=-1)
    claim(store, "elsewhere|2|2|next")

    with pytest.raises(TargetUnavailable), store.writing() as connection:
        outbox.renew_target(connection, TARGET, "elsewhere|1|1|late", seconds=60, committed={"a": 1})

    assert claim(store, "elsewhere|2|2|next") == {}


def test_a_lease_of_a_process_that_is_gone_is_taken_over_at_once(store: Store) -> None:
    program = "from medflow.store.jobs import process_owner; print(process_owner())"
    gone = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    claim(store, gone, seconds=600)

    claim(store, jobs.process_owner())


def test_a_released_target_is_free(store: Store) -> None:
    claim(store, "elsewhere|1|1|first")
    with store.writing() as connection:
        outbox.release_target(connection, TARGET, "elsewhere|1|1|first")

    claim(store, "elsewhere|2|2|second")


def test_superseded_results_are_amended_and_sent_again(store: Store) -> None:
    with store.writing() as connection:
        model_id = jobs.register_model(connection, name="m", version="1", digest="d", distribution="x", spec={})
        unit = Unit(kind=UnitKind.ENCOUNTER, id=1)
        due = DueUnit(unit=unit, revision=1, input_key="k", prediction_time=Instant(utc_us=0))
        jobs.enqueue(connection, model_id, [due])
        [job] = jobs.lease(connection, model_id, ME, limit=1, seconds=60, max_attempts=5)
    queue(store, *risk_of(1), job_id=job.id)
    claim(store)
    send(store, flat(pending(store)))

    with store.writing() as connection:
        first = outbox.supersede(connection, [job.id], "amended")
        again = outbox.supersede(connection, [job.id], "amended")

    found = flat(pending(store))
    assert (first, again) == (2, 0)
    assert {item.type for item in found} == {"Observation", "RiskAssessment"}
    assert {orjson.loads(item.body)["status"] for item in found} == {"amended"}
    queue(store, *risk_of(1), job_id=job.id)  # the input is again what it was
    assert {orjson.loads(item.body)["status"] for item in flat(pending(store))} == {"preliminary"}


def test_resources_of_many_jobs_go_in_at_once(store: Store) -> None:
    with store.writing() as connection:
        outbox.queue_many(connection, {None: [item for patient in range(2000) for item in risk_of(patient)]})

    claim(store)

    assert len(flat(pending(store))) == 6000
    send(store, flat(pending(store)))
    assert pending(store) == []
