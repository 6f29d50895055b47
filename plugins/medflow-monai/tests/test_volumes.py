"""Volumes go to the model's grid and back without moving: seen on smooth balls at known places."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medflow.sample import grid_affine
from medflow_monai.volumes import SPACING_MM, WINDOW_HU, grid_to_lps, to_input_grid, to_model_grid

GRIDS = [
    ("axial", (48, 70, 80), (5.0, 4.5, 4.5), True),
    ("axial", (120, 160, 190), (2.0, 2.0, 2.0), False),
    ("axial", (30, 80, 90), (8.0, 4.0, 4.0), True),
    ("coronal", (80, 70, 100), (4.0, 3.5, 3.5), True),
    ("sagittal", (80, 60, 80), (4.5, 4.0, 4.0), False),
]
PLACES_MM = [(60.0, 20.0, 10.0), (-70.0, -30.0, -20.0)]  # L, P, S
SIGMA_MM = 12.0

pytestmark = [
    pytest.mark.parametrize(("orientation", "shape", "spacing", "head_first"), GRIDS),
    pytest.mark.parametrize("tilt_deg", [0, 10]),
    pytest.mark.parametrize("place_mm", PLACES_MM),
]


def test_what_lies_at_a_place_lies_there_on_the_model_grid(orientation, shape, spacing, head_first, tilt_deg, place_mm):
    affine = _affine(shape, spacing, orientation, tilt_deg, head_first)
    low, high = WINDOW_HU

    volume, grid = to_model_grid(_ball(shape, affine, place_mm) * (high - low) + low, affine)

    assert np.linalg.norm(grid[:3, :3], axis=0) == pytest.approx([SPACING_MM] * 3)
    assert np.all(np.diag(grid)[:3] > 0)  # RAS
    assert _centre(volume[0].numpy().transpose(2, 1, 0), grid_to_lps(grid)) == pytest.approx(place_mm, abs=0.1)
    assert float(volume.sum()) * SPACING_MM**3 == pytest.approx((2 * np.pi) ** 1.5 * SIGMA_MM**3, rel=0.02)


def test_what_is_found_at_a_place_comes_back_there(orientation, shape, spacing, head_first, tilt_deg, place_mm):
    affine = _affine(shape, spacing, orientation, tilt_deg, head_first)
    volume, grid = to_model_grid(np.zeros(shape, dtype=np.float32), affine)
    _, x, y, z = volume.shape
    ball = torch.from_numpy(_ball((z, y, x), grid_to_lps(grid), place_mm).transpose(2, 1, 0).copy())

    found = to_input_grid(torch.stack([1 - ball, ball]), grid, shape, affine)

    assert found.shape == shape
    assert _centre(found, affine) == pytest.approx(place_mm, abs=0.1 * max(spacing))  # a mask has steps
    radius_mm = SIGMA_MM * (2 * np.log(2)) ** 0.5  # where the ball falls to one half
    assert found.sum() * np.prod(spacing) == pytest.approx(4 / 3 * np.pi * radius_mm**3, rel=0.15)


def _affine(shape, spacing, orientation, tilt_deg, head_first) -> np.ndarray:
    affine = grid_affine(shape, spacing, orientation, tilt_deg=tilt_deg, head_first=head_first)
    affine[:3, 3] += (7.0, -4.0, 11.0)
    return affine


def _ball(shape, affine, place_mm) -> np.ndarray:
    """A Gaussian of height 1 around a place in LPS mm, float32 (z, y, x)."""
    z, y, x = np.indices(shape).reshape(3, -1)
    points = affine @ np.stack([x, y, z, np.ones(x.size)])
    distance2 = ((points[:3].T - place_mm) ** 2).sum(axis=1)
    return np.exp(-distance2 / (2 * SIGMA_MM**2)).astype(np.float32).reshape(shape)


def _centre(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The centre of mass of an array (z, y, x) in mm."""
    z, y, x = np.indices(values.shape)
    weights = values.astype(float)
    return (affine @ [*((weights * axis).sum() / weights.sum() for axis in (x, y, z)), 1])[:3]
