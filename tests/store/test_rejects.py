"""Rejects add up: the ledger counts what an ingest counted."""

from medflow.store.ledger import Reject, list_rejects, record_rejects

BROKEN = Reject(kind="dicom", source="local", origin="/in/a.dcm", code="truncated", reason="it ends early", sha256="ab")


def test_an_input_refused_twice_in_one_batch_is_counted_twice(store):
    with store.writing() as connection:
        record_rejects(connection, None, [BROKEN, BROKEN])

    with store.reading() as connection:
        assert [item.seen for item in list_rejects(connection)] == [2]


def test_an_input_refused_again_later_is_counted_again(store):
    for _ in range(2):
        with store.writing() as connection:
            record_rejects(connection, None, [BROKEN, BROKEN])

    with store.reading() as connection:
        assert [item.seen for item in list_rejects(connection)] == [4]
