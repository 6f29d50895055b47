"""What the early-warning score reads of a window, and what it warns of: pure numpy, for one stay or many at once.

The same two functions say whether a stay is in the model's scope and, in training, whether the event came: a hospital
can label it from nothing but its own arterial pressures.
"""

from __future__ import annotations

from datetime import timedelta

import numpy as np

from medflow.plugin import TimeSeriesInput
from medflow_risk.channels import CHANNELS, ICU_TYPE, SKEWED

HOURS = 24
HORIZON = timedelta(hours=24)
LOW_MMHG = 60.0
IN_A_ROW = 2  # hours below it

NAMES = (
    ("MAP", "NIMAP", "SysABP", "DiasABP", "NISysABP", "NIDiasABP", "HR", "RespRate", "SaO2", "Temp", "GCS", "FiO2")
    + ("MechVent", "Urine", "BUN", "Creatinine", "Glucose", "HCO3", "HCT", "K", "Na", "Lactate", "Platelets", "WBC")
    + ("pH", "PaCO2", "PaO2")
)
WIDTH = len(NAMES)
READ = WIDTH + 1  # the channels, and after them the arterial pressure by whichever way it was measured
STATIC_WIDTH = 8  # age, its presence, sex, its presence, four kinds of intensive care unit
INVASIVE, NON_INVASIVE = NAMES.index("MAP"), NAMES.index("NIMAP")
LOGARITHMIC = np.array([*(name in SKEWED for name in NAMES), False])

_CHANNELS = {channel.name: channel for channel in CHANNELS}
SERIES = TimeSeriesInput(
    channels=tuple(_CHANNELS[name] for name in NAMES),
    window=timedelta(hours=HOURS),
    step=timedelta(hours=1),
    anchor="prediction-time",
    statics=("age", "sex", *(f"encounter-type:{ICU_TYPE}|{kind}" for kind in (1, 2, 3, 4))),
    min_measurements=12,
    min_channels=4,
    min_steps=3,
)


def arterial_pressure(values: np.ndarray) -> np.ndarray:
    """(..., steps, channels) -> (..., steps): each hour's mean arterial pressure in mm[Hg], NaN where not measured.

    The invasive one where there is one, else that of the cuff.
    """
    invasive, cuff = values[..., INVASIVE], values[..., NON_INVASIVE]
    return np.where(np.isnan(invasive), cuff, invasive)


def sustained_low(pressure: np.ndarray) -> np.ndarray:
    """(..., steps) of `arterial_pressure` -> bool: this hour and the one before it were both below LOW_MMHG."""
    low = pressure < LOW_MMHG  # False where not measured
    sustained = np.zeros_like(low)
    sustained[..., IN_A_ROW - 1 :] = low[..., :-1] & low[..., 1:]
    return sustained


def series_features(values: np.ndarray) -> np.ndarray:
    """(..., HOURS, WIDTH) with NaN -> (3, ..., HOURS, READ) float32.

    The last channel is `arterial_pressure`. The three are: the values filled forward (NaN before the first), 1 where a
    value was measured, and the hours since the last measurement as a share of the window (1 before the first). Skewed
    channels are logarithms, ln(1 + x).
    """
    values = np.concatenate([values, arterial_pressure(values)[..., None]], axis=-1)
    values = np.where(LOGARITHMIC, np.log1p(np.maximum(values, 0)), values)
    measured = ~np.isnan(values)
    steps = np.arange(values.shape[-2])[:, None]
    last = np.maximum.accumulate(np.where(measured, steps, -1), axis=-2)
    filled = np.where(last < 0, np.nan, np.take_along_axis(values, np.maximum(last, 0), axis=-2))
    since = np.where(last < 0, 1.0, (steps - last) / HOURS)
    return np.stack([filled, measured, since]).astype(np.float32)


def static_features(statics: np.ndarray) -> np.ndarray:
    """(..., 6) as in SERIES, NaN unknown -> (..., STATIC_WIDTH) float32: age in decades from 65, sex as -1 or 1."""
    age, sex, kinds = statics[..., 0], statics[..., 1], statics[..., 2:]
    columns = [
        np.nan_to_num((age - 65) / 10),
        ~np.isnan(age),
        np.nan_to_num(sex * 2 - 1),
        ~np.isnan(sex),
        *np.moveaxis(np.nan_to_num(kinds), -1, 0),
    ]
    return np.stack(columns, axis=-1).astype(np.float32)
