"""The phantom's pictures agree with its formulas, on any grid."""

from __future__ import annotations

import numpy as np
import pytest

from medflow.sample import LABELS, draw_anatomy, grid_affine, phantom, render


@pytest.mark.parametrize("seed", range(5))
def test_counted_volumes_are_the_analytic_ones(seed):
    drawn = phantom(np.random.default_rng(seed), (70, 96, 96), (3.2, 3.6, 3.6))

    voxel_ml = 3.2 * 3.6 * 3.6 / 1000
    for name, truth in drawn.truth_ml.items():
        assert (drawn.labels == LABELS[name]).sum() * voxel_ml == pytest.approx(truth, rel=0.02)


def test_organs_differ_from_the_tissue_around_them():
    drawn = phantom(np.random.default_rng(1))

    means = {name: drawn.hu[drawn.labels == label].mean() for name, label in LABELS.items()}
    assert 85 < means["liver"] < means["spleen"] - 15 < means["left_kidney"] - 30
    assert drawn.hu.dtype == np.float32
    assert drawn.hu.min() >= -1024


def test_same_seed_same_picture():
    first, second = phantom(np.random.default_rng(7)), phantom(np.random.default_rng(7))

    assert np.array_equal(first.hu, second.hu)
    assert first.truth_ml == second.truth_ml


def test_a_grid_that_does_not_hold_the_organs_is_refused():
    with pytest.raises(ValueError, match="must cover"):
        phantom(np.random.default_rng(1), (20, 64, 64), (5.0, 5.0, 5.0))


@pytest.mark.parametrize(
    ("orientation", "shape"), [("axial", (48, 60, 72)), ("coronal", (60, 48, 72)), ("sagittal", (72, 48, 60))]
)
@pytest.mark.parametrize("head_first", [True, False])
def test_every_orientation_shows_the_same_patient(orientation, shape, head_first):
    anatomy = draw_anatomy(np.random.default_rng(3))
    affine = grid_affine(shape, (5.0, 5.0, 5.0), orientation, tilt_deg=12, head_first=head_first)

    _, labels = render(anatomy, np.random.default_rng(0), shape, affine)

    for name, label in LABELS.items():
        z, y, x = np.nonzero(labels == label)
        centre = affine @ [x.mean(), y.mean(), z.mean(), 1]
        assert centre[:3] == pytest.approx(anatomy.organs[name].centre_mm, abs=1.0)
