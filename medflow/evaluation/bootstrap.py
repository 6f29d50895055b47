"""How sure a figure is: percentile intervals, from cases drawn again by patient.

A draw is a weight per case, so that sorting is done once and a thousand draws are a few matrix products. Whole
patients are drawn, with all their cases: two stays of one patient do not count as two observations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from medflow.evaluation.result import Interval

DRAWS = 1000
FEWEST_DRAWS = 200
CELLS = 2_000_000  # weights in memory at once
WORK = 400_000_000  # weights in all: more cases get fewer draws
DEFINED = 0.9  # share of the draws that must hold both outcomes
LEVEL = 95
Figures = Callable[[np.ndarray], Mapping[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervals:
    """95 % intervals; None where too many draws hold one outcome only."""

    auroc: Interval
    auprc: Interval


def draws_for(cases: int) -> int:
    """How many draws so many cases are given."""
    return max(FEWEST_DRAWS, min(DRAWS, WORK // max(cases, 1)))


def intervals(truths: np.ndarray, scores: np.ndarray, patients: np.ndarray, *, seed: int = 0) -> Intervals:
    """Intervals of AUROC and AUPRC, averaged over the columns (classes, one against the rest).

    Parameters
    ----------
    truths, scores
        (n, columns): 0 or 1, and the score.
    patients
        (n,): whose case each is.
    seed
        Of the draws.
    """
    return Intervals(**intervals_of(lambda weights: areas(truths, scores, weights), patients, seed=seed))


def intervals_of(figures: Figures, patients: np.ndarray, *, seed: int = 0) -> dict[str, Interval]:
    """The interval of each figure, all from the same draws; None where too many draws leave it undefined.

    Parameters
    ----------
    figures
        From weights (draws, n) of the cases to each figure (draws,) by name, NaN where it is not defined.
    patients
        (n,): whose case each is.
    seed
        Of the draws.
    """
    _, whose = np.unique(patients, return_inverse=True)
    found: dict[str, list[np.ndarray]] = {}
    for weights in _draws(whose, draws_for(len(whose)), seed):
        for name, values in figures(weights).items():
            found.setdefault(name, []).append(values)
    return {name: _interval(np.concatenate(values)) for name, values in found.items()}


def areas(truths: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """AUROC and AUPRC for each row of weights, averaged over the columns (classes, one against the rest)."""
    both = [weighted(truth, score, weights) for truth, score in zip(truths.T, scores.T, strict=True)]
    return {
        "auroc": np.mean([auroc for auroc, _ in both], axis=0),
        "auprc": np.mean([auprc for _, auprc in both], axis=0),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """By how much one model's AUROC is above another's on the same cases; ``interval`` as in `Intervals`."""

    value: float
    interval: Interval


def gain(
    truth: np.ndarray, scores: np.ndarray, than: np.ndarray, patients: np.ndarray, *, seed: int = 0
) -> Gain | None:
    """How much better ``scores`` (n,) tell the outcomes apart than the scores ``than`` do; both on the same draws.

    None where all cases have the same outcome.
    """
    _, whose = np.unique(patients, return_inverse=True)
    value = _gains(truth, scores, than, np.ones((1, len(truth))))[0]
    if np.isnan(value):
        return None
    draws = [_gains(truth, scores, than, weights) for weights in _draws(whose, draws_for(len(whose)), seed)]
    return Gain(value=float(value), interval=_interval(np.concatenate(draws)))


def _gains(truth: np.ndarray, scores: np.ndarray, than: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weighted(truth, scores, weights)[0] - weighted(truth, than, weights)[0]


def weighted(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision for each row of weights; NaN where only one outcome has weight."""
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    ordered, positive = weights[:, order], truth[order] == 1
    events = np.add.reduceat(ordered * positive, starts, axis=1)
    others = np.add.reduceat(ordered * ~positive, starts, axis=1)
    events_above, others_above = np.cumsum(events, axis=1), np.cumsum(others, axis=1)
    all_events, all_others = events_above[:, -1], others_above[:, -1]
    below = all_others[:, None] - others_above  # scores lower than the group's
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = (events * (below + others / 2)).sum(axis=1) / (all_events * all_others)
        precision = np.nan_to_num(events_above / (events_above + others_above))
        auprc = (events * precision).sum(axis=1) / all_events
    undefined = (all_events == 0) | (all_others == 0)
    auroc[undefined] = auprc[undefined] = np.nan
    return auroc, auprc


def _draws(whose: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    count = int(whose.max()) + 1
    at_once = max(1, CELLS // len(whose))
    for start in range(0, draws, at_once):
        times = rng.multinomial(count, np.full(count, 1 / count), size=min(at_once, draws - start))
        yield times[:, whose].astype(np.float64)


def _interval(values: np.ndarray) -> Interval:
    defined = values[~np.isnan(values)]
    if len(defined) < DEFINED * len(values):
        return None
    low, high = np.percentile(defined, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)
