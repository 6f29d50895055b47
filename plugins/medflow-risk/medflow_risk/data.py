"""PhysioNet/CinC Challenge 2012, as published text files, on the very grid that the store gives a model.

The files become `medflow.timeseries.Readings`, and from there on nothing differs from a scored patient: one function
makes the grid for both.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from medflow.plugin import Coding
from medflow.timeseries import Readings, grid, statics
from medflow_risk.channels import ICU_TYPE, SERIES, STATICS

ADMISSION = date(2012, 1, 1)
MINUTE_US = 60_000_000
SEX = {"0": "female", "1": "male"}
DESCRIPTORS = frozenset(("RecordID", "Age", "Gender", "ICUType"))
LOG_DAYS, WITHIN_A_YEAR = 2, 3  # columns of `Cohort.other`


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Stays in the order of their RecordID: ``values`` (n, 48, channels), ``statics`` (n, 6), ``died`` (n,) bool.

    ``other`` (n, 4) is what else the outcomes tell, NaN unknown: SAPS-I, SOFA, the logarithm of the days from admission
    to intensive care until the stay in hospital ended, and whether the patient is known to have died within a year of
    admission, in hospital or later. It may help to learn, and is no input. ``refused`` counts the stays left out, as
    the model does not accept so few measurements.
    """

    records: np.ndarray
    values: np.ndarray
    statics: np.ndarray
    died: np.ndarray
    other: np.ndarray
    refused: int


def read_cohort(folder: Path, loinc: Path, *, limit: int | None = None) -> Cohort:
    """Set A from its folder (``*.txt`` at any depth, and Outcomes-a.txt) and the map of its parameters to codes.

    Raises
    ------
    FileNotFoundError
        There is no Outcomes-a.txt in the folder or below it.
    """
    outcomes = next(folder.rglob("Outcomes-a.txt"), None)
    if outcomes is None:
        raise FileNotFoundError(f"{folder} holds no Outcomes-a.txt: name the folder that holds it and the stays")
    with outcomes.open(newline="") as file:
        outcome = {int(row["RecordID"]): row for row in csv.DictReader(file)}
    paths = {int(path.stem): path for path in folder.rglob("*.txt") if path.stem.isdigit()}
    records = sorted(paths)[:limit]
    readings, fixed = _read([paths[record] for record in records], loinc)
    cells = grid(SERIES, readings, len(records))
    enough = cells.taken >= SERIES.min_measurements
    kept = [record for record, taken in zip(records, enough, strict=True) if taken]
    return Cohort(
        records=np.array(kept),
        values=cells.values[enough],
        statics=fixed[enough],
        died=np.array([outcome[record]["In-hospital_death"] == "1" for record in kept]),
        other=np.array([_other(outcome[record]) for record in kept], dtype=np.float32).reshape(-1, 4),
        refused=int((~enough).sum()),
    )


def _other(row: Mapping[str, str]) -> tuple[float, ...]:
    """As in `Cohort`; the challenge writes -1 for unknown, and for a patient not known to have died."""
    saps, sofa, days, survival = (float(row[name]) for name in ("SAPS-I", "SOFA", "Length_of_stay", "Survival"))
    known = [number if number >= 0 else math.nan for number in (saps, sofa)]
    return *known, math.log(max(days, 1)) if days >= 0 else math.nan, float(0 < survival < 365)


def _read(paths: Sequence[Path], loinc: Path) -> tuple[Readings, np.ndarray]:
    with loinc.open(newline="") as file:
        rows = list(csv.DictReader(file))
    codes = {row["parameter"]: index for index, row in enumerate(rows)}
    columns: list[tuple[int, int, int, float]] = []
    fixed: list[tuple[float, ...]] = []
    for case, path in enumerate(paths):
        described: dict[str, str] = {}
        for line in path.read_text().splitlines()[1:]:
            time, name, value = line.split(",")
            if name in DESCRIPTORS:
                described[name] = value
            elif name in codes and not (name in ("Height", "Weight") and float(value) == -1):
                hours, minutes = time.split(":")
                columns.append((case, codes[name], int(hours) * 60 + int(minutes), float(value)))
        fixed.append(
            statics(
                STATICS,
                birth=date(ADMISSION.year - int(described["Age"]), 1, 1),
                admitted=ADMISSION,
                sex=SEX.get(described["Gender"]),
                types=(f"{ICU_TYPE}|{described['ICUType']}",),
            )
        )
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
    return readings, np.array(fixed, dtype=np.float32)
