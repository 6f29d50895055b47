"""From readings to a grid: units, answers, what is said twice, and the six ways to join what is in one step."""

from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflow.plugin import Channel, CodedValue, Coding, TimeSeriesInput
from medflow.timeseries import Grid, Readings, _in_order, grid, last_values, statics

MINUTE_US = 60_000_000
LEFT, RIGHT, YES = (Coding(system="urn:ward", code=code) for code in ("left", "right", "yes"))
CHANNEL = Channel(name="drain", codes=(LEFT, RIGHT), unit="mL", valid_range=(0, 1000))
SPEC = TimeSeriesInput(channels=(CHANNEL,), window=timedelta(hours=3), step=timedelta(hours=1))
Row = tuple[int, Coding | frozenset[Coding], float, float, str | None, float]  # case, code, minute, known, unit, value


def readings(rows: list[Row], answers: tuple[Coding, ...] = (), answer: list[int] | None = None) -> Readings:
    codes = list(dict.fromkeys(row[1] for row in rows))
    units = list(dict.fromkeys(row[4] for row in rows))
    return Readings(
        codes=codes,
        units=units,
        case=np.array([row[0] for row in rows], dtype=np.int64),
        code=np.array([codes.index(row[1]) for row in rows], dtype=np.int64),
        offset_us=np.array([row[2] * MINUTE_US for row in rows], dtype=np.int64),
        known_us=np.array([row[3] * MINUTE_US for row in rows], dtype=np.int64),
        unit=np.array([units.index(row[4]) for row in rows], dtype=np.int64),
        value=np.array([row[5] for row in rows], dtype=np.float64),
        answers=answers,
        answer=None if answer is None else np.array(answer, dtype=np.int64),
    )


def grid_of(rows: list[Row], cases: int = 1, **changes) -> Grid:
    return grid(replace(SPEC, channels=(replace(CHANNEL, **changes),)), readings(rows), cases)


@pytest.mark.parametrize(
    ("aggregate", "joined"), [("last", 20), ("mean", 40), ("min", 20), ("max", 70), ("sum", 120), ("count", 3)]
)
def test_values_of_one_step_are_joined(aggregate: str, joined: float) -> None:
    rows: list[Row] = [(0, LEFT, 50, 50, "mL", 20), (0, LEFT, 5, 5, "mL", 70), (0, RIGHT, 5, 5, "mL", 30)]

    np.testing.assert_array_equal(grid_of(rows, aggregate=aggregate).values[0, :, 0], [joined, np.nan, np.nan])


def test_of_values_of_one_moment_the_one_known_last_is_the_last() -> None:
    rows: list[Row] = [(0, LEFT, 5, 9, "mL", 30), (0, RIGHT, 5, 7, "mL", 70)]

    assert grid_of(rows, aggregate="last").values[0, 0, 0] == 30


def test_what_is_said_twice_counts_once_and_keeps_its_place() -> None:
    rows: list[Row] = [(0, LEFT, 5, 6, "mL", 30), (0, LEFT, 5, 7, "mL", 40), (0, LEFT, 5, 8, "mL", 30)]

    assert grid_of(rows, aggregate="sum").values[0, 0, 0] == 70
    assert grid_of(rows, aggregate="last").values[0, 0, 0] == 40
    assert grid_of(rows).taken[0] == 2


def test_one_value_with_two_of_a_channels_codes_counts_once() -> None:
    both = frozenset((LEFT, RIGHT))

    assert grid_of([(0, both, 5, 5, "mL", 30), (0, LEFT, 5, 5, "mL", 30)], aggregate="sum").values[0, 0, 0] == 30
    assert grid_of([(0, RIGHT, 5, 5, "mL", 30), (0, LEFT, 5, 5, "mL", 30)], aggregate="sum").values[0, 0, 0] == 60


def test_units_are_converted_by_ucum_unless_the_channel_knows_better() -> None:
    rows: list[Row] = [(0, LEFT, 5, 5, "L", 0.5), (0, LEFT, 65, 65, "{cup}", 2.0), (0, LEFT, 125, 125, "{glass}", 1.0)]

    found = grid_of(rows, units={"{cup}": 200.0})

    np.testing.assert_array_equal(found.values[0, :, 0], [500, 400, np.nan])
    assert (found.taken[0], found.wrong_unit[0], found.out_of_range[0]) == (2, 1, 0)


def test_a_temperature_is_moved_as_well_as_stretched() -> None:
    found = grid_of([(0, LEFT, 5, 5, "[degF]", 98.6)], unit="Cel", valid_range=(30, 43))

    assert found.values[0, 0, 0] == np.float32(37)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1000.1, 1e300])
def test_an_impossible_value_is_refused_and_counted(value: float) -> None:
    found = grid_of([(0, LEFT, 5, 5, "mL", value)])

    assert np.isnan(found.values).all()
    assert (found.taken[0], found.out_of_range[0]) == (0, 1)


def test_an_answer_is_its_number_or_is_counted() -> None:
    channel = replace(CHANNEL, unit=None, values=(CodedValue(code=YES, value=1.0),))
    rows: list[Row] = [(0, LEFT, 5, 5, None, np.nan), (0, LEFT, 65, 65, None, np.nan), (0, LEFT, 125, 125, None, 0.0)]

    found = grid(replace(SPEC, channels=(channel,)), readings(rows, (YES, LEFT), [0, 1, -1]), 1)

    np.testing.assert_array_equal(found.values[0, :, 0], [1, np.nan, 0])
    assert (found.taken[0], found.unknown_answer[0]) == (2, 1)


def test_the_last_value_is_found_however_old_and_possible() -> None:
    rows: list[Row] = [
        (0, LEFT, -90_000, 0, "L", 0.3),
        (0, LEFT, -80_000, 0, "mL", 5000),
        (1, RIGHT, -9, -9, "mL", 1),
        (1, RIGHT, -8, -8, "mL", 2),
    ]

    np.testing.assert_array_equal(last_values([CHANNEL], readings(rows), 3), [[300], [2], [np.nan]])


def test_nothing_at_all_is_an_empty_grid() -> None:
    assert np.isnan(grid_of([], cases=2).values).all()
    assert np.isnan(last_values([CHANNEL], readings([]), 1)).all()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 3)] * 2, *[st.sampled_from([-(2**61), 0, 1, 2, 2**61])] * 2, st.floats(0, 3))),
    st.booleans(),
)
def test_readings_are_in_the_order_of_case_channel_time_moment_known_and_value(items, near: bool) -> None:
    rows = [(0, LEFT, 0, 0, "mL", value) for *_, value in items]
    case, channel, offset_us, known_us = np.array([item[:4] for item in items], dtype=np.int64).reshape(-1, 4).T
    found = replace(readings(rows), case=case, offset_us=offset_us % 3 if near else offset_us, known_us=known_us)

    order = _in_order(found, np.arange(len(items)), channel, found.value)

    keys = zip(found.case, channel, found.offset_us, found.known_us, found.value, strict=True)
    ordered = sorted(enumerate(keys), key=lambda item: item[1])
    assert order.tolist() == [place for place, _ in ordered]


@given(data=st.data(), aggregate=st.sampled_from(["last", "mean", "min", "max", "sum", "count"]))
def test_order_never_matters_to_the_last_bit(data: st.DataObject, aggregate: str) -> None:
    row = st.tuples(
        st.integers(0, 1),
        st.sampled_from([LEFT, RIGHT, frozenset((LEFT, RIGHT))]),
        st.integers(-10, 200),
        st.integers(0, 200),
        st.sampled_from(["mL", "L", "{cup}", None]),
        st.floats(-1, 1001),
    )
    rows = data.draw(st.lists(row, max_size=30))
    twice = data.draw(st.permutations([*rows, *rows[: len(rows) // 2]]))

    one, other = grid_of(rows, 2, aggregate=aggregate), grid_of(twice, 2, aggregate=aggregate)

    assert one.values.tobytes() == other.values.tobytes()
    np.testing.assert_array_equal(one.taken, other.taken)


def test_statics_are_one_nought_or_unknown() -> None:
    names = ("age", "sex", "encounter-type:urn:t|a", "encounter-class:IMP", "admit-source:urn:s|er", CHANNEL)
    known = {"birth": date(1960, 3, 2), "admitted": date(2026, 3, 1), "sex": "female"}

    found = statics(names, **known, types=("urn:t|b",), encounter_class="IMP")

    np.testing.assert_array_equal(found, [65, 0, 0, 1, np.nan, np.nan])


@pytest.mark.parametrize("name", ["weight", "encounter-type:", "encounter:urn:t|a"])
def test_an_unknown_static_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="is no static input"):
        statics((name,), birth=None, admitted=date(2026, 3, 1), sex=None, types=())
