"""Parts of a cohort by patient: nobody who is learnt from is also tested on."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from medflow.errors import ConfigurationError

FOLDS = 5  # a fifth is the test part, a fifth of the rest the validation part
FEWEST = 10  # patients with the outcome, and without, that a part is to have
NEEDED = ceil(FEWEST * FOLDS**2 / (FOLDS - 1))  # in all, for the smallest part to have as many


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Rows (indices, ascending) to fit to, to stop and calibrate by, and to measure on once at the end."""

    training: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split(outcome: np.ndarray, patients: np.ndarray, *, seed: int) -> Parts:
    """Training, validation and test rows: 64, 16 and 20 %, of whole patients, with about the same share of outcomes.

    Parameters
    ----------
    outcome
        (n,) 0 or 1.
    patients
        (n,) whose each row is.
    seed
        Of the draw: the same rows and seed give the same parts.

    Raises
    ------
    ConfigurationError
        Too few patients have the outcome, or too few have not; the message says how many are needed.
    """
    check(outcome, patients)
    rest, test = _fold(np.arange(len(outcome)), outcome, patients, seed)
    training, validation = _fold(rest, outcome, patients, seed)
    for part in (training, validation, test):
        if len(np.unique(outcome[part])) < 2:
            raise ConfigurationError(
                "the outcomes are those of so few patients that a part would have none: choose a larger cohort"
            )
    return Parts(training=training, validation=validation, test=test)


def check(outcome: np.ndarray, patients: np.ndarray) -> None:
    """Whether there are patients enough to split; raises as `split` does."""
    having = len(np.unique(patients[outcome == 1]))
    lacking = len(np.unique(patients[outcome == 0]))
    if min(having, lacking) < NEEDED:
        raise ConfigurationError(
            f"of the cohort, {having} patients have the outcome and {lacking} have not: training, validation and test "
            f"need {NEEDED} patients of either kind, so that each has about {FEWEST}; choose a larger cohort"
        )


def _fold(rows: np.ndarray, outcome: np.ndarray, patients: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed % 2**32)
    one, other = next(folds.split(rows, outcome[rows].astype(int), patients[rows]))
    return rows[one], rows[other]
