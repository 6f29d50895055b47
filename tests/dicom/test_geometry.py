"""Where slices lie: any regular stack, however oriented and in whatever order of files, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from medflow.dicom.geometry import Plane, check_alike, grid_of, places_of, planes_of
from medflow.errors import InputNotUsable
from tests.factories_dicom import slice_of

angles = st.floats(-180, 180)
positions = st.floats(-500, 500)


@st.composite
def stacks(draw: Any) -> tuple[list[Plane], list[int]]:
    """A regular stack in any orientation, and an order in which its files may come."""
    planes, count = [], draw(st.integers(2, 30))
    rows, columns = _turned(*(np.deg2rad(draw(angles)) for _ in range(3)))
    origin = np.array([draw(positions) for _ in range(3)])
    distance, spacing = draw(st.floats(0.3, 9)), (draw(st.floats(0.2, 4)), draw(st.floats(0.2, 4)))
    for number in range(count):
        position = origin + number * distance * np.cross(rows, columns)
        planes.append(_read(position, rows, columns, spacing))
    return planes, draw(st.permutations(range(count)))


def _turned(a: float, b: float, c: float) -> tuple[np.ndarray, np.ndarray]:
    """Two directions at right angles: the axes turned about x, then y, then z."""
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    turned = z @ y @ x
    return turned[:, 0], turned[:, 1]


def _read(position: np.ndarray, rows: np.ndarray, columns: np.ndarray, spacing: tuple[float, float]) -> Plane:
    """As a scanner writes it, with six digits after the point, and read again."""
    dataset = slice_of(
        ImagePositionPatient=[f"{value:.6f}" for value in position],
        ImageOrientationPatient=[f"{value:.6f}" for value in (*rows, *columns)],
        PixelSpacing=[f"{value:.6f}" for value in spacing],
    )
    (plane,) = planes_of(dataset)
    return plane


@settings(max_examples=60, deadline=None)
@given(stacks())
def test_whatever_the_orientation_and_order_the_affine_maps_each_first_voxel_to_its_position(stack: Any) -> None:
    planes, order = stack
    shuffled = [planes[index] for index in order]

    grid = grid_of(shuffled)

    assert [order[index] for index in grid.order] == list(range(len(planes)))
    for z, plane in enumerate(planes):
        np.testing.assert_allclose((grid.affine @ [0, 0, z, 1])[:3], plane.position, atol=2e-3)
        corner = (
            plane.position + 3 * plane.along_rows * plane.spacing_mm[1] + 5 * plane.along_columns * plane.spacing_mm[0]
        )
        np.testing.assert_allclose((grid.affine @ [3, 5, z, 1])[:3], corner, atol=5e-3)
    assert np.linalg.det(grid.affine) > 0
    assert max(map(abs, grid.sideways)) < 0.01 * grid.distance_mm


@settings(max_examples=40, deadline=None)
@given(stacks(), st.data())
def test_a_slice_missing_from_within_is_never_overlooked(stack: Any, data: Any) -> None:
    planes, order = stack
    if len(planes) < 4:
        return
    gone = data.draw(st.integers(1, len(planes) - 2))

    with pytest.raises(InputNotUsable) as caught:
        grid_of([planes[index] for index in order if index != gone])

    assert caught.value.code in {"missing-slices", "irregular-gaps"}  # of three slices no gap is the usual one


@settings(max_examples=40, deadline=None)
@given(stacks(), st.data())
def test_a_slice_in_a_wrong_place_is_never_overlooked(stack: Any, data: Any) -> None:
    planes, order = stack
    if len(planes) < 4:
        return
    moved = data.draw(st.integers(1, len(planes) - 2))
    direction = np.array(_turned(*(np.deg2rad(data.draw(angles)) for _ in range(3)))[0])
    far = data.draw(st.floats(0.08, 0.45)) * float(np.linalg.norm(planes[1].position - planes[0].position))
    planes[moved] = replace(planes[moved], position=planes[moved].position + far * direction)

    with pytest.raises(InputNotUsable) as caught:
        grid_of([planes[index] for index in order])

    assert caught.value.code == "irregular-gaps"


def _stack(depths: Sequence[float], **changes: Any) -> list[Plane]:
    (plane,) = planes_of(slice_of())
    return [replace(plane, position=np.array([-10.0, -20.0, depth]), **changes) for depth in depths]


def test_the_reason_counts_what_is_missing() -> None:
    with pytest.raises(InputNotUsable, match="3 slices are missing between others, which lie 2.500 mm apart") as caught:
        grid_of(_stack([0, 2.5, 5, 10, 12.5, 20, 22.5]))

    assert caught.value.code == "missing-slices"


def test_uneven_gaps_are_told_from_missing_slices() -> None:
    with pytest.raises(InputNotUsable, match="the gaps are 2.50 to 4.00 mm") as caught:
        grid_of(_stack([0, 2.5, 5, 9, 11.5]))

    assert caught.value.code == "irregular-gaps"


def test_positions_written_with_two_decimals_are_even_enough() -> None:
    assert grid_of(_stack([round(0.625 * z, 2) for z in range(200)])).distance_mm == pytest.approx(0.625, abs=1e-4)


def test_slices_at_one_place_share_it_whatever_their_order() -> None:
    assert places_of(_stack([5, 0, 5.004, 2.5, 0])).tolist() == [2, 0, 2, 1, 0]


@pytest.mark.parametrize(
    ("spacing", "depths"),
    [
        ((0.5, 0.005), [0, 1]),
        ((25, 0.5), [0, 1]),
        ((0.5, 0.5), [0, 0.015]),
        ((0.5, 0.5), [0, 61]),
        ((0.5, 0.5), [50.0 * z for z in range(60)]),
    ],
)
def test_a_spacing_that_no_device_has_is_refused(spacing: tuple[float, float], depths: list[float]) -> None:
    planes = _stack(depths, spacing_mm=spacing)

    with pytest.raises(InputNotUsable) as caught:
        check_alike(planes)
        grid_of(planes)

    assert caught.value.code == "implausible-spacing"


def test_one_slice_has_no_slice_distance() -> None:
    with pytest.raises(InputNotUsable) as caught:
        grid_of(_stack([0]))

    assert caught.value.code == "too-few-slices"


def test_frames_without_places_are_no_stack() -> None:
    with pytest.raises(InputNotUsable) as caught:
        planes_of(slice_of(NumberOfFrames=5))

    assert caught.value.code == "missing-geometry"


def test_a_frame_without_functional_groups_is_not_passed_over() -> None:
    with pytest.raises(InputNotUsable) as caught:
        planes_of(slice_of(NumberOfFrames=5, PerFrameFunctionalGroupsSequence=[Dataset()] * 4))

    assert caught.value.code == "missing-geometry"
