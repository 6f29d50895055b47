"""Units are converted by UCUM's rules, or refused; never guessed."""

from __future__ import annotations

import math
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflow.units import MISREAD, Conversion, conversion, is_unit


@pytest.mark.parametrize(
    ("unit", "to", "slope", "intercept"),
    [
        ("g/L", "g/dL", 0.1, 0),
        ("Cel", "[degF]", 1.8, 32),
        ("[degF]", "Cel", 5 / 9, -160 / 9),
        ("K", "Cel", 1, -273.15),
        ("{beats}/min", "/min", 1, 0),
        ("Hz", "/min", 60, 0),
        ("kPa", "mm[Hg]", 1000 / 133.322387415, 0),
        ("10*9/L", "10*3/uL", 1, 0),
        ("[lb_av]", "kg", 0.45359237, 0),
        ("U/L", "ukat/L", 1 / 60, 0),
        ("meq/L", "eq/L", 1e-3, 0),
        ("%", "1", 0.01, 0),
        ("[ppm]", "%", 1e-4, 0),
        ("L/L", "%", 100, 0),
        ("m[IU]/mL", "[IU]/L", 1, 0),
        ("[iU]/L", "[IU]/L", 1, 0),
        ("/min/m2", "1/(min.m2)", 1, 0),  # from left to right
        ("mg/(8.h)", "mg/h", 0.125, 0),
        ("dyn.s/cm5", "mm[Hg].s/mL", 1 / 1333.22387415, 0),
        ("{score}", "{score}", 1, 0),
        ("[pH]", "[pH]", 1, 0),
        ("no unit at all", "no unit at all", 1, 0),
    ],
)
def test_units_of_one_dimension_are_converted(unit: str, to: str, slope: float, intercept: float) -> None:
    found = conversion(unit, to)

    assert found is not None
    assert found.slope == pytest.approx(slope, rel=1e-12)
    assert found.intercept == pytest.approx(intercept, rel=1e-12)


@pytest.mark.parametrize(
    ("unit", "to"),
    [
        ("mg/dL", "mmol/L"),  # of what
        ("[IU]/L", "10*3/uL"),
        ("[IU]/L", "U/L"),
        ("[IU]/L", "[USP'U]/L"),
        ("[IU]", "1"),
        ("meq/L", "mmol/L"),  # of which valence
        ("mosm/kg", "mmol/kg"),
        ("{score}", "1"),
        ("{INR}", "1"),
        ("{mmHg}", "mm[Hg]"),
        ("ng/mL{FEU}", "ug/L{DDU}"),
        ("{breaths}/min", "{beats}/min"),
        ("mSv", "mGy"),
        ("Bq", "/s"),
        ("{mmHg}", "1"),
        ("{a}{b}", "1"),
        ("[pH]", "1"),
        ("[pH]", "{pH}"),
        ("mmol/mol", "%"),  # HbA1c has two scales
        ("g/g", "L/L"),
        ("mg/kg/h", "/h"),
        ("deg", "1"),
        ("rad/s", "/s"),
        ("bit/s", "Hz"),
        ("dB", "1"),
        ("Cel/min", "K/min"),
        ("mCel", "Cel"),
        ("[Cal]", "kJ"),  # pint has the small one
        ("g%", "g/dL"),
        ("'", "s"),
        ("mmHg", "mm[Hg]"),
        ("l/l", "MG/DL"),
        ("<mg/dL", "mg/dL"),
        ("", "1"),
        ("10*999999999", "1"),
    ],
)
def test_what_is_not_the_same_is_refused_both_ways(unit: str, to: str) -> None:
    assert conversion(unit, to) is None
    assert conversion(to, unit) is None


def test_mass_and_amount_of_substance_meet_by_the_molar_mass() -> None:
    assert conversion("mmol/L", "mg/dL", 180.156) == Conversion(18.0156)
    assert conversion("umol/L", "mg/dL", 113.12) == Conversion(0.011312)
    back = conversion("mg/dL", "mmol/L", 180.156)
    assert back is not None
    assert back.slope == pytest.approx(1 / 18.0156)


@pytest.mark.parametrize(("unit", "to"), [("meq/L", "mg/dL"), ("m2/L", "mg/dL"), ("mol2/L2", "g/L"), ("[IU]/L", "g/L")])
def test_the_molar_mass_helps_nothing_else(unit: str, to: str) -> None:
    assert conversion(unit, to, 100.0) is None


FAMILIES = {
    "concentration": ("g/L", "mg/dL", "ug/mL", "ng/mL", "g/dL", "pg/uL"),
    "amount": ("mmol/L", "umol/L", "mol/m3", "nmol/mL"),
    "pressure": ("mm[Hg]", "kPa", "cm[H2O]", "bar", "Pa"),
    "rate": ("/min", "Hz", "{breaths}/min", "/h", "1/s"),
    "number": ("1", "%", "[ppm]", "[ppth]", "10*-2"),
    "mass": ("kg", "g", "[lb_av]", "[oz_av]", "mg"),
    "temperature": ("Cel", "[degF]", "K"),
    "enzyme": ("U/L", "ukat/L", "nkat/mL", "umol/min/L"),
    "arbitrary": ("[IU]/L", "m[IU]/mL", "k[IU]/L"),
    "equivalents": ("meq/L", "eq/m3"),
    "time": ("s", "min", "h", "d", "wk"),
}
alike = st.sampled_from(sorted(FAMILIES)).flatmap(
    lambda name: st.tuples(st.sampled_from(FAMILIES[name]), st.sampled_from(FAMILIES[name]))
)
numbers = st.floats(-1e6, 1e6)


@given(pair=alike, value=numbers)
def test_there_and_back_is_the_same_value(pair: tuple[str, str], value: float) -> None:
    there, back = conversion(*pair), conversion(*reversed(pair))

    assert there is not None
    assert back is not None
    again = back.slope * (there.slope * value + there.intercept) + back.intercept
    assert again == pytest.approx(value, rel=1e-9, abs=1e-9)


@given(pair=alike, values=st.tuples(numbers, numbers))
def test_more_stays_more(pair: tuple[str, str], values: tuple[float, float]) -> None:
    found = conversion(*pair)

    assert found is not None
    low, high = (found.slope * value + found.intercept for value in sorted(values))
    assert low <= high


@pytest.mark.parametrize("one", sorted(FAMILIES))
def test_families_do_not_meet(one: str) -> None:
    for other in FAMILIES:
        if other != one:
            assert conversion(FAMILIES[one][0], FAMILIES[other][0]) is None
            assert conversion(FAMILIES[one][-1], FAMILIES[other][-1]) is None


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=80) | st.text(alphabet="mgLl/.{}()[]%10*-+'dsU", max_size=20))
def test_weird_text_is_refused_or_finite_and_never_raises(text: str) -> None:
    found = conversion(text, "mg/dL")

    assert found is None or (math.isfinite(found.slope) and found.slope > 0)
    assert isinstance(is_unit(text), bool)


@cache
def _definitions() -> dict[str, tuple[float, str]]:
    from ucumvert.xml_util import get_units_with_full_definition

    return {
        unit.code_cs: (float(unit.conversion_factor), unit.defining_unit)
        for unit in get_units_with_full_definition()
        if not unit.is_special and not unit.is_arbitrary and unit.code_cs != "mol"
    }


def test_every_unit_is_what_ucum_defines_or_is_refused() -> None:
    wrong = []
    for code, (value, unit) in _definitions().items():
        found = conversion(code, unit)
        if found is None:
            continue
        if found.slope != pytest.approx(value, rel=1.1e-3):  # water, mercury and calories depend on the temperature
            wrong.append((code, found.slope, value, unit))
    assert wrong == []


def test_units_that_the_library_misreads_are_refused() -> None:
    assert all(conversion(code, unit) is None for code, (_, unit) in _definitions().items() if code in MISREAD)


@pytest.mark.parametrize(
    "unit", ["mg/dL", "{score}", "mL/min/{1.73_m2}", "ug/kg/min", "10*3/uL", "[pH]", "[APL'U]", "mg/(8.h)", "[knk'U]"]
)
def test_units_are_known(unit: str) -> None:
    assert is_unit(unit)


@pytest.mark.parametrize("unit", ["", " ", "mmHg", "furlong", "mg/dl/", "{}", "{a", "mg dL", "m" * 65, "{a b\n}"])
def test_what_is_no_unit_is_known_too(unit: str) -> None:
    assert not is_unit(unit)
