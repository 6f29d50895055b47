"""How good the pneumonia classifier is: every figure that its model card gives, and the reliability plot in it.

A calibrated probability holds for one prevalence. So each figure of calibration is given twice: at the prevalence that
the model states, with the cases weighted so that the part has it, and at the part's own, with the probabilities moved
to it and each case counting once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from medflow.drawing import COLOURS, FAINT, figure, png
from medflow.evaluation.bootstrap import intervals
from medflow_monai.xray import INDETERMINATE, PREVALENCE

log = logging.getLogger(__name__)
BINS = 10
Z = 1.96  # standard normal, 95 %
_CLIP = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """Cases with neighbouring probabilities: their share of the whole, mean probability, and share of pneumonia."""

    share: float
    mean: float
    observed: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Brier score, and expected calibration error over ten bins, at one prevalence."""

    prevalence: float
    brier: float
    ece_equal_count: float
    ece_equal_width: float


def calibration(probability: np.ndarray, labels: np.ndarray, prevalence: float) -> Calibration:
    """The figures at ``prevalence`` of probabilities (n,) that hold at `PREVALENCE`; see the module's description."""
    moved, weights = at_prevalence(probability, prevalence), weights_for(labels, prevalence)
    errors = [
        sum(item.share * abs(item.mean - item.observed) for item in bins(moved, labels, weights, equal_count=by_count))
        for by_count in (True, False)
    ]
    brier = float(np.sum(weights * (moved - labels) ** 2))
    return Calibration(prevalence=prevalence, brier=brier, ece_equal_count=errors[0], ece_equal_width=errors[1])


def at_prevalence(probability: np.ndarray, prevalence: float, *, of: float = PREVALENCE) -> np.ndarray:
    """Probabilities that hold at the prevalence ``of``, moved to another: the odds grow as the odds of the two do."""
    p = np.clip(np.asarray(probability, dtype=np.float64), _CLIP, 1 - _CLIP)
    odds = p / (1 - p) * (prevalence / (1 - prevalence)) / (of / (1 - of))
    return odds / (1 + odds)


def weights_for(labels: np.ndarray, prevalence: float) -> np.ndarray:
    """Weights (n,), adding up to 1, with which the cases have ``prevalence``."""
    return np.where(labels == 1, prevalence / (labels == 1).sum(), (1 - prevalence) / (labels == 0).sum())


def bins(probability: np.ndarray, labels: np.ndarray, weights: np.ndarray, *, equal_count: bool) -> list[Bin]:
    """Ten bins of equal weight, or of equal width; those without a case are left out."""
    if equal_count:
        order = np.argsort(probability, kind="stable")
        place = np.empty(len(order), dtype=int)
        middle = np.cumsum(weights[order]) - weights[order] / 2
        place[order] = np.minimum((middle * BINS).astype(int), BINS - 1)
    else:
        place = np.minimum((probability * BINS).astype(int), BINS - 1)
    found = []
    for inside in (place == number for number in range(BINS)):
        if (share := float(weights[inside].sum())) > 0:
            mean, observed = (float(values[inside] @ weights[inside]) / share for values in (probability, labels))
            found.append(Bin(share=share, mean=mean, observed=observed))
    return found


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive scores above a negative (ties count half)."""
    one, none = scores[labels == 1], scores[labels == 0]
    return float((np.sign(one[:, None] - none[None, :]) / 2 + 0.5).mean())


def wilson(hits: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    share, z2 = hits / of, Z * Z
    middle, half = share + z2 / (2 * of), Z * np.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    return float((middle - half) / (1 + z2 / of)), float((middle + half) / (1 + z2 / of))


def report(name: str, probability: np.ndarray, labels: np.ndarray, threshold: float) -> None:
    """Log what the model card says of a part."""
    log.info("%s: %d pictures, %d pneumonia, %d normal", name, len(labels), labels.sum(), (labels == 0).sum())
    drawn = intervals(labels[:, None], probability[:, None], np.arange(len(labels))).auroc
    low, high = drawn or (float("nan"), float("nan"))
    log.info("  AUC %.4f (95 %% interval %.4f to %.4f, bootstrap)", area_under_curve(probability, labels), low, high)
    called = probability >= threshold
    for what, right in (("sensitivity", called[labels == 1]), ("specificity", ~called[labels == 0])):
        low, high = wilson(int(right.sum()), len(right))
        log.info("  %s at %.2f: %.3f (%.3f to %.3f, Wilson)", what, threshold, right.mean(), low, high)
    log.info("  indeterminate: %.3f", (abs(probability - threshold) <= INDETERMINATE).mean())
    for prevalence in (PREVALENCE, float(labels.mean())):
        found = calibration(probability, labels, prevalence)
        log.info(
            "  at a prevalence of %.3f: Brier %.4f, ECE %.4f (10 bins of equal count), %.4f (10 of equal width)",
            found.prevalence,
            found.brier,
            found.ece_equal_count,
            found.ece_equal_width,
        )


def reliability(parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> bytes:
    """A PNG of observed share against mean probability, at each part's prevalence, by bins of equal count.

    ``parts``: name to probabilities and labels. Bars are 95 % intervals of the observed share.
    """
    drawn = figure(3.6 * len(parts), 3.8)
    for place, (name, (probability, labels)) in enumerate(parts.items()):
        axes = drawn.add_subplot(1, len(parts), place + 1)
        axes.plot((0, 1), (0, 1), color=FAINT, linestyle="--")
        share, same = float(labels.mean()), np.full(len(labels), 1 / len(labels))
        found = bins(at_prevalence(probability, share), labels, same, equal_count=True)
        x, y = np.array([item.mean for item in found]), np.array([item.observed for item in found])
        sizes = [round(item.share * len(labels)) for item in found]
        ends = np.array([wilson(round(item.observed * size), size) for item, size in zip(found, sizes, strict=True)])
        bars = np.clip(np.stack([y - ends[:, 0], ends[:, 1] - y]), 0, None)
        axes.errorbar(x, y, yerr=bars, color=COLOURS[place], marker="o", markersize=4, linewidth=1, capsize=2)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", title=f"{name}, n = {len(labels)}")
        axes.set(xlabel=f"mean probability at a prevalence of {share:.2f}", ylabel="share with pneumonia")
    return png(drawn)
