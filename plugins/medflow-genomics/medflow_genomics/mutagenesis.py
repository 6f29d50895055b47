"""In-silico mutagenesis: every sequence that differs from one in a single base, and what the difference does."""

from __future__ import annotations

import numpy as np

from medflow_genomics.encoding import ALPHABET


def mutants(bases: np.ndarray) -> np.ndarray:
    """The sequence, then each with one base changed, by place and then in the order of `ALPHABET`.

    Of 60 bases (60,) int64 they are (181, 60).
    """
    place, base = np.nonzero(_other(bases))
    found = np.tile(bases, (1 + len(place), 1))
    found[1 + np.arange(len(place)), place] = base
    return found


def changes(scores: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """From the scores of `mutants` what each change did, (bases, 4) float32; 0 for the base that is there."""
    found = np.zeros((len(bases), len(ALPHABET)), np.float32)
    found[_other(bases)] = scores[1:] - scores[0]
    return found


def log_odds(votes: np.ndarray, of: int) -> np.ndarray:
    """Of one class against the others together, from log-probabilities up to a constant (n, classes): (n,)."""
    return votes[:, of] - np.logaddexp.reduce(np.delete(votes, of, axis=1), axis=1)


def _other(bases: np.ndarray) -> np.ndarray:
    return bases[:, None] != np.arange(len(ALPHABET))
