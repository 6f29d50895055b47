import pytest
from prefect.states import StateType

from medflow.flows.report import final_state, summary, table

TAKEN = {"offered": 3, "stored": 2, "unchanged": 0, "rejected": 1, "reasons": {"empty": 1}, "notes": {}}
SCORED = {"selected": 2, "done": 2, "failed": 0, "dead": 0, "reasons": {}, "broken": {}}


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


def test_the_summary_names_what_is_not_zero():
    assert summary({"ingest": TAKEN, "score": SCORED}) == (
        "ingest: 3 offered, 2 stored, 1 rejected, score: 2 selected, 2 done"
    )


def test_the_table_lists_counts_and_reasons():
    lines = table(TAKEN).splitlines()

    assert "| offered | 3 |" in lines
    assert "**reasons**" in lines
    assert "| empty | 1 |" in lines
