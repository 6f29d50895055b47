"""The released model keeps the plugin contract, and answers for whom it was made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from medflow.plugin import Case, SeriesAttribution, TimeSeries, Unit, UnitKind
from medflow.testing import check_model
from medflow_risk.channels import CHANNELS, STATICS
from medflow_risk.data import read_cohort
from medflow_risk.evaluate import cases_of, predicted
from medflow_risk.metrics import report
from medflow_risk.mortality import IcuMortality

NAMES = [channel.name for channel in CHANNELS]


@pytest.fixture(scope="module")
def model() -> IcuMortality:
    loaded = IcuMortality()
    loaded.load("cpu")
    return loaded


def stay(*, age: float = 65.0, sex: float = 1.0, kind: int | None = 3, **hourly: float) -> Case:
    """A stay with the same values every hour."""
    values = np.full((48, len(CHANNELS)), np.nan, dtype=np.float32)
    for name, value in hourly.items():
        values[:, NAMES.index(name)] = value
    kinds = [float(number == kind) for number in (1, 2, 3, 4)]
    statics = np.array([age, sex, *kinds], dtype=np.float32)
    assert len(statics) == len(STATICS)
    return Case(
        unit=Unit(kind=UnitKind.ENCOUNTER, id=1),
        prediction_time=datetime(2026, 1, 3, tzinfo=UTC),
        inputs={"series": TimeSeries(values=values, statics=statics)},
    )


WELL = {"GCS": 15.0, "HR": 80.0, "NISysABP": 125.0, "Temp": 36.9, "BUN": 14.0, "Urine": 100.0, "Lactate": 1.0}
GRAVE = {"GCS": 3.0, "HR": 130.0, "NISysABP": 75.0, "Temp": 35.0, "BUN": 90.0, "Urine": 0.0, "Lactate": 12.0}


def test_it_keeps_the_contract() -> None:
    checks = check_model(IcuMortality)

    assert [(check.name, check.detail) for check in checks if not check.passed] == []


def test_the_gravely_ill_are_at_higher_risk(model: IcuMortality) -> None:
    well, grave = predicted(model, [model.prepare(stay(**WELL)), model.prepare(stay(age=85, **GRAVE))])

    assert well < 0.15
    assert grave > 0.6


def test_a_child_is_out_of_scope_and_does_not_spoil_the_batch(model: IcuMortality) -> None:
    alone = predicted(model, [model.prepare(stay(**WELL))])

    child, adult = model.predict([model.prepare(stay(age=4, **WELL)), model.prepare(stay(**WELL))])

    assert child.out_of_scope == "the model knows no patient under 15 years"
    assert adult.values["in-hospital-death"] == pytest.approx(alone[0], abs=1e-6)


@pytest.mark.parametrize("unknown", [{"age": np.nan}, {"sex": np.nan}, {"kind": None}])
def test_an_unknown_static_moves_a_risk_but_does_not_break_it(model: IcuMortality, unknown: dict) -> None:
    known, partly = predicted(model, [model.prepare(stay(**WELL)), model.prepare(stay(**WELL, **unknown))])

    assert abs(known - partly) < 0.15


def test_an_explanation_adds_up_to_the_risk(model: IcuMortality) -> None:
    nothing = np.full((48, len(CHANNELS)), np.nan, dtype=np.float32)
    unknown = replace(stay(), inputs={"series": TimeSeries(values=nothing, statics=np.full(6, np.nan, np.float32))})
    ready = [model.prepare(case) for case in (unknown, stay(age=85, **GRAVE), stay(**WELL))]
    base, *risks = (np.log(risk / (1 - risk)) for risk in predicted(model, ready))

    _, grave, well = model.explain(ready, model.predict(ready))

    for risk, shares in zip(risks, (grave, well), strict=True):
        found = shares["in-hospital-death"]
        assert isinstance(found, SeriesAttribution)
        assert found.values.sum() + found.statics.sum() == pytest.approx(risk - base, abs=0.1)
    worst = grave["in-hospital-death"].values.sum(0)  # type: ignore[union-attr]
    assert worst[NAMES.index("GCS")] > 0.2
    assert worst[NAMES.index("BUN")] > 0.1
    assert grave["in-hospital-death"].statics[0] > 0.1  # type: ignore[union-attr]


@pytest.mark.realdata
def test_it_tells_who_died_on_the_published_files(model: IcuMortality, realdata: Callable[[str], Path]) -> None:
    cohort = read_cohort(realdata("set-a"), realdata("loinc.csv"), limit=500)

    found = report(cohort.died, predicted(model, [model.prepare(case) for case in cases_of(cohort)]))

    # these stays were trained on: a check of the released files, not of how good the model is
    assert found["auroc"] > 0.85
    assert abs(found["mean_risk"] - cohort.died.mean()) < 0.03
