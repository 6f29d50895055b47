"""How good a risk is: discrimination, the challenge's event-1 score and calibration, in numpy alone."""

from __future__ import annotations

import numpy as np


def auroc(event: np.ndarray, score: np.ndarray) -> float:
    """Probability that a random event scores above a random non-event, ties counted half."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    events = int(event.sum())
    rest = len(event) - events
    return float((rank[event].sum() - events * (events + 1) / 2) / (events * rest))


def _points(event: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sensitivity and positive predictivity at every distinct threshold, from the highest down."""
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(score[order]) != 0, True])
    true = np.cumsum(event[order])[ends]
    return true / event.sum(), true / (ends + 1)


def auprc(event: np.ndarray, score: np.ndarray) -> float:
    """Average precision."""
    sensitivity, predictivity = _points(event, score)
    return float(np.sum(np.diff(sensitivity, prepend=0.0) * predictivity))


def event_1(event: np.ndarray, score: np.ndarray) -> float:
    """The challenge's event-1 score: the smaller of sensitivity and positive predictivity, at the best threshold."""
    return float(np.minimum(*_points(event, score)).max())


def best_threshold(event: np.ndarray, score: np.ndarray) -> float | None:
    """The threshold (at it, positive) with the best event-1 score; None where there are no events."""
    if not event.any():
        return None
    ranked = np.sort(score)[::-1]
    ends = np.flatnonzero(np.r_[np.diff(ranked) != 0, True])
    return float(ranked[ends[np.argmax(np.minimum(*_points(event, score)))]])


def calibration_error(event: np.ndarray, probability: np.ndarray, bins: int = 10) -> float:
    """Mean distance of mean probability and share of events over ``bins`` equally filled bins."""
    parts = np.array_split(np.argsort(probability, kind="stable"), bins)
    return float(np.mean([abs(probability[part].mean() - event[part].mean()) for part in parts]))


def report(event: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """All of them, with the Brier score and the number of cases and events."""
    return {
        "stays": len(event),
        "deaths": int(event.sum()),
        "auroc": auroc(event, probability),
        "auprc": auprc(event, probability),
        "event_1": event_1(event, probability),
        "brier": float(np.mean((probability - event) ** 2)),
        "calibration_error": calibration_error(event, probability),
        "mean_risk": float(probability.mean()),
    }
