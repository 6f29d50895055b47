"""How ill a patient is at each hour, as clinicians would say it: points of published scores, and hours in danger.

The scores are read hour by hour of values carried forward, without what the grid does not tell: age (which the networks
read for itself), chronic disease, kind of admission and vasopressors; SAPS counts the rate of breathing, SOFA the
oxygenation of everybody, ventilated or not. What is not known counts nothing. Points:

- SAPS: Le Gall JR, Loirat P, Alperovitch A et al. Crit Care Med 1984;12:975-977.
- SAPS II: Le Gall JR, Lemeshow S, Saulnier F. JAMA 1993;270:2957-2963.
- SOFA: Vincent JL, Moreno R, Takala J et al. Intensive Care Med 1996;22:707-710.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from medflow_risk.channels import HOURS
from medflow_risk.readings import PLACE, READINGS, weight_kg

VENTILATED_H = 6  # after the last note of it
SOME_URINE_L = 0.05  # lest a ratio to none be infinite
NORMAL_PH = 7.4

# what is read of several readings at once, each carried forward
RATES: Mapping[str, tuple[str, ...]] = {
    "PaO2/FiO2 held": ("PaO2", "FiO2"),  # mm[Hg]
    "shock index held": ("HR", "SBP"),
    "Na-HCO3 held": ("Na", "HCO3"),
    "ventilated": ("MechVent",),
    "urine of 6 h": ("Urine", "Weight"),  # mL/kg/h, by the usual weight of the whole stay
    "urine of 24 h": ("Urine",),  # L
    "PaO2/FiO2 ventilated": ("PaO2", "FiO2", "MechVent"),
    "GCS ventilated": ("GCS", "MechVent"),
    "GCS unventilated": ("GCS", "MechVent"),
    "RespRate unventilated": ("RespRate", "MechVent"),
    "SaO2/FiO2": ("SaO2", "FiO2"),
    "PaCO2 x FiO2": ("PaCO2", "FiO2"),
    "HR x SBP": ("HR", "SBP"),
    "step of HR": ("HR",),  # from the hour before
    "step of MBP": ("MBP",),
    "Lactate/MBP": ("Lactate", "MBP"),
    "Lactate of its highest": ("Lactate",),
    "Lactate x acidosis": ("Lactate", "pH"),
    "Bilirubin x Creatinine": ("Bilirubin", "Creatinine"),
    "Bilirubin/Platelets": ("Bilirubin", "Platelets"),
    "AST/ALT": ("AST", "ALT"),
    "BUN/urine": ("BUN", "Urine"),
    "Creatinine/urine": ("Creatinine", "Urine"),
}
READ_IN_COURSE = tuple(RATES)[:6]
# read on a logarithmic scale, and what is added before
LOGARITHMS = {"PaO2/FiO2 held": 0.0, "urine of 24 h": SOME_URINE_L} | dict.fromkeys(
    (
        "PaO2/FiO2 ventilated",
        "Lactate/MBP",
        "Bilirubin x Creatinine",
        "Bilirubin/Platelets",
        "AST/ALT",
        "BUN/urine",
        "Creatinine/urine",
    ),
    0.0,
)


@dataclass(frozen=True, slots=True)
class Points:
    """Points by the value: ``given[0]`` below ``cuts[0]``, ``given[1]`` from there on, and so forth."""

    cuts: tuple[float, ...]
    given: tuple[int, ...]

    def of(self, values: np.ndarray) -> np.ndarray:
        """The points of each value, NaN for NaN."""
        steps = np.diff(self.given).astype(values.dtype)
        found = values * 0 + self.given[0]
        for cut, step in zip(self.cuts, steps, strict=True):
            found += step * (values >= cut)
        return found


SCORES: Mapping[str, Mapping[str, Points]] = {
    "SAPS": {
        "HR": Points((40, 55, 70, 110, 140, 180), (4, 3, 2, 0, 2, 3, 4)),
        "SBP": Points((55, 80, 150, 190), (4, 2, 0, 2, 4)),
        "Temp": Points((30, 32, 34, 36, 38.5, 39, 41), (4, 3, 2, 1, 0, 1, 3, 4)),
        "RespRate": Points((6, 10, 12, 25, 35, 50), (4, 2, 1, 0, 1, 3, 4)),
        "BUN": Points((10, 21, 81, 101, 154), (1, 0, 1, 2, 3, 4)),
        "HCT": Points((20, 30, 46, 50, 60), (4, 2, 0, 1, 2, 4)),
        "WBC": Points((1, 3, 15, 20, 40), (4, 2, 0, 1, 2, 4)),
        "Glucose": Points((29, 50, 70, 250, 500, 800), (4, 3, 2, 0, 1, 3, 4)),
        "K": Points((2.5, 3, 3.5, 5.5, 6, 7), (4, 2, 1, 0, 1, 3, 4)),
        "Na": Points((110, 120, 130, 151, 156, 161, 180), (4, 3, 2, 0, 1, 2, 3, 4)),
        "HCO3": Points((5, 10, 20, 30, 40), (4, 3, 1, 0, 1, 4)),
        "GCS": Points((4, 7, 10, 13), (4, 3, 2, 1, 0)),
        "urine of 24 h": Points((0.2, 0.5, 0.7, 3.5, 5), (4, 3, 2, 0, 1, 2)),
    },
    "SAPS II": {
        "HR": Points((40, 70, 120, 160), (11, 2, 0, 4, 7)),
        "SBP": Points((70, 100, 200), (13, 5, 0, 2)),
        "Temp": Points((39,), (0, 3)),
        "PaO2/FiO2 ventilated": Points((100, 200), (11, 9, 6)),
        "urine of 24 h": Points((0.5, 1), (11, 4, 0)),
        "BUN": Points((28, 84), (0, 6, 10)),
        "WBC": Points((1, 20), (12, 0, 3)),
        "K": Points((3, 5), (3, 0, 3)),
        "Na": Points((125, 145), (5, 0, 1)),
        "HCO3": Points((15, 20), (6, 3, 0)),
        "Bilirubin": Points((4, 6), (0, 4, 9)),
        "GCS": Points((6, 9, 11, 14), (26, 13, 7, 5, 0)),
    },
    "SOFA": {
        "PaO2/FiO2 held": Points((100, 200, 300, 400), (4, 3, 2, 1, 0)),
        "Platelets": Points((20, 50, 100, 150), (4, 3, 2, 1, 0)),
        "Bilirubin": Points((1.2, 2, 6, 12), (0, 1, 2, 3, 4)),
        "MBP": Points((70,), (1, 0)),
        "GCS": Points((6, 10, 13, 15), (4, 3, 2, 1, 0)),
        "Creatinine": Points((1.2, 2, 3.5, 5), (0, 1, 2, 3, 4)),
    },
}

# danger begins below each of the first, and above each of the second
ZONES: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "SBP": ((75, 90), (160,)),
    "MBP": ((55, 65), ()),
    "HR": ((55,), (100, 120)),
    "shock index held": ((), (0.9, 1.2)),
    "RespRate": ((), (24, 30)),
    "SaO2": ((92,), ()),
    "FiO2": ((), (0.45, 0.65)),
    "PaO2/FiO2 held": ((100, 200), ()),
    "PaCO2": ((30,), (50,)),
    "pH": ((7.2, 7.3), (7.5,)),
    "HCO3": ((18,), (32,)),
    "Lactate": ((), (2, 4)),
    "GCS": ((4, 8.5, 12.5), ()),
    "Temp": ((36,), (38.5,)),
    "urine of 6 h": ((0.2, 0.5), ()),
    "BUN": ((), (28, 60)),
    "Creatinine": ((), (2, 3.5)),
    "K": ((3.3,), (5.5,)),
    "Na": ((132,), (148,)),
    "Glucose": ((70,), (200,)),
    "Bilirubin": ((), (2, 6)),
    "WBC": ((3,), (15, 25)),
    "Platelets": ((50, 100), ()),
    "HCT": ((26,), ()),
}
DANGERS = tuple(
    (of, sign, cut)
    for of, (below, above) in ZONES.items()
    for sign, cuts in (("<", below), (">", above))
    for cut in cuts
)

# what the networks of the course read of each hour beside the readings: points of a score, or a rate
TRACES: Mapping[str, tuple[str, ...]] = {
    **{score: tuple(parts) for score, parts in SCORES.items()},
    **{rate: RATES[rate] for rate in READ_IN_COURSE},
    "SAPS II of GCS": ("GCS",),
    "SAPS II of BUN": ("BUN",),
}


def readings_of(name: str) -> tuple[str, ...]:
    """The readings that a reading, a rate or a trace is made of, each once."""
    if name in READINGS:
        return (name,)
    parts = RATES[name] if name in RATES else TRACES[name]
    return tuple(dict.fromkeys(reading for part in parts for reading in readings_of(part)))


def channels_of(name: str) -> tuple[str, ...]:
    """The channels that they are read off, each once."""
    return tuple(dict.fromkeys(channel for reading in readings_of(name) for channel in READINGS[reading]))


def blame(name: str, now: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The share (..., hours) that each reading has in a reading, rate or trace: of a score by the points of its parts.

    Evenly of a rate, and where there are no points.
    """
    if name not in SCORES:
        made_of = readings_of(name)
        return {reading: np.full(now[reading].shape, 1 / len(made_of)) for reading in made_of}
    points = points_of(now, name)
    total = sum(points.values())
    found: dict[str, np.ndarray] = {}
    for part, given in points.items():
        own = np.where(total > 0, given / np.maximum(total, 1), 1 / len(points))
        for reading, share in blame(part, now).items():
            found[reading] = found.get(reading, 0) + own * share
    return found


def hourly(values: np.ndarray, held: np.ndarray) -> dict[str, np.ndarray]:
    """Each reading, rate and trace by name (..., hours); ``held`` are the readings carried forward."""
    now = {name: held[..., place] for name, place in PLACE.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        now |= _breathing(values, now) | _urine(values, now)
        now |= _circulation(now) | _organs(now)
        points = {f"SAPS II of {of}": SCORES["SAPS II"][of].of(now[of]) for of in ("GCS", "BUN")}
        scores = {score: sum(points_of(now, score).values(), np.zeros(held.shape[:-1])) for score in SCORES}
    return now | points | scores


def stacked(now: Mapping[str, np.ndarray], names: Iterable[str]) -> np.ndarray:
    """(..., hours, names) of `hourly`; those of `LOGARITHMS` as logarithms."""
    with np.errstate(divide="ignore"):
        return np.stack(
            [np.log(now[name] + LOGARITHMS[name]) if name in LOGARITHMS else now[name] for name in names], axis=-1
        )


def points_of(now: Mapping[str, np.ndarray], score: str) -> dict[str, np.ndarray]:
    """The points (..., hours) of each part of a score, 0 where it is unknown."""
    return {of: np.nan_to_num(points.of(now[of])) for of, points in SCORES[score].items()}


def dangers(now: Mapping[str, np.ndarray]) -> np.ndarray:
    """(..., hours, len(DANGERS)) float32: 1 in danger, 0 out of it, NaN unknown."""
    unknown = {of: np.where(np.isnan(now[of]), np.float32(np.nan), np.float32(0)) for of in ZONES}
    return np.stack(
        [unknown[of] + (now[of] < cut if sign == "<" else now[of] > cut) for of, sign, cut in DANGERS], axis=-1
    )


def _breathing(values: np.ndarray, now: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    ventilated = _lately(values[..., PLACE["MechVent"]] > 0, VENTILATED_H)
    oxygen = now["PaO2"] / now["FiO2"]
    return {
        "ventilated": ventilated.astype(values.dtype),
        "PaO2/FiO2 held": oxygen,
        "PaO2/FiO2 ventilated": np.where(ventilated, oxygen, np.nan),
        "GCS ventilated": np.where(ventilated, now["GCS"], np.nan),
        "GCS unventilated": np.where(ventilated, np.nan, now["GCS"]),
        "RespRate unventilated": np.where(ventilated, np.nan, now["RespRate"]),
        "SaO2/FiO2": now["SaO2"] / now["FiO2"],
        "PaCO2 x FiO2": now["PaCO2"] * now["FiO2"],
    }


def _urine(values: np.ndarray, now: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    urine = values[..., PLACE["Urine"]]
    began = np.logical_or.accumulate(~np.isnan(urine), axis=-1)
    total = np.cumsum(np.nan_to_num(urine), axis=-1)
    per_kg_h = _of_the_last(total, 6) / 6 / weight_kg(values)[..., None]
    day = np.where(began, _of_the_last(total, 24) / 1000, np.nan)
    return {
        "urine of 6 h": np.where(began, per_kg_h, np.nan),
        "urine of 24 h": day,
        "BUN/urine": now["BUN"] / (day + SOME_URINE_L),
        "Creatinine/urine": now["Creatinine"] / (day + SOME_URINE_L),
    }


def _circulation(now: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "shock index held": now["HR"] / now["SBP"],
        "HR x SBP": now["HR"] * now["SBP"],
        "step of HR": _step(now["HR"]),
        "step of MBP": _step(now["MBP"]),
        "Lactate/MBP": now["Lactate"] / now["MBP"],
        "Lactate of its highest": now["Lactate"] / np.fmax.accumulate(now["Lactate"], axis=-1),
        "Lactate x acidosis": now["Lactate"] * (NORMAL_PH - now["pH"]),
    }


def _organs(now: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "Na-HCO3 held": now["Na"] - now["HCO3"],
        "Bilirubin x Creatinine": now["Bilirubin"] * now["Creatinine"],
        "Bilirubin/Platelets": now["Bilirubin"] / now["Platelets"],
        "AST/ALT": now["AST"] / now["ALT"],
    }


def _step(held: np.ndarray) -> np.ndarray:
    return np.abs(np.diff(held, axis=-1, prepend=np.nan))


def _lately(noted: np.ndarray, hours: int) -> np.ndarray:
    at = np.arange(noted.shape[-1])
    return at - np.maximum.accumulate(np.where(noted, at, -HOURS), axis=-1) <= hours


def _of_the_last(total: np.ndarray, hours: int) -> np.ndarray:
    """How much came in the last ``hours``, of what came so far; NaN before so many have passed."""
    found = np.full(total.shape, np.nan)
    found[..., hours - 1] = total[..., hours - 1]
    found[..., hours:] = total[..., hours:] - total[..., :-hours]
    return found
