"""The intervals' draws are scikit-learn's metrics of the cases drawn, and draw whole patients."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from medflow.evaluation import bootstrap
from medflow.evaluation.bootstrap import gain, intervals, weighted

CASE = st.tuples(st.sampled_from([0, 1]), st.integers(0, 8), st.integers(0, 4))  # outcome, score, times drawn


@settings(max_examples=300, deadline=None)
@given(st.lists(CASE, min_size=1, max_size=40))
def test_a_draw_has_scikit_learns_figures_of_the_cases_drawn(cases):
    truth, score, times = (np.array(column) for column in zip(*cases, strict=True))
    drawn_truth, drawn_score = np.repeat(truth, times), np.repeat(score, times)

    auroc, auprc = weighted(truth, score / 8, times[None, :].astype(float))

    if len(np.unique(drawn_truth)) < 2:
        assert np.isnan(auroc[0]) and np.isnan(auprc[0])
    else:
        assert auroc[0] == pytest.approx(roc_auc_score(drawn_truth, drawn_score))
        assert auprc[0] == pytest.approx(average_precision_score(drawn_truth, drawn_score))


def cohort(count: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = (rng.random(count) < 0.3).astype(int)
    return truth[:, None], (rng.normal(truth, 1.0))[:, None]


def test_the_interval_holds_the_figure_and_is_the_same_each_time():
    truth, score = cohort(400)
    first, again = (intervals(truth, score, np.arange(400)) for _ in range(2))

    assert first == again
    assert first.auroc is not None and first.auprc is not None
    assert first.auroc[0] < roc_auc_score(truth[:, 0], score[:, 0]) < first.auroc[1]
    assert first.auprc[0] < average_precision_score(truth[:, 0], score[:, 0]) < first.auprc[1]


def test_four_times_the_cases_give_half_the_interval():
    widths = []
    for count in (500, 2000):
        truth, score = cohort(count)
        low, high = intervals(truth, score, np.arange(count)).auroc or (0.0, 0.0)
        widths.append(high - low)

    assert widths[0] / widths[1] == pytest.approx(2, rel=0.25)


def test_cases_of_one_patient_count_once():
    truth, score = cohort(300)
    tripled = [np.repeat(item, 3, axis=0) for item in (truth, score)]

    single = intervals(truth, score, np.arange(300))
    by_patient = intervals(*tripled, np.repeat(np.arange(300), 3))
    by_case = intervals(*tripled, np.arange(900))

    assert by_patient.auroc == pytest.approx(single.auroc)
    assert by_patient.auprc == pytest.approx(single.auprc)
    assert by_case.auroc is not None and single.auroc is not None
    assert by_case.auroc[1] - by_case.auroc[0] < 0.75 * (single.auroc[1] - single.auroc[0])


def test_there_is_no_interval_where_most_draws_hold_one_outcome_only():
    truth = np.zeros((50, 1), dtype=int)
    truth[0] = 1

    assert intervals(truth, np.linspace(0, 1, 50)[:, None], np.arange(50)).auroc is None


def test_drawing_in_parts_changes_nothing(monkeypatch):
    truth, score = cohort(100)
    whole = intervals(truth, score, np.arange(100))
    monkeypatch.setattr(bootstrap, "CELLS", 700)

    assert intervals(truth, score, np.arange(100)) == whole


def test_four_thousand_cases_take_seconds():
    truth, score = cohort(4000)
    started = time.monotonic()

    intervals(truth, score, np.arange(4000))

    assert time.monotonic() - started < 20  # well under one second on an idle core


def test_a_million_cases_get_fewer_draws():
    assert bootstrap.draws_for(4000) == 1000
    assert bootstrap.draws_for(1_000_000) == 400
    assert bootstrap.draws_for(10_000_000) == 200


def test_a_gain_is_the_difference_of_the_areas_on_the_same_draws():
    truth, score = (column[:, 0] for column in cohort(300))
    worse = score + np.random.default_rng(1).normal(0, 2, size=300)
    patients = np.arange(300) // 2

    found, none = gain(truth, score, worse, patients), gain(truth, score, score * 2, patients)

    assert found is not None and found.interval is not None
    assert found.value == pytest.approx(roc_auc_score(truth, score) - roc_auc_score(truth, worse))
    assert 0 < found.interval[0] < found.value < found.interval[1]
    assert none is not None and (none.value, none.interval) == (0, (0, 0))  # draw by draw the same
    assert gain(np.ones(300), score, worse, patients) is None
