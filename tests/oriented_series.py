"""CT series whose axes run any way, as their scanner has them, and what pydicom alone finds in each of their frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage

from tests.factories_dicom import slice_of

HANDED = [  # columns: along rows, along columns, from slice to slice; rotations and reflections alike
    np.stack([sign * np.eye(3)[axis] for sign, axis in zip(signs, axes, strict=True)], axis=1)
    for axes in permutations(range(3))
    for signs in product((1.0, -1.0), repeat=3)
]


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
    series: int = 1
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
                series=self.series,
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
        dataset = slice_of(
            series=self.series, **self.elements(), SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=len(self.pixels)
        )
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
