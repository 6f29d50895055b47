"""What the account says of servers: those that fail, since when, and how far sources were read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from medflow.cli import watch
from medflow.config import Settings, load_settings
from medflow.metrics import exposition
from medflow.status import FORGOTTEN_US, as_json, look, problems
from medflow.store import Store, connections, watermarks
from medflow.store.connections import SOURCE, TARGET, note_answered, note_failed
from medflow.store.ledger import begin_run, finish_run, now_us
from medflow.store.watermarks import Watermark

CHART = "http://chart.example/fhir"
HOUR_US = 3600 * 1_000_000


@pytest.fixture
def site(tmp_path: Path) -> Settings:
    return load_settings(
        home=tmp_path / "home",
        sources={"pacs": {"kind": "dicomweb", "url": "http://pacs.example/dicom-web"}},
        targets={"chart": CHART},
        deliver_to=str(tmp_path / "secret-folder"),
    )


@pytest.fixture
def here(site: Settings) -> Iterator[Store]:
    """A store on SQLite: what it keeps of connections is tested on both databases."""
    opened = Store(site).open()
    yield opened
    opened.close()


def note(store: Store, role: str, name: str, *errors: str) -> None:
    with store.writing() as connection:
        for error in errors:
            note_failed(connection, role, name, error)
        if not errors:
            note_answered(connection, role, name)


def said(store: Store, site: Settings) -> list[tuple[str, str]]:
    found = problems(look(store, site))
    return [(item.code, item.name) for item in found if item.code != "stale-source"]


def test_a_source_that_fails_is_a_problem_until_it_answers(here: Store, site: Settings) -> None:
    note(here, SOURCE, "pacs", "it does not answer", "it is not available now (HTTP 503)")
    [failing, *_] = problems(look(here, site))
    note(here, SOURCE, "pacs")

    assert (failing.code, failing.name) == ("source-fails", "pacs")
    assert failing.message == (
        "source pacs has failed for 0 s (2 times in a row): it is not available now (HTTP 503); "
        "once it is mended, the next run reads on where this one stopped"
    )
    assert said(here, site) == []


def scored(store: Store, broken: dict[str, str]) -> None:
    with store.writing() as connection:
        run_id = begin_run(connection, command="score", actor="a", owner="o", source=None, versions={})
        finish_run(connection, run_id, status="completed", counts={"selected": 0, "broken": broken})


def test_a_model_that_could_not_be_run_is_a_problem_until_it_can(here: Store, site: Settings) -> None:
    scored(here, {"splice-variant": "the reference GRCh38.fa cannot be used"})
    broken = next(item for item in problems(look(here, site)) if item.code == "broken-model")
    scored(here, {})

    assert broken.name == "splice-variant"
    assert broken.message == "splice-variant could not be run 0 s ago: the reference GRCh38.fa cannot be used"
    assert said(here, site) == []


def test_a_target_is_known_by_its_configured_name(here: Store, site: Settings) -> None:
    note(here, TARGET, CHART, "away")
    note(here, TARGET, site.target(None).public, "no space left")

    assert said(here, site) == [("target-fails", "default"), ("target-fails", "chart")]


def test_what_nobody_configured_is_listed_and_no_problem(
    here: Store, site: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    note(here, SOURCE, "http://other.example/dicom-web", "away")

    found = look(here, site)
    watch._show(found, problems(found))

    [link] = as_json(found)["connections"]
    assert said(here, site) == []
    assert (link["watched"], link["up"], link["failures"], link["error"]) == (False, False, 1, "away")
    assert "source http://other.example/dicom-web has failed for 0 s (once): away" in capsys.readouterr().out


def test_what_nobody_configured_is_forgotten_after_a_week(
    here: Store, site: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = now_us() - FORGOTTEN_US - HOUR_US
    with monkeypatch.context() as patched:
        patched.setattr(connections, "now_us", lambda: before)
        note(here, SOURCE, "http://other.example/dicom-web", "away")
        note(here, SOURCE, "pacs", "away")

    assert [link.name for link in look(here, site).links] == ["pacs"]


def test_how_far_a_source_was_read_is_said_of_the_kind_that_is_furthest_behind(
    here: Store, site: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    now = now_us()
    with here.writing() as connection:
        watermarks.set_mark(connection, "pacs", "studies", Watermark(until_us=now - 5 * HOUR_US))
        watermarks.set_mark(connection, "pacs", "worklist", Watermark(until_us=now - HOUR_US))

    found = look(here, site)
    watch._show(found, problems(found))

    assert set(as_json(found)["sources"]["pacs"]["read_until"]) == {"studies", "worklist"}
    assert "5 h ago" in capsys.readouterr().out


def test_a_source_of_which_one_kind_was_never_read_to_its_end_has_no_such_moment(here: Store, site: Settings) -> None:
    with here.writing() as connection:
        watermarks.set_mark(connection, "pacs", "studies", Watermark(until_us=5))
        watermarks.set_mark(connection, "pacs", "worklist", Watermark())

    [source] = look(here, site).sources
    assert source.read_us is None


def test_a_mark_of_what_is_no_longer_asked_for_does_not_hold_a_source_back(
    here: Store, site: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = now_us()
    for moment in (now - 2 * FORGOTTEN_US, now):
        monkeypatch.setattr(watermarks, "now_us", lambda moment=moment: moment)
        with here.writing() as connection:
            watermarks.set_mark(connection, "pacs", f"studies {moment}", Watermark(until_us=moment))

    [source] = look(here, site).sources
    assert source.read_us == now


def test_metrics_name_connections_and_tell_no_address_and_no_sentence(here: Store, site: Settings) -> None:
    note(here, SOURCE, "pacs", "SENTENCE", "SENTENCE")
    note(here, TARGET, CHART)
    note(here, TARGET, site.target(None).public, "SENTENCE")
    note(here, SOURCE, "http://other.example/secret", "SENTENCE")
    with here.writing() as connection:
        watermarks.set_mark(connection, "pacs", "studies", Watermark(until_us=now_us() - HOUR_US))

    text = exposition(here, site)

    found = {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels, reverse=True))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["medflow_connection_up", "source", "pacs"] == 0
    assert found["medflow_connection_failures", "source", "pacs"] == 2
    assert found["medflow_connection_answered_age_seconds", "source", "pacs"] == float("inf")
    assert found["medflow_connection_up", "target", "chart"] == 1
    assert found["medflow_connection_failing_seconds", "target", "chart"] == 0
    assert 3600 <= found["medflow_source_read_age_seconds", "pacs", "studies"] < 4000
    for word in ("SENTENCE", "secret", "example", "://"):
        assert word not in text
