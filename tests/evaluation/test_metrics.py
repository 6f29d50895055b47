"""Figures against hand-made ones and an independent path; what is not defined is None."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from medflow.evaluation import metrics

TRUTH, SCORE = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])


def test_a_case_worked_by_hand():
    found = metrics.binary(TRUTH, SCORE, 0.5)

    # pairs (event, other) ordered rightly: (.35, .1), (.8, .1), (.8, .4) of 4; decisions: one true positive, one missed
    assert found["auroc"] == pytest.approx(3 / 4)
    assert found["auprc"] == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert (found["accuracy"], found["recall"], found["precision"]) == (3 / 4, 1 / 2, 1.0)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["brier"] == pytest.approx((0.1**2 + 0.4**2 + 0.65**2 + 0.2**2) / 4)
    assert found["ece"] == pytest.approx(abs(0.5 - (0.1 + 0.4 + 0.35 + 0.8) / 4))  # four cases are one bin


def test_a_score_at_the_threshold_is_positive():
    assert metrics.binary(TRUTH, SCORE, 0.35)["recall"] == 1.0


@pytest.mark.parametrize("outcome", [0, 1])
def test_with_one_outcome_alone_discrimination_is_not_defined(outcome):
    found = metrics.binary(np.full(4, outcome), SCORE, 0.5)

    assert found["auroc"] is found["auprc"] is None
    assert found["brier"] == pytest.approx(np.mean((SCORE - outcome) ** 2))
    assert (found["recall"] is None) == (outcome == 0)


def test_precision_is_not_defined_where_nothing_is_called_positive():
    assert metrics.binary(TRUTH, SCORE, 0.9)["precision"] is None


def test_three_classes_worked_by_hand():
    truth = np.array([0, 1, 2, 2])
    score = np.array([[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]])

    found = metrics.classes(truth, score)

    # decided 0 0 2 2; each class against the rest is perfectly ordered
    assert found["accuracy"] == 3 / 4
    assert found["recall"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["auroc"] == found["auprc"] == 1.0
    wanted = np.mean([0.04 + 0.01 + 0.01, 0.25 + 0.49 + 0.04, 0.01 + 0.01 + 0.04, 0.04 + 0.04 + 0.16])
    assert found["brier"] == pytest.approx(wanted)


def test_a_class_without_cases_leaves_the_macro_average_undefined():
    score = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.6, 0.1]])

    assert metrics.classes(np.array([0, 1, 1]), score)["auroc"] is None


def test_the_bins_are_scikit_learns_where_scores_are_distinct():
    rng = np.random.default_rng(5)
    score = rng.random(200)
    truth = (rng.random(200) < score).astype(int)
    observed, mean_score = calibration_curve(truth, score, n_bins=10, strategy="quantile")

    found = metrics.calibration(truth, score)

    assert [item.observed for item in found] == pytest.approx(observed)
    assert [item.mean_score for item in found] == pytest.approx(mean_score)
    assert metrics.calibration_error(truth, score) == pytest.approx(np.mean(abs(observed - mean_score)))


CASES = st.lists(st.tuples(st.sampled_from([0, 1]), st.integers(0, 20)), min_size=1, max_size=300)


@settings(max_examples=150, deadline=None)
@given(CASES)
def test_every_bin_has_ten_cases_and_equal_scores_share_one(cases):
    truth, score = np.array([case[0] for case in cases]), np.array([case[1] for case in cases]) / 20

    bins = metrics.calibration(truth, score)

    assert sum(item.cases for item in bins) == len(cases)
    assert min(item.cases for item in bins) >= min(10, len(cases))
    assert len(bins) <= min(10, len(np.unique(score)))
    assert [item.mean_score for item in bins] == sorted(item.mean_score for item in bins)


@settings(max_examples=150, deadline=None)
@given(CASES, st.randoms())
def test_the_calibration_error_is_a_share_and_blind_to_order(cases, random):
    mixed = random.sample(cases, len(cases))
    errors = [
        metrics.calibration_error(np.array([case[0] for case in some]), np.array([case[1] for case in some]) / 20)
        for some in (cases, mixed)
    ]

    assert 0 <= errors[0] <= 1
    assert errors[0] == pytest.approx(errors[1])
