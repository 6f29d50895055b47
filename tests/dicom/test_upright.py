"""Turning a volume for looking at: every orientation comes out the same way up, and no voxel is changed."""

from itertools import permutations, product

import numpy as np
import pytest

from medflow.dicom.upright import Upright

SPACING_LPS = np.array([0.7, 0.9, 2.5])  # towards left, back, head
SHAPE_LPS = np.array([4, 5, 6])


def grid_of(order: tuple[int, ...], signs: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Array (z, y, x) whose voxels hold their place in the patient, affine, spacing; axis i runs along order[i]."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (to, sign) in enumerate(zip(order, signs, strict=True)):
        affine[to, axis] = sign * SPACING_LPS[to]
        affine[to, 3] = 0 if sign > 0 else SPACING_LPS[to] * (SHAPE_LPS[to] - 1)
    shape = SHAPE_LPS[list(order)]
    indices = np.stack([*np.indices(shape).reshape(3, -1), np.ones(shape.prod())])
    places = np.rint((affine @ indices)[:3] / SPACING_LPS[:, None])
    numbers = places[0] + 10 * places[1] + 100 * places[2]
    return numbers.reshape(shape).T, affine, tuple(SPACING_LPS[list(order)][::-1])


@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_every_orientation_comes_out_with_the_head_last_the_back_second_and_the_left_first(order, signs):
    array, affine, spacing = grid_of(order, signs)

    upright = Upright.of(affine, spacing)
    turned = upright.apply(array)

    z, y, x = np.indices(SHAPE_LPS[::-1])
    assert np.array_equal(turned, x + 10 * y + 100 * z)
    assert upright.spacing_mm == tuple(SPACING_LPS[::-1])


@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_slice_keeps_the_number_it_is_stored_under(order, signs):
    array, affine, spacing = grid_of(order, signs)
    upright = Upright.of(affine, spacing)

    name, number = upright.stored_place(0, 1, tuple(SHAPE_LPS[::-1])).split(" = ")

    stored = np.take(array, int(number), {"x": 2, "y": 1, "z": 0}[name])
    assert set((stored // 100).ravel()) == {1}  # the second slice from the feet


def test_a_slanted_grid_is_turned_to_what_it_is_nearest_to():
    array, affine, spacing = grid_of((1, 2, 0), (1, -1, 1))  # sagittal, head first
    angle = np.deg2rad(20)
    slant = np.eye(4)
    slant[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]

    turned = Upright.of(slant @ affine, spacing).apply(array)

    z, y, x = np.indices(SHAPE_LPS[::-1])
    assert np.array_equal(turned, x + 10 * y + 100 * z)
