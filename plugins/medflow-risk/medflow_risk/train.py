"""Training, from the challenge's published files to the weights in this package; seeded, on one CPU core.

    python -m medflow_risk.train --set-a DIR --loinc CSV --out DIR

Five stratified folds; the networks of a fold never see its stays, not for early stopping, standardisation or
calibration either. Their out-of-fold answers are the cross-validation; all of them together are the released ensemble.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medflow.plugin import Epoch, Examples, Fitted
from medflow_risk.data import Cohort, read_cohort
from medflow_risk.features import series_features, static_features
from medflow_risk.metrics import auroc, best_threshold, report
from medflow_risk.network import Ensemble, MortalityNet

FOLDS = 5
SEEDS = 3  # networks a fold
MEMBERS = 3  # networks for a site's own cohort
EPOCHS = 10
PENALTY = 0.1  # of the ridge regression, beside a mean loss
BATCH = 64
LEARNING_RATE = 2e-3
HELD_BACK = 0.1  # of a fold's training stays, for early stopping
HIDDEN_CHANNEL, HIDDEN_STATIC = 0.2, 0.1  # how often training hides a whole channel, or a static input, of a stay
WEIGHTS = "icu_mortality.safetensors"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """``series`` (n, 3, steps, channels), ``statics`` (n, 8), ``died`` (n,) of 0 and 1."""

    series: Tensor
    statics: Tensor
    died: Tensor


def samples_of(values: np.ndarray, statics: np.ndarray, died: np.ndarray) -> Samples:
    """The features of stays as `Cohort` or `Examples` hold them."""
    return Samples(
        series=torch.from_numpy(np.moveaxis(series_features(values), 0, 1).copy()),
        statics=torch.from_numpy(static_features(statics)),
        died=torch.from_numpy(died.astype(np.float32)),
    )


def folds_of(died: np.ndarray, seed: int) -> np.ndarray:
    """The fold of each stay, deaths dealt out evenly."""
    rng = np.random.default_rng(seed)
    fold = np.empty(len(died), dtype=np.int64)
    for outcome in (True, False):
        stays = rng.permutation(np.flatnonzero(died == outcome))
        fold[stays] = np.arange(len(stays)) % FOLDS
    return fold


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one network is fitted; the defaults are those of the release."""

    hidden: int = 64
    dropout: float = 0.3
    learning_rate: float = LEARNING_RATE
    epochs: int = EPOCHS


def fit(
    samples: Samples,
    train: np.ndarray,
    seed: int,
    *,
    held_back: np.ndarray | None = None,
    recipe: Recipe | None = None,
    device: str = "cpu",
    report: Callable[[Epoch], None] = lambda _: None,
    member: int = 0,
) -> MortalityNet:
    """One network from the stays ``train``; the epoch with the least loss on those held back is kept.

    Without ``held_back`` a tenth of ``train`` is, by ``seed``.
    """
    recipe = recipe or Recipe()
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    train = rng.permutation(train)
    if held_back is None:
        held_back, train = np.split(train, [int(len(train) * HELD_BACK)])
    net = MortalityNet(hidden=recipe.hidden, dropout=recipe.dropout)
    net.standardise(samples.series[train, 0])
    net.to(device)
    batches = -(-len(train) // BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=recipe.epochs * batches)
    best, least = copy.deepcopy(net.state_dict()), np.inf
    for epoch in range(1, recipe.epochs + 1):
        net.train()
        losses = []
        for batch in np.array_split(rng.permutation(train), batches):
            series, statics = _hidden(samples.series[batch], samples.statics[batch])
            optimiser.zero_grad()
            loss = _loss(net.deep(series.to(device), statics.to(device)), samples.died[batch].to(device))
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
        net.eval()
        answers = logits(net.deep, samples, held_back, device)
        loss = float(_loss(torch.from_numpy(answers), samples.died[held_back]))
        if loss < least:
            best, least = copy.deepcopy(net.state_dict()), loss
        died = samples.died[held_back].numpy() > 0
        found = auroc(died, answers) if 0 < died.sum() < len(died) else None
        report(
            Epoch(number=epoch, training_loss=float(np.mean(losses)), validation_loss=loss, auroc=found, member=member)
        )
    net.load_state_dict(best)
    net.cpu().eval()
    with torch.inference_mode():
        whole = net.summarise(samples.series[train], samples.statics[train])
        partly = net.summarise(*_hidden(samples.series[train], samples.statics[train]))
    weight, bias = ridge(torch.cat([whole, partly]).numpy(), samples.died[train].repeat(2).numpy())
    net.wide_weight, net.wide_bias = torch.from_numpy(weight).float(), torch.tensor(bias, dtype=torch.float32)
    return net


def fit_ensemble(
    training: Examples,
    validation: Examples,
    chosen: Mapping[str, Any],
    *,
    seed: int,
    device: str,
    report: Callable[[Epoch], None],
) -> Fitted:
    """An ensemble for a site's own cohort: `IcuMortality.fit`."""
    samples = samples_of(
        np.concatenate([training.values, validation.values]),
        np.concatenate([training.statics, validation.statics]),
        np.concatenate([training.outcome, validation.outcome]),
    )
    inside, held_back = np.split(np.arange(len(training) + len(validation)), [len(training)])
    recipe = Recipe(**{key: value for key, value in chosen.items() if key != "members"})
    nets = [
        fit(
            samples,
            inside,
            seed * 1000 + member,
            held_back=held_back,
            recipe=recipe,
            device=device,
            report=report,
            member=member,
        )
        for member in range(int(chosen.get("members", MEMBERS)))
    ]
    answers = np.mean([logits(net, samples, held_back) for net in nets], axis=0)
    ensemble = Ensemble(nets)
    ensemble.platt[:] = torch.tensor(platt(answers, validation.outcome))
    tensors = {name: tensor.numpy() for name, tensor in ensemble.state_dict().items()}
    chance = 1 / (1 + np.exp(-(float(ensemble.platt[0]) * answers + float(ensemble.platt[1]))))
    return Fitted(tensors={WEIGHTS: tensors}, threshold=best_threshold(validation.outcome > 0, chance))


def _loss(logit: Tensor, died: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logit, died)


def _hidden(series: Tensor, statics: Tensor) -> tuple[Tensor, Tensor]:
    """Some channels and statics made unknown: a network must not need what another hospital does not measure."""
    count, _, _, channels = series.shape
    channel = (torch.rand(count, channels) < HIDDEN_CHANNEL)[:, None]
    age, sex, kind = (torch.rand(count, 3) < HIDDEN_STATIC).unbind(1)
    statics = statics.clone()
    statics[:, :2][age] = 0
    statics[:, 2:4][sex] = 0
    statics[:, 4:][kind] = 0
    filled, measured, since = series.unbind(1)
    return torch.stack(
        [
            filled.masked_fill(channel, torch.nan),
            measured.masked_fill(channel, 0),
            since.masked_fill(channel, 1),
        ],
        dim=1,
    ), statics


def logits(
    answer: Callable[[Tensor, Tensor], Tensor], samples: Samples, stays: np.ndarray, device: str = "cpu"
) -> np.ndarray:
    """What a network, or a part of one, makes of ``stays``."""
    with torch.inference_mode():
        return answer(samples.series[stays].to(device), samples.statics[stays].to(device)).cpu().numpy()


def ridge(features: np.ndarray, died: np.ndarray, rounds: int = 15) -> tuple[np.ndarray, float]:
    """Weights and bias of a logistic regression with a penalty on the weights of standardised features (Newton)."""
    centre, scale = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64) + 1e-6
    design = np.column_stack([(features - centre) / scale, np.ones(len(features))])
    penalty = np.append(np.full(features.shape[1], PENALTY), 0.0) * len(features)
    weights = np.zeros(design.shape[1])
    for _ in range(rounds):
        chance = 1 / (1 + np.exp(-design @ weights))
        curvature = design.T @ (design * (chance * (1 - chance))[:, None]) + np.diag(penalty)
        weights -= np.linalg.solve(curvature, design.T @ (chance - died) + penalty * weights)
    weight = weights[:-1] / scale
    return weight, float(weights[-1] - weight @ centre)


def platt(logit: np.ndarray, died: np.ndarray, rounds: int = 25) -> tuple[float, float]:
    """Slope and intercept of a logistic regression of the outcome on the logit (Newton's method)."""
    design = np.stack([logit, np.ones_like(logit)], axis=1).astype(np.float64)
    weights = np.array([1.0, 0.0])
    for _ in range(rounds):
        chance = 1 / (1 + np.exp(-design @ weights))
        curvature = design.T @ (design * (chance * (1 - chance))[:, None])
        weights = weights - np.linalg.solve(curvature, design.T @ (chance - died))
    return float(weights[0]), float(weights[1])


def cross_validate(samples: Samples, fold: np.ndarray) -> tuple[list[MortalityNet], np.ndarray]:
    """The networks of all folds, and the out-of-fold mean logit of each stay."""
    nets: list[MortalityNet] = []
    answers = np.empty(len(fold))
    for number in range(FOLDS):
        inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        mine = [fit(samples, inside, seed=100 * number + seed) for seed in range(SEEDS)]
        answers[outside] = np.mean([logits(net, samples, outside) for net in mine], axis=0)
        nets += mine
    return nets, answers


def calibrated(answers: np.ndarray, died: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Out-of-fold probabilities, each fold calibrated on the others."""
    chance = np.empty(len(fold))
    for number in range(FOLDS):
        outside = fold == number
        slope, intercept = platt(answers[~outside], died[~outside])
        chance[outside] = 1 / (1 + np.exp(-(slope * answers[outside] + intercept)))
    return chance


def train(cohort: Cohort, out: Path) -> dict[str, object]:
    """Write the weights and the out-of-fold predictions to ``out``; returns the metrics."""
    samples = samples_of(cohort.values, cohort.statics, cohort.died)
    records, died = cohort.records, cohort.died
    fold = folds_of(died, seed=0)
    nets, answers = cross_validate(samples, fold)
    chance = calibrated(answers, died, fold)
    ensemble = Ensemble(nets)
    ensemble.platt[:] = torch.tensor(platt(answers, died))
    out.mkdir(parents=True, exist_ok=True)
    save_file(ensemble.state_dict(), out / WEIGHTS)
    with (out / "out_of_fold.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["RecordID", "fold", "p"])
        rows.writerows(zip(records.tolist(), fold.tolist(), chance.tolist(), strict=True))
    by_fold = [report(died[fold == number], chance[fold == number])["auroc"] for number in range(FOLDS)]
    return {
        "refused": cohort.refused,
        "cross_validation": report(died, chance),
        "auroc_by_fold": by_fold,
        "platt": ensemble.platt.tolist(),
        "sha256": sha256((out / WEIGHTS).read_bytes()).hexdigest(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the files, train, and print the metrics as JSON."""
    parser = argparse.ArgumentParser(prog="python -m medflow_risk.train", description=__doc__)
    parser.add_argument("--set-a", type=Path, required=True, help="folder with set A's text files and outcomes")
    parser.add_argument("--loinc", type=Path, required=True, help="CSV: parameter, system, code, unit_ucum")
    parser.add_argument("--out", type=Path, default=Path("trained"), help="where weights and predictions are written")
    parser.add_argument("--limit", type=int, help="only the first stays")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    started = time.monotonic()
    cohort = read_cohort(options.set_a, options.loinc, limit=options.limit)
    reading_s = time.monotonic() - started
    metrics = train(cohort, options.out)
    metrics |= {"reading_s": reading_s, "training_s": time.monotonic() - started - reading_s}
    sys.stdout.write(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    main()
