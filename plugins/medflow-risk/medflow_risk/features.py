"""From a grid of measurements to what the networks read: the course in steps of two hours, and a summary of the window.

Pure numpy, for one case or many at once; nothing here is learnt from data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medflow_risk.channels import CHANNELS, HOURS, SKEWED, STATICS

NAMES = tuple(channel.name for channel in CHANNELS)
LOGARITHMIC = np.array([name in SKEWED for name in NAMES])
STEP_H = 2
STEPS = HOURS // STEP_H
# arterial pressure by whichever way it was measured, the invasive one first
MERGED = {"SBP": ("SysABP", "NISysABP"), "DBP": ("DiasABP", "NIDiasABP"), "MBP": ("MAP", "NIMAP")}
WIDTH = len(NAMES) + len(MERGED)
# what clinicians derive: from the channels, each carried forward for at most the window
DERIVED = {
    "pulse pressure": ("SysABP", "NISysABP", "DiasABP", "NIDiasABP"),
    "shock index": ("HR", "SysABP", "NISysABP"),
    "PaO2/FiO2": ("PaO2", "FiO2"),
    "BUN/creatinine": ("BUN", "Creatinine"),
    "urine per kg": ("Urine", "Weight"),
    "Na-HCO3": ("Na", "HCO3"),
}
WEIGHT_KG = 80.0  # where none was measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One number of the summary: of these channels, or of one static, over the hours from ``start`` to ``end``."""

    name: str
    statistic: str
    channels: tuple[str, ...] = ()
    static: int | None = None
    start: int = 0
    end: int = HOURS


SOURCES = {name: (name,) for name in NAMES} | MERGED | DERIVED
WHOLE = ("mean", "lowest", "highest", "first", "last", "spread", "slope", "count", "since")
SECOND_DAY = ("mean", "lowest", "highest")
TOTALS_H = ((0, 24), (24, 48), (42, 48))


def _columns() -> Iterator[Column]:
    for statistics, start in ((WHOLE, 0), (SECOND_DAY, 24), (("mean",), 36)):
        for statistic in statistics:
            for name, channels in SOURCES.items():
                yield Column(name=name, statistic=statistic, channels=channels, start=start)
    for start, end in TOTALS_H:
        yield Column(name="urine per kg", statistic="total", channels=("Urine", "Weight"), start=start, end=end)
    yield Column(name="body mass index", statistic="median", channels=("Weight", "Height"))
    for place, name in enumerate(STATICS):
        yield Column(name=name, statistic="static", static=place)


COLUMNS = tuple(_columns())


def sequence_features(values: np.ndarray) -> np.ndarray:
    """(..., 48, channels) with NaN -> (3, ..., 24, WIDTH) float32: the course, in steps of two hours.

    The three are: the values filled forward (NaN before the first), 1 where a value was measured, and the time since
    the last measurement as a share of the window (1 before the first). Skewed channels are logarithms, ln(1 + x).
    """
    readings = _with_merged(_logarithms(values))
    pairs = readings.reshape(*readings.shape[:-2], STEPS, STEP_H, WIDTH)
    known = ~np.isnan(pairs)
    count = known.sum(-2)
    means = np.where(count > 0, np.where(known, pairs, 0).sum(-2) / np.maximum(count, 1), np.nan)
    filled, age = _filled(means)
    return np.stack([filled, count > 0, age / STEPS]).astype(np.float32)


def summary_features(values: np.ndarray, statics: np.ndarray) -> np.ndarray:
    """(..., 48, channels) and (..., statics) with NaN -> (..., len(COLUMNS)) float32, NaN where nothing is known.

    Of each channel and of what is derived from several: mean, lowest, highest, first and last value, spread, slope an
    hour, how often it was measured and how many hours ago; most of it again for the second day.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        readings = np.concatenate([_with_merged(_logarithms(values)), _derived(values)], axis=-1)
        parts = [_whole(readings)]
        parts += _extremes(readings[..., 24:, :]) + [_mean(readings[..., 36:, :])]
        weight = _median(values[..., NAMES.index("Weight")])
        urine = values[..., NAMES.index("Urine")]
        totals = [_total(urine[..., start:end], weight) for start, end in TOTALS_H]
        height = _median(values[..., NAMES.index("Height")])
        index = np.log(weight / (height / 100) ** 2)
    columns = [*parts, np.stack([*totals, index], axis=-1), statics]
    return np.concatenate(columns, axis=-1).astype(np.float32)


def _logarithms(values: np.ndarray) -> np.ndarray:
    return np.where(LOGARITHMIC, np.log1p(np.maximum(values, 0)), values)


def _with_merged(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, np.stack([_either(values, *pair) for pair in MERGED.values()], axis=-1)], axis=-1)


def _either(values: np.ndarray, invasive: str, cuff: str) -> np.ndarray:
    first, second = values[..., NAMES.index(invasive)], values[..., NAMES.index(cuff)]
    return np.where(np.isnan(first), second, first)


def _derived(values: np.ndarray) -> np.ndarray:
    """(..., steps, len(DERIVED))."""
    systolic, diastolic = _either(values, *MERGED["SBP"]), _either(values, *MERGED["DBP"])
    held = _filled(values)[0]
    now = {name: values[..., NAMES.index(name)] for name in ("HR", "PaO2", "BUN", "Urine", "Na", "HCO3")}
    systolic_held = _filled(systolic[..., None])[0][..., 0]
    weight = np.nan_to_num(_median(values[..., NAMES.index("Weight")]), nan=WEIGHT_KG)[..., None]
    columns = [
        systolic - diastolic,
        now["HR"] / systolic_held,
        np.log(now["PaO2"] / held[..., NAMES.index("FiO2")]),
        np.log(now["BUN"] / held[..., NAMES.index("Creatinine")]),
        np.log1p(10 * now["Urine"] / weight),
        now["Na"] - now["HCO3"],
    ]
    return np.stack(columns, axis=-1)


def _filled(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values carried forward over the steps, and how many steps ago they were measured (all steps before the first)."""
    steps = np.arange(values.shape[-2])[:, None]
    last = np.maximum.accumulate(np.where(np.isnan(values), -1, steps), axis=-2)
    filled = np.where(last < 0, np.nan, np.take_along_axis(values, np.maximum(last, 0), axis=-2))
    return filled, np.where(last < 0, values.shape[-2], steps - last)


def _mean(readings: np.ndarray) -> np.ndarray:
    known = ~np.isnan(readings)
    return np.where(known, readings, 0).sum(-2) / known.sum(-2)  # nothing measured: 0 / 0 is NaN


def _extremes(readings: np.ndarray) -> list[np.ndarray]:
    """Mean, lowest and highest."""
    return [_mean(readings), np.fmin.reduce(readings, axis=-2), np.fmax.reduce(readings, axis=-2)]


def _whole(readings: np.ndarray) -> np.ndarray:
    """The statistics of WHOLE, each for all channels: (..., len(WHOLE) * channels)."""
    known = ~np.isnan(readings)
    count = known.sum(-2)
    hours = np.arange(readings.shape[-2])[:, None]
    mean, lowest, highest = _extremes(readings)
    first_at = np.where(count > 0, known.argmax(-2), 0)[..., None, :]
    last_at = np.maximum.accumulate(np.where(known, hours, 0), axis=-2)[..., -1:, :]
    first = np.take_along_axis(readings, first_at, axis=-2)[..., 0, :]
    last = np.take_along_axis(readings, last_at, axis=-2)[..., 0, :]
    off = np.where(known, readings - mean[..., None, :], 0)
    spread = np.where(count > 1, np.sqrt((off**2).sum(-2) / count), np.nan)
    when = np.where(known, hours, 0).sum(-2) / np.maximum(count, 1)
    late = np.where(known, hours - when[..., None, :], 0)
    slope = np.where(count > 2, (late * off).sum(-2) / ((late**2).sum(-2) + HOURS / 2), np.nan)
    since = np.where(count > 0, HOURS - 1 - last_at[..., 0, :], 2 * HOURS)
    return np.concatenate([mean, lowest, highest, first, last, spread, slope, np.log1p(count), since], axis=-1)


def _median(values: np.ndarray) -> np.ndarray:
    """Of the values over the last axis, NaN where there is none."""
    known = (~np.isnan(values)).sum(-1)
    ordered = np.sort(values, axis=-1)  # NaN last
    low, high = np.maximum((known - 1) // 2, 0)[..., None], np.maximum(known // 2, 0)[..., None]
    both = np.take_along_axis(ordered, low, axis=-1) + np.take_along_axis(ordered, high, axis=-1)
    return np.where(known > 0, both[..., 0] / 2, np.nan)


def _total(urine: np.ndarray, weight: np.ndarray) -> np.ndarray:
    total = np.nan_to_num(urine).sum(-1) / np.nan_to_num(weight, nan=WEIGHT_KG)
    return np.where((~np.isnan(urine)).any(-1), np.log1p(total), np.nan)
