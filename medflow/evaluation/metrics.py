"""How well scores fit outcomes: scikit-learn's metrics, and the calibration that it has none for.

A metric that is not defined for the cases at hand is None, never 0 or NaN. ``truth`` is 0 or 1, or the index of a
class; ``score`` is a probability, (n,), or (n, classes).
"""

from __future__ import annotations

import math

import numpy as np
from sklearn import metrics

from medflow.evaluation.result import SMALLEST, Bin

BINS = 10
Values = dict[str, float | None]


def binary(truth: np.ndarray, score: np.ndarray, threshold: float) -> Values:
    """Every metric of a probability against a yes or no; decisions are positive at ``threshold`` and above."""
    decided = (score >= threshold).astype(int)
    found = decisions(truth, decided, average="binary", labels=[0, 1])
    brier = metrics.brier_score_loss(truth, score, labels=[0, 1], pos_label=1)
    return {**discrimination(truth, score), **found, "brier": float(brier), "ece": calibration_error(truth, score)}


def classes(truth: np.ndarray, score: np.ndarray) -> Values:
    """Every metric of several classes' probabilities: macro averages, one class against the rest."""
    count = score.shape[1]
    score = score / score.sum(axis=1, keepdims=True)
    decided = score.argmax(axis=1)
    each = [discrimination(truth == index, score[:, index]) for index in range(count)]
    found = decisions(truth, decided, average="macro", labels=list(range(count)))
    brier = metrics.brier_score_loss(truth, score, labels=list(range(count)))
    return {
        "auroc": _mean([item["auroc"] for item in each]),
        "auprc": _mean([item["auprc"] for item in each]),
        **found,
        "brier": float(brier),
        "ece": calibration_error(decided == truth, score.max(axis=1)),
    }


def discrimination(truth: np.ndarray, score: np.ndarray) -> Values:
    """AUROC and AUPRC (average precision); neither is defined where all cases have the same outcome."""
    if len(np.unique(truth)) < 2:
        return {"auroc": None, "auprc": None}
    return {
        "auroc": float(metrics.roc_auc_score(truth, score)),
        "auprc": float(metrics.average_precision_score(truth, score)),
    }


def decisions(truth: np.ndarray, decided: np.ndarray, *, average: str, labels: list[int]) -> Values:
    """Accuracy, recall, precision and F1; a macro average is over the classes for which it is defined."""
    chosen = None if average == "binary" else labels
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        truth,
        decided,
        labels=chosen,
        average=average,  # pyright: ignore[reportArgumentType]  # scikit-learn's stub names every word it takes
        zero_division=np.nan,  # pyright: ignore[reportArgumentType]  # accepted since 1.3, its stub says str
    )
    found = {"accuracy": metrics.accuracy_score(truth, decided), "recall": recall, "precision": precision, "f1": f1}
    return {name: _number(value) for name, value in found.items()}


def confusion(truth: np.ndarray, decided: np.ndarray, count: int) -> list[list[int]]:
    """Counts by outcome (rows) and decision (columns)."""
    return metrics.confusion_matrix(truth, decided, labels=list(range(count))).tolist()


def calibration(truth: np.ndarray, score: np.ndarray) -> list[Bin]:
    """Up to ten bins, about equally filled; equal scores share a bin, and none has fewer than ten cases."""
    place = bins_of(score)
    return [
        Bin(cases=int(inside.sum()), mean_score=float(score[inside].mean()), observed=float(truth[inside].mean()))
        for inside in (place == number for number in range(place.max() + 1))
    ]


def bins_of(score: np.ndarray) -> np.ndarray:
    """Which of `calibration`'s bins each score is in, from the lowest."""
    values, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    parts = max(1, min(BINS, len(score) // SMALLEST))
    filled = np.cumsum(counts)
    ends = np.unique(np.searchsorted(filled, np.arange(1, parts + 1) * len(score) / parts - 1e-9))
    edges: list[int] = []
    for end in ends.tolist():
        if edges and filled[end] - filled[edges[-1]] < SMALLEST:
            edges.pop()  # too few to stand alone: they join the bin below
        edges.append(end)
    if len(edges) > 1 and filled[edges[0]] < SMALLEST:
        edges.pop(0)
    return np.searchsorted(edges, np.arange(len(values)))[inverse]


def calibration_error(truth: np.ndarray, score: np.ndarray) -> float:
    """Expected calibration error: the distance of mean score and outcome over `calibration`'s bins, by their size."""
    bins = calibration(truth, score)
    return sum(item.cases * abs(item.mean_score - item.observed) for item in bins) / len(score)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _number(value: object) -> float | None:
    number = float(value)  # type: ignore[arg-type]  # numpy's own float
    return None if math.isnan(number) else number
