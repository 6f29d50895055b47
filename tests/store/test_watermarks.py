"""How far a source was read: kept by source and kind, replaced as a whole, dropped to be read anew."""

from __future__ import annotations

import pytest

from medflow.store import Store, watermarks
from medflow.store.watermarks import MarkLine, Watermark, drop_mark, lower_marks, read_mark, set_mark


def marked(store: Store, source: str, kind: str, mark: Watermark) -> None:
    with store.writing() as connection:
        set_mark(connection, source, kind, mark)


def read(store: Store, source: str, kind: str) -> Watermark:
    with store.reading() as connection:
        return read_mark(connection, source, kind)


def test_a_source_that_was_never_read_has_no_mark(store: Store) -> None:
    assert read(store, "ehr", "Observation") == Watermark()


def test_a_mark_comes_back_with_its_state_and_replaces_the_one_before(store: Store) -> None:
    marked(store, "ehr", "export", Watermark(until_us=5, state={"status": "http://ehr/status/1", "files": ["a"]}))
    marked(store, "ehr", "export", Watermark(until_us=9, state={"done": 2}))

    assert read(store, "ehr", "export") == Watermark(until_us=9, state={"done": 2})


def test_marks_of_kinds_and_sources_are_apart(store: Store) -> None:
    marked(store, "ehr", "Patient", Watermark(until_us=1))
    marked(store, "ehr", "Observation", Watermark(until_us=2))
    marked(store, "lab", "Observation", Watermark(until_us=3))

    with store.writing() as connection:
        drop_mark(connection, "ehr", "Patient")

    assert read(store, "ehr", "Patient") == Watermark()
    assert read(store, "ehr", "Observation").until_us == 2
    assert read(store, "lab", "Observation").until_us == 3


def test_a_mark_in_a_transaction_that_fails_is_not_set(store: Store) -> None:
    with pytest.raises(RuntimeError), store.writing() as connection:
        set_mark(connection, "ehr", "Patient", Watermark(until_us=1))
        raise RuntimeError

    assert read(store, "ehr", "Patient") == Watermark()


def test_the_marks_of_all_sources_are_listed_without_their_state(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watermarks, "now_us", lambda: 77)
    marked(store, "pacs", "studies", Watermark(until_us=4, state={"page": 2}))
    marked(store, "ehr", "Patient", Watermark())

    with store.reading() as connection:
        found = watermarks.standing(connection)

    assert found == [
        MarkLine(source="ehr", kind="Patient", until_us=None, updated_us=77),
        MarkLine(source="pacs", kind="studies", until_us=4, updated_us=77),
    ]


def test_marks_of_some_types_move_back_and_the_others_stay(store: Store) -> None:
    for kind in ("Patient", "Patient/_history", "Observation", "export system Patient"):
        marked(store, "ehr", kind, Watermark(until_us=9))

    with store.writing() as connection:
        moved = lower_marks(connection, "ehr", 5, ["Patient"])

    assert moved == 3
    assert read(store, "ehr", "Observation").until_us == 9
