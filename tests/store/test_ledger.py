from medflow.store import ledger
from medflow.store.ledger import Reject, now_us


def reject(origin: str, code: str = "empty") -> Reject:
    return Reject(kind="dicom", source="local", origin=origin, code=code, reason="no bytes")


def record(store, *rejects: Reject) -> None:
    with store.writing() as connection:
        ledger.record_rejects(connection, None, rejects)


def test_a_reject_seen_again_is_counted_not_listed_twice(store):
    record(store, reject("a"), reject("b"))
    record(store, reject("a"))

    with store.reading() as connection:
        assert [(item.origin, item.seen) for item in ledger.list_rejects(connection)] == [("a", 2), ("b", 1)]


def test_what_a_replay_took_is_settled_and_what_it_did_not_stays_open(store):
    record(store, reject("a"), reject("b"))
    started = now_us()
    record(store, reject("a"))

    with store.writing() as connection:
        ids = [item.id for item in ledger.list_rejects(connection)]
        assert ledger.settle_rejects(connection, ids, before_us=started) == 1
    with store.reading() as connection:
        assert [item.origin for item in ledger.list_rejects(connection)] == ["a"]
        assert ledger.count_rejects(connection) == {"empty": 1}


def test_a_settled_reject_that_comes_back_is_open_again(store):
    record(store, reject("a"))
    with store.writing() as connection:
        ledger.settle_rejects(connection, [1], before_us=now_us() + 1)

    record(store, reject("a"))

    with store.reading() as connection:
        assert ledger.count_rejects(connection) == {"empty": 1}


def test_a_run_is_on_record_from_its_start_to_its_end(store):
    with store.writing() as connection:
        run = ledger.begin_run(connection, command="score", actor="me", versions={"medflow": "1"})
    with store.writing() as connection:
        ledger.finish_run(connection, run, status="completed", counts={"done": 3})
        ledger.record_audit(connection, run, "replay", "jobs", ready=2)

    with store.reading() as connection:
        row = connection.exec_driver_sql("SELECT command, status, finished_us >= started_us FROM run").one()
        audit = connection.exec_driver_sql("SELECT action, subject, run_id FROM audit").one()
    assert (row[0], row[1], bool(row[2])) == ("score", "completed", True)
    assert tuple(audit) == ("replay", "jobs", run)
