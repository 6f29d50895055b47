"""Features know nothing of the hours to come, and nothing invented."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medflow_risk.channels import CHANNELS
from medflow_risk.features import series_features, static_features

NAMES = [channel.name for channel in CHANNELS]


def random_values(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.uniform(1, 100, (48, len(CHANNELS))).astype(np.float32)
    values[rng.random(values.shape) < 0.7] = np.nan
    return values


@given(seed=st.integers(0, 1000), hour=st.integers(1, 47))
def test_an_hours_features_do_not_depend_on_later_hours(seed: int, hour: int) -> None:
    values = random_values(seed)
    changed = values.copy()
    changed[hour:] = random_values(seed + 1)[hour:]

    np.testing.assert_array_equal(series_features(values)[:, :hour], series_features(changed)[:, :hour])


def test_values_are_carried_forward_with_their_age() -> None:
    values = np.full((48, len(CHANNELS)), np.nan, dtype=np.float32)
    column = NAMES.index("HR")
    values[2, column], values[5, column] = 70, 90

    filled, measured, age = series_features(values)[..., column]

    np.testing.assert_array_equal(filled[:7], [np.nan, np.nan, 70, 70, 70, 90, 90])
    np.testing.assert_array_equal(measured[:7], [0, 0, 1, 0, 0, 1, 0])
    np.testing.assert_allclose(age[:7] * 48, [48, 48, 0, 1, 2, 0, 1], atol=1e-5)


def test_many_stays_at_once_give_what_each_gives_alone() -> None:
    values = np.stack([random_values(seed) for seed in range(3)])

    together = series_features(values)

    for number in range(3):
        np.testing.assert_array_equal(together[:, number], series_features(values[number]))


def test_an_unknown_static_is_absent_and_not_zero() -> None:
    known = static_features(np.array([65.0, 1, 0, 0, 1, 0]))
    unknown = static_features(np.array([np.nan, np.nan, 0, 0, 0, 0]))

    np.testing.assert_array_equal(known, [0, 1, 1, 1, 0, 0, 1, 0])
    np.testing.assert_array_equal(unknown, np.zeros(8))
