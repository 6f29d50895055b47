"""Trees answer as LightGBM does, unknown values included, and joined as the weighted mean of theirs."""

from __future__ import annotations

import lightgbm
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medflow_risk.boosting import boosted, joined_trees, trees_of
from medflow_risk.network import DEPTH, Trees

ROUNDS = 20


def columns(seed: int, unknown: float, count: int = 300) -> np.ndarray:
    """Columns (count, 6) of normal scores in hundredths, the last one never unknown."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(count, 6)).round(2)
    scores[:, :5][rng.random((count, 5)) < unknown] = np.nan
    return scores


def outcome_of(scores: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, 0.3, len(scores))
    return np.nan_to_num(scores[:, 0]) + np.isnan(scores[:, 1]) - scores[:, 5] + noise > 0.3


def answers(trees: Trees, scores: np.ndarray) -> np.ndarray:
    known = torch.from_numpy(~np.isnan(scores)).double()
    return trees.double()(torch.from_numpy(np.nan_to_num(scores)), known).numpy()


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**16), unknown=st.sampled_from([0.0, 0.01, 0.3, 0.9]), leaves=st.integers(2, 2**DEPTH))
def test_trees_as_tensors_answer_as_the_trees_they_are_made_of(seed: int, unknown: float, leaves: int) -> None:
    scores = columns(seed, unknown)
    choices = {"objective": "binary", "num_leaves": leaves, "max_depth": DEPTH, "num_threads": 1, "verbosity": -1}
    booster = lightgbm.train(choices, lightgbm.Dataset(scores, outcome_of(scores)), ROUNDS)
    asked = columns(seed + 1, 0.5) + 0.0025  # unknown where training knew every value, too; and on no threshold
    asked[::7, 5] = np.nan

    with pytest.MonkeyPatch.context() as edges:
        edges.setattr("medflow_risk.network.EDGE", 1e-6)  # as sharp as LightGBM's
        found = answers(trees_of(booster), asked)

    np.testing.assert_allclose(found, booster.predict(asked, raw_score=True), atol=1e-4)


def test_they_learn_and_the_same_seed_grows_the_same() -> None:
    scores = columns(0, 0.3)
    died = outcome_of(scores)

    first, second, other = (boosted(scores, died, trees=ROUNDS, rate=0.3, seed=seed) for seed in (5, 5, 6))

    logits = answers(first, scores)
    assert logits[died].mean() > 0.5 > -0.5 > logits[~died].mean()
    assert all(torch.equal(tensor, second.state_dict()[name].double()) for name, tensor in first.state_dict().items())
    assert not torch.equal(first.leaf, other.leaf.double())


def test_joined_they_answer_with_the_weighted_mean_of_theirs() -> None:
    scores = columns(0, 0.3)
    died = outcome_of(scores)
    weighted = [(float(weight), boosted(scores, died, trees=weight * 5, rate=0.1, seed=weight)) for weight in (4, 2, 1)]

    found = answers(joined_trees(weighted), scores)

    mean = sum(weight * answers(trees, scores) for weight, trees in weighted) / 7
    np.testing.assert_allclose(found, mean, atol=1e-6)
