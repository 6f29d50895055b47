"""How a series becomes an array, decided from headers alone: which frame is which slice, and where it lies.

Whatever reads pixels (`medflow.dicom.volume`) or writes something about the slices (segmentations) goes by this plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID

from medflow.dicom.elements import first_of, number_of, numbers_of, quiet, text_of
from medflow.dicom.geometry import grid_of, planes_of
from medflow.dicom.pixels import InstanceFile, Objects, open_instance
from medflow.errors import InputNotUsable
from medflow.plugin import ImagingInput
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Where one slice of the array comes from: a frame (numbered from 0) of an instance.

    ``tile`` is set where the frame is a mosaic of slices: the (row, column) of this slice's first pixel in the frame.
    """

    instance: Instance
    frame: int = 0
    tile: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VolumePlan:
    """What `read_image` makes of a series: ``slices[volume][z]``, and the `Image` but for its pixels.

    ``shape`` is the array's: (rows, columns), (z, y, x) or (volumes, z, y, x). ``affine`` maps its indices
    (x, y, z, 1) to LPS millimetres, ``spacing_mm`` is (z, y, x) or (rows, columns).
    ``source_shape`` and ``source_affine`` are those of one volume as the slices themselves lie: the same unless the
    volume was straightened.
    """

    slices: tuple[tuple[Slice, ...], ...]
    shape: tuple[int, ...]
    affine: np.ndarray | None
    spacing_mm: tuple[float, ...] | None
    modality: str
    volumes: tuple[Mapping[str, float], ...] = ()
    source_shape: tuple[int, ...]
    source_affine: np.ndarray | None
    files: Mapping[Instance, InstanceFile] = field(repr=False)

    @property
    def straightened(self) -> bool:
        """Whether slices that a tilted gantry shifted sideways are brought onto a straight grid."""
        return False

    def on_source(self, mask: np.ndarray) -> np.ndarray:
        """A mask (..., z, y, x) on the image's grid, brought back onto the grid of the slices it was made from."""
        return mask


def plan_volume(instances: Sequence[Instance], objects: Objects, spec: ImagingInput) -> VolumePlan:
    """Decide from the headers of one series how it becomes the image that ``spec`` asks for.

    Raises
    ------
    InputNotUsable
        With a kebab-case code: file-missing, file-changed, not-an-image, mixed-content, colour-image, mosaic,
        several-images, undecodable-frame, too-few-slices, or one of `geometry.grid_of`.
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


def _open(instance: Instance, objects: Objects) -> InstanceFile:
    if not _is_image(instance):
        name = UID(instance.sop_class_uid).name
        raise InputNotUsable("not-an-image", f"{name} is not an image that models are given")
    return open_instance(instance, objects, HEADER)


def _check_content(files: Sequence[InstanceFile]) -> None:
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


def _picture(files: Sequence[InstanceFile]) -> VolumePlan:
    if len(files) > 1 or max(number_of(files[0].header, "NumberOfFrames") or 1, 1) > 1:
        raise InputNotUsable("several-images", "the series holds several images where the model takes one")
    file = files[0]
    header = file.header
    shape = (number_of(header, "Rows") or 0, number_of(header, "Columns") or 0)
    spacing = next(
        (found for name in ("PixelSpacing", "ImagerPixelSpacing") if (found := _spacing(header, name))), None
    )
    affine = _picture_affine(header)
    return VolumePlan(
        slices=((Slice(instance=file.instance),),),
        shape=shape,
        affine=affine,
        spacing_mm=spacing,
        modality=_modality(file),
        source_shape=shape,
        source_affine=affine,
        files={file.instance: file},
    )


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


def _volume(files: Sequence[InstanceFile], spec: ImagingInput) -> VolumePlan:
    planes = [plane for number, file in enumerate(files) for plane in planes_of(file.header, number)]
    if len(planes) < spec.min_slices:
        raise InputNotUsable("too-few-slices", f"{len(planes)} slices; the model needs {spec.min_slices}")
    grid = grid_of(planes)
    shape = (len(grid.planes), *grid.planes[0].shape)
    return VolumePlan(
        slices=(tuple(Slice(instance=files[plane.instance].instance, frame=plane.frame) for plane in grid.planes),),
        shape=shape,
        affine=grid.affine,
        spacing_mm=grid.spacing_mm,
        modality=_modality(files[0]),
        source_shape=shape,
        source_affine=grid.affine,
        files={file.instance: file for file in files},
    )


def _modality(file: InstanceFile) -> str:
    return text_of(file.header, "Modality") or ""
