"""From a grid of measurements to what the networks read: the course in steps of two hours, and a summary of the window.

Pure numpy, for one case or many at once; nothing here is learnt from data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from medflow_risk.channels import HOURS, SKEWED, STATICS
from medflow_risk.readings import NAMES, PLACE, READINGS, filled, held, median, weight_kg, with_merged
from medflow_risk.severity import DANGERS, RATES, TRACES, channels_of, dangers, hourly, stacked

LOGARITHMIC = np.array([name in SKEWED for name in NAMES])
STEP_H = 2
STEPS = HOURS // STEP_H
COURSE = (*READINGS, *TRACES)
WIDTH = len(COURSE)
# what clinicians derive: from the channels, each carried forward for at most the window
DERIVED = {
    "pulse pressure": ("SysABP", "NISysABP", "DiasABP", "NIDiasABP"),
    "shock index": ("HR", "SysABP", "NISysABP"),
    "PaO2/FiO2": ("PaO2", "FiO2"),
    "BUN/creatinine": ("BUN", "Creatinine"),
    "urine per kg": ("Urine", "Weight"),
    "Na-HCO3": ("Na", "HCO3"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One number of the summary: of these channels, or of one static, over the hours from ``start`` to ``end``.

    ``trace`` is the trace, rate or reading that it is of, where that is one carried forward.
    """

    name: str
    statistic: str
    channels: tuple[str, ...] = ()
    static: int | None = None
    trace: str | None = None
    start: int = 0
    end: int = HOURS


SOURCES = {name: channels_of(name) for name in READINGS} | DERIVED
HELD = {name: name for name in (*TRACES, *RATES)}
DANGER = {f"{of} {sign} {cut}": of for of, sign, cut in DANGERS}
WHOLE = ("mean", "lowest", "highest", "first", "last", "spread", "slope", "count", "since")
MOST = ("mean", "lowest", "highest")
SECOND_DAY, LATE, LAST = 24, 36, 42  # from these hours on
# of each group of sources: its statistics from that hour on
SUMMARY: tuple[tuple[Iterable[str], int, tuple[str, ...]], ...] = (
    (SOURCES, 0, WHOLE),
    (SOURCES, SECOND_DAY, MOST),
    (SOURCES, LATE, MOST),
    (SOURCES, LAST, ("mean",)),
    (SOURCES, 0, ("change",)),
    (HELD, 0, (*MOST, "at the end", "change")),
    (HELD, SECOND_DAY, ("mean",)),
    (HELD, LATE, ("mean",)),
    (DANGER, 0, ("mean",)),
    (DANGER, LATE, ("mean",)),
)
TOTALS_H = ((0, 24), (24, 48), (42, 48))


def _columns() -> Iterator[Column]:
    for sources, start, statistics in SUMMARY:
        for statistic in statistics:
            for name in sources:
                trace = (HELD | DANGER).get(name)
                channels = SOURCES[name] if trace is None else channels_of(trace)
                yield Column(name=name, statistic=statistic, channels=channels, trace=trace, start=start)
    for start, end in TOTALS_H:
        yield Column(name="urine per kg", statistic="total", channels=("Urine", "Weight"), start=start, end=end)
    yield Column(name="body mass index", statistic="median", channels=("Weight", "Height"))
    for place, name in enumerate(STATICS):
        yield Column(name=name, statistic="static", static=place)


COLUMNS = tuple(_columns())


def features(values: np.ndarray, statics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the networks read of (n, 48, channels) and (n, statics): the course, stays first, and the summary."""
    now = _hourly(values)
    sequence = np.moveaxis(sequence_features(values, now), 0, 1)
    return np.ascontiguousarray(sequence), summary_features(values, statics, now)


def sequence_features(values: np.ndarray, now: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """(..., 48, channels) with NaN -> (3, ..., 24, WIDTH) float32: the course, in steps of two hours.

    The three are: the values filled forward (NaN before the first), 1 where a value was measured, and the time since
    the last measurement as a share of the window (1 before the first). Skewed channels are logarithms, ln(1 + x). Of a
    trace: the mean of its hours, 1 where it is known, and 1 where it is not.
    """
    readings = with_merged(_logarithms(values))
    pairs = readings.reshape(*readings.shape[:-2], STEPS, STEP_H, len(READINGS))
    known = ~np.isnan(pairs)
    count = known.sum(-2)
    means = np.where(count > 0, np.where(known, pairs, 0).sum(-2) / np.maximum(count, 1), np.nan)
    carried, age = filled(means)
    beside = stacked(_hourly(values) if now is None else now, TRACES)
    beside = beside.reshape(*beside.shape[:-2], STEPS, STEP_H, len(TRACES)).mean(-2)
    there = ~np.isnan(beside)
    parts = ((carried, beside), (count > 0, there), (age / STEPS, ~there))
    return np.stack([np.concatenate(pair, axis=-1) for pair in parts]).astype(np.float32)


def summary_features(
    values: np.ndarray, statics: np.ndarray, now: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """(..., 48, channels) and (..., statics) with NaN -> (..., len(COLUMNS)) float32, NaN where nothing is known.

    Of each channel and of what is derived from several: mean, lowest, highest, first and last value, spread, slope an
    hour, how often it was measured and how many hours ago; most of it again for the second day and for the last twelve
    hours; and how much the second day's mean is above the first's. Likewise of the traces; and the hours in danger.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        now = _hourly(values) if now is None else now
        readings = np.concatenate([with_merged(_logarithms(values)), _derived(values, now)], axis=-1)
        beside, danger = stacked(now, HELD), dangers(now)
        parts = [
            _whole(readings),
            *_most(readings[..., SECOND_DAY:, :]),
            *_most(readings[..., LATE:, :]),
            _mean(readings[..., LAST:, :]),
            _change(readings),
            *_most(beside),
            beside[..., -1, :],
            _change(beside),
            _mean(beside[..., SECOND_DAY:, :]),
            _mean(beside[..., LATE:, :]),
            _mean(danger),
            _mean(danger[..., LATE:, :]),
        ]
        weight = median(values[..., PLACE["Weight"]])
        urine = values[..., PLACE["Urine"]]
        totals = [_total(urine[..., start:end], weight_kg(values)) for start, end in TOTALS_H]
        height = median(values[..., PLACE["Height"]])
        index = np.log(weight / (height / 100) ** 2)
    columns = [*parts, np.stack([*totals, index], axis=-1), statics]
    return np.concatenate(columns, axis=-1).astype(np.float32)


def _logarithms(values: np.ndarray) -> np.ndarray:
    return np.where(LOGARITHMIC, np.log1p(np.maximum(values, 0)), values)


def _hourly(values: np.ndarray) -> Mapping[str, np.ndarray]:
    return hourly(values, held(with_merged(values)))


def _derived(values: np.ndarray, ever: Mapping[str, np.ndarray]) -> np.ndarray:
    """(..., hours, len(DERIVED)), where the first that it is made of was measured."""
    now = with_merged(values)
    hr, oxygen, bun, urine, sodium, buffer, systolic, diastolic = (
        now[..., PLACE[name]] for name in ("HR", "PaO2", "BUN", "Urine", "Na", "HCO3", "SBP", "DBP")
    )
    columns = [
        systolic - diastolic,
        hr / ever["SBP"],
        np.log(oxygen / ever["FiO2"]),
        np.log(bun / ever["Creatinine"]),
        np.log1p(10 * urine / weight_kg(values)[..., None]),
        sodium - buffer,
    ]
    return np.stack(columns, axis=-1)


def _mean(readings: np.ndarray) -> np.ndarray:
    known = ~np.isnan(readings)
    return np.where(known, readings, 0).sum(-2) / known.sum(-2)  # nothing measured: 0 / 0 is NaN


def _most(readings: np.ndarray) -> list[np.ndarray]:
    """The statistics of MOST."""
    return [_mean(readings), np.fmin.reduce(readings, axis=-2), np.fmax.reduce(readings, axis=-2)]


def _change(readings: np.ndarray) -> np.ndarray:
    """Mean of the second day less that of the first."""
    return _mean(readings[..., SECOND_DAY:, :]) - _mean(readings[..., :SECOND_DAY, :])


def _whole(readings: np.ndarray) -> np.ndarray:
    """The statistics of WHOLE, each for all channels: (..., len(WHOLE) * channels)."""
    known = ~np.isnan(readings)
    count = known.sum(-2)
    hours = np.arange(readings.shape[-2])[:, None]
    mean, lowest, highest = _most(readings)
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


def _total(urine: np.ndarray, weight: np.ndarray) -> np.ndarray:
    total = np.nan_to_num(urine).sum(-1) / weight
    return np.where((~np.isnan(urine)).any(-1), np.log1p(total), np.nan)
