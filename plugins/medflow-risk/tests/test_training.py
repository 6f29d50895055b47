"""Training is reproducible, sees only its own fold, and reads the published files as the store would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medflow_risk.channels import CHANNELS, STATICS
from medflow_risk.data import Cohort, read_cohort
from medflow_risk.metrics import auprc, auroc, event_1
from medflow_risk.train import FOLDS, Samples, fit, folds_of, platt, samples_of, train

LOINC = """parameter,system,code,display,unit_ucum,value_kind,note
HR,http://loinc.org,8867-4,Heart rate,/min,quantity,
Urine,http://loinc.org,9187-6,Urine output,mL,quantity,
MechVent,http://snomed.info/sct,40617009,Artificial ventilation,,boolean,
Weight,http://loinc.org,29463-7,Body weight,kg,quantity,
"""
STAY = """Time,Parameter,Value
00:00,RecordID,{record}
00:00,Age,54
00:00,Gender,0
00:00,Height,-1
00:00,ICUType,4
00:00,Weight,-1
00:07,HR,70
00:59,HR,90
01:00,Urine,30
01:30,Urine,40
01:45,,5
02:00,MechVent,1
02:00,HR,999
47:59,HR,60
48:00,HR,61
"""


def write_set(folder: Path, stays: dict[int, str]) -> Path:
    (folder / "set-a").mkdir()
    for record, text in stays.items():
        (folder / "set-a" / f"{record}.txt").write_text(text.format(record=record))
    outcomes = [f"{record},1,1,1,-1,{record % 2}" for record in stays]
    header = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"
    (folder / "Outcomes-a.txt").write_text("\n".join([header, *outcomes]))
    (folder / "loinc.csv").write_text(LOINC)
    return folder


def cohort_of(count: int, seed: int = 0) -> Cohort:
    """Stays whose deaths follow from their heart rate."""
    rng = np.random.default_rng(seed)
    died = rng.random(count) < 0.4
    values = np.full((count, 48, len(CHANNELS)), np.nan, dtype=np.float32)
    values[:, :, 14] = (80 + 40 * died + rng.normal(0, 10, count))[:, None]
    statics = np.tile(np.array([60, 1, 1, 0, 0, 0], dtype=np.float32), (count, 1))
    return Cohort(records=np.arange(count), values=values, statics=statics, died=died, refused=0)


def samples(cohort: Cohort) -> Samples:
    return samples_of(cohort.values, cohort.statics, cohort.died)


def test_the_published_text_becomes_the_models_grid(tmp_path: Path) -> None:
    more = "".join(f"{hour:02}:10,HR,80\n" for hour in range(10, 20))
    folder = write_set(tmp_path, {7: STAY + more, 8: STAY})

    cohort = read_cohort(folder, folder / "loinc.csv")

    assert cohort.records.tolist() == [7]  # stay 8 has seven measurements, ten are needed
    assert cohort.refused == 1
    assert cohort.died.tolist() == [True]
    hourly = {channel.name: cohort.values[0, :, column] for column, channel in enumerate(CHANNELS)}
    assert hourly["HR"][0] == 80  # the mean of its hour
    assert hourly["HR"][47] == 60  # 48:00 is after the window
    assert np.isnan(hourly["HR"][2])  # 999 is impossible
    assert hourly["Urine"][1] == 70  # a sum
    assert hourly["MechVent"][2] == 1
    assert np.isnan(hourly["Weight"]).all()
    assert cohort.statics[0].tolist() == [54, 0, 0, 0, 0, 1]
    assert len(cohort.statics[0]) == len(STATICS)


def test_folds_are_disjoint_and_stratified() -> None:
    died = np.random.default_rng(0).random(503) < 0.14

    fold = folds_of(died, seed=1)

    deaths = [int(died[fold == number].sum()) for number in range(FOLDS)]
    assert max(deaths) - min(deaths) <= 1
    assert sorted(set(fold.tolist())) == list(range(FOLDS))


def test_the_same_seed_gives_the_same_network() -> None:
    torch.set_num_threads(1)
    stays = samples(cohort_of(60))

    first, second = (fit(stays, np.arange(60), seed=3).state_dict() for _ in range(2))

    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_stay_outside_the_fold_leaves_no_trace() -> None:
    torch.set_num_threads(1)
    cohort, inside = cohort_of(60), np.arange(50)
    before = fit(samples(cohort), inside, seed=3).state_dict()

    cohort.values[50:] = 1.0
    cohort.died[50:] = ~cohort.died[50:]

    after = fit(samples(cohort), inside, seed=3).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_training_learns_and_writes_what_it_says(tmp_path: Path) -> None:
    torch.set_num_threads(1)

    metrics = train(cohort_of(150), tmp_path)

    assert metrics["cross_validation"]["auroc"] > 0.9  # type: ignore[index]
    assert (tmp_path / "icu_mortality.safetensors").stat().st_size < 5_000_000
    assert len((tmp_path / "out_of_fold.csv").read_text().splitlines()) == 151


def test_platt_scaling_undoes_a_known_distortion() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, 20_000)
    died = rng.random(20_000) < 1 / (1 + np.exp(-(0.5 * logit - 1)))

    assert platt(logit, died) == pytest.approx((0.5, -1.0), abs=0.05)


def test_metrics_agree_with_hand_counts() -> None:
    event = np.array([True, False, True, False, False])
    score = np.array([0.9, 0.8, 0.8, 0.2, 0.1])

    assert auroc(event, score) == pytest.approx((1 + 1 + 1 + 0.5 + 1 + 1) / 6)
    assert auprc(event, score) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert event_1(event, score) == pytest.approx(2 / 3)
