"""Trains and measures the splice-site model: ``python -m medflow_genomics.train --data splice_train.csv``.

Prints the cross-validated metrics as JSON, then fits all of the data and writes the weights. The same data, seed and
torch give the same weights.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from medflow_genomics.encoding import CLASSES, LENGTH, encode
from medflow_genomics.network import MEMBERS, Ensemble, Member

SEED = 20260101
EPOCHS = 15
BATCH = 64
PEAK_RATE = 3e-3
DECAY = 0.05
SMOOTHING = 0.05
FOLDS = 10


def read_data(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Base numbers (n, 60), class numbers (n,), and how many sequences were left out for letters beyond A, C, G, T."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    bases = np.stack([encode(row["sequence"]) for row in rows])
    labels = np.array([CLASSES.index(row["label"]) for row in rows])
    if bases.shape[1] != LENGTH:
        raise SystemExit(f"the sequences have {bases.shape[1]} bases, the model reads {LENGTH}")
    usable = np.all(bases >= 0, axis=1)
    return bases[usable], labels[usable], int((~usable).sum())


def stratified_folds(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """A fold number for each case: every class is dealt out evenly, in an order drawn from ``seed``."""
    rng = np.random.default_rng(seed)
    number = np.empty(len(labels), dtype=np.int64)
    dealt = 0
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        number[members] = (np.arange(len(members)) + dealt) % folds
        dealt += len(members)
    return number


def fit_member(bases: torch.Tensor, labels: torch.Tensor, seed: int) -> Member:
    """One member of the ensemble, in evaluation mode."""
    torch.set_num_threads(1)  # the order of sums, and so the weights, would depend on the threads
    torch.manual_seed(seed)
    member = Member()
    optimizer = torch.optim.AdamW(member.parameters(), lr=PEAK_RATE, weight_decay=DECAY)
    steps = EPOCHS * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    member.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(labels))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            optimizer.zero_grad()
            loss = functional.cross_entropy(member(bases[chosen]), labels[chosen], label_smoothing=SMOOTHING)
            loss.backward()
            optimizer.step()
            schedule.step()
    return member.eval()


def fit(bases: np.ndarray, labels: np.ndarray, seed: int) -> Ensemble:
    """All members, on the CPU."""
    ensemble = Ensemble(0)
    inputs, targets = torch.from_numpy(bases), torch.from_numpy(labels)
    ensemble.members.extend(fit_member(inputs, targets, seed + number) for number in range(MEMBERS))
    return ensemble.eval()


def probabilities(ensemble: Ensemble, bases: np.ndarray) -> np.ndarray:
    """Class probabilities (n, 3)."""
    with torch.inference_mode():
        return ensemble(torch.from_numpy(bases)).numpy()


def cross_validate(bases: np.ndarray, labels: np.ndarray, left_out: int, seed: int) -> dict[str, object]:
    """Metrics over held-out folds; each fold is scored by an ensemble that saw none of it."""
    folds = stratified_folds(labels, FOLDS, seed)
    held_out = np.empty((len(labels), len(CLASSES)), dtype=np.float32)
    accuracies = []
    for fold in range(FOLDS):
        test = folds == fold
        held_out[test] = probabilities(fit(bases[~test], labels[~test], seed), bases[test])
        accuracies.append(float((held_out[test].argmax(1) == labels[test]).mean()))
    answers = held_out.argmax(1)
    confident = held_out[np.arange(len(labels)), labels].clip(1e-7)
    return {
        "sequences": len(labels),
        "left_out_for_other_letters": left_out,
        "folds": FOLDS,
        "accuracy": round(float(np.mean(accuracies)), 4),
        "accuracy_sd_over_folds": round(float(np.std(accuracies)), 4),
        "accuracy_if_left_out_counted_wrong": round(float((answers == labels).sum() / (len(labels) + left_out)), 4),
        "sensitivity": {
            name: round(float((answers[labels == number] == number).mean()), 4) for number, name in enumerate(CLASSES)
        },
        "precision": {
            name: round(float((labels[answers == number] == number).mean()), 4) for number, name in enumerate(CLASSES)
        },
        "log_loss": round(float(-np.log(confident).mean()), 4),
    }


def main() -> None:
    """Measure, fit, write."""
    parser = argparse.ArgumentParser(description="Train and measure the splice-site model.")
    parser.add_argument("--data", type=Path, required=True, help="CSV with the columns label and sequence")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("splice.safetensors"))
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--no-validation", action="store_true", help="only fit and write the weights")
    options = parser.parse_args()
    started = time.monotonic()
    bases, labels, left_out = read_data(options.data)
    report: dict[str, object] = {
        "classes": {CLASSES[number]: count for number, count in Counter(labels.tolist()).items()}
    }
    if not options.no_validation:
        report["cross_validation"] = cross_validate(bases, labels, left_out, options.seed)
    ensemble = fit(bases, labels, options.seed)
    report["training_accuracy"] = round(float((probabilities(ensemble, bases).argmax(1) == labels).mean()), 4)
    save_file(ensemble.state_dict(), options.out)
    report["weights"] = {"file": options.out.name, "sha256": sha256(options.out.read_bytes()).hexdigest()}
    report["seconds"] = round(time.monotonic() - started)
    print(json.dumps(report, indent=2))  # noqa: T201 - the command's result


if __name__ == "__main__":
    main()
