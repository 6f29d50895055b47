"""Points are those of the published tables, and every hour knows only what came before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflow_risk.channels import CHANNELS
from medflow_risk.readings import NAMES, READINGS, held, with_merged
from medflow_risk.severity import DANGERS, RATES, SCORES, TRACES, Points, blame, channels_of, dangers, hourly, stacked

EVERY = tuple(dict.fromkeys((*TRACES, *RATES)))


def stay(**hourly_values: float) -> np.ndarray:
    values = np.full((48, len(CHANNELS)), np.nan)
    for name, value in hourly_values.items():
        values[:, NAMES.index(name)] = value
    return values


def all_traces(values: np.ndarray) -> np.ndarray:
    return stacked(hourly(values, held(with_merged(values))), EVERY)


def trace(values: np.ndarray, name: str) -> np.ndarray:
    return all_traces(values)[:, EVERY.index(name)]


def test_a_value_at_a_cut_counts_above_it_and_an_unknown_one_has_no_points() -> None:
    points = Points((40, 70), (11, 2, 0))

    np.testing.assert_array_equal(points.of(np.array([39.9, 40, 69, 70, 300, np.nan])), [11, 2, 2, 0, 0, np.nan])


@pytest.mark.parametrize("score", SCORES)
def test_every_table_has_ascending_cuts_of_something_that_is_read(score: str) -> None:
    for of, points in SCORES[score].items():
        assert of in READINGS or of in RATES
        assert list(points.cuts) == sorted(points.cuts)
        assert len(points.given) == len(points.cuts) + 1


# HR 120: 2, 4; pressure 85: 0, 5; BUN 40: 1, 6; GCS 8: 2, 13, 3; bilirubin 6: 9, 3
@pytest.mark.parametrize(("score", "expected"), [("SAPS", 2 + 1 + 2), ("SAPS II", 4 + 5 + 6 + 13 + 9), ("SOFA", 3 + 3)])
def test_a_stay_has_the_points_of_the_tables(score: str, expected: float) -> None:
    assert trace(stay(HR=120, NISysABP=85, BUN=40, GCS=8, Bilirubin=6), score)[-1] == expected


def test_oxygen_counts_in_saps_ii_only_for_who_is_ventilated() -> None:
    breathing, ventilated = stay(PaO2=60, FiO2=0.8), stay(PaO2=60, FiO2=0.8, MechVent=1)

    assert (trace(breathing, "SAPS II")[-1], trace(ventilated, "SAPS II")[-1]) == (0, 11)


def test_ventilation_is_held_to_last_six_hours_after_the_last_note_of_it() -> None:
    values = stay()
    values[10, NAMES.index("MechVent")] = 1

    assert np.flatnonzero(trace(values, "ventilated")).tolist() == list(range(10, 17))


def test_urine_is_of_the_hours_before_and_unknown_until_so_many_have_passed() -> None:
    values = stay(Urine=40, Weight=80)

    assert np.isnan(trace(values, "urine of 6 h")[:5]).all()
    np.testing.assert_allclose(trace(values, "urine of 6 h")[5:], 0.5)
    np.testing.assert_allclose(np.exp(trace(values, "urine of 24 h")[23:]) - 0.05, 0.96)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), hour=st.integers(1, 47))
def test_an_hours_traces_do_not_depend_on_later_ones(seed: int, hour: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.uniform(1, 100, (48, len(CHANNELS)))
    values[rng.random(values.shape) < 0.7] = np.nan
    values[:, NAMES.index("Weight")] = 80  # the usual weight is of the whole stay
    changed = values.copy()
    changed[hour:] *= 2
    changed[:, NAMES.index("Weight")] = 80

    np.testing.assert_array_equal(all_traces(values)[:hour], all_traces(changed)[:hour])


def test_danger_is_unknown_where_its_reading_is() -> None:
    values = stay(GCS=3)

    found = dangers(hourly(values, held(with_merged(values))))[-1]

    known = {DANGERS[place] for place in np.flatnonzero(~np.isnan(found))}
    assert known == {("GCS", "<", 4), ("GCS", "<", 8.5), ("GCS", "<", 12.5)}
    assert np.nansum(found) == 3


@pytest.mark.parametrize("name", EVERY)
def test_what_a_trace_is_made_of_has_all_the_blame(name: str) -> None:
    values = stay(HR=150, NISysABP=60, GCS=3, BUN=90, PaO2=60, FiO2=1.0)
    now = hourly(values, held(with_merged(values)))

    shares = blame(name, now)

    np.testing.assert_allclose(sum(shares.values()), 1.0)
    assert {channel for reading in shares for channel in READINGS[reading]} == set(channels_of(name))


def test_a_score_blames_what_has_the_points() -> None:
    values = stay(HR=90, GCS=3)

    shares = blame("SAPS II", hourly(values, held(with_merged(values))))

    assert shares["GCS"][-1] == 1.0
    assert shares["HR"][-1] == 0.0
