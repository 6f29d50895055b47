"""How a run ends, and what is written of it; whole nights are in test_night_report."""

import json
import re

import pytest
from prefect.states import StateType

from medflow.flows import pages
from medflow.flows.report import _show, final_state, key_of, summary
from medflow.status import Link
from medflow.store.connections import ConnectionLine
from tests.test_docs import ROOT

TAKEN = {"offered": 3, "stored": 2, "unchanged": 0, "rejected": 1, "reasons": {"empty": 1}, "notes": {}}
SCORED = {"selected": 2, "done": 2, "failed": 0, "dead": 0, "reasons": {}, "broken": {}}
SENT = {"pending": 5, "delivered": 5, "failed": 0, "dead": 0, "errors": {}}


@pytest.mark.parametrize(
    ("counts", "kind", "name"),
    [
        (SCORED, StateType.COMPLETED, "Completed"),
        (TAKEN, StateType.COMPLETED, "CompletedWithProblems"),
        (SCORED | {"dead": 1}, StateType.COMPLETED, "CompletedWithProblems"),
        (SCORED | {"failed": 1}, StateType.FAILED, "Failed"),
        (SCORED | {"broken": {"m": "does not import"}}, StateType.FAILED, "Failed"),
        ({"ingest": TAKEN, "score": SCORED}, StateType.COMPLETED, "CompletedWithProblems"),
        ({"ingest": TAKEN, "score": SCORED | {"failed": 1}}, StateType.FAILED, "Failed"),
    ],
)
def test_a_run_ends_in_the_state_it_deserves(counts, kind, name):
    state = final_state(counts)

    assert (state.type, state.name) == (kind, name)


def test_a_reason_called_failed_is_a_count_of_reasons_not_a_failure():
    assert final_state(SCORED | {"reasons": {"failed": 4}}).name == "Completed"


def test_counts_taken_apart_by_model_or_source_are_not_counted_twice():
    counts = SCORED | {"models": {"gc@1": SCORED}, "sources": {"a": TAKEN}}

    assert summary(counts) == "2 selected, 2 done"
    assert final_state(counts).name == "Completed"


def test_the_summary_names_what_is_not_zero():
    assert summary({"ingest": TAKEN, "score": SCORED}) == (
        "ingest: 3 offered, 2 stored, 1 rejected, score: 2 selected, 2 done"
    )


# --- pages -------------------------------------------------------------------------------------------------------


def tables(page: str) -> list[list[dict[str, str]]]:
    """The tables of a Markdown page, as rows by column; a table whose rows differ in length fails."""
    found = []
    for block in re.findall(r"(?:^\|.*\|$\n?)+", page, re.M):
        head, rule, *rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()
        ]
        assert all(re.fullmatch(r"-{3,}:?", cell) for cell in rule)
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def test_a_page_of_an_ingest_has_a_row_a_source_and_says_what_each_reason_means():
    second = {"offered": 1, "stored": 1, "unchanged": 0, "rejected": 0, "reasons": {}, "notes": {}}
    first = TAKEN | {"offered": 2, "stored": 1}

    page = pages.step("What was taken in", TAKEN | {"sources": {"records": first, "imaging": second}})

    needs, sources, reasons = tables(page)
    assert page.startswith("# What was taken in\n\nOf 3 inputs 2 new, 0 unchanged, **1 rejected**.\n")
    assert [(row["source"], row["offered"]) for row in sources] == [
        ("records", "2"),
        ("imaging", "1"),
        ("**all**", "3"),
    ]
    assert [(row["reason"], row["inputs"]) for row in reasons] == [("empty", "1")]
    assert reasons[0]["what it means"] == "The file has no bytes."
    assert needs[0]["look"] == "`medflow rejects`"


def test_a_page_of_a_scoring_has_a_row_a_model_with_its_reasons():
    dead = SCORED | {"done": 1, "dead": 1, "reasons": {"too-few-slices": 1}, "notes": {"held-by-others": 7}}
    counts = SCORED | {"done": 3, "dead": 1, "reasons": {"too-few-slices": 1}, "notes": {"held-by-others": 7}}

    page = pages.step("What was scored", counts | {"seconds": {"read": 1.0}, "gc@1.0.0": SCORED, "ct@2.0.0": dead})

    needs, models, reasons, stages = tables(page)
    assert [(row["model"], row["scored"], row["dead"]) for row in models] == [
        ("ct@2.0.0", "1", "1"),
        ("gc@1.0.0", "2", "0"),
        ("**all**", "3", "1"),
    ]
    assert (models[0]["held by others"], models[0]["why"]) == ("7", "too-few-slices (1)")
    assert reasons[0]["what it means"].startswith("The series has fewer slices")
    assert "medflow retry jobs" in needs[0]["then"]
    assert [row["stage"] for row in stages] == ["read"]


def test_a_model_that_could_not_be_run_is_for_a_person():
    page = pages.step("What was scored", SCORED | {"done": 0, "broken": {"ct": "ImportError: no module | here"}})

    assert "**1 model could not be run**" in page
    assert tables(page)[0][0]["look"] == "ImportError: no module \\| here"


def test_a_page_of_a_delivery_says_why_the_target_took_nothing():
    page = pages.step("What was delivered", SENT | {"delivered": 2, "dead": 3, "errors": {"422 invalid": 3}})

    assert "2 resources delivered, **3 refused**." in page
    assert tables(page)[-1] == [{"answer": "422 invalid", "resources": "3"}]
    assert "`medflow retry deliveries`" in page


def test_a_step_that_had_nothing_to_do_says_so():
    nothing = {"pending": 0, "delivered": 0, "failed": 0, "dead": 0, "errors": {}}

    assert "Nobody has to do anything." in pages.step("What was delivered", nothing)
    assert "Nothing was to be sent." in pages.step("What was delivered", nothing)


def test_a_step_that_the_infrastructure_stopped_is_said_with_its_error():
    counts = {"ingest": TAKEN, "score": {"failed": 1, "errors": {"the database did not answer": 1}}, "deliver": SENT}

    page = pages.night(counts, verdict="Not everything got through", waiting={})

    assert "**Nothing was scored**: the database did not answer." in page
    assert "5 resources delivered." in page


def test_a_server_that_does_not_answer_is_on_the_page_of_the_night_by_name_and_without_address():
    line = ConnectionLine(
        role="source",
        name="pacs",
        ok_us=1,
        failing_since_us=7_200_000_001,
        failed_us=None,
        failures=3,
        error="http://pacs.example does not answer",
    )
    silent = pages.silent([Link(name="pacs", watched=True, line=line)], now_us=10_800_000_001)
    counts = {"ingest": TAKEN | {"failed": 1, "errors": {"pacs did not answer": 1}}, "deliver": SENT}

    page = pages.night(counts, verdict="Not everything got through", waiting={}, silent=silent)

    needs, [row], *_ = tables(page)
    assert [item["look"] for item in needs if item["what"] == "a source could not be read"] == ["pacs did not answer"]
    assert row == {"": "source", "name": "pacs", "fails since": "60 min", "in a row": "3", "answered last": "3 h ago"}
    assert "example" not in page


def test_results_that_were_withdrawn_are_said_first_though_nothing_was_new():
    page = pages.step("What was scored", {"selected": 0, "done": 0, "notes": {"withdrawn": 2}})

    assert "0 cases scored, **2 earlier results withdrawn**." in page


def test_counts_of_another_flow_become_plain_tables():
    first, second = tables(pages.step("Evaluated", {"cases": 4, "auc": {"gc": 0.91}}))

    assert first == [{"what": "cases", "count": "4"}]
    assert second == [{"what": "gc", "count": "0.91"}]


def test_what_codes_mean_is_what_the_documentation_says():
    rejects = re.findall(r"^\| `([a-z-]+)` \| (.+) \| (.+) \|$", (ROOT / "docs/users/rejects.md").read_text(), re.M)
    listed = re.findall(
        r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \| (.+) \|$", (ROOT / "docs/users/score.md").read_text(), re.M
    )

    assert pages.meanings()["rejects"] == {code: [means, do] for code, means, do in rejects}
    assert pages.meanings()["cases"] == {
        code: means for codes, means in listed for code in re.findall(r"`([a-z-]+)`", codes)
    }


def test_a_key_is_one_that_prefect_takes():
    from prefect.client.schemas.actions import ArtifactCreate

    for words in (("night",), ("scores-Ärzte_GC content",), ("picture", "1")):
        assert ArtifactCreate(key=key_of(*words), data=json.dumps(1)).key == key_of(*words)


def test_a_plot_that_breaks_costs_that_plot_only_and_its_error_quotes_nothing(caplog):
    def broken() -> bytes:
        raise ValueError("Erika Mustermann")

    _show("nights", "The last nights", broken)

    assert "no plot of nights: ValueError at test_report.py:" in caplog.text
    assert "Mustermann" not in caplog.text
