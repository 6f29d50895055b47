"""Where the slices of a series lie, and whether together they are one regular volume.

Everything follows from ImagePositionPatient, ImageOrientationPatient and PixelSpacing (PS3.3 C.7.6.2.1.1):
SliceThickness and SpacingBetweenSlices say nothing reliable about where a slice is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from medflow.dicom.elements import first_of, items_of, number_of, numbers_of
from medflow.errors import InputNotUsable

UNIT = 1e-2  # how far a direction's length may be from 1
RIGHT_ANGLE = 1e-3  # cosine of the angle between rows and columns
SAME_DIRECTION = 5e-4  # difference of one component of a direction between slices
SAME_SPACING = 1e-3  # relative
SAME_POSITION_MM = 0.01
OFF_GRID = 0.02  # how far a slice may be from its place, as a part of the slice distance
OFF_GRID_MM = 0.02  # and at least this, for positions written with two decimals
TILT = 0.01  # how far slices may shift sideways, as a part of the slice distance


@dataclass(frozen=True, kw_only=True, slots=True)
class Plane:
    """One slice: which frame of which instance it is, and where it lies in LPS millimetres.

    ``along_rows`` is the direction of increasing column index, ``along_columns`` that of increasing row index;
    ``spacing_mm`` is (between rows, between columns).
    """

    instance: int
    frame: int
    position: np.ndarray
    along_rows: np.ndarray
    along_columns: np.ndarray
    spacing_mm: tuple[float, float]
    shape: tuple[int, int]
    frame_of_reference: str | None

    @property
    def normal(self) -> np.ndarray:
        """Unit vector out of the slice: along_rows x along_columns."""
        return np.cross(self.along_rows, self.along_columns)


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """The slices in order along their normal; ``affine`` maps (x, y, z, 1) indices to LPS mm."""

    planes: tuple[Plane, ...]
    affine: np.ndarray
    spacing_mm: tuple[float, float, float]  # (z, y, x)


def planes_of(dataset: Dataset, instance: int) -> list[Plane]:
    """The planes of one instance: of its functional groups if it is an enhanced object, else of its one frame.

    Raises
    ------
    InputNotUsable
        missing-geometry.
    """
    shape = (number_of(dataset, "Rows") or 0, number_of(dataset, "Columns") or 0)
    reference = first_of(dataset, "FrameOfReferenceUID")
    frames = max(number_of(dataset, "NumberOfFrames") or 1, 1)
    per_frame = items_of(dataset, "PerFrameFunctionalGroupsSequence")
    if not per_frame:
        if frames > 1:
            raise InputNotUsable("missing-geometry", "a multi-frame object does not say where its frames lie")
        return [_plane(dataset, dataset, dataset, instance, 0, shape, reference)]
    if len(per_frame) != frames:
        raise InputNotUsable("missing-geometry", f"{frames} frames, but functional groups for {len(per_frame)}")
    shared = items_of(dataset, "SharedFunctionalGroupsSequence")
    planes = []
    for frame, own in enumerate(per_frame):
        groups = (own, *shared[:1])
        position = group_of(groups, "PlanePositionSequence")
        orientation = group_of(groups, "PlaneOrientationSequence")
        measures = group_of(groups, "PixelMeasuresSequence")
        planes.append(_plane(position, orientation, measures, instance, frame, shape, reference))
    return planes


def group_of(groups: Sequence[Dataset], name: str) -> Dataset:
    """The item of a functional group macro: the frame's own, else the shared one, else an empty data set."""
    return next((item for group in groups for item in items_of(group, name)[:1]), Dataset())


def _plane(
    position: Dataset,
    orientation: Dataset,
    measures: Dataset,
    instance: int,
    frame: int,
    shape: tuple[int, int],
    reference: str | None,
) -> Plane:
    origin = numbers_of(position, "ImagePositionPatient")
    cosines = numbers_of(orientation, "ImageOrientationPatient")
    spacing = numbers_of(measures, "PixelSpacing")
    if len(origin) != 3 or len(cosines) != 6 or len(spacing) != 2 or min(spacing) <= 0 or min(shape) <= 0:
        reason = "a slice lacks a valid ImagePositionPatient, ImageOrientationPatient, PixelSpacing, Rows or Columns"
        raise InputNotUsable("missing-geometry", reason)
    along_rows, along_columns = np.array(cosines[:3]), np.array(cosines[3:])
    lengths = np.linalg.norm(along_rows), np.linalg.norm(along_columns)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1)) > UNIT:
        raise InputNotUsable("missing-geometry", "ImageOrientationPatient holds no unit vectors")
    along_rows, along_columns = along_rows / lengths[0], along_columns / lengths[1]
    if abs(float(along_rows @ along_columns)) > RIGHT_ANGLE:
        raise InputNotUsable("missing-geometry", "rows and columns in ImageOrientationPatient are not at right angles")
    return Plane(
        instance=instance,
        frame=frame,
        position=np.array(origin),
        along_rows=along_rows,
        along_columns=along_columns,
        spacing_mm=(spacing[0], spacing[1]),
        shape=shape,
        frame_of_reference=reference,
    )


def grid_of(planes: Sequence[Plane]) -> Grid:
    """Put slices in order and make sure that they are one regular volume.

    Raises
    ------
    InputNotUsable
        too-few-slices, mixed-sizes, mixed-orientation, mixed-pixel-spacing, mixed-frame-of-reference,
        several-volumes, duplicate-positions, tilted-slices or irregular-gaps.
    """
    if len(planes) < 2:
        raise InputNotUsable("too-few-slices", "a volume needs at least two slices: one alone has no slice distance")
    _check_alike(planes)
    normal = planes[0].normal
    ordered = tuple(sorted(planes, key=lambda plane: float(plane.position @ normal)))
    depths = np.array([float(plane.position @ normal) for plane in ordered])
    _check_distinct(depths)
    positions = np.stack([plane.position for plane in ordered])
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    distance = float(np.linalg.norm(step))
    if np.linalg.norm(step - (step @ normal) * normal) > TILT * distance:
        reason = "the slices shift sideways from one to the next (gantry tilt, or positions that are wrong)"
        raise InputNotUsable("tilted-slices", reason)
    expected = positions[0] + np.arange(len(ordered))[:, None] * step
    off = float(np.linalg.norm(positions - expected, axis=1).max())
    if off > max(OFF_GRID * distance, OFF_GRID_MM):
        reason = f"a slice is {off:.2f} mm from its place on a grid of {distance:.3f} mm: missing slices or uneven gaps"
        raise InputNotUsable("irregular-gaps", reason)
    first = ordered[0]
    between_rows, between_columns = first.spacing_mm
    affine = np.eye(4)
    affine[:3, 0] = first.along_rows * between_columns
    affine[:3, 1] = first.along_columns * between_rows
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return Grid(planes=ordered, affine=affine, spacing_mm=(distance, between_rows, between_columns))


def _check_alike(planes: Sequence[Plane]) -> None:
    first = planes[0]
    if any(plane.shape != first.shape for plane in planes):
        raise InputNotUsable("mixed-sizes", "the slices differ in rows or columns")
    for name in ("along_rows", "along_columns"):
        directions = np.stack([getattr(plane, name) for plane in planes])
        if np.abs(directions - directions[0]).max() > SAME_DIRECTION:
            raise InputNotUsable("mixed-orientation", "the slices are not parallel")
    spacings = np.array([plane.spacing_mm for plane in planes])
    if np.abs(spacings / spacings[0] - 1).max() > SAME_SPACING:
        raise InputNotUsable("mixed-pixel-spacing", "the slices differ in pixel spacing")
    if len({plane.frame_of_reference for plane in planes} - {None}) > 1:
        raise InputNotUsable("mixed-frame-of-reference", "the slices' positions do not share a frame of reference")


def _check_distinct(depths: np.ndarray) -> None:
    """Refuse slices at the same place; say so when they look like several whole volumes (time points, echoes)."""
    starts = np.flatnonzero(np.diff(depths, prepend=-np.inf) > SAME_POSITION_MM)
    counts = np.diff(starts, append=len(depths))
    if counts.max() == 1:
        return
    if len(counts) > 1 and counts.min() == counts.max():
        reason = f"{counts[0]} slices at each of {len(counts)} positions: several volumes (time points, echoes) in one"
        raise InputNotUsable("several-volumes", reason)
    raise InputNotUsable("duplicate-positions", f"{int(counts.max())} slices lie at the same position")
