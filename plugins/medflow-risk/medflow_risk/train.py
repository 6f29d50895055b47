"""Training, from the challenge's published files to the weights in this package; seeded, on one CPU core.

    python -m medflow_risk.train --set-a DIR --loinc CSV --out DIR [--compare]

Five stratified folds; nothing is learnt from the stays of a fold that its own member is judged on: not its scales, not
its calibration, not its threshold. The training stays of each fold are dealt into five parts, and what is learnt from
four of them answers for the fifth: on those answers the fold calibrates and chooses its threshold. The member joins the
five sets of trees for death in hospital, and trees for other outcomes and networks of the course of all its training
stays. The released ensemble is the members of all folds.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.special import expit

from medflow.evaluation.input_drift import reference_of
from medflow.plugin import Epoch
from medflow_risk.boosting import joined_trees
from medflow_risk.channels import SERIES
from medflow_risk.data import Cohort, read_cohort
from medflow_risk.fitting import (
    OF_DEATH,
    Recipe,
    Samples,
    Told,
    fit_course,
    grown,
    of_other_outcomes,
    parts_of,
    platt,
    read,
    samples_of,
    scaled,
)
from medflow_risk.metrics import auprc, auroc, best_threshold, decisions, report
from medflow_risk.network import CORES, Course, Ensemble, Member, Reading
from medflow_risk.plots import learning_curve, reliability

FOLDS = 5
PARTS = 5  # of the training stays of a fold
COURSES = 4  # networks of the course in a member
COMPARED = 2  # networks of each core in a fold, when cores are compared
WEIGHTS = "icu_mortality.safetensors"
REFERENCE = "icu_mortality.reference.json"


@dataclass(frozen=True, kw_only=True)
class Fold:
    """What one fold came to: its member, and what it makes of the stays ``outside``.

    ``logits`` are uncalibrated, of the whole member and of its parts; ``chance`` is calibrated and ``threshold`` was
    chosen on the training stays; ``epochs`` is how its networks learnt, told of the stays outside for the plot alone.
    """

    seed: int
    member: Member
    outside: np.ndarray
    logits: dict[str, np.ndarray]
    chance: np.ndarray
    threshold: float | None
    epochs: list[Epoch]


def dealt(died: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """The part (0 .. parts - 1) of each stay, deaths dealt out evenly."""
    rng = np.random.default_rng(seed)
    part = np.empty(len(died), dtype=np.int64)
    for outcome in (True, False):
        stays = rng.permutation(np.flatnonzero(died == outcome))
        part[stays] = np.arange(len(stays)) % parts
    return part


def fit_fold(samples: Samples, inside: np.ndarray, outside: np.ndarray, recipe: Recipe, seed: int) -> Fold:
    """Learn from the stays ``inside`` alone, and answer for those ``outside``."""
    died = samples.died.numpy() > 0
    part = dealt(died[inside], PARTS, seed)
    scales = scaled(samples, inside)
    reading = read(scales, samples)
    answers, of_death = np.empty(len(inside)), []
    epochs: list[Epoch] = []
    for number in range(PARTS):
        learnt, answered, own = inside[part != number], inside[part == number], seed + number
        of_death.append(grown(reading, samples.died, learnt, recipe, own))
        others = of_other_outcomes(reading, samples, learnt, recipe, own)
        member = copy.deepcopy(scales)
        member.trees = joined_trees([(OF_DEATH, of_death[-1]), *others])
        member.courses.append(fit_course(samples, reading, learnt, recipe, own, watched=answered))
        answers[part == number] = parts_of(member, reading, answered)["joined"]
    slope, intercept = platt(answers, died[inside])
    others = of_other_outcomes(reading, samples, inside, recipe, seed + PARTS)
    member = copy.deepcopy(scales)
    member.trees = joined_trees([*((OF_DEATH / PARTS, trees) for trees in of_death), *others])
    member.courses = torch.nn.ModuleList(
        _course(samples, reading, inside, recipe, seed, number, outside, epochs.append) for number in range(COURSES)
    )
    logits = parts_of(member, reading, outside)
    return Fold(
        seed=seed,
        member=member,
        outside=outside,
        logits=logits,
        chance=expit(slope * logits["joined"] + intercept),
        threshold=best_threshold(died[inside], expit(slope * answers + intercept)),
        epochs=epochs,
    )


def _course(
    samples: Samples,
    reading: Reading,
    inside: np.ndarray,
    recipe: Recipe,
    seed: int,
    number: int,
    outside: np.ndarray,
    report: Told = lambda _: None,
) -> Course:
    """A network of the course of all stays inside; what is told of those outside is for the plot alone."""
    own = seed + 2 * PARTS + number
    return fit_course(samples, reading, inside, recipe, own, watched=outside, report=report, number=number)


def cross_validate(samples: Samples, fold: np.ndarray, recipe: Recipe) -> list[Fold]:
    """Every fold in turn."""
    return [
        fit_fold(samples, np.flatnonzero(fold != number), np.flatnonzero(fold == number), recipe, seed=100 * number)
        for number in range(FOLDS)
    ]


def figures(folds: Sequence[Fold], died: np.ndarray) -> dict[str, object]:
    """How good the out-of-fold answers are; decisions at the threshold that each fold chose on its training stays."""
    chance, positive = np.empty(len(died)), np.empty(len(died), dtype=bool)
    alone: dict[str, np.ndarray] = {}
    for one in folds:
        chance[one.outside] = one.chance
        positive[one.outside] = one.chance >= (2.0 if one.threshold is None else one.threshold)
        for name, logit in one.logits.items():
            alone.setdefault(name, np.empty(len(died)))[one.outside] = logit
    return {
        **report(died, chance),
        "at_thresholds_of_training_folds": decisions(died, positive) | {"thresholds": [one.threshold for one in folds]},
        "auroc_by_fold": [auroc(died[one.outside], one.chance) for one in folds],
        "parts_alone": {
            name: {"auroc": auroc(died, logit), "auprc": auprc(died, logit)} for name, logit in alone.items()
        },
    }


def compare(samples: Samples, folds: Sequence[Fold], recipe: Recipe) -> dict[str, dict[str, float]]:
    """Each core in the same folds, COMPARED networks a fold: alone, and beside the same trees."""
    died = samples.died.numpy() > 0
    found = {}
    for core in CORES:
        alone, joined = np.zeros(len(died)), np.zeros(len(died))
        for one in folds:
            member = copy.deepcopy(one.member)
            reading = read(member, samples)
            inside = np.setdiff1d(np.arange(len(died)), one.outside)
            member.courses = torch.nn.ModuleList(
                _course(samples, reading, inside, replace(recipe, core=core), one.seed, number, one.outside)
                for number in range(COMPARED)
            )
            parts = parts_of(member, reading, one.outside)
            alone[one.outside], joined[one.outside] = parts["course"], parts["joined"]
        found[core] = {
            "auroc_alone": auroc(died, alone),
            "auprc_alone": auprc(died, alone),
            "auroc": auroc(died, joined),
            "auprc": auprc(died, joined),
        }
    return found


def train(cohort: Cohort, out: Path, recipe: Recipe, seed: int = 0) -> tuple[dict[str, object], list[Fold], Samples]:
    """Write weights, reference, plots and the out-of-fold predictions to ``out``; the metrics, and what gave them."""
    samples = samples_of(cohort.values, cohort.statics, cohort.died, cohort.other)
    died = cohort.died
    fold = dealt(died, FOLDS, seed)
    folds = cross_validate(samples, fold, recipe)
    logit, chance = np.empty(len(died)), np.empty(len(died))
    for one in folds:
        logit[one.outside], chance[one.outside] = one.logits["joined"], one.chance
    ensemble = Ensemble([one.member for one in folds])
    ensemble.platt[:] = torch.tensor(platt(logit, died))
    out.mkdir(parents=True, exist_ok=True)
    save_file(ensemble.state_dict(), out / WEIGHTS)
    reference = json.dumps(reference_of(cohort.values, cohort.statics, SERIES), indent=1)
    (out / REFERENCE).write_text(reference + "\n")
    (out / "icu_mortality.learning-curve.png").write_bytes(learning_curve([one.epochs for one in folds]))
    (out / "icu_mortality.reliability.png").write_bytes(reliability(died, chance))
    with (out / "out_of_fold.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["RecordID", "fold", "p"])
        rows.writerows(zip(cohort.records.tolist(), fold.tolist(), chance.tolist(), strict=True))
    calibrated = expit(float(ensemble.platt[0]) * logit + float(ensemble.platt[1]))
    metrics = {
        "refused": cohort.refused,
        "cross_validation": figures(folds, died),
        "platt": ensemble.platt.tolist(),
        "threshold": best_threshold(died, calibrated),
        "sha256": {name: sha256((out / name).read_bytes()).hexdigest() for name in (WEIGHTS, REFERENCE)},
    }
    return metrics, folds, samples


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the files, train, and print the metrics as JSON."""
    parser = argparse.ArgumentParser(prog="python -m medflow_risk.train", description=__doc__)
    parser.add_argument("--set-a", type=Path, required=True, help="folder with set A's text files and outcomes")
    parser.add_argument("--loinc", type=Path, required=True, help="CSV: parameter, system, code, unit_ucum")
    parser.add_argument("--out", type=Path, default=Path("trained"), help="where weights and predictions are written")
    parser.add_argument("--limit", type=int, help="only the first stays")
    parser.add_argument("--core", choices=CORES, default="lstm", help="of the networks of the course")
    parser.add_argument("--folds-seed", type=int, default=0, help="another deal of the stays into folds")
    parser.add_argument("--compare", action="store_true", help="every core in the same folds")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    recipe = Recipe(core=options.core)
    started = time.monotonic()
    cohort = read_cohort(options.set_a, options.loinc, limit=options.limit)
    reading_s = time.monotonic() - started
    metrics, folds, samples = train(cohort, options.out, recipe, options.folds_seed)
    metrics |= {"reading_s": reading_s, "training_s": time.monotonic() - started - reading_s}
    if options.compare:
        metrics["cores"] = compare(samples, folds, recipe)
    sys.stdout.write(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    main()
