"""The figures of the model card are what they say: checked where the truth is known."""

from __future__ import annotations

import io
import logging

import numpy as np
import pytest
from matplotlib.image import imread
from sklearn.metrics import brier_score_loss, roc_auc_score

from medflow_monai.xray_figures import (
    area_under_curve,
    at_prevalence,
    bins,
    calibration,
    reliability,
    report,
    weights_for,
    wilson,
)


@pytest.fixture
def calibrated():
    """Probabilities that hold at a prevalence of one half, and labels, of a population in which nine in ten are ill."""
    rng = np.random.default_rng(0)
    ill = np.arange(60_000) < 54_000
    margin = np.where(ill, rng.normal(2, 2, ill.size), rng.normal(-2, 2, ill.size))  # whose likelihood ratio it is
    return 1 / (1 + np.exp(-margin)), ill.astype(int)


def test_area_under_curve_counts_ties_half(calibrated):
    assert area_under_curve(np.array([0.1, 0.5, 0.5, 0.9]), np.array([0, 0, 1, 1])) == 0.875
    probability, labels = (values[::20] for values in calibrated)
    assert area_under_curve(probability, labels) == pytest.approx(roc_auc_score(labels, probability))


@pytest.mark.parametrize("prevalence", [0.5, 0.9, 0.05])
def test_a_calibrated_probability_is_so_at_every_prevalence(calibrated, prevalence):
    found = calibration(*calibrated, prevalence)

    assert found.ece_equal_count < 0.01
    assert found.ece_equal_width < 0.01


def test_what_ignores_the_prevalence_is_not_calibrated(calibrated):
    probability, labels = calibrated
    same = np.full(len(labels), 1 / len(labels))

    errors = [item.share * abs(item.mean - item.observed) for item in bins(probability, labels, same, equal_count=True)]

    assert sum(errors) > 0.1


def test_brier_is_the_known_one(calibrated):
    probability, labels = calibrated

    assert calibration(probability, labels, 0.9).brier == pytest.approx(
        brier_score_loss(labels, at_prevalence(probability, 0.9))
    )


def test_bins_hold_equal_weight_or_equal_width(calibrated):
    probability, labels = calibrated
    weights = weights_for(labels, 0.5)

    by_count = bins(probability, labels, weights, equal_count=True)
    by_width = bins(probability, labels, weights, equal_count=False)

    assert [item.share for item in by_count] == pytest.approx([0.1] * 10, abs=1e-3)
    assert [int(item.mean * 10) for item in by_width] == list(range(10))
    assert sum(item.share for item in by_width) == pytest.approx(1)


def test_odds_move_with_the_prevalence():
    assert at_prevalence(np.array([0.5, 0.8]), 0.5) == pytest.approx([0.5, 0.8])
    assert at_prevalence(np.array([0.5, 0.8]), 0.1) == pytest.approx([0.1, 4 / 13])


def test_wilson_holds_where_every_case_is_right():
    assert wilson(40, 40) == pytest.approx((0.912, 1.0), abs=1e-3)
    assert wilson(10, 40) == pytest.approx((0.142, 0.402), abs=1e-3)


def test_the_report_says_at_which_prevalence(calibrated, caplog):
    probability, labels = (values[::100] for values in calibrated)

    with caplog.at_level(logging.INFO):
        report("test", probability, labels, 0.5)

    assert "AUC" in caplog.text
    assert "at a prevalence of 0.500" in caplog.text
    assert "at a prevalence of 0.900" in caplog.text


def test_the_reliability_plot_is_a_picture(calibrated):
    probability, labels = (values[::100] for values in calibrated)

    drawn = imread(io.BytesIO(reliability({"one": (probability, labels), "two": (probability, labels)})))

    assert drawn.shape[1] > drawn.shape[0] > 200
    assert drawn[..., :3].std() > 0.05
