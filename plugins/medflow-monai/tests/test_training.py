"""The training scripts do what the cards say they did."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medflow.sample import LABELS
from medflow_monai import train_abdomen, train_xray
from medflow_monai.volumes import SPACING_MM


def test_calibration_undoes_a_known_temperature_and_offset():
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 2, 20000)
    labels = (rng.random(20000) < 1 / (1 + np.exp(-margin))).astype(int)
    distorted = (margin - 0.7) * 3

    found = train_xray.fit_calibration(torch.tensor(np.stack([np.zeros(20000), distorted], axis=1)), labels)

    assert found[0] == pytest.approx(3, abs=0.15)
    assert found[1] == pytest.approx(0.7, abs=0.1)


def test_scope_takes_in_new_pictures_of_the_kind_and_nothing_far_from_it():
    rng = np.random.default_rng(0)
    smooth = np.outer(np.linspace(0, 1, 28), np.linspace(1, 0, 28))
    pictures = (smooth + 0.05 * rng.normal(size=(900, 28, 28))).clip(0, 1).astype(np.float32)

    scope = train_xray.fit_scope(pictures[:300], pictures[300:600])

    inside = train_xray.unlike_training(torch.from_numpy(pictures[600:]), scope)
    outside = train_xray.unlike_training(torch.from_numpy(1 - pictures), scope)
    assert inside.float().mean() < 0.02
    assert outside.all()


def test_an_example_has_its_truth_on_the_model_grid():
    anatomy, *_ = train_abdomen.scan(1)

    volume, shares = train_abdomen.example(1)

    assert 0 <= float(volume.min()) < float(volume.max()) <= 1
    assert shares.shape == (1 + len(LABELS), *volume.shape[1:])
    assert torch.allclose(shares.sum(dim=0), torch.ones(volume.shape[1:]))
    for name, label in LABELS.items():
        assert float(shares[label].sum()) * SPACING_MM**3 / 1000 == pytest.approx(anatomy.truth_ml[name], rel=0.02)


def test_patches_have_the_windows_size():
    examples = [train_abdomen.example(2)]

    [(volumes, shares)] = train_abdomen.patches(examples, 1)

    assert volumes.shape == (train_abdomen.BATCH, 1, *train_abdomen.PATCH)
    assert torch.allclose(shares.sum(dim=1), torch.ones(train_abdomen.BATCH, *train_abdomen.PATCH))
