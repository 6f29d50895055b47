"""What is remembered of connections: since when one fails, how often, why, and that it answers again."""

from __future__ import annotations

import pytest

from medflow.store import Store, connections
from medflow.store.connections import SOURCE, TARGET, ConnectionLine, note_answered, note_failed

pytestmark = pytest.mark.usefixtures("clock")
NOW = 1_700_000_000_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """One microsecond passes between two notes."""
    ticks = iter(range(NOW, NOW + 1000))
    monkeypatch.setattr(connections, "now_us", lambda: next(ticks))


def lines(store: Store) -> dict[tuple[str, str], ConnectionLine]:
    with store.reading() as connection:
        return {(line.role, line.name): line for line in connections.standing(connection)}


def test_nothing_is_known_of_what_was_never_used(store: Store) -> None:
    assert lines(store) == {}


def test_a_connection_that_answered_has_nothing_wrong(store: Store) -> None:
    with store.writing() as connection:
        note_answered(connection, SOURCE, "pacs")

    assert lines(store)[SOURCE, "pacs"] == ConnectionLine(
        role=SOURCE, name="pacs", ok_us=NOW, failing_since_us=None, failed_us=None, failures=0, error=None
    )


def test_failures_in_a_row_keep_when_the_first_was_and_why_the_last(store: Store) -> None:
    for act, words in [(note_answered, ()), (note_failed, ("first",)), (note_failed, ("second",))]:
        with store.writing() as connection:
            act(connection, TARGET, "chart", *words)

    assert lines(store)[TARGET, "chart"] == ConnectionLine(
        role=TARGET, name="chart", ok_us=NOW, failing_since_us=NOW + 1, failed_us=NOW + 2, failures=2, error="second"
    )


def test_an_answer_ends_it_and_the_next_failure_begins_anew(store: Store) -> None:
    for act, words in [(note_failed, ("first",)), (note_answered, ()), (note_failed, ("second",))]:
        with store.writing() as connection:
            act(connection, SOURCE, "records", *words)

    found = lines(store)[SOURCE, "records"]
    assert (found.ok_us, found.failing_since_us, found.failures, found.error) == (NOW + 1, NOW + 2, 1, "second")


def test_a_source_and_a_target_of_one_name_are_two(store: Store) -> None:
    with store.writing() as connection:
        note_answered(connection, SOURCE, "orthanc")
        note_failed(connection, TARGET, "orthanc", "away")

    assert [(key, line.failures) for key, line in lines(store).items()] == [
        ((SOURCE, "orthanc"), 0),
        ((TARGET, "orthanc"), 1),
    ]
