"""From a grid of measurements to what the network reads: filled forward, with what is known and how old it is.

Pure numpy, for one case or many at once; nothing here is learnt from data.
"""

from __future__ import annotations

import numpy as np

from medflow_risk.channels import CHANNELS, HOURS, SKEWED

LOGARITHMIC = np.array([channel.name in SKEWED for channel in CHANNELS])
WIDTH = len(CHANNELS)
STATIC_WIDTH = 8  # age, its presence, sex, its presence, four kinds of intensive care unit


def series_features(values: np.ndarray) -> np.ndarray:
    """(..., steps, channels) with NaN -> (3, ..., steps, channels) float32.

    The three are: the values filled forward (NaN before the first), 1 where a value was measured, and the hours since
    the last measurement as a share of the window (1 before the first). Skewed channels are logarithms, ln(1 + x).
    """
    values = np.where(LOGARITHMIC, np.log1p(np.maximum(values, 0)), values)
    measured = ~np.isnan(values)
    steps = np.arange(values.shape[-2])[:, None]
    last = np.maximum.accumulate(np.where(measured, steps, -1), axis=-2)
    filled = np.where(last < 0, np.nan, np.take_along_axis(values, np.maximum(last, 0), axis=-2))
    age = np.where(last < 0, 1.0, (steps - last) / HOURS)
    return np.stack([filled, measured, age]).astype(np.float32)


def static_features(statics: np.ndarray) -> np.ndarray:
    """(..., 6) as `channels.STATICS`, NaN unknown -> (..., 8) float32: age in decades from 65, sex as -1 or 1."""
    age, sex, kinds = statics[..., 0], statics[..., 1], statics[..., 2:]
    columns = [
        np.nan_to_num((age - 65) / 10),
        ~np.isnan(age),
        np.nan_to_num(sex * 2 - 1),
        ~np.isnan(sex),
        *np.moveaxis(np.nan_to_num(kinds), -1, 0),
    ]
    return np.stack(columns, axis=-1).astype(np.float32)
