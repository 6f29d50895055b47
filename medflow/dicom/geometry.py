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
PIXEL_MM = (0.01, 20.0)  # the distance of pixels that a device for people may have
SLICE_MM = (0.02, 60.0)  # and of slices
EXTENT_MM = 2500.0  # of a volume, along any of its axes
FARTHEST_MM = 1e5  # from the origin; beyond it float32, as in NIfTI, no longer tells places apart
NOTHING = Dataset()  # made once: a series asks for absent groups thousands of times


@dataclass(frozen=True, kw_only=True, slots=True)
class Plane:
    """Where one slice lies, in LPS millimetres.

    ``position`` is the centre of its first pixel; ``along_rows`` is the direction of increasing column index,
    ``along_columns`` that of increasing row index; ``spacing_mm`` is (between rows, between columns).
    """

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

    def affine(self, step: np.ndarray) -> np.ndarray:
        """Indices (x, y, z, 1) to LPS mm of slices like this one, each ``step`` (mm) from the one before."""
        affine = np.eye(4)
        affine[:3, 0] = self.along_rows * self.spacing_mm[1]
        affine[:3, 1] = self.along_columns * self.spacing_mm[0]
        affine[:3, 2] = step
        affine[:3, 3] = self.position
        return affine


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A regular stack: ``order`` are the indices of its planes along their normal, ``first`` is the first of them.

    ``step`` (mm) leads from each slice to the next. ``sideways`` is the part of it that lies in the slices' plane, as
    (along rows, along columns) in mm: zero but for rounding, unless a tilted gantry or wrong positions shift slices.
    """

    order: tuple[int, ...]
    first: Plane
    step: np.ndarray

    @property
    def affine(self) -> np.ndarray:
        """Indices (x, y, z, 1) to LPS mm."""
        return self.first.affine(self.step)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x)."""
        return (len(self.order), *self.first.shape)

    @property
    def distance_mm(self) -> float:
        """From the centre of one slice to that of the next."""
        return float(np.linalg.norm(self.step))

    @property
    def sideways(self) -> tuple[float, float]:
        """How far a slice is shifted against the one before, (along rows, along columns) in mm."""
        return float(self.step @ self.first.along_rows), float(self.step @ self.first.along_columns)


def planes_of(dataset: Dataset) -> list[Plane]:
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
        return [_plane(dataset, dataset, dataset, shape, reference)]
    if len(per_frame) != frames:
        raise InputNotUsable("missing-geometry", f"{frames} frames, but functional groups for {len(per_frame)}")
    shared = items_of(dataset, "SharedFunctionalGroupsSequence")[:1]
    planes = []
    for own in per_frame:
        position = group_of((own, *shared), "PlanePositionSequence")
        orientation = group_of((own, *shared), "PlaneOrientationSequence")
        measures = group_of((own, *shared), "PixelMeasuresSequence")
        planes.append(_plane(position, orientation, measures, shape, reference))
    return planes


def group_of(groups: Sequence[Dataset], name: str) -> Dataset:
    """The item of a functional group macro: the frame's own, else the shared one, else an empty data set."""
    return next((item for group in groups for item in items_of(group, name)[:1]), NOTHING)


def _plane(
    position: Dataset, orientation: Dataset, measures: Dataset, shape: tuple[int, int], reference: str | None
) -> Plane:
    origin = numbers_of(position, "ImagePositionPatient")
    cosines = numbers_of(orientation, "ImageOrientationPatient")
    spacing = numbers_of(measures, "PixelSpacing")
    far = any(abs(value) > FARTHEST_MM for value in origin)
    if len(origin) != 3 or len(cosines) != 6 or len(spacing) != 2 or min(spacing) <= 0 or min(shape) <= 0 or far:
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
        position=np.array(origin),
        along_rows=along_rows,
        along_columns=along_columns,
        spacing_mm=(spacing[0], spacing[1]),
        shape=shape,
        frame_of_reference=reference,
    )


def check_alike(planes: Sequence[Plane]) -> None:
    """Make sure that slices are parallel, of one size and spacing, and in one frame of reference.

    Raises
    ------
    InputNotUsable
        mixed-sizes, mixed-orientation, mixed-pixel-spacing, mixed-frame-of-reference or implausible-spacing.
    """
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
    for spacing, count in zip(first.spacing_mm, first.shape, strict=True):
        check_spacing(spacing, count, PIXEL_MM, "pixels")


def check_spacing(spacing: float, count: int, plausible: tuple[float, float], what: str) -> None:
    """Refuse a distance that no device for people has (implausible-spacing)."""
    if not plausible[0] <= spacing <= plausible[1] or spacing * count > EXTENT_MM:
        reason = f"{count} {what}, {spacing:.6g} mm apart, are no picture of a person: the spacing must be wrong"
        raise InputNotUsable("implausible-spacing", reason)


def places_of(planes: Sequence[Plane]) -> np.ndarray:
    """For each of several parallel slices its place along their normal, from 0; slices at one place share it."""
    depths = np.stack([plane.position for plane in planes]) @ planes[0].normal
    order = np.argsort(depths, kind="stable")
    places = np.empty(len(planes), int)
    places[order] = np.cumsum(np.diff(depths[order], prepend=depths[order[0]]) > SAME_POSITION_MM)
    return places


def grid_of(planes: Sequence[Plane]) -> Grid:
    """Put slices that are alike (`check_alike`), one at each place, in order; make sure that they are evenly spaced.

    Raises
    ------
    InputNotUsable
        too-few-slices, missing-slices, irregular-gaps or implausible-spacing.
    """
    if len(planes) < 2:
        raise InputNotUsable("too-few-slices", "a volume needs at least two slices: one alone has no slice distance")
    order = tuple(int(index) for index in np.argsort(places_of(planes), kind="stable"))
    positions = np.stack([planes[index].position for index in order])
    step = (positions[-1] - positions[0]) / (len(order) - 1)
    distance = float(np.linalg.norm(step))
    check_spacing(distance, len(order), SLICE_MM, "slices")
    off = float(np.linalg.norm(positions - (positions[0] + np.arange(len(order))[:, None] * step), axis=1).max())
    if off > max(OFF_GRID * distance, OFF_GRID_MM):
        raise _uneven(positions, off)
    return Grid(order=order, first=planes[order[0]], step=step)


def _uneven(positions: np.ndarray, off: float) -> InputNotUsable:
    """Why slices are not evenly spaced: some are missing from a regular stack, or there is no regularity."""
    gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    usual = float(np.median(gaps))
    multiples = np.round(gaps / usual)
    missing = int((multiples - 1).sum())
    along = (positions[-1] - positions[0]) / np.linalg.norm(positions[-1] - positions[0])
    aside = np.linalg.norm(np.cross(positions - positions[0], along), axis=1)
    tolerance = 2 * max(OFF_GRID * usual, OFF_GRID_MM)
    if multiples.min() == 1 and missing and max(np.abs(gaps - multiples * usual).max(), aside.max()) <= tolerance:
        reason = f"{missing} slices are missing between others, which lie {usual:.3f} mm apart"
        return InputNotUsable("missing-slices", reason)
    reason = f"slices lie up to {off:.2f} mm from an even grid; the gaps are {gaps.min():.2f} to {gaps.max():.2f} mm"
    return InputNotUsable("irregular-gaps", reason)
