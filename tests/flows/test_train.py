"""The train flow on Prefect's own temporary server: its artifact, its end, and what Prefect gets to see."""

import json
import sqlite3
import subprocess
import sys

from tests.distributions import environment, medflow, write_distribution
from tests.stays import MRN, write_stays
from tests.trained_stays import stays

HEART = "from tests import trained_stays\n\nclass HeartFit(trained_stays.HeartFit):\n    pass\n"
RUN = """
from medflow.flows.train import train
for asked in ({"labels": "few"}, {"cohort": "grown", "labels": "", "trials": 2, "sampler": "random", "seed": 3}):
    state = train(model="heart-fit", **asked, return_state=True)
    print(state.type.value, state.message)
"""


def test_it_ends_with_a_candidate_and_its_card_and_a_cohort_that_is_too_small_in_a_sentence(tmp_path):
    few = tmp_path / "few.csv"
    few.write_text("encounter,outcome\ne1,1\ne2,0\n")
    env = environment(
        tmp_path / "home",
        write_distribution(tmp_path / "plugins", "heartfit", HEART, {"heart-fit": "HeartFit"}),
        PREFECT_HOME=str(tmp_path / "prefect"),
        MEDFLOW_LABELS=json.dumps({"few": {"path": str(few)}}),
        MEDFLOW_COHORTS=json.dumps({"grown": {"min_age": 18}}),
        PREFECT_LOGGING_LEVEL="WARNING",
    )
    assert medflow(env, "ingest", "fhir", write_stays(tmp_path / "in", stays())).returncode == 0

    done = subprocess.run(
        [sys.executable, "-c", RUN], env=env, capture_output=True, text=True, timeout=240, check=False
    )

    assert done.returncode == 0, done.stderr
    refused, trained = done.stdout.strip().splitlines()
    assert refused.startswith("FAILED of the cohort, 1 patients have the outcome and 1 have not")
    assert trained.startswith("COMPLETED heart-fit 1.2.0+trained.1, AUROC 0.")
    assert trained.endswith("to have it served, medflow models promote heart-fit 1.2.0+trained.1")
    with sqlite3.connect(tmp_path / "prefect" / "prefect.db") as connection:
        ((key, card),) = connection.execute("SELECT key, data FROM artifact WHERE type = 'markdown'").fetchall()
        dump = "\n".join(connection.iterdump())
    assert key == "medflow-train-heart-fit"
    assert card.count("](data:image/png;base64,") == 4
    assert "stays of patients of 18 years or more" in card
    assert str(few) not in dump
    assert MRN not in dump and "M0003" not in dump and "1950-06-01" not in dump
