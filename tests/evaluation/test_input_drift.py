"""The population stability index, and the reference that it is measured against: by hand, and whatever the data."""

import json
from datetime import timedelta
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from medflow.errors import ConfigurationError
from medflow.evaluation.input_drift import drift, psi, reference_of, worst
from medflow.plugin import Channel, Coding, TimeSeriesInput

HEIGHT = Channel(name="height", codes=(Coding(system="s", code="h"),), unit="cm")
SPEC = TimeSeriesInput(
    channels=tuple(
        Channel(name=name, codes=(Coding(system="s", code=name),), unit="/min") for name in ("rate", "switch")
    ),
    window=timedelta(hours=4),
    step=timedelta(hours=1),
    statics=("age", HEIGHT),
)


def cases(count: int, *, seed: int = 0, shift: float = 0.0, switch: float = 0.0, measured: float = 1.0, every: int = 1):
    """Normal heart rates, and a switch that is the same for all; ages, and heights."""
    rng = np.random.default_rng(seed)
    values = np.full((count, 4, 2), np.nan, dtype=np.float32)
    values[:, ::every, 0] = rng.normal(80 + shift, 10, (count, 1))
    values[rng.random(count) >= measured, :, 0] = np.nan
    values[:, 0, 1] = switch
    statics = np.stack([rng.integers(18, 95, count), rng.normal(170, 10, count)], axis=1).astype(np.float32)
    return values, statics


REFERENCE = reference_of(*cases(2000), SPEC)


def by_name(found):
    return {item.name: item for item in found}


def test_the_index_is_the_sum_of_the_definition():
    now, then = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])

    assert psi(now, then) == pytest.approx(0.3 * log(2.5) + 0 + 0.3 * log(2.5))


shares = st.lists(st.integers(1, 1000), min_size=2, max_size=12).map(lambda counts: np.array(counts) / sum(counts))


@given(st.tuples(shares, shares).filter(lambda both: len(both[0]) == len(both[1])))
@settings(max_examples=60, deadline=None)
def test_the_index_is_symmetric_and_not_negative(both):
    one, other = both

    assert psi(one, other) == pytest.approx(psi(other, one))
    assert psi(one, other) >= 0
    assert psi(one, one) == 0


def test_the_index_of_counts_is_that_of_the_shares_with_half_a_case_a_bin_more():
    height = REFERENCE["statics"][1]["values"]
    values, statics = cases(400, seed=2)
    statics[:, 1] = 200.0  # all in the highest bin
    found = by_name(drift(REFERENCE, values, statics, SPEC))["height"]

    then = np.array(height["shares"]) / sum(height["shares"])
    now = np.zeros(10)
    now[9] = 400
    pooled = (now + then * 2000) / 2400
    one, other = (now + 5 * pooled) / 405, (then * 2000 + 5 * pooled) / 2005
    assert found.psi == pytest.approx(((one - other) * np.log(one / other)).sum())
    assert found.values.chance == pytest.approx(chi2.isf(1e-4, 9) * (1 / 400 + 1 / 2000))
    assert (found.verdict, found.direction) == ("shifted", "higher")


def test_the_training_cohort_itself_has_not_drifted():
    found = drift(REFERENCE, *cases(2000), SPEC)

    assert [item.name for item in found] == ["rate", "switch", "age", "height"]
    assert [item.kind for item in found] == ["channel", "channel", "static", "static"]
    assert max(item.psi for item in found) < 1e-6  # shares are rounded
    assert worst(found) == "steady"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [10, 30, 100, 1000])
def test_other_cases_of_the_same_kind_raise_no_alarm(count, seed):
    found = drift(REFERENCE, *cases(count, seed=seed + 1), SPEC)

    assert {item.verdict for item in found} <= {"steady", "unclear"}
    assert count < 1000 or worst(found) == "steady"


@pytest.mark.parametrize(("shift", "direction"), [(40, "higher"), (-40, "lower")])
def test_thirty_cases_are_enough_to_see_what_is_far_off(shift, direction):
    found = by_name(drift(REFERENCE, *cases(30, seed=1, shift=shift), SPEC))

    assert (found["rate"].verdict, found["rate"].direction) == ("shifted", direction)
    assert found["switch"].verdict == "steady"


def test_a_little_drift_is_called_some():
    found = by_name(drift(REFERENCE, *cases(2000, seed=1, shift=4), SPEC))

    assert found["rate"].verdict == "some"


def test_another_value_of_what_was_always_the_same_is_seen():
    assert by_name(drift(REFERENCE, *cases(100, switch=1.0), SPEC))["switch"].verdict == "shifted"


def test_fewer_cases_with_a_value_are_seen_beside_values_as_before():
    found = by_name(drift(REFERENCE, *cases(1000, seed=1, measured=0.5), SPEC))["rate"]

    assert (found.missing_then, found.missing_now) == (0.0, pytest.approx(0.5, abs=0.05))
    assert found.values.verdict == "steady"
    assert found.missing.verdict == found.verdict == "shifted"


def test_fewer_readings_of_a_case_are_seen():
    found = by_name(drift(REFERENCE, *cases(1000, seed=1, every=2), SPEC))["rate"]

    assert (found.values.verdict, found.missing.verdict, found.readings.verdict) == ("steady", "steady", "shifted")


def test_what_fewer_than_ten_cases_have_is_not_compared():
    values, statics = cases(100, seed=1)
    values[9:, :, 0] = np.nan
    found = by_name(drift(REFERENCE, values, statics, SPEC))["rate"]

    assert (found.psi, found.readings, found.missing_now) == (None, None, 1.0)
    assert found.missing.verdict == "shifted"


columns = st.lists(
    st.one_of(st.none(), st.floats(-1e6, 1e6, width=32), st.sampled_from([0.0, 0.7, 1.0, 53.0])),
    min_size=10,
    max_size=200,
)


@given(columns)
@settings(max_examples=50, deadline=None)
def test_a_reference_tells_of_nobody_whatever_the_values(column):
    values = np.array([np.nan if value is None else value for value in column], dtype=np.float32).reshape(-1, 1, 1)
    spec = TimeSeriesInput(channels=SPEC.channels[:1], window=timedelta(hours=1), step=timedelta(hours=1))
    known = values[np.isfinite(values)]

    [told] = reference_of(values, np.empty((len(values), 0)), spec)["channels"]

    for place in ("values", "readings"):
        if told[place] is not None:
            counts = np.array(told[place]["shares"]) * len(known)
            assert all(count == 0 or count > 9.9 for count in counts)
            assert all(float(f"{edge:.3g}") == edge for edge in told[place]["edges"])
            assert told[place]["edges"] == sorted(set(told[place]["edges"]))
    missing = told["missing"] * len(values)
    assert missing == 0 or missing > 9.9
    assert len(values) - missing < 0.1 or len(values) - missing > 9.9
    if len(known) < 10:
        assert told["values"] is told["readings"] is None


@given(columns)
@settings(max_examples=25, deadline=None)
def test_no_cohort_drifts_from_itself(column):
    values = np.array([np.nan if value is None else value for value in column], dtype=np.float32).reshape(-1, 1, 1)
    spec = TimeSeriesInput(channels=SPEC.channels[:1], window=timedelta(hours=1), step=timedelta(hours=1))
    statics = np.empty((len(values), 0))

    [found] = drift(reference_of(values, statics, spec), values, statics, spec)

    assert found.verdict in ("steady", "too-few", "unclear")
    assert found.psi is None or found.psi < 1e-3


def test_neither_the_least_nor_the_largest_value_is_an_edge():
    values, statics = cases(500, seed=3)
    told = reference_of(values, statics, SPEC)["channels"][0]["values"]

    rates = values[:, 0, 0]
    assert (rates < told["edges"][0]).sum() >= 40
    assert (rates > told["edges"][-1]).sum() >= 40


def test_a_reference_is_json_and_read_back():
    assert worst(drift(json.loads(json.dumps(REFERENCE)), *cases(2000), SPEC)) == "steady"


def test_a_cohort_of_nine_has_no_reference():
    with pytest.raises(ConfigurationError, match="10 cases or more, not of 9"):
        reference_of(*cases(9), SPEC)


def test_a_reference_of_other_channels_is_refused():
    other = TimeSeriesInput(channels=SPEC.channels[:1], window=SPEC.window, step=SPEC.step)

    with pytest.raises(ConfigurationError, match="not of the channels"):
        drift(REFERENCE, np.zeros((10, 4, 1), np.float32), np.zeros((10, 0)), other)
    with pytest.raises(ConfigurationError, match="no reference of inputs"):
        drift({"cases": 3}, *cases(10), SPEC)
