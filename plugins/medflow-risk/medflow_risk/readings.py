"""What can be read off the grid of an hour: each channel, and arterial pressure by whichever way it was measured.

Pure numpy, for one case or many at once: arrays are (..., hours, readings), NaN where nothing was measured.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medflow_risk.channels import CHANNELS

NAMES = tuple(channel.name for channel in CHANNELS)
# the invasive one first
MERGED = {"SBP": ("SysABP", "NISysABP"), "DBP": ("DiasABP", "NIDiasABP"), "MBP": ("MAP", "NIMAP")}
READINGS: Mapping[str, tuple[str, ...]] = {
    name: (name,) for name in NAMES
} | MERGED  # by the channels they are read off
PLACE = {name: place for place, name in enumerate(READINGS)}
WEIGHT_KG = 80.0  # where none was measured


def with_merged(values: np.ndarray) -> np.ndarray:
    """(..., channels) -> (..., len(READINGS))."""
    return np.concatenate([values, np.stack([_either(values, *pair) for pair in MERGED.values()], axis=-1)], axis=-1)


def filled(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values carried forward over the steps, and how many steps ago they were measured (all steps before the first)."""
    steps = np.arange(values.shape[-2])[:, None]
    last = _last(values)
    return held(values, last), np.where(last < 0, values.shape[-2], steps - last)


def held(values: np.ndarray, last: np.ndarray | None = None) -> np.ndarray:
    """Values carried forward over the steps, NaN before the first."""
    # the first step where there is none yet: it is NaN then, too
    return np.take_along_axis(values, np.maximum(_last(values) if last is None else last, 0), axis=-2)


def _last(values: np.ndarray) -> np.ndarray:
    """The step of the last measurement so far, -1 before the first."""
    steps = np.arange(values.shape[-2])[:, None]
    return np.maximum.accumulate(np.where(np.isnan(values), -1, steps), axis=-2)


def median(values: np.ndarray) -> np.ndarray:
    """Of the values over the last axis, NaN where there is none."""
    known = (~np.isnan(values)).sum(-1)
    ordered = np.sort(values, axis=-1)  # NaN last
    low, high = np.maximum((known - 1) // 2, 0)[..., None], np.maximum(known // 2, 0)[..., None]
    both = np.take_along_axis(ordered, low, axis=-1) + np.take_along_axis(ordered, high, axis=-1)
    return np.where(known > 0, both[..., 0] / 2, np.nan)


def weight_kg(values: np.ndarray) -> np.ndarray:
    """The usual weight of each stay (...,), `WEIGHT_KG` where none was measured."""
    return np.nan_to_num(median(values[..., PLACE["Weight"]]), nan=WEIGHT_KG)


def _either(values: np.ndarray, invasive: str, cuff: str) -> np.ndarray:
    first, second = values[..., NAMES.index(invasive)], values[..., NAMES.index(cuff)]
    return np.where(np.isnan(first), second, first)
