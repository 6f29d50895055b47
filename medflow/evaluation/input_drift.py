"""Whether the cases that a model is given now are still like those that it was trained on, channel by channel.

The measure is the population stability index, PSI = sum over bins of (now - then) ln(now / then): 0 for equal shares,
the same both ways round, read by the rule of thumb of below 0.1 and above 0.25. If nothing has changed, PSI is about
(1/n + 1/N) times a chi-squared value of bins - 1 degrees of freedom (Yurdakul 2018), so that few cases alone give large
values: what chance would exceed once in ten thousand comparisons stands beside each, and below it nobody is alarmed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from scipy.special import chdtri

from medflow.evaluation.reference import (
    Column,
    Reference,
    Spread,
    checked,
    counts_in,
    from_json,
    reference_of,
    shown_share,
)
from medflow.evaluation.result import SMALLEST, Drift, Stability, Verdict
from medflow.evaluation.summary import Summary, summary_of
from medflow.plugin import TimeSeriesInput

__all__ = ["Drift", "Verdict", "drift", "drift_of", "psi", "reference_of"]

SOME, SHIFTED = 0.1, 0.25
CHANCE = 1e-4  # how often what is called chance would be exceeded if nothing had changed
HALF_A_CASE = 0.5  # added per bin, spread as all cases together lie, so that a bin without a case is not infinite
WORST: tuple[Verdict, ...] = ("shifted", "some", "unclear", "steady", "too-few")


def drift(
    reference: Mapping[str, Any] | Reference, values: np.ndarray, statics: np.ndarray, spec: TimeSeriesInput
) -> list[Drift]:
    """Every channel and static of these cases beside the training cohort, in the order of the spec.

    Parameters
    ----------
    reference
        What `reference_of` gave of the training cohort.
    values, statics
        (n, steps, channels) and (n, k) float32, NaN unknown.
    spec
        What they are an input of.

    Raises
    ------
    ConfigurationError
        The reference is not of this input.
    """
    then = checked(reference, spec) if isinstance(reference, Reference) else from_json(dict(reference), spec)
    return drift_of(then, summary_of(values, statics))


def drift_of(reference: Reference, now: Summary) -> list[Drift]:
    """The drift of summarised cases against a reference that was `checked`."""
    channels = [
        _drift(column, reference.cases, now.means[:, place], now.readings[:, place])
        for place, column in enumerate(reference.channels)
    ]
    statics = [
        _drift(column, reference.cases, now.statics[:, place], None) for place, column in enumerate(reference.statics)
    ]
    return channels + statics


def psi(now: np.ndarray, then: np.ndarray) -> float:
    """The population stability index of two sets of shares over the same bins; infinite where one alone is 0."""
    either = (now > 0) | (then > 0)
    one, other = np.asarray(now, dtype=np.float64)[either], np.asarray(then, dtype=np.float64)[either]
    with np.errstate(divide="ignore"):
        return float(max(((one - other) * (np.log(one) - np.log(other))).sum(), 0.0))


def _drift(column: Column, trained_on: int, values: np.ndarray, readings: np.ndarray | None) -> Drift:
    known = np.isfinite(values)
    cases, measured = len(values), int(known.sum())
    trained_with = round(trained_on * (1 - column.missing))
    share = shown_share(cases - measured, cases)
    missing = _stability(
        cases * np.array([share, 1 - share]), np.array([column.missing, 1 - column.missing]), trained_on
    )
    found = _spread(column.values, trained_with, values[known])
    often = None if readings is None else _spread(column.readings, trained_with, readings[known])
    moved = found is not None and found.verdict in ("some", "shifted")
    return Drift(
        name=column.name,
        kind="static" if readings is None else "channel",
        unit=column.unit,
        verdict=_worst(item.verdict for item in (found, missing, often) if item is not None),
        missing_now=share,
        missing_then=column.missing,
        values=found,
        missing=missing,
        readings=often,
        direction=_direction(column.values, values[known]) if moved and column.values is not None else None,
    )


def _spread(then: Spread | None, trained_on: int, values: np.ndarray) -> Stability | None:
    if then is None:
        return None
    return _stability(counts_in(then.edges, values), np.array(then.shares), trained_on)


def _stability(counts: np.ndarray, shares: np.ndarray, trained_on: int) -> Stability | None:
    """PSI of counts against shares of ``trained_on`` cases, both with half a case a bin more."""
    cases = round(counts.sum())
    if cases < SMALLEST or trained_on < SMALLEST:
        return None
    then = shares / shares.sum()
    pooled = (counts + then * trained_on) / (cases + trained_on)
    more = HALF_A_CASE * int((pooled > 0).sum())
    found = psi((counts + more * pooled) / (cases + more), (then * trained_on + more * pooled) / (trained_on + more))
    freedom = max(int((pooled > 0).sum()) - 1, 1)
    chance = float(chdtri(freedom, CHANCE)) * (1 / cases + 1 / trained_on)
    return Stability(psi=found, chance=chance, verdict=_verdict(found, chance))


def _verdict(found: float, chance: float) -> Verdict:
    """How to read a PSI; "unclear" would be some drift, but so few cases give as much by chance."""
    if found < SOME:
        return "steady"
    if found <= chance:
        return "unclear"
    return "some" if found <= SHIFTED else "shifted"


def _direction(then: Spread, values: np.ndarray) -> Literal["higher", "lower"]:
    now = counts_in(then.edges, values) / len(values)
    gained = (np.cumsum(np.array(then.shares)) - np.cumsum(now)).sum()
    return "higher" if gained > 0 else "lower"


def worst(found: Sequence[Drift]) -> Verdict:
    """The worst verdict of all channels."""
    return _worst(item.verdict for item in found)


def _worst(said: Iterable[Verdict]) -> Verdict:
    every: list[Verdict] = [*said, WORST[-1]]
    return min(every, key=WORST.index)
