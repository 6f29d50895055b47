"""The figures of `metrics` for many weightings of the cases at once: what a thousand bootstrap draws come to.

scikit-learn's functions take one set of weights a call; these take all, as a few matrix products. The tests hold them
against scikit-learn's, draw by draw.
"""

from __future__ import annotations

import numpy as np

from medflow.evaluation.bootstrap import Figures, areas
from medflow.evaluation.metrics import bins_of

Drawn = dict[str, np.ndarray]


def of_binary(truth: np.ndarray, score: np.ndarray, threshold: float) -> Figures:
    """As `metrics.binary`: ``truth`` (n,) 0 or 1, ``score`` (n,); yes at ``threshold`` and above."""
    decided, loss, place = score >= threshold, (score - truth) ** 2, bins_of(score)
    return lambda weights: {
        **areas(truth[:, None], score[:, None], weights),
        "accuracy": _mean(weights, decided == truth),
        **_decisions(weights, truth == 1, decided),
        "brier": _mean(weights, loss),
        "ece": _calibration_error(weights, truth, score, place),
    }


def of_classes(truth: np.ndarray, score: np.ndarray) -> Figures:
    """As `metrics.classes`: ``truth`` (n,) the index of a class, ``score`` (n, classes)."""
    score = score / score.sum(axis=1, keepdims=True)
    each = truth[:, None] == np.arange(score.shape[1])
    chosen, confidence = score.argmax(axis=1), score.max(axis=1)
    right, loss, place = chosen == truth, ((score - each) ** 2).sum(axis=1), bins_of(confidence)

    def figures(weights: np.ndarray) -> Drawn:
        by_class = [_decisions(weights, each[:, index], chosen == index) for index in range(score.shape[1])]
        return {
            **areas(each.astype(int), score, weights),
            "accuracy": _mean(weights, right),
            **{name: _over_classes([found[name] for found in by_class]) for name in by_class[0]},
            "brier": _mean(weights, loss),
            "ece": _calibration_error(weights, right, confidence, place),
        }

    return figures


def of_one_class(truth: np.ndarray, score: np.ndarray, decided: np.ndarray) -> Figures:
    """One class against the rest: ``truth`` (n,) 0 or 1, ``decided`` (n,) whether it was the most probable."""
    return lambda weights: {
        **areas(truth[:, None], score[:, None], weights),
        "accuracy": _mean(weights, decided == truth),
        **_decisions(weights, truth == 1, decided == 1),
    }


def _decisions(weights: np.ndarray, positive: np.ndarray, decided: np.ndarray) -> Drawn:
    hits, events, called = (weights @ item.astype(float) for item in (positive & decided, positive, decided))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"recall": hits / events, "precision": hits / called, "f1": 2 * hits / (events + called)}


def _mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    return weights @ values.astype(float) / weights.sum(axis=1)


def _calibration_error(weights: np.ndarray, truth: np.ndarray, score: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Over the bins of all cases, whatever a draw makes of them."""
    inside = place[:, None] == np.arange(place.max() + 1)
    return np.abs(weights @ (inside * (score - truth)[:, None])).sum(axis=1) / weights.sum(axis=1)


def _over_classes(found: list[np.ndarray]) -> np.ndarray:
    """The mean over the classes for which it is defined."""
    stacked = np.stack(found)
    defined = ~np.isnan(stacked)
    with np.errstate(invalid="ignore"):
        return np.where(defined, stacked, 0).sum(axis=0) / defined.sum(axis=0)
