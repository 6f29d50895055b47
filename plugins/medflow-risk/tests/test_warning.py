"""The early-warning score: whom it answers for, what it was taught, and how it explains itself."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from medflow.errors import InputNotUsable
from medflow.plugin import Case, Epoch, Examples, Prediction, TimeSeries, Unit, UnitKind
from medflow.testing import check_model
from medflow_risk.warning import OUTPUT, EarlyWarning
from medflow_risk.warning_data import AT_HOURS, nights_of, read_nights
from medflow_risk.warning_features import HOURS, NAMES, SERIES, WIDTH, arterial_pressure, sustained_low

CALM = {"MAP": 90.0, "HR": 75.0, "SysABP": 130.0, "Temp": 36.9, "GCS": 15.0, "Urine": 120.0, "Lactate": 1.0}
FAILING = {"MAP": 64.0, "HR": 125.0, "SysABP": 88.0, "Temp": 38.6, "GCS": 9.0, "Urine": 10.0, "Lactate": 6.0}


@pytest.fixture(scope="module")
def model() -> EarlyWarning:
    loaded = EarlyWarning()
    loaded.load("cpu")
    return loaded


def window(*, age: float = 70.0, hours: int = HOURS, **hourly: float) -> Case:
    """A window with the same values in each of its last ``hours``."""
    values = np.full((HOURS, WIDTH), np.nan, dtype=np.float32)
    for name, value in hourly.items():
        values[HOURS - hours :, NAMES.index(name)] = value
    statics = np.array([age, 1, 0, 0, 1, 0], dtype=np.float32)
    assert len(statics) == len(SERIES.statics)
    return Case(
        unit=Unit(kind=UnitKind.ENCOUNTER, id=1),
        prediction_time=datetime(2026, 1, 3, tzinfo=UTC),
        inputs={"series": TimeSeries(values=values, statics=statics)},
    )


def with_pressure(case: Case, **changes: tuple[int, float]) -> Case:
    """The case with another value of a channel in one hour."""
    for name, (hour, value) in changes.items():
        case.series.values[hour, NAMES.index(name)] = value
    return case


def risks(model: EarlyWarning, *cases: Case) -> list[float]:
    return [float(item.values[OUTPUT]) for item in model.predict([model.prepare(case) for case in cases])]


def test_it_keeps_the_contract() -> None:
    checks = check_model(EarlyWarning)

    assert [(check.name, check.detail) for check in checks if not check.passed] == []


def test_whose_circulation_fails_is_at_higher_risk(model: EarlyWarning) -> None:
    calm, failing = risks(model, window(**CALM), window(**FAILING))

    assert calm < 0.06
    assert failing > 2 * calm


def test_who_was_hypotensive_for_two_hours_is_out_of_scope_and_one_hour_is_not_enough(model: EarlyWarning) -> None:
    one = with_pressure(window(**CALM), MAP=(5, 55.0))
    two = with_pressure(with_pressure(window(**CALM), MAP=(5, 55.0)), MAP=(6, 55.0))

    (warned,) = model.predict([model.prepare(one)])
    (silent,) = model.predict([model.prepare(two)])

    assert warned.out_of_scope is None
    assert silent.out_of_scope == "mean arterial pressure below 60 mm[Hg] for two hours has come already"


def test_a_cuff_counts_where_there_is_no_arterial_line(model: EarlyWarning) -> None:
    values = np.full((3, WIDTH), np.nan, dtype=np.float32)
    values[:, NAMES.index("NIMAP")] = 55.0
    values[2, NAMES.index("MAP")] = 80.0

    pressure = arterial_pressure(values)

    assert pressure.tolist() == [55.0, 55.0, 80.0]
    assert sustained_low(pressure).tolist() == [False, True, False]


def test_without_any_pressure_there_is_no_answer(model: EarlyWarning) -> None:
    with pytest.raises(InputNotUsable, match="no mean arterial pressure") as refused:
        model.prepare(window(HR=80.0, Temp=37.0))

    assert refused.value.code == "no-arterial-pressure"


def test_a_child_is_out_of_scope(model: EarlyWarning) -> None:
    (answer,) = model.predict([model.prepare(window(age=4, **CALM))])

    assert answer.out_of_scope == "the model knows no patient under 15 years"


@pytest.mark.parametrize("unknown", [0, 1])
def test_an_unknown_static_moves_a_risk_but_little(model: EarlyWarning, unknown: int) -> None:
    partly = window(**CALM)
    partly.series.statics[unknown] = np.nan

    known, moved = risks(model, window(**CALM), partly)

    assert 0.7 < moved / known < 1.4


def test_shares_add_up_to_what_moved_the_risk_and_name_the_pressure(model: EarlyWarning) -> None:
    import torch

    batch = [model.prepare(window(**FAILING)), model.prepare(window(hours=6, **CALM))]
    (failing, calm) = (found[OUTPUT] for found in model.explain(batch, [Prediction(), Prediction()]))

    ensemble = model._ensemble
    series = torch.from_numpy(np.stack([item.series for item in batch]))
    statics = torch.from_numpy(np.stack([item.statics for item in batch]))
    nothing = torch.zeros_like(series)
    nothing[:, 0], nothing[:, 2] = torch.nan, 1.0
    with torch.inference_mode():
        moved = (ensemble.logits(series, statics) - ensemble.logits(nothing, torch.zeros_like(statics))).tolist()
    totals = [float(found.values.sum() + found.statics.sum()) for found in (failing, calm)]
    assert totals == pytest.approx(moved, abs=0.1)
    assert failing.values.shape == (HOURS, WIDTH)
    by_channel = failing.values.sum(0)
    assert NAMES[int(np.argmax(by_channel))] in ("MAP", "SysABP")
    assert calm.values[:, NAMES.index("MAP")].sum() < 0


def test_nights_are_labelled_by_what_the_next_day_brought_and_by_nothing_later() -> None:
    whole = np.full((4, 48, WIDTH), np.nan, dtype=np.float32)
    whole[:, :, :7] = 80.0
    whole[1, 20:22, 0] = 50.0  # low at 21: an event of 12 and 18, out of scope at 24
    whole[2, 40:42, 0] = 50.0  # low at 41: not yet one of 12
    whole[3, 30:, :2] = np.nan
    whole[3, 13:, :2] = np.nan  # unobserved at 18 and 24: nothing follows
    statics = np.zeros((4, 6), dtype=np.float32)

    nights = nights_of(whole, statics, np.arange(4))

    found = {
        (record, hour): event for record, hour, event in zip(nights.record, nights.hour, nights.event, strict=True)
    }
    assert {key for key, event in found.items() if event} == {(1, 12), (1, 18), (2, 18), (2, 24)}
    assert (1, 24) not in found and (3, 18) not in found
    assert nights.left_out == {
        "too few measurements": 0,
        "no arterial pressure": 0,
        "hypotensive already": 1,
        "unobserved": 2,
    }
    early = nights.values[nights.hour == AT_HOURS[0]]
    assert np.isnan(early[:, :12]).all()
    assert not np.isnan(early[0, 12:, 0]).any()


@pytest.mark.realdata
def test_it_tells_who_became_hypotensive_on_the_published_files(
    model: EarlyWarning, realdata: Callable[[str], Path]
) -> None:
    from sklearn.metrics import roc_auc_score

    nights = read_nights(realdata("set-a"), realdata("loinc.csv"), limit=300)
    cases = [
        Case(
            unit=Unit(kind=UnitKind.ENCOUNTER, id=1),
            prediction_time=datetime(2012, 1, 2, tzinfo=UTC),
            inputs={"series": TimeSeries(values=values, statics=statics)},
        )
        for values, statics in zip(nights.values, nights.statics, strict=True)
    ]

    found = np.array(risks(model, *cases))

    # these stays were trained on: a check of the released files, not of how good the model is
    assert roc_auc_score(nights.event, found) > 0.8
    assert abs(found.mean() - nights.event.mean()) < 0.04


def test_it_can_be_fitted_to_a_sites_own_cohort_and_the_same_again() -> None:
    rng = np.random.default_rng(3)
    sick = rng.random(120) < 0.4
    values = np.stack([window(**(FAILING if ill else CALM)).series.values for ill in sick])
    values += rng.normal(0, 3, values.shape).astype(np.float32)
    examples = Examples(
        values=values,
        statics=np.zeros((120, 6), dtype=np.float32),
        outcome=sick.astype(np.float32),
        patients=np.arange(120),
    )
    training, validation = examples.take(np.arange(90)), examples.take(np.arange(90, 120))
    epochs: list[Epoch] = []
    chosen = {"hidden": 8, "dropout": 0.1, "learning_rate": 1e-2, "epochs": 2, "members": 1}

    first, again = (
        EarlyWarning.fit(training, validation, chosen, seed=1, device="cpu", report=epochs.append) for _ in range(2)
    )

    (tensors,), (same,) = first.tensors.values(), again.tensors.values()
    assert all(np.array_equal(tensors[name], same[name]) for name in tensors)
    assert [epoch.number for epoch in epochs] == [1, 2, 1, 2]
    assert first.threshold is not None and 0 < first.threshold < 1
    assert epochs[-1].auroc is not None and epochs[-1].auroc > 0.9
