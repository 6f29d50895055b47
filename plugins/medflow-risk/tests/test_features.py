"""Features know nothing of the hours to come, and nothing invented."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflow_risk.channels import CHANNELS, STATICS
from medflow_risk.features import COLUMNS, STEPS, WIDTH, sequence_features, summary_features
from medflow_risk.readings import NAMES
from medflow_risk.severity import SCORES

STATIC = np.array([65, 1, 0, 0, 1, 0], dtype=np.float32)


def random_values(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.uniform(1, 100, (48, len(CHANNELS))).astype(np.float32)
    values[rng.random(values.shape) < 0.7] = np.nan
    return values


def empty() -> np.ndarray:
    return np.full((48, len(CHANNELS)), np.nan, dtype=np.float32)


def summary(values: np.ndarray, name: str, statistic: str, start: int = 0) -> float:
    (place,) = [
        place
        for place, column in enumerate(COLUMNS)
        if (column.name, column.statistic, column.start) == (name, statistic, start)
    ]
    return float(summary_features(values, STATIC)[place])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), step=st.integers(1, STEPS - 1))
def test_a_steps_features_do_not_depend_on_later_hours(seed: int, step: int) -> None:
    values = random_values(seed)
    changed = values.copy()
    changed[2 * step :] = random_values(seed + 1)[2 * step :]
    changed[:, NAMES.index("Weight")] = values[:, NAMES.index("Weight")]  # urine is by the usual weight of the stay

    np.testing.assert_array_equal(sequence_features(values)[:, :step], sequence_features(changed)[:, :step])


def test_values_are_carried_forward_with_their_age() -> None:
    values = empty()
    values[4, NAMES.index("HR")], values[5, NAMES.index("HR")], values[10, NAMES.index("HR")] = 70, 80, 90

    filled, measured, age = sequence_features(values)[..., NAMES.index("HR")]

    np.testing.assert_array_equal(filled[:7], [np.nan, np.nan, 75, 75, 75, 90, 90])
    np.testing.assert_array_equal(measured[:7], [0, 0, 1, 0, 0, 1, 0])
    np.testing.assert_allclose(age[:7] * STEPS, [STEPS, STEPS, 0, 1, 2, 0, 1], atol=1e-5)


def test_many_stays_at_once_give_what_each_gives_alone() -> None:
    values, statics = np.stack([random_values(seed) for seed in range(3)]), np.stack([STATIC] * 3)

    sequence, columns = sequence_features(values), summary_features(values, statics)

    assert sequence.shape == (3, 3, STEPS, WIDTH)
    for number in range(3):
        np.testing.assert_array_equal(sequence[:, number], sequence_features(values[number]))
        np.testing.assert_allclose(columns[number], summary_features(values[number], STATIC), rtol=1e-5, atol=1e-5)


def test_the_summary_says_what_was_measured() -> None:
    values = empty()
    values[[3, 10, 30], NAMES.index("Temp")] = [36, 39, 37]
    values[5, NAMES.index("SysABP")], values[5:7, NAMES.index("NISysABP")] = 120, [90, 100]
    values[5:7, NAMES.index("HR")] = 60
    values[40, NAMES.index("Urine")], values[2, NAMES.index("Weight")] = 160, 80

    found = {statistic: summary(values, "Temp", statistic) for statistic in ("first", "last", "lowest", "highest")}

    assert found == {"first": 36, "last": 37, "lowest": 36, "highest": 39}
    assert summary(values, "Temp", "since") == 17
    assert summary(values, "Temp", "mean", start=24) == 37
    assert summary(values, "SBP", "first") == 120  # the invasive one goes first
    assert summary(values, "SBP", "last") == 100
    np.testing.assert_allclose(summary(values, "shock index", "highest"), 0.6, rtol=1e-6)
    np.testing.assert_allclose(summary(values, "urine per kg", "total", start=24), np.log1p(2), rtol=1e-6)


def test_what_was_not_measured_is_unknown_and_not_zero() -> None:
    columns = summary_features(empty(), np.full(len(STATICS), np.nan, dtype=np.float32))

    counted = np.array([column.statistic in ("count", "since") for column in COLUMNS])
    pointless = np.array([column.name in (*SCORES, "ventilated") for column in COLUMNS])  # 0: nothing speaks for them
    assert np.isnan(columns[~counted & ~pointless]).all()
    assert np.isfinite(columns[counted]).all()
    assert (columns[pointless] == 0).all()


def test_the_second_day_is_held_against_the_first_and_hours_in_danger_are_counted() -> None:
    values = empty()
    values[[3, 10, 30], NAMES.index("Temp")] = [36, 38, 39]
    values[[12, 24], NAMES.index("NISysABP")] = [80, 120]

    assert summary(values, "Temp", "change") == 2
    assert np.isnan(summary(values, "Temp", "highest", start=36))
    np.testing.assert_allclose(summary(values, "SBP < 90", "mean"), 12 / 36, rtol=1e-6)  # from the first measurement on
    assert summary(values, "SBP < 90", "mean", start=36) == 0
    assert summary(values, "SAPS II", "at the end") == 3  # of the temperature
    assert summary(values, "SAPS II", "mean", start=24) == pytest.approx(3 * 18 / 24)


def test_no_two_columns_are_the_same() -> None:
    assert len({(column.name, column.statistic, column.start, column.end) for column in COLUMNS}) == len(COLUMNS)
