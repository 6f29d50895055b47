"""Boosted trees: grown by LightGBM, kept as tensors, several sets joined in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch  # before LightGBM, which then needs no OpenMP of the machine: torch brings one

import lightgbm  # isort: skip
from medflow_risk.network import DEPTH, Trees

FURTHEST = 100.0  # where a split that sends every known value left is kept: beyond any normal score


def boosted(scores: np.ndarray, outcome: np.ndarray, *, trees: int, rate: float, seed: int) -> Trees:
    """Gradient-boosted trees of columns of normal scores (n, columns), NaN unknown, for an outcome of 0 and 1."""
    settings = {
        "objective": "binary",
        "learning_rate": rate,
        "max_depth": DEPTH,
        "num_leaves": 2**DEPTH,
        "min_data_in_leaf": 20,
        "lambda_l2": 5.0,
        "feature_fraction": 0.15,
        "max_bin": 63,
        "seed": seed,
        "deterministic": True,
        "force_col_wise": True,
        "num_threads": 1,
        "verbosity": -1,
    }
    return trees_of(lightgbm.train(settings, lightgbm.Dataset(scores, outcome), trees))


def trees_of(booster: lightgbm.Booster) -> Trees:
    """The trees of a booster of at most DEPTH levels, whose thresholds are normal scores."""
    grown = [tree["tree_structure"] for tree in booster.dump_model()["tree_info"]]
    trees = Trees(len(grown))
    tensors = (trees.feature, trees.threshold, trees.unknown, trees.leaf)
    feature, threshold, unknown, leaf = (tensor.numpy() for tensor in tensors)

    def place(tree: int, node: Mapping[str, Any], split: int) -> None:
        if split >= feature.shape[1]:
            leaf[tree, split - feature.shape[1]] = node["leaf_value"]
            return
        if "leaf_value" in node:  # both ways lead to its value
            left = right = node
        else:
            left, right = node["left_child"], node["right_child"]
            feature[tree, split] = node["split_feature"]
            threshold[tree, split] = min(max(node["threshold"], -FURTHEST), FURTHEST)
            unknown[tree, split] = not _unknown_goes_left(node)
        place(tree, left, 2 * split + 1)
        place(tree, right, 2 * split + 2)

    for tree, root in enumerate(grown):
        place(tree, root, 0)
    return trees


def joined_trees(weighted: Sequence[tuple[float, Trees]]) -> Trees:
    """One set of trees for several: its logit is the weighted mean of theirs."""
    total = sum(weight for weight, _ in weighted)
    together = Trees(0)
    for name in ("feature", "threshold", "unknown"):
        setattr(together, name, torch.cat([getattr(trees, name) for _, trees in weighted]))
    together.leaf = torch.cat([weight * trees.leaf / total for weight, trees in weighted])
    return together


def _unknown_goes_left(node: Mapping[str, Any]) -> bool:
    """Where no value of the column was unknown in training, LightGBM reads one as 0."""
    return node["default_left"] if node["missing_type"] == "NaN" else node["threshold"] >= 0
