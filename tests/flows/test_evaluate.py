"""The evaluate flow on Prefect's own temporary server: its artifact, its end, and what Prefect gets to see."""

import json
import sqlite3
import subprocess
import sys

import pytest

from tests.distributions import environment, medflow, write_distribution
from tests.stays import MRN, Stay, write_stays

HEART = "from tests import stays\n\nclass HeartRisk(stays.HeartRisk):\n    pass\n"
RUN = """
import sys
from medflow.flows.evaluate import evaluate
state = evaluate(**{parameters!r}, return_state=True)
print(state.type.value, state.message)
"""


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Forty scored stays, a configured table of their outcomes, and an empty one."""
    root = tmp_path_factory.mktemp("evaluate")
    labels, empty = root / "returned.csv", root / "empty.csv"
    cohort = [
        Stay(number=number, rate=55 + (number * 37) % 90, sex="male" if number % 2 else "female")
        for number in range(40)
    ]
    labels.write_text("encounter,outcome\n" + "".join(f"e{stay.number},{int(stay.rate > 100)}\n" for stay in cohort))
    empty.write_text("encounter,outcome\n")
    env = environment(
        root / "home",
        write_distribution(root / "plugins", "heart", HEART, {"heart-risk": "HeartRisk"}),
        PREFECT_HOME=str(root / "prefect"),
        MEDFLOW_LABELS=json.dumps({"registry": {"path": str(labels)}, "empty": {"path": str(empty)}}),
        PREFECT_LOGGING_LEVEL="WARNING",
    )
    assert medflow(env, "ingest", "fhir", write_stays(root / "in", cohort)).returncode == 0
    assert medflow(env, "score", "--model", "heart-risk").returncode == 0
    return env, root


def run(env: dict[str, str], **parameters: str) -> str:
    script = RUN.format(parameters=parameters)
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_it_ends_completed_with_a_report_that_has_its_plots_inside(scored):
    env, root = scored

    said = run(env, model="heart-risk", labels="registry")

    assert said.startswith("COMPLETED 40 of 40 cases: auroc 1.000")
    with sqlite3.connect(root / "prefect" / "prefect.db") as connection:
        ((key, data),) = connection.execute("SELECT key, data FROM artifact WHERE type = 'markdown'").fetchall()
        dump = "\n".join(connection.iterdump())
    assert key == "medflow-evaluate-heart-risk"
    assert data.count("](data:image/png;base64,") == 3
    assert "## By group" in data
    assert str(root / "returned.csv") not in dump
    assert MRN not in dump and "M0001" not in dump and "1950-06-01" not in dump


def test_it_ends_failed_with_a_sentence_where_nothing_could_be_joined(scored):
    env, _ = scored

    assert run(env, model="heart-risk", labels="empty").startswith(
        "FAILED of 40 predictions of death by heart-risk, none has a known outcome"
    )


def test_a_path_is_no_name_of_a_table(scored):
    env, root = scored

    said = run(env, model="heart-risk", labels=str(root / "returned.csv"))

    assert said.startswith("FAILED no label table is called")
    assert said.endswith("MEDFLOW_LABELS has: empty, registry")
