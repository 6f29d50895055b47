"""Which channels and statics are told of, in which order, and in which words."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflow.contributions import LEAST_SHARE, MOST, contributions_of, declared_code, in_words
from medflow.plugin import LOINC, Channel, Coding, SeriesAttribution, TimeSeries, TimeSeriesInput
from tests.results import MORTALITY, PNEUMONIA, SPLICE

HEIGHT = Channel(name="height", codes=(Coding(system=LOINC, code="8302-2"),), unit="cm")
NAMES = ("HR", "GCS", "Urine", "BUN", "Na", "K", "pH")
SPEC = TimeSeriesInput(
    channels=tuple(Channel(name=name, codes=(Coding(system="urn:test", code=name),), unit="1") for name in NAMES),
    window=timedelta(hours=2),
    step=timedelta(hours=1),
    statics=("age", "sex", "encounter-type:urn:unit|1", "encounter-type:urn:unit|2", HEIGHT),
)
SEEN = TimeSeries(values=np.ones((2, 7), np.float32), statics=np.ones(5, np.float32))


def attribution(statics=(0.0, 0.0, 0.0, 0.0, 0.0), **steps):
    """By channel and step; none of the others."""
    values = np.zeros((2, len(NAMES)), np.float32)
    for name, spoke in steps.items():
        values[:, NAMES.index(name)] = spoke
    return SeriesAttribution(values=values, statics=np.array(statics, np.float32))


def told(found, series=SEEN):
    return [(item.name, item.value) for item in contributions_of(SPEC, series, found)]


def test_steps_are_summed_and_the_largest_comes_first_whichever_way_it_spoke():
    found = contributions_of(SPEC, SEEN, attribution(HR=(0.5, 0.25), GCS=(-2.0, 0.5), BUN=(0.5, 0.25)))

    assert [(item.name, item.value, item.share) for item in found] == [
        ("GCS", -1.5, 0.5),
        ("HR", 0.75, 0.25),
        ("BUN", 0.75, 0.25),
    ]
    assert found[0].steps == (-2.0, 0.5)


def test_no_more_are_told_than_a_reader_takes_in_and_none_that_hardly_matters():
    many = attribution(HR=(1, 0), GCS=(1, 0), Urine=(1, 0), BUN=(1, 0), Na=(1, 0), K=(1, 0), pH=(1, 0))
    one = attribution(HR=(1, 0), GCS=(0.01, 0.01))

    assert [name for name, _ in told(many)] == list(NAMES[:MOST])
    assert told(one) == [("HR", 1.0)]


def test_statics_are_told_by_name_and_those_of_one_element_count_as_one():
    found = contributions_of(SPEC, SEEN, attribution((0.5, 0.0, -0.25, 1.25, -0.75)))

    assert [(item.kind, item.name, item.value) for item in found] == [
        ("static", "encounter type", 1.0),
        ("static", "height", -0.75),
        ("static", "age", 0.5),
    ]
    assert [declared_code(SPEC, item) for item in found] == [None, HEIGHT.codes[0], None]


def test_what_was_not_measured_is_told_as_an_absence():
    values, statics = SEEN.values.copy(), SEEN.statics.copy()
    values[:, 2] = np.nan
    statics[4] = np.nan
    series = TimeSeries(values=values, statics=statics)

    found = contributions_of(SPEC, series, attribution((0, 0, 0, 0, 0.5), Urine=(1, 0), HR=(-1, -1)))

    said = "Raised by: Urine (not measured), height (not measured). Lowered by: HR."
    assert in_words(MORTALITY, found) == said


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (MORTALITY, "Raised by: HR. Lowered by: GCS."),
        (PNEUMONIA, "Raised by: HR. Lowered by: GCS."),
        (SPLICE, "Spoke for it: HR. Spoke against it: GCS."),
    ],
)
def test_words_name_and_never_count(output, words):
    assert in_words(output, contributions_of(SPEC, SEEN, attribution(HR=(1, 1), GCS=(-1, 0)))) == words


def test_an_attribution_of_nothing_tells_nothing():
    assert contributions_of(SPEC, SEEN, attribution()) == ()
    assert in_words(MORTALITY, ()) == ""


@given(st.lists(st.floats(-100, 100, width=32), min_size=19, max_size=19))
def test_shares_are_parts_of_all_that_spoke(numbers):
    values = np.array(numbers[:14], np.float32).reshape(2, 7)
    found = SeriesAttribution(values=values, statics=np.array(numbers[14:], np.float32))

    contributions = contributions_of(SPEC, SEEN, found)

    assert len(contributions) <= MOST
    assert all(LEAST_SHARE <= item.share <= 1 for item in contributions)
    assert sum(item.share for item in contributions) <= 1.01
    assert [abs(item.value) for item in contributions] == sorted(abs(item.value) for item in contributions)[::-1]


def test_what_the_last_digits_of_a_device_say_changes_nothing():
    plain = attribution((0.3, 0, 0, 0, 0), HR=(0.5, 0.25), GCS=(-2.0, 0.5), BUN=(0.5, 0.25))
    other = replace(plain, values=plain.values * np.float32(1 + 1e-6))

    assert contributions_of(SPEC, SEEN, plain) == contributions_of(SPEC, SEEN, other)
