"""Measures splice-variant: ``python -m medflow_genomics.measure --data splice_train.csv``.

The data have sites and no variants: what can be asked of them is what single substitutions in a held-out window do to
the boundary in its middle. Each fold is asked of an ensemble that saw none of it. Beside it stands how often the
released model speaks up in random bases, where there is nothing to find. Prints the figures as JSON; with
``--random-only`` those of random bases, which need no data; with ``--from 0.5`` as if reported from there on.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from medflow.plugin import VariantWindows
from medflow_genomics.alleles import alleles_of
from medflow_genomics.encoding import ALPHABET, CLASSES, LENGTH
from medflow_genomics.mutagenesis import mutants
from medflow_genomics.network import trained
from medflow_genomics.scan import delta_scores
from medflow_genomics.splice import WEIGHTS
from medflow_genomics.train import FOLDS, SEED, fit, probabilities, read_data, stratified_folds
from medflow_genomics.variants import REPORT_FROM, WINDOW

HALF = LENGTH // 2
MOTIFS = {"EI": (HALF, "GT"), "IE": (HALF - 2, "AG")}  # where the two bases of a site stand


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutated:
    """Class probabilities of one held-out window and its 180 neighbours, (181, 3), and which have the two bases."""

    label: str
    answers: np.ndarray
    has: dict[str, np.ndarray]  # by class, (181,) bool
    place: np.ndarray  # (180,) which base was changed

    def score(self, kind: str) -> np.ndarray:
        """That of a site of this kind, as splice-variant has it: 0 without the two bases."""
        return self.answers[:, CLASSES.index(kind)] * self.has[kind]


def held_out(bases: np.ndarray, labels: np.ndarray, seed: int) -> list[Mutated]:
    """Every window, by networks that saw none of its fold."""
    folds = stratified_folds(labels, FOLDS, seed)
    found: list[Mutated] = []
    for fold in range(FOLDS):
        ensemble = fit(bases[folds != fold], labels[folds != fold], seed)
        for window, label in zip(bases[folds == fold], labels[folds == fold], strict=True):
            all_of_it = mutants(window)
            found.append(
                Mutated(
                    label=CLASSES[label],
                    answers=probabilities(ensemble, all_of_it),
                    has={kind: _has(all_of_it, *MOTIFS[kind]) for kind in MOTIFS},
                    place=(all_of_it[1:] != window).argmax(1),
                )
            )
    return found


def _has(bases: np.ndarray, place: int, motif: str) -> np.ndarray:
    wanted = [ALPHABET.index(letter) for letter in motif]
    return (bases[:, place : place + len(motif)] == wanted).all(1)


def figures(windows: list[Mutated], least: float = REPORT_FROM) -> dict[str, dict[str, object]]:
    """What the substitutions do, for each kind of site, and where there is none; reported from ``least`` on."""
    return {kind: _of_sites(windows, kind, least) for kind in MOTIFS} | {"N": _of_none(windows, least)}


def _of_sites(windows: list[Mutated], kind: str, least: float) -> dict[str, object]:
    sites = [window for window in windows if window.label == kind]
    usual = [window for window in sites if window.has[kind][0]]
    first = MOTIFS[kind][0]
    inside = [np.isin(window.place, (first, first + 1)) for window in usual]
    losses = [window.score(kind)[0] - window.score(kind)[1:] for window in usual]
    left = [window.answers[1:, CLASSES.index(kind)][at] for window, at in zip(usual, inside, strict=True)]
    by_place = {
        place - HALF + (place >= HALF): np.mean([(loss[window.place == place] >= least).mean()
        for loss, window in zip(losses, usual, strict=True)])
        for place in range(LENGTH)
    }  # fmt: skip
    most = sorted((item for item in by_place.items()), key=lambda item: -item[1])[:6]
    return {
        "sites": len(sites),
        "with_the_two_bases": len(usual),
        "two_bases_changed_loss_reported": _share([loss[at] for loss, at in zip(losses, inside, strict=True)], least),
        "two_bases_changed_median_loss": _median([loss[at] for loss, at in zip(losses, inside, strict=True)]),
        "two_bases_changed_median_probability_without_the_rule": _median(left),
        "other_base_changed_loss_reported": _share([loss[~at] for loss, at in zip(losses, inside, strict=True)], least),
        "loss_reported_by_place_from_the_boundary": {str(place): round(float(share), 3) for place, share in most},
    }


def _of_none(windows: list[Mutated], least: float) -> dict[str, object]:
    none = [window for window in windows if window.label == "N"]
    gains = [window.score(kind)[1:] - window.score(kind)[0] for window in none for kind in MOTIFS]
    return {"windows": len(none), "any_base_changed_gain_reported": _share(gains, least)}


def _share(values: list[np.ndarray], least: float) -> float:
    return round(float((np.concatenate(values) >= least).mean()), 5)


def _median(values: list[np.ndarray]) -> float:
    return round(float(np.median(np.concatenate(values))), 4)


def of_random_bases(seed: int, variants: int = 2000) -> dict[str, float]:
    """The share of substitutions in random bases with an effect of 0.5, of 0.8 and of 0.9 or more."""
    rng = np.random.default_rng(seed)
    letters, at = np.frombuffer(ALPHABET.encode(), np.uint8), WINDOW // 2
    drawn = rng.integers(0, len(letters), (variants, WINDOW))
    changed = drawn.copy()
    changed[:, at] = (drawn[:, at] + rng.integers(1, len(letters), variants)) % len(letters)
    one = np.ones(variants, np.int32)
    windows = VariantWindows(ref=letters[drawn], alt=letters[changed], at=at, ref_length=one, alt_length=one)
    with torch.inference_mode():
        effects = delta_scores(trained(WEIGHTS, "cpu"), windows, alleles_of(windows), device="cpu")
    return {str(cutoff): round(float((effects.max(1) >= cutoff).mean()), 3) for cutoff in (0.5, 0.8, 0.9)}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="Measure what substitutions do to held-out splice sites.")
    parser.add_argument("--data", type=Path, help="CSV with the columns label and sequence")
    parser.add_argument("--random-only", action="store_true", help="no cross-validation, and no data")
    parser.add_argument("--from", type=float, default=REPORT_FROM, dest="least", help="reported from this effect on")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    report: dict[str, object] = {"random_bases": of_random_bases(options.seed)}
    if not options.random_only:
        if options.data is None:
            parser.error("--data is needed, or --random-only")
        bases, labels, _ = read_data(options.data)
        windows = held_out(bases, labels, options.seed)
        right = np.mean([CLASSES[window.answers[0].argmax()] == window.label for window in windows])
        report |= {"accuracy_over_all": round(float(right), 4)} | figures(windows, options.least)
    print(json.dumps(report, indent=2))  # noqa: T201 - the command's result


if __name__ == "__main__":
    main()
