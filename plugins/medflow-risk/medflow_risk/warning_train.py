"""Training of the early-warning score, from the challenge's files to the weights in this package; seeded, on one core.

    python -m medflow_risk.warning_train --set-a DIR --loinc CSV --out DIR

Five folds of stays: no stay is in two. The networks of a fold never see its stays, not for early stopping,
standardisation, calibration or the threshold either. Their out-of-fold answers are the cross-validation; all of them
together are the released ensemble.
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
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, precision_score, recall_score, roc_auc_score
from torch import Tensor, nn

from medflow.evaluation.input_drift import reference_of
from medflow.plugin import Epoch, Examples, Fitted
from medflow_risk.warning_data import Nights, read_nights
from medflow_risk.warning_features import SERIES, arterial_pressure, series_features, static_features, sustained_low
from medflow_risk.warning_network import WarningEnsemble, WarningNet

FOLDS = 5
SEEDS = 2  # networks a fold
MEMBERS = 3  # networks for a site's own cohort
INVERSE_PENALTY = 0.003  # of the logistic regression on the summary (scikit-learn's C)
BATCH = 128
HELD_BACK = 0.1  # of a fold's training stays, for early stopping
HIDDEN_CHANNEL, HIDDEN_STATIC = 0.1, 0.1  # how often training hides a whole channel, or a static input, of a case
SENSITIVITY = 0.6  # what the threshold is chosen for, on training folds
WEIGHTS = "early_warning.safetensors"
REFERENCE = "early_warning.reference.json"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one network is fitted; the defaults are those of the release."""

    hidden: int = 24
    dropout: float = 0.4
    learning_rate: float = 3e-3
    epochs: int = 8


@dataclass(frozen=True, kw_only=True)
class Samples:
    """``series`` (n, 3, steps, channels), ``statics`` (n, STATIC_WIDTH), ``event`` (n,) of 0 and 1."""

    series: Tensor
    statics: Tensor
    event: Tensor


def samples_of(values: np.ndarray, statics: np.ndarray, event: np.ndarray) -> Samples:
    """The features of cases as `Nights` or `Examples` hold them."""
    return Samples(
        series=torch.from_numpy(np.moveaxis(series_features(values), 0, 1).copy()),
        statics=torch.from_numpy(static_features(statics)),
        event=torch.from_numpy(event.astype(np.float32)),
    )


def fit_network(
    samples: Samples,
    inside: np.ndarray,
    held_back: np.ndarray,
    seed: int,
    *,
    recipe: Recipe,
    device: str = "cpu",
    report: Callable[[Epoch], None] = lambda _: None,
    member: int = 0,
) -> WarningNet:
    """One network from the cases ``inside``; the epoch with the least loss on those ``held_back`` is kept."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = WarningNet(hidden=recipe.hidden, dropout=recipe.dropout)
    net.standardise(samples.series[inside, 0])
    net.to(device)
    batches = -(-len(inside) // BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, weight_decay=3e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=recipe.epochs * batches)
    best, least = copy.deepcopy(net.state_dict()), np.inf
    for epoch in range(1, recipe.epochs + 1):
        net.train()
        losses = []
        for batch in np.array_split(rng.permutation(inside), batches):
            series, statics = _hidden(samples.series[batch], samples.statics[batch])
            optimiser.zero_grad()
            loss = _loss(net.deep(series.to(device), statics.to(device)), samples.event[batch].to(device))
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
        net.eval()
        answers = logits(net.deep, samples, held_back, device)
        event = samples.event[held_back]
        missed = float(_loss(torch.from_numpy(answers), event))
        if missed < least:
            best, least = copy.deepcopy(net.state_dict()), missed
        found = float(roc_auc_score(event, answers)) if 0 < event.sum() < len(event) else None
        training_loss = float(np.mean(losses))
        report(Epoch(number=epoch, training_loss=training_loss, validation_loss=missed, auroc=found, member=member))
    net.load_state_dict(best)
    net.cpu().eval()
    _fit_wide(net, samples, inside, seed)
    return net


def _fit_wide(net: WarningNet, samples: Samples, inside: np.ndarray, seed: int) -> None:
    """The logistic regression on the summary: of the cases as they are, and of the same with inputs hidden.

    Without these, what is almost always known (the sex, say) would get a weight that means nothing where it is not.
    """
    torch.manual_seed(seed)
    series, statics = samples.series[inside], samples.statics[inside]
    with torch.inference_mode():
        parts = [net.summarise(series, statics), net.summarise(*_hidden(series, statics))]
    summary = torch.cat(parts).double().numpy()
    event = np.tile(samples.event[inside].numpy() > 0, 2)
    if not 0 < event.sum() < len(event):
        return
    centre, scale = summary.mean(0), summary.std(0) + 1e-3
    fitted = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit((summary - centre) / scale, event)
    weight = fitted.coef_[0] / scale
    net.wide_weight = torch.from_numpy(weight).float()
    net.wide_bias = torch.tensor(float(fitted.intercept_[0] - weight @ centre), dtype=torch.float32)


def _loss(logit: Tensor, event: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logit, event)


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
    parts = [filled.masked_fill(channel, torch.nan), measured.masked_fill(channel, 0), since.masked_fill(channel, 1)]
    return torch.stack(parts, dim=1), statics


def logits(
    answer: Callable[[Tensor, Tensor], Tensor], samples: Samples, cases: np.ndarray, device: str = "cpu"
) -> np.ndarray:
    """What a network, or a part of one, makes of ``cases``."""
    with torch.inference_mode():
        return answer(samples.series[cases].to(device), samples.statics[cases].to(device)).cpu().numpy()


def platt(logit: np.ndarray, event: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of a logistic regression of the outcome on the logit."""
    if not 0 < event.sum() < len(event):
        return 1.0, 0.0
    fitted = LogisticRegression(C=1e6).fit(logit[:, None], event > 0)
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])


def threshold_of(event: np.ndarray, chance: np.ndarray) -> float | None:
    """The highest threshold (at it, an alert) that finds SENSITIVITY of the events; None where there are none."""
    if not event.any():
        return None
    return float(np.quantile(chance[event > 0], 1 - SENSITIVITY, method="lower"))


# --- a site's own cohort ---------------------------------------------------------------------------------------------


def fit_ensemble(
    training: Examples,
    validation: Examples,
    chosen: Mapping[str, Any],
    *,
    seed: int,
    device: str,
    report: Callable[[Epoch], None],
) -> Fitted:
    """An ensemble for a site's own cohort: `EarlyWarning.fit`. Cases out of the model's scope teach nothing."""
    training, validation = _in_scope(training), _in_scope(validation)
    samples = samples_of(
        np.concatenate([training.values, validation.values]),
        np.concatenate([training.statics, validation.statics]),
        np.concatenate([training.outcome, validation.outcome]),
    )
    inside, held_back = np.split(np.arange(len(training) + len(validation)), [len(training)])
    recipe = Recipe(**{key: value for key, value in chosen.items() if key != "members"})
    nets = [
        fit_network(
            samples,
            inside,
            held_back,
            seed * 1000 + member,
            recipe=recipe,
            device=device,
            report=report,
            member=member,
        )
        for member in range(int(chosen.get("members", MEMBERS)))
    ]
    answers = np.mean([logits(net, samples, held_back) for net in nets], axis=0)
    ensemble = WarningEnsemble(nets)
    ensemble.platt[:] = torch.tensor(platt(answers, validation.outcome))
    chance = torch.sigmoid(ensemble.platt[0] * torch.from_numpy(answers) + ensemble.platt[1]).numpy()
    tensors = {name: tensor.numpy() for name, tensor in ensemble.state_dict().items()}
    return Fitted(tensors={WEIGHTS: tensors}, threshold=threshold_of(validation.outcome, chance))


def _in_scope(examples: Examples) -> Examples:
    pressure = arterial_pressure(examples.values)
    already: np.ndarray = np.any(sustained_low(pressure), axis=-1)
    unknown: np.ndarray = np.all(np.isnan(pressure), axis=-1)
    return examples.take(np.flatnonzero(~already & ~unknown))


# --- the release -----------------------------------------------------------------------------------------------------


def folds_of(record: np.ndarray, event: np.ndarray, seed: int) -> np.ndarray:
    """The fold of each case: that of its stay; stays that had an event are dealt out evenly."""
    stays, place = np.unique(record, return_inverse=True)
    had = np.bincount(place, weights=event) > 0
    rng = np.random.default_rng(seed)
    fold = np.empty(len(stays), dtype=np.int64)
    for kind in (True, False):
        chosen = rng.permutation(np.flatnonzero(had == kind))
        fold[chosen] = np.arange(len(chosen)) % FOLDS
    return fold[place]


def _held_back(record: np.ndarray, inside: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``inside`` in two: cases to learn from, and those of the stays that say when to stop."""
    stays = np.random.default_rng(seed).permutation(np.unique(record[inside]))
    stop = np.isin(record[inside], stays[: int(len(stays) * HELD_BACK)])
    return inside[~stop], inside[stop]


def cross_validate(samples: Samples, record: np.ndarray, fold: np.ndarray) -> tuple[list[WarningNet], np.ndarray]:
    """The networks of all folds, and the out-of-fold mean logit of each case."""
    nets: list[WarningNet] = []
    answers = np.empty(len(fold))
    for number in range(FOLDS):
        inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        mine = []
        for seed in range(100 * number, 100 * number + SEEDS):
            learnt, stop = _held_back(record, inside, seed)
            mine.append(fit_network(samples, learnt, stop, seed, recipe=Recipe()))
        answers[outside] = np.mean([logits(net, samples, outside) for net in mine], axis=0)
        nets += mine
    return nets, answers


def calibrated(answers: np.ndarray, event: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Out-of-fold probabilities, and whether each is an alert: calibration and threshold are the other folds'."""
    chance, alert = np.empty(len(fold)), np.empty(len(fold), dtype=bool)
    for number in range(FOLDS):
        outside = fold == number
        slope, intercept = platt(answers[~outside], event[~outside])
        all_chances = 1 / (1 + np.exp(-(slope * answers + intercept)))
        threshold = threshold_of(event[~outside], all_chances[~outside])
        chance[outside] = all_chances[outside]
        alert[outside] = all_chances[outside] >= (1.0 if threshold is None else threshold)
    return chance, alert


def baseline(nights: Nights, fold: np.ndarray) -> np.ndarray:
    """Out-of-fold log-odds of a logistic regression on the last value of each channel and the statics."""
    filled = series_features(nights.values)[0][:, -1]
    statics = static_features(nights.statics)
    answers = np.empty(len(fold))
    for number in range(FOLDS):
        outside = fold == number
        mean, scale = np.nanmean(filled[~outside], 0), np.nanstd(filled[~outside], 0) + 1e-3
        design = np.column_stack([np.nan_to_num((filled - mean) / scale).clip(-4, 4), statics])
        fitted = LogisticRegression(C=0.1, max_iter=1000).fit(design[~outside], nights.event[~outside])
        answers[outside] = fitted.decision_function(design[outside])
    return answers


def report(event: np.ndarray, chance: np.ndarray, alert: np.ndarray) -> dict[str, float]:
    """How good the probabilities and the alerts are. One case is one look at a stay, for the day that follows."""
    parts = np.array_split(np.argsort(chance, kind="stable"), 10)
    gaps = [abs(chance[part].mean() - event[part].mean()) for part in parts]
    return {
        "auroc": float(roc_auc_score(event, chance)),
        "auprc": float(average_precision_score(event, chance)),
        "brier": float(brier_score_loss(event, chance)),
        "ece": float(np.mean(gaps)),
        "event_rate": float(event.mean()),
        "mean_risk": float(chance.mean()),
        "sensitivity": float(recall_score(event, alert)),
        "positive_predictive_value": float(precision_score(event, alert)),
        "alerts_per_100_stay_days": float(100 * alert.mean()),
    }


def write_reference(nights: Nights, out: Path) -> str:
    """Write what the windows were like that the model is given, one of each stay; returns the file's SHA-256."""
    records, values, statics = nights.silent
    found = reference_of(
        np.concatenate([nights.values, values]),
        np.concatenate([nights.statics, statics]),
        SERIES,
        patients=np.concatenate([nights.record, records]),
    )
    (out / REFERENCE).write_text(json.dumps(found, indent=1) + "\n")
    return sha256((out / REFERENCE).read_bytes()).hexdigest()


def train(nights: Nights, out: Path) -> dict[str, object]:
    """Write weights, reference and out-of-fold predictions to ``out``; returns the figures of the model card."""
    samples = samples_of(nights.values, nights.statics, nights.event)
    fold = folds_of(nights.record, nights.event, seed=0)
    nets, answers = cross_validate(samples, nights.record, fold)
    chance, alert = calibrated(answers, nights.event, fold)
    simple = calibrated(baseline(nights, fold), nights.event, fold)
    ensemble = WarningEnsemble(nets)
    slope, intercept = platt(answers, nights.event)
    ensemble.platt[:] = torch.tensor((slope, intercept))
    out.mkdir(parents=True, exist_ok=True)
    save_file(ensemble.state_dict(), out / WEIGHTS)
    columns = (nights.record, nights.hour, fold, nights.event.astype(int), chance, alert.astype(int))
    with (out / "early_warning_out_of_fold.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["RecordID", "hour", "fold", "event", "p", "alert"])
        rows.writerows(zip(*(column.tolist() for column in columns), strict=True))
    whole = 1 / (1 + np.exp(-(slope * answers + intercept)))
    by_hour = {int(hour): nights.hour == hour for hour in np.unique(nights.hour)}
    return {
        "cases": len(chance),
        "stays": len(np.unique(nights.record)),
        "events": int(nights.event.sum()),
        "left_out": nights.left_out,
        "cross_validation": report(nights.event, chance, alert),
        "by_hour": {hour: report(nights.event[at], chance[at], alert[at]) for hour, at in by_hour.items()},
        "logistic_regression_on_last_values": report(nights.event, *simple),
        "auroc_by_fold": [float(roc_auc_score(nights.event[fold == n], chance[fold == n])) for n in range(FOLDS)],
        "platt": [slope, intercept],
        "threshold": threshold_of(nights.event, whole),
        "sha256": sha256((out / WEIGHTS).read_bytes()).hexdigest(),
        "reference_sha256": write_reference(nights, out),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the files, train, and print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m medflow_risk.warning_train", description=__doc__)
    parser.add_argument("--set-a", type=Path, required=True, help="folder with set A's text files")
    parser.add_argument("--loinc", type=Path, required=True, help="CSV: parameter, system, code, unit_ucum")
    parser.add_argument("--out", type=Path, default=Path("trained"), help="where weights and predictions are written")
    parser.add_argument("--limit", type=int, help="only the first stays")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    started = time.monotonic()
    nights = read_nights(options.set_a, options.loinc, limit=options.limit)
    reading_s = time.monotonic() - started
    figures = train(nights, options.out)
    figures |= {"reading_s": reading_s, "training_s": time.monotonic() - started - reading_s}
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
