"""Which declarations of time series are served, and how they are told."""

import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import pytest

from medflow.channel_rule import rule_of
from medflow.errors import PluginBroken
from medflow.plugin import Channel, CodedValue, Coding, TimeSeriesInput
from medflow.registry import check_spec, dump_spec, load_spec
from tests.stays import HeartRisk

HEART_RATE = Coding(system="http://loinc.org", code="8867-4")
HEIGHT = Coding(system="http://loinc.org", code="8302-2")
YES = Coding(system="http://snomed.info/sct", code="373066001")
RATE = Channel(name="HR", codes=(HEART_RATE,), unit="/min")
TALL = Channel(name="Height", codes=(HEIGHT,), unit="cm")
SERIES = TimeSeriesInput(channels=(RATE,), window=timedelta(hours=24), step=timedelta(hours=1))


def spec_of(series: TimeSeriesInput):
    return replace(HeartRisk.spec, accepts=(series,))


def channel(**changes) -> TimeSeriesInput:
    return replace(SERIES, channels=(replace(RATE, **changes),))


@pytest.mark.parametrize(
    ("series", "said"),
    [
        (channel(unit="furlong"), "'furlong' is no UCUM unit"),
        (channel(unit=""), "'' is no UCUM unit"),
        (channel(unit="mmHg"), "'mmHg' is no UCUM unit"),
        (channel(units={" ": 1.0}), "' ' can be no unit"),
        (channel(units={"{bpm}": 0.0}), "must be a number above 0"),
        (channel(units={"{bpm}": float("nan")}), "must be a number above 0"),
        (channel(units={"/min": 60.0}), "its own unit"),
        (channel(molar_mass_g_mol=-1.0), "molar_mass_g_mol"),
        (channel(unit=None, molar_mass_g_mol=180.0), "molar_mass_g_mol"),
        (channel(codes=()), "it has no code"),
        (channel(codes=(HEART_RATE, HEART_RATE)), "is named twice"),
        (channel(codes=(Coding(system="", code="HR"),)), "needs a system and a code"),
        (channel(valid_range=(300, 10)), "the least value, then the largest"),
        (channel(values=(CodedValue(code=YES, value=1), CodedValue(code=YES, value=2))), "is named twice"),
        (channel(valid_range=(0, 1), values=(CodedValue(code=YES, value=2),)), "not in its range"),
        (replace(SERIES, channels=()), "it has no channel"),
        (replace(SERIES, channels=(RATE, RATE)), "two channels are called 'HR'"),
        (replace(SERIES, channels=(RATE,), statics=(replace(TALL, name="HR"),)), "two channels are called 'HR'"),
        (replace(SERIES, window=timedelta(hours=24.5)), "no multiple of the step"),
        (replace(SERIES, step=timedelta(0)), "longer than nothing"),
        (replace(SERIES, min_channels=2), "min_channels"),
        (replace(SERIES, min_steps=25), "min_steps"),
        (replace(SERIES, min_measurements=-1), "min_measurements"),
        (replace(SERIES, statics=("weight",)), "'weight' is no static input"),
        (replace(SERIES, statics=("encounter-type:icu",)), "must be encounter-type:<system>|<code>"),
        (replace(SERIES, statics=("age", "age")), "named twice"),
        (replace(SERIES, statics=(TALL, replace(TALL, name="Length"))), "two statics read http://loinc.org|8302-2"),
        (replace(SERIES, statuses=("final", "entered-in-error")), "'entered-in-error' never counts"),
        (replace(SERIES, statuses=("cancelled",)), "'cancelled' never counts"),
        (replace(SERIES, statuses=("finale",)), "'finale' never counts"),
        (replace(SERIES, statuses=()), "nothing would count"),
    ],
)
def test_what_cannot_be_served_is_refused_and_named(series: TimeSeriesInput, said: str):
    with pytest.raises(PluginBroken) as refused:
        check_spec(spec_of(series))

    assert said in str(refused.value)


FULL = replace(
    SERIES,
    channels=(
        replace(RATE, units={"{bpm}": 1.0}, required=True),
        Channel(name="GCS", codes=(Coding(system="urn:ward", code="GCS"),), unit="{score}"),
        Channel(name="Answer", codes=(Coding(system="urn:ward", code="A"),), unit=None, units={"1": 1.0}),
    ),
    anchor="prediction-time",
    statics=("age", "admit-source:urn:s|er", "admit-source:urn:s|ward", "encounter-class:ACUTE", TALL),
    min_channels=2,
    statuses=("final",),
)


def test_a_full_declaration_is_served_and_comes_back_from_the_store():
    check_spec(spec_of(FULL))

    assert load_spec(dump_spec(spec_of(FULL))) == spec_of(FULL)


def test_a_line_says_what_is_asked_for():
    assert rule_of(FULL) == (
        "3 channels, the 24 h before the prediction time in steps of 1 h; HR in /min, GCS in {score}, Answer; "
        "statics age, admit-source, encounter-class, Height; with values of at least 1 measurement, 2 channels; "
        "never without HR; only what is final"
    )


def test_reading_ordinary_declarations_loads_no_library_of_units():
    code = (
        "import sys; from tests.test_channel_rule import FULL, spec_of, check_spec; check_spec(spec_of(FULL));"
        "from medflow_risk.channels import SERIES; check_spec(spec_of(SERIES));"
        "sys.exit(bool({'pint', 'ucumvert'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
