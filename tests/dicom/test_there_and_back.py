"""A mask made of an image's own voxels is, on every source frame, what pydicom alone finds in that frame.

Nothing here asks the code under test where anything lies: sources are written from their positions, read frame by frame
by pydicom, and the segmentations by highdicom, asked for by the frames they refer to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage

from medflow.dicom.derived import Maker
from medflow.dicom.seg import read_segmentation, write_segmentations
from medflow.dicom.volume import plan_volume, read_image
from medflow.plugin import SNOMED, Coding, Image, ImagingInput, Segment
from medflow.records import Instance, Instant
from medflow.store import FolderObjects
from tests.factories_dicom import instance_of, slice_of, write_series
from tests.seg_readers import by_highdicom

NOWHERE = FolderObjects(Path("no-such-folder"))
BRIGHT = Segment(
    name="bright", body_site=Coding(system=SNOMED, code="10200004", display="Liver structure"), valid_ml=(0, 1e6)
)
MAKER = Maker(
    model="bright", version="1", title="Bright", digest="ab" * 32, identity=("key",), issued=Instant(utc_us=1)
)
HANDED = [  # columns: along rows, along columns, from slice to slice; rotations and reflections alike
    np.stack([sign * np.eye(3)[axis] for sign, axis in zip(signs, axes, strict=True)], axis=1)
    for axes in permutations(range(3))
    for signs in product((1.0, -1.0), repeat=3)
]
THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class Source:
    """A series as its scanner has it: pixels (z, y, x), where they lie, and a rescale for each slice."""

    pixels: np.ndarray
    axes: np.ndarray
    spacing: tuple[float, float, float]  # between slices, rows, columns
    slopes: Sequence[float]
    intercepts: Sequence[float]
    order: Sequence[int]  # in which its files or frames come
    numbers: Sequence[int]
    rows_a_slice: int = 0  # that a tilted gantry shifts each slice against the one before

    def position(self, z: int) -> list[float]:
        across = self.axes @ np.array([0.0, self.rows_a_slice * self.spacing[1], self.spacing[0]])
        return [float(f"{value:.9f}") for value in np.array([-31.5, 12.25, 700.125]) + z * across]

    def elements(self) -> dict[str, Any]:
        signed = self.pixels.dtype.kind == "i"
        tilt = np.degrees(np.arctan2(self.rows_a_slice * self.spacing[1], self.spacing[0]))
        return {
            "Rows": self.pixels.shape[1],
            "Columns": self.pixels.shape[2],
            "BitsAllocated": 8 * self.pixels.dtype.itemsize,
            "BitsStored": 8 * self.pixels.dtype.itemsize,
            "HighBit": 8 * self.pixels.dtype.itemsize - 1,
            "PixelRepresentation": int(signed),
            "GantryDetectorTilt": float(f"{tilt:.6f}"),
        }

    def datasets(self) -> list[Dataset]:
        """An object for each slice."""
        return [
            slice_of(
                z,
                **self.elements(),
                InstanceNumber=self.numbers[z],
                ImageOrientationPatient=[float(f"{value:.9f}") for value in self.axes[:, :2].T.ravel()],
                ImagePositionPatient=self.position(z),
                PixelSpacing=[self.spacing[1], self.spacing[2]],
                RescaleSlope=self.slopes[z],
                RescaleIntercept=self.intercepts[z],
                PixelData=self.pixels[z].tobytes(),
            )
            for z in self.order
        ]

    def enhanced(self) -> list[Dataset]:
        """One object of all slices, each with functional groups of its own."""
        dataset = slice_of(**self.elements(), SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=len(self.pixels))
        for name in (
            *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"),
            *("RescaleSlope", "RescaleIntercept"),
        ):
            delattr(dataset, name)
        dataset.SharedFunctionalGroupsSequence = [
            _item(
                PlaneOrientationSequence=[
                    _item(ImageOrientationPatient=[float(f"{value:.9f}") for value in self.axes[:, :2].T.ravel()])
                ],
                PixelMeasuresSequence=[_item(PixelSpacing=[self.spacing[1], self.spacing[2]])],
            )
        ]
        dataset.PerFrameFunctionalGroupsSequence = [
            _item(
                PlanePositionSequence=[_item(ImagePositionPatient=self.position(z))],
                PixelValueTransformationSequence=[
                    _item(RescaleSlope=self.slopes[z], RescaleIntercept=self.intercepts[z], RescaleType="HU")
                ],
            )
            for z in self.order
        ]
        dataset.PixelData = b"".join(self.pixels[z].tobytes() for z in self.order)
        return [dataset]


def _item(**elements: Any) -> Dataset:
    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return item


@st.composite
def sources(draw: st.DrawFn) -> Source:
    """Any of the 48 orders of axes, as it is or turned, with noise for pixels: no two slices are alike."""
    axes = draw(st.sampled_from(HANDED))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    tilted = draw(st.booleans())
    if tilted:  # only the table's way may be askew to the slices: it goes along the patient
        spacing, rows_a_slice = (3.0, 0.75, draw(st.sampled_from([0.75, 0.5]))), draw(st.sampled_from([1, 2, -1, -2]))
        askew = np.arctan2(rows_a_slice * spacing[1], spacing[0])
        axes = np.diag(draw(st.tuples(*[st.sampled_from([1.0, -1.0])] * 3))) @ _about_left(askew)
    else:
        if draw(st.booleans()):
            turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
            axes = turn @ axes
        spacing, rows_a_slice = draw(st.tuples(*[st.sampled_from([0.4, 0.9765625, 1.5, 3.0])] * 3)), 0
    count = draw(st.integers(3, 6))
    kind = draw(st.sampled_from(["<i2", "<u2", "<u1", "<i1"]))
    limits = np.iinfo(kind)
    per_slice: st.SearchStrategy[list[float]] = st.lists(
        st.sampled_from([1.0, 2.0] if tilted else [1.0, 2.0, 0.5, 3.25, 0.00731]), min_size=count, max_size=count
    )
    return Source(
        pixels=random.integers(limits.min, limits.max, (count, 5, 7), endpoint=True).astype(kind),
        axes=axes,
        spacing=spacing,
        slopes=draw(per_slice),
        intercepts=[-float(random.integers(0, limits.max)) for _ in range(count)],
        order=draw(st.permutations(range(count))),
        numbers=draw(st.permutations(range(1, count + 1))),
        rows_a_slice=rows_a_slice,
    )


def _about_left(angle: float) -> np.ndarray:
    return np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])


def frames_by_pydicom(paths: Sequence[Path]) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
    """Of each frame, by instance and number: its modality values, and the LPS place of each (rows, columns, 3)."""
    found = {}
    for path in paths:
        dataset = pydicom.dcmread(path)
        groups = dataset.get("PerFrameFunctionalGroupsSequence")
        pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns).astype(np.float64)
        for number, stored in enumerate(pixels):
            rescale = plane = orientation = measures = dataset
            if groups:
                shared = dataset.SharedFunctionalGroupsSequence[0]
                rescale = groups[number].PixelValueTransformationSequence[0]
                plane = groups[number].PlanePositionSequence[0]
                orientation, measures = shared.PlaneOrientationSequence[0], shared.PixelMeasuresSequence[0]
            cosines = np.array(orientation.ImageOrientationPatient, float)
            rows, columns = np.meshgrid(np.arange(dataset.Rows), np.arange(dataset.Columns), indexing="ij")
            between_rows, between_columns = (float(value) for value in measures.PixelSpacing)
            places = (
                np.array(plane.ImagePositionPatient, float)
                + columns[..., None] * between_columns * cosines[:3]
                + rows[..., None] * between_rows * cosines[3:]
            )
            values = stored * float(rescale.RescaleSlope) + float(rescale.RescaleIntercept)
            found[str(dataset.SOPInstanceUID), number] = values, places
    return found


def instances_of(paths: Sequence[Path]) -> list[Instance]:
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    return [
        instance_of(path, sop_instance_uid=str(header.SOPInstanceUID), sop_class_uid=str(header.SOPClassUID))
        for path, header in zip(paths, headers, strict=True)
    ]


def values_at(image: Image, places: np.ndarray) -> np.ndarray:
    """What the image has at LPS places, each within a hundredth of a voxel of one."""
    assert image.affine is not None
    indices = (np.linalg.inv(image.affine) @ np.concatenate([places, np.ones((*places.shape[:-1], 1))], -1)[..., None])[
        ..., :3, 0
    ]
    nearest = np.rint(indices).astype(int)
    assert np.abs(indices - nearest).max() < 0.01
    assert nearest.min() >= 0
    return image.array[nearest[..., 2], nearest[..., 1], nearest[..., 0]]


@given(sources(), st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_mask_on_each_source_frame_is_what_that_frame_shows(
    tmp_path_factory: pytest.TempPathFactory, source: Source, enhanced: bool
) -> None:
    paths = write_series(tmp_path_factory.mktemp("source"), source.enhanced() if enhanced else source.datasets())
    instances, spec = instances_of(paths), ImagingInput(modality=("CT",))
    plan, image = plan_volume(instances, NOWHERE, spec), read_image(instances, NOWHERE, spec)
    frames = frames_by_pydicom(paths)

    mask = image.array > THRESHOLD
    (made,) = write_segmentations(plan, NOWHERE, [(BRIGHT, mask)], MAKER)

    assert plan.straightened == bool(source.rows_a_slice)
    for values, places in frames.values():
        rounding = 1e-3 if plan.straightened else 0.0  # rows between which a tilted slice is interpolated
        np.testing.assert_allclose(values_at(image, places), values.astype(np.float32), rtol=0, atol=rounding)
    by_frame = by_highdicom(made.data, list(frames))["bright"]
    expected = np.stack([values.astype(np.float32) > THRESHOLD for values, _ in frames.values()])
    np.testing.assert_array_equal(by_frame, expected)
    np.testing.assert_array_equal(plan.on_source(read_segmentation(made.data, plan)["bright"]), plan.on_source(mask))
