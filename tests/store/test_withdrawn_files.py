"""A variant file that is taken back, on both databases: what was said, what waits, what is asked, and what is due."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import orjson
import pytest
from sqlalchemy import insert, select, update

from medflow.fhir.write import result_resources
from medflow.records import Instant, VariantFile
from medflow.store import Store, jobs, outbox
from medflow.store.genomics import SampleScope, due_samples, load_samples, samples_elsewhere, store_variant_file
from medflow.store.ledger import Reject, list_rejects, now_us, record_rejects, settle_rejects
from medflow.store.specimens import release_samples_of
from medflow.store.tables import AuditRow, JobRow, OutboxRow, PatientRow, SampleRow
from medflow.store.withdrawn_files import (
    Compared,
    StoredFile,
    TakenBack,
    compare_samples,
    restore_file,
    still_due,
    stored_file,
    withdraw_file,
)
from tests.results import CALLED, SPLICING, VARIANTS, context, effects_on, model, variant_file
from tests.scored import add_model
from tests.variant_models import GcShift

ON_SQLITE = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)  # what no SQL decides
(WANTED,) = GcShift.spec.accepts
SCOPE = SampleScope(reference="r1", regions="b1", whole="w1")
OLD = VariantFile(sha256="a" * 64, size=1, version="VCFv4.2", samples=("one", "two"), records=3, build="GRCh38")
NEW = replace(OLD, sha256="b" * 64)


def keep(store: Store, file: VariantFile, *patients: int | None) -> StoredFile:
    with store.writing() as connection:
        store_variant_file(connection, file, patients or [None] * len(file.samples))
        return found(connection, file)


def found(connection, file: VariantFile) -> StoredFile:
    stored = stored_file(connection, sha256=file.sha256)
    assert stored is not None
    return stored


def due(store: Store, model_id: int) -> list:
    with store.reading() as connection:
        return list(due_samples(connection, WANTED, SCOPE, as_of=Instant(utc_us=now_us()), model_id=model_id))


def select_jobs(store: Store) -> int:
    with store.writing() as connection:
        model_id = add_model(connection)
    waiting = due(store, model_id)
    with store.writing() as connection:
        return jobs.enqueue(connection, model_id, still_due(connection, waiting))


def withdraw(store: Store, file: StoredFile) -> TakenBack:
    with store.writing() as connection:
        return withdraw_file(connection, file, None)


def restore(store: Store, file: VariantFile) -> None:
    with store.writing() as connection:
        restore_file(connection, found(connection, file), None)
        store_variant_file(connection, file, [None] * len(file.samples))


def states(store: Store) -> list[tuple[int, str, bool]]:
    with store.reading() as connection:
        query = select(JobRow.unit_id, JobRow.state, JobRow.superseded).order_by(JobRow.id)
        return [tuple(row) for row in connection.execute(query)]


def test_no_model_is_given_its_samples_and_what_waits_is_let_go_of(store: Store) -> None:
    file = keep(store, OLD)
    keep(store, NEW)
    selected = select_jobs(store)

    taken = withdraw(store, file)

    assert (selected, taken) == (4, TakenBack(samples=2, results=0, jobs=2))
    assert states(store) == [(1, "ready", True), (2, "ready", True), (3, "ready", False), (4, "ready", False)]
    assert select_jobs(store) == 0
    with store.reading() as connection:
        assert found(connection, OLD).withdrawn and not found(connection, NEW).withdrawn
        assert samples_elsewhere(connection, {"GRCh37"}, as_of=Instant(utc_us=now_us())) == (
            0,
            2,
        )
        assert load_samples(connection, [1])[1].withdrawn_us


def test_a_restored_file_is_received_anew_and_due_again(store: Store) -> None:
    file = keep(store, OLD)
    select_jobs(store)
    withdraw(store, file)
    before = now_us()

    restore(store, OLD)

    assert [item.prediction_time.utc_us >= before for item in due(store, 1)] == [True, True]
    assert select_jobs(store) == 2
    assert states(store) == [(1, "ready", False), (2, "ready", False)]
    with store.reading() as connection:
        trail = connection.execute(select(AuditRow.action, AuditRow.subject).order_by(AuditRow.id)).all()
    assert trail == [("withdraw", "variant_file 1"), ("restore", "variant_file 1")]


def test_what_was_found_due_before_the_file_was_withdrawn_becomes_no_job(store: Store) -> None:
    file = keep(store, OLD)
    with store.writing() as connection:
        model_id = add_model(connection)
    waiting = due(store, model_id)
    withdraw(store, file)

    with store.writing() as connection:
        assert (len(waiting), still_due(connection, waiting)) == (2, [])


def scored(store: Store, name: str, *, subject: bool = True) -> int:
    """A model's result on sample 1, queued; the id of its job."""
    of = replace(model(SPLICING, accepts=VARIANTS, name=name), digest=name * 8)
    about = context(of, inputs=(variant_file(),), input_key=name, **({} if subject else {"subject": None}))
    with store.writing() as connection:
        model_id = add_model(connection, name=name, digest=name)
    waiting = [item for item in due(store, model_id) if item.unit.id == 1]
    with store.writing() as connection:
        jobs.enqueue(connection, model_id, waiting)
        [job] = jobs.lease(connection, model_id, "me", limit=1, seconds=60, max_attempts=5)
        jobs.complete(connection, {job.id: [effects_on(CALLED)]})
        outbox.queue(connection, job.id, result_resources(about, [effects_on(CALLED)]))
    return job.id


@pytest.mark.parametrize("what", ["result", "job"])
def test_what_is_being_committed_meanwhile_is_waited_for(store: Store, what: str) -> None:
    file = keep(store, replace(OLD, samples=("one",)))
    with store.writing() as connection:
        model_id = add_model(connection)
    waiting = due(store, model_id)
    with store.writing() as connection:
        if what == "result":
            jobs.enqueue(connection, model_id, waiting)
            [job] = jobs.lease(connection, model_id, "me", limit=1, seconds=60, max_attempts=5)

    with ThreadPoolExecutor(1) as pool:
        with store.writing() as connection:
            if what == "result":
                assert jobs.held(connection, "me", [job.id]) == {job.id}
                jobs.complete(connection, {job.id: [effects_on(CALLED)]})
            else:
                jobs.enqueue(connection, model_id, still_due(connection, waiting))
            taken = pool.submit(withdraw, store, file)
            with pytest.raises(TimeoutError):
                taken.result(timeout=0.1)

    assert taken.result() == TakenBack(samples=1, results=int(what == "result"), jobs=int(what == "job"))
    assert [superseded for *_, superseded in states(store)] == [True]


def statuses(store: Store) -> list[tuple[str, int]]:
    with store.reading() as connection:
        rows = connection.execute(select(OutboxRow.body, OutboxRow.version).where(OutboxRow.type == "Observation"))
        return [(orjson.loads(body)["status"], version) for body, version in rows]


@ON_SQLITE
def test_what_was_said_of_nobody_is_taken_back_as_well(store: Store) -> None:
    file = keep(store, OLD)
    scored(store, "a", subject=False)

    assert withdraw(store, file).results == 1
    assert statuses(store) == [("entered-in-error", 2)] * 3


def test_all_that_any_model_said_is_entered_in_error_once_and_the_variant_they_share(store: Store) -> None:
    file = keep(store, OLD)
    for name in ("a", "b"):
        scored(store, name)
    before = statuses(store)

    taken = withdraw(store, file)

    assert before == [("preliminary", 1)] * 5  # the variant once, and of each model a score and a summary
    assert taken == TakenBack(samples=2, results=2, jobs=0)
    assert statuses(store) == [("entered-in-error", 2)] * 5


@ON_SQLITE
def test_what_was_amended_is_entered_in_error_as_well(store: Store) -> None:
    file = keep(store, OLD)
    job = scored(store, "a")
    with store.writing() as connection:
        connection.execute(update(JobRow).values(superseded=True))
        outbox.supersede(connection, [job], "amended")

    assert withdraw(store, file).results == 0
    assert {status for status, _ in statuses(store)} == {"entered-in-error"}


@ON_SQLITE
def test_what_another_file_gave_stands(store: Store) -> None:
    keep(store, OLD)
    scored(store, "a")

    withdraw(store, keep(store, NEW))

    assert {status for status, _ in statuses(store)} == {"preliminary"}


def reject(file: VariantFile) -> Reject:
    return Reject(
        kind="vcf", source="s", origin="in.vcf#sample 3", code="sample-unknown", reason="r", sha256=file.sha256
    )


def test_nobody_is_asked_about_its_samples_until_it_is_restored(store: Store) -> None:
    file = keep(store, OLD)
    with store.writing() as connection:
        record_rejects(connection, None, [reject(OLD), reject(NEW)])
        ids = [item.id for item in list_rejects(connection)]

    withdraw(store, file)

    with store.writing() as connection:
        assert [item.sha256 for item in list_rejects(connection)] == [NEW.sha256]
        settle_rejects(connection, ids, before_us=now_us() + 1)
    restore(store, OLD)
    with store.reading() as connection:
        assert [item.sha256 for item in list_rejects(connection)] == [OLD.sha256]


@ON_SQLITE
def test_a_specimen_that_is_withdrawn_later_frees_its_sample_and_asks_nothing(store: Store) -> None:
    with store.writing() as connection:
        connection.execute(insert(PatientRow).values(id=7))
    withdraw(store, keep(store, OLD, 7, None))

    with store.writing() as connection:
        release_samples_of(connection, "s", {("one", 7)})
        assert list_rejects(connection) == []
        assert connection.scalars(select(SampleRow.patient_id)).all() == [None, None]


def test_the_samples_of_two_files_are_compared_by_name(store: Store) -> None:
    with store.writing() as connection:
        connection.execute(insert(PatientRow), [{"id": 7}, {"id": 8}])
    four = ("same", "moved", "lost", "gone", "nobodys", "found")
    old = keep(store, replace(OLD, samples=four), 7, 7, 7, 7, None, None)
    new = keep(store, replace(NEW, samples=(*four[:3], *four[4:], "more")), 7, 8, None, None, 8, 8)

    with store.reading() as connection:
        assert compare_samples(connection, old, new) == Compared(missing=1, moved=1, nobodys=1)
        assert compare_samples(connection, old, old) == Compared(missing=0, moved=0, nobodys=0)
