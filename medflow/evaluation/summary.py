"""Grids of a time-series input as one line a case: what drift is measured on, however many cases there are.

Cases come in chunks: their summaries are small, are put together, and the grids are let go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Summary:
    """One row a case: ``means`` (n, channels) float32 over the window, NaN where nothing was measured; ``readings``
    (n, channels), the steps that hold a value; ``statics`` (n, k) float32, NaN unknown.
    """

    means: np.ndarray
    readings: np.ndarray
    statics: np.ndarray

    def __len__(self) -> int:
        """How many cases."""
        return len(self.means)


def summary_of(values: np.ndarray, statics: np.ndarray) -> Summary:
    """Of grids: ``values`` (n, steps, channels) float32, NaN unknown; ``statics`` (n, k)."""
    cases, _, channels = values.shape
    means = np.full((cases, channels), np.nan, dtype=np.float32)
    readings = np.zeros((cases, channels), dtype=np.int32)
    for place in range(channels):  # one at a time: a whole cohort's grid is not copied
        column = values[:, :, place]
        known = np.isfinite(column)
        readings[:, place] = known.sum(axis=1)
        total = np.where(known, column, 0).sum(axis=1, dtype=np.float64)
        np.divide(total, readings[:, place], out=means[:, place], where=readings[:, place] > 0, casting="same_kind")
    return Summary(means=means, readings=readings, statics=np.asarray(statics, dtype=np.float32))


def one_each(patients: np.ndarray) -> np.ndarray:
    """The rows, in order, of one case a patient: drawn, but the same for the same cases.

    Several cases of one patient are no several observations, and what ten of them have may still be one patient's.
    """
    shuffled = np.random.default_rng(0).permutation(len(patients))
    _, first = np.unique(patients[shuffled], return_index=True)
    return np.sort(shuffled[first])


def together(parts: Sequence[Summary]) -> Summary:
    """The cases of all parts, in order."""
    return Summary(
        means=np.concatenate([part.means for part in parts]),
        readings=np.concatenate([part.readings for part in parts]),
        statics=np.concatenate([part.statics for part in parts]),
    )
