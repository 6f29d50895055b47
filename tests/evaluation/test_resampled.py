"""Each draw's figures are scikit-learn's of the cases drawn; the intervals hold the figure."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflow.evaluation import metrics, resampled
from medflow.evaluation.bootstrap import intervals_of

CASE = st.tuples(st.integers(0, 2), st.integers(0, 8), st.integers(0, 8), st.integers(0, 3))  # outcome, scores, times


def same(drawn: dict[str, np.ndarray], wanted: metrics.Values, names: list[str]) -> None:
    for name in names:
        value = wanted[name]
        assert np.isnan(drawn[name][0]) if value is None else drawn[name][0] == pytest.approx(value), name


@settings(max_examples=40, deadline=None)
@given(st.lists(CASE, min_size=1, max_size=30).filter(lambda cases: any(case[3] for case in cases)))
def test_a_draw_has_scikit_learns_figures_of_the_cases_drawn(cases):
    outcome, one, other, times = (np.array(column) for column in zip(*cases, strict=True))
    truth, score, weights = (outcome == 1).astype(int), one / 8, times[None, :].astype(float)
    drawn = resampled.of_binary(truth, score, 0.5)(weights)

    wanted = metrics.binary(np.repeat(truth, times), np.repeat(score, times), 0.5)

    same(drawn, wanted, [name for name in wanted if name != "ece"])

    scores = np.column_stack([one, other, np.full(len(one), 4)]) / (one + other + 4)[:, None]
    drawn = resampled.of_classes(outcome, scores)(weights)
    wanted = metrics.classes(np.repeat(outcome, times), np.repeat(scores, times, axis=0))
    same(drawn, wanted, ["accuracy", "recall", "precision", "f1", "brier"])


def cohort(count: int, seed: int = 5):
    rng = np.random.default_rng(seed)
    score = rng.random(count)
    return (rng.random(count) < score).astype(int), score


def test_the_error_of_calibration_of_all_cases_is_that_of_the_metrics():
    truth, score = cohort(500)
    scores = np.column_stack([1 - score, score])
    once = np.ones((1, 500))

    assert resampled.of_binary(truth, score, 0.5)(once)["ece"][0] == pytest.approx(
        metrics.calibration_error(truth, score)
    )
    assert resampled.of_classes(truth, scores)(once)["ece"][0] == pytest.approx(metrics.classes(truth, scores)["ece"])


def test_every_figure_has_an_interval_that_narrows_with_the_cases():
    widths = []
    for count in (400, 1600):
        truth, score = cohort(count)
        values = metrics.binary(truth, score, 0.5)
        found = intervals_of(resampled.of_binary(truth, score, 0.5), np.arange(count))
        assert found.keys() == values.keys()
        for name, interval in found.items():
            assert interval is not None
            assert name == "ece" or interval[0] < values[name] < interval[1]  # the error of a draw is biased upwards
        widths.append([high - low for name, (low, high) in found.items() if name != "ece"])

    assert np.mean(np.divide(*widths)) == pytest.approx(2, rel=0.25)


def test_one_class_against_the_rest_has_its_own():
    truth, score = cohort(300)
    found = resampled.of_one_class(truth, score, (score >= 0.5).astype(int))(np.ones((1, 300)))
    wanted = metrics.binary(truth, score, 0.5)

    same(found, wanted, ["auroc", "auprc", "accuracy", "recall", "precision", "f1"])
