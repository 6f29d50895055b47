"""Training is reproducible, sees only its own fold, and reads the published files as the store would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import ndtri

from medflow.evaluation.reference import read_reference
from medflow_risk.channels import CHANNELS, SERIES, STATICS
from medflow_risk.data import LOG_DAYS, WITHIN_A_YEAR, Cohort, read_cohort
from medflow_risk.features import COLUMNS, STEPS, WIDTH
from medflow_risk.fitting import (
    Recipe,
    normal_scores,
    of_other_outcomes,
    other_outcomes,
    platt,
    read,
    samples_of,
    scaled,
)
from medflow_risk.metrics import auprc, auroc, best_threshold, calibration_error, decisions, event_1
from medflow_risk.network import CORES, Core, Course, Ensemble, Member
from medflow_risk.train import FOLDS, PARTS, Fold, compare, dealt, fit_fold, train

SMALL = Recipe(hidden=8, epochs=1, trees=5)
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
    other = np.full((count, 4), np.nan, dtype=np.float32)
    other[:, 1] = 5 * died
    other[:, LOG_DAYS] = np.log(np.arange(count) % 14 + 1)
    other[:, WITHIN_A_YEAR] = died | (np.arange(count) % 5 == 0)
    return Cohort(records=np.arange(count), values=values, statics=statics, died=died, other=other, refused=0)


def test_the_published_text_becomes_the_models_grid(tmp_path: Path) -> None:
    more = "".join(f"{hour:02}:10,HR,80\n" for hour in range(10, 20))
    folder = write_set(tmp_path, {7: STAY + more, 8: STAY})

    cohort = read_cohort(folder, folder / "loinc.csv")

    assert cohort.records.tolist() == [7]  # stay 8 has seven measurements, ten are needed
    assert cohort.refused == 1
    assert cohort.died.tolist() == [True]
    np.testing.assert_allclose(cohort.other, [[1, 1, 0, 0]])
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

    fold = dealt(died, FOLDS, seed=1)

    deaths = [int(died[fold == number].sum()) for number in range(FOLDS)]
    assert max(deaths) - min(deaths) <= 1
    assert sorted(set(fold.tolist())) == list(range(FOLDS))


def learnt(cohort: Cohort) -> Fold:
    torch.set_num_threads(1)
    stays = samples_of(cohort.values, cohort.statics, cohort.died, cohort.other)
    return fit_fold(stays, np.arange(60), np.arange(60, 75), SMALL, seed=3)


def test_a_stay_outside_the_fold_leaves_no_trace_and_the_same_seed_gives_the_same_member() -> None:
    cohort = cohort_of(75)
    before = learnt(cohort)

    cohort.values[60:] = 1.0
    cohort.died[60:] = ~cohort.died[60:]
    cohort.other[60:] = 7.0

    after = learnt(cohort)
    first, second = before.member.state_dict(), after.member.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert before.threshold == after.threshold


def test_training_learns_and_writes_what_it_says(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    cohort = cohort_of(150)

    metrics, folds, samples = train(cohort, tmp_path, SMALL)

    found = metrics["cross_validation"]
    assert found["auroc"] > 0.9  # type: ignore[index]
    assert found["at_thresholds_of_training_folds"]["event_1"] > 0.8  # type: ignore[index]
    assert len((tmp_path / "out_of_fold.csv").read_text().splitlines()) == 151
    for plot in ("reliability", "learning-curve"):
        assert (tmp_path / f"icu_mortality.{plot}.png").read_bytes().startswith(b"\x89PNG")
    read_reference((tmp_path / "icu_mortality.reference.json").read_bytes(), SERIES)
    ensemble = Ensemble.of(load_file(tmp_path / "icu_mortality.safetensors"))
    chance = ensemble(samples.sequence, samples.summary).detach().numpy()
    assert auroc(cohort.died, chance) > 0.9
    assert [member.courses[0].core for member in ensemble.members] == ["lstm"] * FOLDS  # type: ignore[union-attr]
    assert set(compare(samples, folds[:1], SMALL)) == {"lstm", "gru", "transformer"}


@pytest.mark.parametrize("core", CORES)
def test_the_tensors_tell_which_core_they_are_of(core: Core) -> None:
    made = Ensemble([Member([Course(core, 12), Course(core, 12)], knots=5, trees=2).eval()])
    made.members[0].knots[:] = torch.arange(5.0)  # type: ignore[union-attr, index]
    batch = torch.rand(2, 3, STEPS, WIDTH), torch.rand(2, len(COLUMNS))

    again = Ensemble.of(made.state_dict())

    assert torch.equal(made(*batch), again(*batch))


def test_other_outcomes_are_death_within_a_year_and_in_hospital_within_a_week() -> None:
    cohort = cohort_of(6)
    died = np.array([True, True, True, False, False, False])
    cohort.other[:, LOG_DAYS] = np.log([7, 8, np.nan, 3, 3, 3])
    cohort.other[:, WITHIN_A_YEAR] = [1, 1, 1, 1, 0, np.nan]

    found = other_outcomes(samples_of(cohort.values, cohort.statics, died, cohort.other))

    assert [(weight, outcome.tolist()) for weight, outcome in found] == [
        (2, [1, 1, 1, 1, 0, 0]),
        (1, [1, 0, 0, 0, 0, 0]),
    ]


@pytest.mark.parametrize("told", ["nothing", "the same of all"])
def test_an_outcome_that_no_stay_tells_apart_has_no_trees(told: str) -> None:
    cohort = cohort_of(60)
    other = None if told == "nothing" else np.zeros_like(cohort.other)
    samples = samples_of(cohort.values, cohort.statics, cohort.died & (told == "nothing"), other)
    stays = np.arange(60)

    assert of_other_outcomes(read(scaled(samples, stays), samples), samples, stays, SMALL, seed=3) == []


def test_a_member_has_trees_of_every_outcome_of_its_own_stays() -> None:
    cohort = cohort_of(75)
    died_later = cohort.other[:, WITHIN_A_YEAR] - cohort.died

    before = learnt(cohort).member.trees
    cohort.other[:60, WITHIN_A_YEAR] -= died_later[:60]
    after = learnt(cohort).member.trees

    of_death, of_a_year = PARTS * SMALL.trees, SMALL.trees
    assert len(before.leaf) == of_death + 2 * SMALL.trees
    same = (before.leaf == after.leaf).all(1)
    assert same[:of_death].all() and not same[of_death : of_death + of_a_year].any()
    assert same[of_death + of_a_year :].all()


def test_normal_scores_are_of_ranks_and_ties_share_theirs() -> None:
    column = np.array([np.nan] * 10 + [0.0] * 50 + list(range(1, 51)))

    knots, normal = normal_scores(column[:, None])

    assert (np.diff(knots.numpy()[0]) > 0).all()
    assert normal[0, 0] == pytest.approx(ndtri(0.25), abs=0.06)  # half of them are 0
    assert normal[0].max() == pytest.approx(ndtri(0.99))


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
    assert best_threshold(event, score) == 0.8
    assert decisions(event, score >= 0.8)["event_1"] == pytest.approx(2 / 3)
    assert calibration_error(event, score) == pytest.approx((0.1 + 0.6 + 0.2 + 0.1) / 5)
