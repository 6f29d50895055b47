"""How good a risk is: discrimination, the challenge's event-1 score and calibration."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import average_precision_score, brier_score_loss, precision_recall_curve, roc_auc_score

BINS = 10


def auroc(event: np.ndarray, score: np.ndarray) -> float:
    """Probability that a random event scores above a random non-event, ties counted half."""
    return float(roc_auc_score(event, score))


def auprc(event: np.ndarray, score: np.ndarray) -> float:
    """Average precision."""
    return float(average_precision_score(event, score))


def event_1(event: np.ndarray, score: np.ndarray) -> float:
    """The challenge's event-1 score: the smaller of sensitivity and positive predictivity, at the best threshold."""
    predictivity, sensitivity, _ = precision_recall_curve(event, score)
    return float(np.minimum(predictivity, sensitivity).max())


def best_threshold(event: np.ndarray, score: np.ndarray) -> float | None:
    """The threshold (at it, positive) with the best event-1 score; None where there are no events."""
    if not event.any():
        return None
    predictivity, sensitivity, thresholds = precision_recall_curve(event, score)
    return float(thresholds[np.minimum(predictivity, sensitivity)[:-1].argmax()])


def decisions(event: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    """Sensitivity, positive predictivity, specificity and event-1 score of decisions already made."""
    true = float((event & positive).sum())
    sensitivity, predictivity = true / max(event.sum(), 1), true / max(positive.sum(), 1)
    return {
        "sensitivity": sensitivity,
        "positive_predictivity": predictivity,
        "specificity": float((~event & ~positive).sum() / max((~event).sum(), 1)),
        "event_1": min(sensitivity, predictivity),
    }


def tenths(event: np.ndarray, probability: np.ndarray) -> list[tuple[float, float]]:
    """Mean probability and share of events over equally filled bins, from the lowest up."""
    parts = np.array_split(np.argsort(probability, kind="stable"), BINS)
    return [(float(probability[part].mean()), float(event[part].mean())) for part in parts if len(part)]


def calibration_error(event: np.ndarray, probability: np.ndarray) -> float:
    """Expected calibration error: the mean distance of mean probability and share of events over bins of equal width,
    each by how many cases it has.
    """
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    total = np.bincount(place, weights=probability - event, minlength=BINS)
    return float(np.abs(total).sum() / len(event))


def report(event: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """All of them, with the Brier score and the number of cases and events."""
    return {
        "stays": len(event),
        "deaths": int(event.sum()),
        "auroc": auroc(event, probability),
        "auprc": auprc(event, probability),
        "event_1_best_threshold": event_1(event, probability),
        "brier": float(brier_score_loss(event, probability)),
        "ece": calibration_error(event, probability),
        "ece_of_tenths": float(np.mean([abs(mean - share) for mean, share in tenths(event, probability)])),
        "mean_risk": float(probability.mean()),
    }
