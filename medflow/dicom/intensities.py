"""Stored pixel values to modality values (PS3.3 C.11.1): Hounsfield units, or whatever a rescale or table makes them.

The numbers are those of 64-bit arithmetic, rounded once to float32. Where whole numbers make float32 exact, it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut

from medflow.dicom.elements import first_of, items_of, number_of, numbers_of
from medflow.dicom.geometry import group_of
from medflow.errors import InputNotUsable

EXACT = 2.0**24  # whole numbers up to this are exact in float32
BLOCK = 1 << 16  # pixels that are converted at a time, in the processor's cache
LARGEST = float(np.finfo(np.float32).max)
INTENSITY_HEADER = ("Modality", "PhotometricInterpretation", "RescaleType")
MEASURED = {"CT", "PT"}  # modalities whose values are measured ones: MONOCHROME1 is but a way to show them
HOUNSFIELD = {"HU", "HU_MOD", "HOUNSFIELD", "US", "UNSPECIFIED"}  # RescaleType (PS3.3 C.11.1.1.2), as scanners write it
SCALES = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence")


@dataclass(frozen=True, kw_only=True, slots=True)
class Intensities:
    """How the stored values of one frame become modality values.

    ``source`` holds the ModalityLUTSequence, if there is one, which then takes the place of slope and intercept.
    ``mirrored`` are the lowest and highest stored values of a MONOCHROME1 frame, between which it is inverted: not of a
    CT or PET, where larger values are more whatever they are shown as.
    """

    slope: float = 1.0
    intercept: float = 0.0
    source: Dataset | None = None
    mirrored: tuple[int, int] | None = None

    def fill(self, target: np.ndarray, pixels: np.ndarray) -> None:
        """Write the modality values of ``pixels`` (rows, columns) into ``target``, float32 of that shape.

        Raises `InputNotUsable`: bad-rescale for values that no float32 can hold, undecodable-frame for pixels that are
        floating-point numbers and not finite, or inverted.
        """
        if pixels.dtype.kind == "f" and (self.mirrored is not None or not np.isfinite(pixels).all()):
            raise InputNotUsable("undecodable-frame", "the pixels of an instance are not finite numbers, or inverted")
        if self.source is None and self._is_exact(pixels.dtype):
            slope, intercept = self.slope, self.intercept
            if self.mirrored is not None:
                slope, intercept = -slope, slope * sum(self.mirrored) + intercept
            np.multiply(pixels, np.float32(slope), out=target)
            np.add(target, np.float32(intercept), out=target)
            return
        ends = None if self.mirrored is None else float(self._values(np.array(self.mirrored)).sum())
        rows = max(1, BLOCK // max(1, pixels.shape[-1]))
        for start in range(0, len(pixels), rows):
            values = self._values(pixels[start : start + rows])
            if ends is not None:
                values = ends - values
            if not np.abs(values).max(initial=0) <= LARGEST:
                raise InputNotUsable("bad-rescale", "RescaleSlope and RescaleIntercept lead out of all bounds")
            target[start : start + rows] = values

    def _values(self, pixels: np.ndarray) -> np.ndarray:
        if self.source is not None:
            return np.asarray(apply_modality_lut(pixels, self.source), np.float64)
        values = np.multiply(pixels, self.slope, dtype=np.float64)
        return np.add(values, self.intercept, out=values)

    def _is_exact(self, dtype: np.dtype) -> bool:
        if dtype.kind not in "iu" or dtype.itemsize > 2:
            return False
        slope, intercept = self.slope, self.intercept
        largest = abs(slope) * (2**16 + abs(sum(self.mirrored or ()))) + abs(intercept)
        return slope.is_integer() and intercept.is_integer() and largest <= EXACT


def intensities_of(header: Dataset, frame: int) -> Intensities:
    """What a header says of one frame (numbered from 0).

    Raises
    ------
    InputNotUsable
        bad-rescale.
    """
    source = _source(header, frame)
    mirrored = _mirrored(header) if _is_inverted(header) else None
    if items_of(source, "ModalityLUTSequence"):
        return Intensities(source=source, mirrored=mirrored)
    if "RescaleSlope" not in source and "RescaleIntercept" not in source:
        return Intensities(mirrored=mirrored)
    slope, intercept = numbers_of(source, "RescaleSlope"), numbers_of(source, "RescaleIntercept")
    if len(slope) != 1 or len(intercept) != 1 or slope[0] == 0:
        raise InputNotUsable("bad-rescale", "RescaleSlope and RescaleIntercept are not a pair of numbers")
    return Intensities(slope=slope[0], intercept=intercept[0], mirrored=mirrored)


def check_intensities(headers: Sequence[Dataset]) -> None:
    """Make sure that the values of a series' frames are of one scale: that of its modality. Needs `INTENSITY_HEADER`.

    Raises
    ------
    InputNotUsable
        bad-rescale.
    """
    sources = [source for header in headers for source in _sources(header)]
    scaled = {any(name in source for name in SCALES) for source in sources}
    modality = first_of(headers[0], "Modality")
    if len(scaled) > 1:
        raise InputNotUsable("bad-rescale", "some slices say how their pixels become values, and others do not")
    if modality in MEASURED and scaled == {False}:
        raise InputNotUsable(
            "bad-rescale", f"{modality} without RescaleSlope and RescaleIntercept measures nothing known"
        )
    if modality == "CT" and any(_unit(source) not in HOUNSFIELD for source in sources):
        raise InputNotUsable("bad-rescale", "RescaleType says that the values are no Hounsfield units")
    scales = {
        (found.slope, found.intercept, found.mirrored, found.source is None)
        for header in headers
        if _is_inverted(header)
        for found in (intensities_of(header, frame) for frame, _ in enumerate(_sources(header)))
    }
    if len(scales) > 1:
        raise InputNotUsable("bad-rescale", "inverted slices (MONOCHROME1) differ in rescale or bits")


def _sources(header: Dataset) -> Iterator[Dataset]:
    """`_source` of each frame."""
    frames = len(items_of(header, "PerFrameFunctionalGroupsSequence"))
    return (_source(header, frame) for frame in range(max(frames, 1)))


def _unit(source: Dataset) -> str:
    """RescaleType, or the type of the table; Hounsfield units where it is absent, as the standard has it."""
    table = items_of(source, "ModalityLUTSequence")[:1]
    stated = first_of(table[0], "ModalityLUTType") if table else first_of(source, "RescaleType")
    return (stated or "HU").upper()


def _is_inverted(header: Dataset) -> bool:
    shown = first_of(header, "PhotometricInterpretation")
    return shown == "MONOCHROME1" and first_of(header, "Modality") not in MEASURED


def _source(header: Dataset, frame: int) -> Dataset:
    """Where the rescale of a frame stands: in its functional groups (PS3.3 C.7.6.16.2.9), else in the data set."""
    per_frame = items_of(header, "PerFrameFunctionalGroupsSequence")
    if not per_frame:
        return header
    if frame >= len(per_frame):
        raise InputNotUsable("bad-rescale", "a frame has no functional groups")
    groups = (per_frame[frame], *items_of(header, "SharedFunctionalGroupsSequence")[:1])
    return group_of(groups, "PixelValueTransformationSequence")


def _mirrored(header: Dataset) -> tuple[int, int]:
    bits = number_of(header, "BitsStored") or number_of(header, "BitsAllocated") or 16
    if number_of(header, "PixelRepresentation") == 1:
        return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 1
