"""Set A of the PhysioNet/CinC Challenge 2012 as the nights of a ward: windows that end, and what the next day brought.

Each stay gives a case at several hours after admission. The grid is made by the function that makes that of a scored
stay (`medflow.timeseries.grid`); a window that begins before the stay has empty hours, as in the store.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np

from medflow.plugin import Coding
from medflow.timeseries import Readings, grid
from medflow_risk.warning_features import HOURS, SERIES, arterial_pressure, sustained_low

AT_HOURS = (12, 18, 24)
RECORDED_HOURS = 48  # of each stay
HORIZON_HOURS = 24
MINUTE_US = 60_000_000
DESCRIPTORS = frozenset(("RecordID", "Age", "Gender", "ICUType"))
REASONS = ("too few measurements", "no arterial pressure", "hypotensive already", "unobserved")
SEX = {"0": 0.0, "1": 1.0}  # female, male; anything else is unknown


@dataclass(frozen=True, kw_only=True)
class Nights:
    """Cases row by row: ``values`` (n, HOURS, channels), ``statics`` (n, 6), ``event`` (n,) bool.

    ``record`` is the stay of each row, ``hour`` its prediction time in hours after admission. ``left_out`` counts the
    cases that are none, by reason. ``silent`` are those that the model is given and does not answer for, hypotensive
    already: their ``record``, ``values`` and ``statics``.
    """

    record: np.ndarray
    hour: np.ndarray
    values: np.ndarray
    statics: np.ndarray
    event: np.ndarray
    left_out: dict[str, int]
    silent: tuple[np.ndarray, np.ndarray, np.ndarray]


def read_nights(folder: Path, loinc: Path, *, limit: int | None = None) -> Nights:
    """The cases of the stays in ``folder`` (``<RecordID>.txt``, at any depth; the first ``limit``).

    ``loinc`` is the CSV that maps parameters to codes: columns parameter, system, code, unit_ucum.

    Raises
    ------
    FileNotFoundError
        There is no stay in the folder or below it.
    """
    paths = sorted(path for path in folder.rglob("*.txt") if path.stem.isdigit())[:limit]
    if not paths:
        raise FileNotFoundError(f"{folder} holds no <RecordID>.txt: name the folder that holds the stays")
    readings, statics = _read(paths, loinc)
    whole = grid(replace(SERIES, window=timedelta(hours=RECORDED_HOURS)), readings, len(paths)).values
    return nights_of(whole, statics, np.array([int(path.stem) for path in paths]))


def nights_of(whole: np.ndarray, statics: np.ndarray, record: np.ndarray) -> Nights:
    """The cases of stays whose first RECORDED_HOURS are ``whole`` (stays, hours, channels)."""
    low = sustained_low(arterial_pressure(whole))
    known: np.ndarray = ~np.isnan(arterial_pressure(whole))
    parts: list[tuple[np.ndarray, ...]] = []
    silent: list[tuple[np.ndarray, ...]] = []
    left_out: dict[str, int] = dict.fromkeys(REASONS, 0)
    for hour in AT_HOURS:
        start = max(0, hour - HOURS)
        window = np.full((len(whole), HOURS, whole.shape[2]), np.nan, dtype=np.float32)
        window[:, HOURS - (hour - start) :] = whole[:, start:hour]
        after = slice(hour, hour + HORIZON_HOURS)
        hypotensive: np.ndarray = np.any(sustained_low(arterial_pressure(window)), axis=1)
        unknown: np.ndarray = ~np.any(known[:, start:hour], axis=1)
        unobserved: np.ndarray = ~np.any(known[:, after], axis=1)
        reasons = (~_covered(window), unknown, hypotensive, unobserved)
        quiet = ~reasons[0] & ~unknown & hypotensive
        silent.append((record[quiet], window[quiet], statics[quiet]))
        kept = np.ones(len(whole), dtype=bool)
        for name, out in zip(left_out, reasons, strict=True):
            left_out[name] += int((kept & out).sum())
            kept &= ~out
        hours = np.full(int(kept.sum()), hour)
        parts.append((record[kept], hours, window[kept], statics[kept], np.any(low[kept, after], axis=1)))
    names = ("record", "hour", "values", "statics", "event")
    columns = dict(zip(names, map(np.concatenate, zip(*parts, strict=True)), strict=True))
    records, values, fixed = map(np.concatenate, zip(*silent, strict=True))
    return Nights(**columns, left_out=left_out, silent=(records, values, fixed))


def _covered(window: np.ndarray) -> np.ndarray:
    """What the store would not refuse; values of one cell count once here, and may count more often there."""
    measured = ~np.isnan(window)
    return (
        (measured.sum((1, 2)) >= SERIES.min_measurements)
        & (measured.any(1).sum(1) >= SERIES.min_channels)
        & (measured.any(2).sum(1) >= SERIES.min_steps)
    )


def _read(paths: Sequence[Path], loinc: Path) -> tuple[Readings, np.ndarray]:
    """The measurements of these stays, and their statics (n, 6) as in SERIES."""
    with loinc.open(newline="") as file:
        rows = list(csv.DictReader(file))
    codes = {row["parameter"]: index for index, row in enumerate(rows)}
    columns: list[tuple[int, int, int, float]] = []
    statics = np.zeros((len(paths), len(SERIES.statics)), dtype=np.float32)
    for case, path in enumerate(paths):
        described: dict[str, str] = {}
        for line in path.read_text(encoding="ascii").splitlines()[1:]:
            time, name, value = line.split(",")
            if name in DESCRIPTORS:
                described[name] = value
            elif name in codes:
                hours, minutes = time.split(":")
                columns.append((case, codes[name], int(hours) * 60 + int(minutes), float(value)))
        statics[case, :2] = float(described["Age"]), SEX.get(described["Gender"], np.nan)
        statics[case, 1 + int(described["ICUType"])] = 1
    table = np.array(columns, dtype=np.float64).reshape(-1, 4)
    offset_us = table[:, 2].astype(np.int64) * MINUTE_US
    code = table[:, 1].astype(np.int64)
    readings = Readings(
        codes=[Coding(system=row["system"], code=row["code"]) for row in rows],
        units=[row["unit_ucum"] or None for row in rows],
        case=table[:, 0].astype(np.int64),
        code=code,
        unit=code,  # every parameter has one unit
        offset_us=offset_us,
        known_us=offset_us,
        value=table[:, 3],
    )
    return readings, statics
