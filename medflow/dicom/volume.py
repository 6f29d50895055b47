"""A stored series to the array that a model reads: right in geometry and intensity, or refused with the reason.

Intensities are after the modality LUT (PS3.3 C.11.1) and before any windowing; MONOCHROME1 is inverted, so that
larger is brighter in every image. A volume is filled slice by slice into one float32 array.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID

from medflow.dicom.elements import first_of, items_of, number_of, numbers_of, quiet, text_of
from medflow.dicom.geometry import Grid, Plane, grid_of, group_of, planes_of
from medflow.errors import InputNotUsable, ObjectDamaged
from medflow.plugin import Image, ImagingInput
from medflow.records import Instance

STORAGE = "1.2.840.10008.5.1.4.1.1."
IMAGES = {  # SOP classes whose pixel data are a picture of a patient's inside (PS3.4 B.5), by the end of their UIDs
    *("1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1"),  # CR, DX, MG, IO
    *("2", "2.1", "2.2", "4", "4.1", "4.4", "128", "130", "128.1"),  # CT, MR, PET: plain, enhanced, converted
    *("6.1", "7", "7.2", "7.3", "12.1", "12.2", "13.1.1", "13.1.2", "13.1.3", "20", "481.1"),  # US SC XA RF 3D NM RT
}
HEADER = [
    *("SOPClassUID", "Modality", "ImageType", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("PhotometricInterpretation", "BitsStored", "PixelRepresentation", "PixelSpacing", "ImagerPixelSpacing"),
    *("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID", "SharedFunctionalGroupsSequence"),
    *("PerFrameFunctionalGroupsSequence", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
]


class Objects(Protocol):
    """Files by their SHA-256 (hex): the object store."""

    def open(self, digest: str) -> BinaryIO:
        """The object; raises KeyError if it is not there."""
        ...

    def fetch(self, digests: Iterable[str]) -> None:
        """Bring near what is about to be opened."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """An instance, where its bytes are, and its header."""

    instance: Instance
    objects: Objects
    header: Dataset


def read_image(instances: Sequence[Instance], objects: Objects, spec: ImagingInput) -> Image:
    """The image or volume of one series.

    For ``spec.dimensions`` 2 the series must be one single-frame image; its ``spacing_mm`` is PixelSpacing, else
    ImagerPixelSpacing (at the detector, not corrected for magnification), else None. For 3 it must be one regular
    stack of parallel slices, from single-frame or enhanced multi-frame objects, ordered along the slice normal.

    Raises
    ------
    InputNotUsable
        With a kebab-case code: file-missing, file-changed, not-an-image, mixed-content, colour-image, mosaic,
        several-images, bad-rescale, undecodable-frame, too-few-slices, or one of `geometry.grid_of`.
    """
    quiet()
    if not instances:
        raise InputNotUsable("too-few-slices", "the series has no instances")
    objects.fetch(instance.sha256 for instance in instances if instance.path is None and _is_image(instance))
    files = [_open(instance, objects) for instance in instances]
    _check_content(files)
    return _picture(files) if spec.dimensions == 2 else _volume(files, spec)


def _is_image(instance: Instance) -> bool:
    return instance.sop_class_uid.startswith(STORAGE) and instance.sop_class_uid[len(STORAGE) :] in IMAGES


def _open(instance: Instance, objects: Objects) -> _File:
    if not _is_image(instance):
        name = UID(instance.sop_class_uid).name
        raise InputNotUsable("not-an-image", f"{name} is not an image that models are given")
    with _bytes_of(instance, objects) as file:
        try:
            header = dcmread(file, stop_before_pixels=True, force=True, specific_tags=HEADER)  # type: ignore[arg-type]  # keywords
        except OSError as error:
            raise InputNotUsable("file-missing", f"a file of the series cannot be read: {error.strerror}") from None
        except Exception as error:  # whatever pydicom's converters raise on damaged bytes
            raise InputNotUsable("undecodable-frame", f"a header cannot be read ({type(error).__name__})") from None
    return _File(instance=instance, objects=objects, header=header)


def _bytes_of(instance: Instance, objects: Objects) -> BinaryIO:
    """An instance's file, open; an object store that is out of reach raises its own error, which is not the data's."""
    try:
        return Path(instance.path).open("rb") if instance.path is not None else objects.open(instance.sha256)
    except (FileNotFoundError, KeyError):
        raise InputNotUsable("file-missing", "a file of the series is no longer where it was stored") from None
    except ObjectDamaged as error:
        raise InputNotUsable("file-changed", error.message) from None
    except OSError as error:
        raise InputNotUsable("file-missing", f"a file of the series cannot be read: {error.strerror}") from None


def _check_content(files: Sequence[_File]) -> None:
    for file in files:
        photometric = first_of(file.header, "PhotometricInterpretation")
        if number_of(file.header, "SamplesPerPixel") != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
            raise InputNotUsable("colour-image", f"{photometric or 'unknown'} is not a greyscale image")
        if "MOSAIC" in (text_of(file.header, "ImageType") or "").upper().split("\\"):
            raise InputNotUsable("mosaic", "each image is a mosaic of slices, which is not taken apart")
    for what in (
        {file.instance.sop_class_uid for file in files},
        {first_of(file.header, "PhotometricInterpretation") for file in files},
        {first_of(file.header, "Modality") for file in files},
    ):
        if len(what) > 1:
            raise InputNotUsable("mixed-content", "the series mixes kinds of images")


# --- one picture -----------------------------------------------------------------------------------------------


def _picture(files: Sequence[_File]) -> Image:
    if len(files) > 1 or max(number_of(files[0].header, "NumberOfFrames") or 1, 1) > 1:
        raise InputNotUsable("several-images", "the series holds several images where the model takes one")
    file = files[0]
    header = file.header
    shape = (number_of(header, "Rows") or 0, number_of(header, "Columns") or 0)
    array = np.empty(shape, np.float32)
    _decode(file, {0: array})
    spacing = next(
        (found for name in ("PixelSpacing", "ImagerPixelSpacing") if (found := _spacing(header, name))), None
    )
    return Image(array=array, spacing_mm=spacing, affine=_picture_affine(header), modality=_modality(file))


def _spacing(header: Dataset, name: str) -> tuple[float, float] | None:
    values = numbers_of(header, name)
    return (values[0], values[1]) if len(values) == 2 and min(values) > 0 else None


def _picture_affine(header: Dataset) -> np.ndarray | None:
    """Of a single slice that has a place; its third column is the unit normal, as one slice has no slice distance."""
    if len(numbers_of(header, "ImagePositionPatient")) != 3:
        return None
    try:
        (plane,) = planes_of(header, 0)
    except InputNotUsable:
        return None
    affine = np.eye(4)
    affine[:3, 0] = plane.along_rows * plane.spacing_mm[1]
    affine[:3, 1] = plane.along_columns * plane.spacing_mm[0]
    affine[:3, 2] = plane.normal
    affine[:3, 3] = plane.position
    return affine


# --- one volume ------------------------------------------------------------------------------------------------


def _volume(files: Sequence[_File], spec: ImagingInput) -> Image:
    planes = [plane for number, file in enumerate(files) for plane in planes_of(file.header, number)]
    if len(planes) < spec.min_slices:
        raise InputNotUsable("too-few-slices", f"{len(planes)} slices; the model needs {spec.min_slices}")
    grid = grid_of(planes)
    array = np.empty((len(grid.planes), *grid.planes[0].shape), np.float32)
    for number, targets in _by_instance(grid).items():
        _decode(files[number], {plane.frame: array[z] for z, plane in targets})
    return Image(array=array, spacing_mm=grid.spacing_mm, affine=grid.affine, modality=_modality(files[0]))


def _by_instance(grid: Grid) -> dict[int, list[tuple[int, Plane]]]:
    targets: dict[int, list[tuple[int, Plane]]] = {}
    for z, plane in enumerate(grid.planes):
        targets.setdefault(plane.instance, []).append((z, plane))
    return targets


def _modality(file: _File) -> str:
    return text_of(file.header, "Modality") or ""


# --- pixels ----------------------------------------------------------------------------------------------------


def _decode(file: _File, targets: dict[int, np.ndarray]) -> None:
    """Decode the frames that are asked for, each into its target (rows, columns) float32, after the modality LUT."""
    dataset = _whole(file)
    frames = sorted(targets)
    try:
        for frame, pixels in zip(frames, iter_pixels(dataset, indices=frames), strict=True):
            target = targets[frame]
            if pixels.shape != target.shape:
                raise InputNotUsable("undecodable-frame", "a decoded frame has another size than its header says")
            target[...] = _values(pixels, dataset, frame)
    except InputNotUsable:
        raise
    except Exception as error:  # decoders raise whatever their libraries do; the text may quote the data
        reason = f"the pixels of an instance cannot be decoded ({type(error).__name__})"
        raise InputNotUsable("undecodable-frame", reason, transfer_syntax=file.instance.transfer_syntax_uid) from None
    if not all(np.isfinite(target).all() for target in targets.values()):
        raise InputNotUsable("undecodable-frame", "the pixels of an instance are not finite numbers")


def _whole(file: _File) -> Dataset:
    """The data set with its pixel data; a file that stays in place must still be the one that was taken in."""
    with _bytes_of(file.instance, file.objects) as opened:
        try:
            data = opened.read()
        except OSError as error:
            raise InputNotUsable("file-missing", f"a file of the series cannot be read: {error.strerror}") from None
    if len(data) != file.instance.size or (file.instance.path and sha256(data).hexdigest() != file.instance.sha256):
        raise InputNotUsable("file-changed", "a file of the series has changed since it was taken in: ingest it again")
    dataset = dcmread(BytesIO(data), force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = UID(file.instance.transfer_syntax_uid)
    return dataset


def _values(pixels: np.ndarray, dataset: Dataset, frame: int) -> np.ndarray:
    """Stored pixel values to modality values; MONOCHROME1 mirrored within the range that the bits stored allow."""
    source = _lut_source(dataset, frame)
    values = _modality_values(pixels, source)
    if first_of(dataset, "PhotometricInterpretation") == "MONOCHROME1":
        bits = number_of(dataset, "BitsStored") or pixels.dtype.itemsize * 8
        signed = number_of(dataset, "PixelRepresentation") == 1
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        ends = _modality_values(np.array([low, high]), source)
        values = float(ends.sum()) - values
    return values


def _lut_source(dataset: Dataset, frame: int) -> Dataset:
    """Where the rescale of a frame stands: in its functional groups (PS3.3 C.7.6.16.2.9), else in the data set."""
    per_frame = items_of(dataset, "PerFrameFunctionalGroupsSequence")
    if per_frame:
        groups = (per_frame[frame], *items_of(dataset, "SharedFunctionalGroupsSequence")[:1])
        return group_of(groups, "PixelValueTransformationSequence")
    return dataset


def _modality_values(pixels: np.ndarray, source: Dataset) -> np.ndarray:
    if items_of(source, "ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(pixels, source), np.float64)
    if "RescaleSlope" not in source and "RescaleIntercept" not in source:
        return pixels.astype(np.float64)
    slope, intercept = numbers_of(source, "RescaleSlope"), numbers_of(source, "RescaleIntercept")
    if len(slope) != 1 or len(intercept) != 1 or slope[0] == 0:
        raise InputNotUsable("bad-rescale", "RescaleSlope and RescaleIntercept are not a pair of numbers")
    return pixels * slope[0] + intercept[0]
