"""How a series becomes an array, decided from headers alone: which frame is which slice, and where it lies.

Whatever reads pixels (`medflow.dicom.volume`) or writes something about the slices (segmentations) goes by this plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pydicom.dataset import Dataset

from medflow.dicom.elements import items_of, number_of, numbers_of, quiet, text_of
from medflow.dicom.frames import FRAME_HEADER, Frame, frames_of
from medflow.dicom.gate import GATE_HEADER, check_classes, check_content
from medflow.dicom.geometry import PIXEL_MM, check_spacing, group_of, planes_of
from medflow.dicom.intensities import INTENSITY_HEADER, check_intensities
from medflow.dicom.mosaic import MOSAIC_HEADER, is_mosaic, tiles_of
from medflow.dicom.pixels import InstanceFile, Objects, open_instance
from medflow.dicom.split import Volume, volumes_of
from medflow.dicom.tilt import Straightening, straightening_of
from medflow.errors import InputNotUsable
from medflow.plugin import ImagingInput
from medflow.records import Instance
from medflow.series_rule import is_scout

COUNTS = ("NumberOfTemporalPositions", "CardiacNumberOfImages", "NumberOfTimeSlices")  # volumes a series says it has
HEADER = [
    *GATE_HEADER,
    *INTENSITY_HEADER,
    *("SOPClassUID", "Rows", "Columns", "NumberOfFrames", "PixelSpacing", "ImagerPixelSpacing"),
    *("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID", "GantryDetectorTilt"),
    *(*COUNTS, "NumberOfSlices", *FRAME_HEADER),
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
    volume is straightened, as one of a tilted gantry.
    """

    slices: tuple[tuple[Slice, ...], ...]
    shape: tuple[int, ...]
    affine: np.ndarray | None
    spacing_mm: tuple[float, ...] | None
    modality: str
    volumes: tuple[Mapping[str, float], ...] = ()
    source_shape: tuple[int, ...]
    source_affine: np.ndarray | None
    straightening: Straightening | None = None
    files: Mapping[Instance, InstanceFile] = field(repr=False)

    @property
    def straightened(self) -> bool:
        """Whether slices that a tilted gantry shifted sideways are brought onto a straight grid."""
        return self.straightening is not None

    def on_source(self, mask: np.ndarray) -> np.ndarray:
        """A mask (..., z, y, x) on the image's grid, brought back onto the grid of the slices it was made from.

        Nothing changes unless the volume is straightened: then each row comes from the nearest one of the mask, or of
        float32 probabilities from the two that it lies between.
        """
        return mask if self.straightening is None else self.straightening.on_source(mask)


def plan_volume(instances: Sequence[Instance], objects: Objects, spec: ImagingInput) -> VolumePlan:
    """Decide from the headers of one series how it becomes the image that ``spec`` asks for.

    Raises
    ------
    InputNotUsable
        With a kebab-case code: one of `gate`, `geometry`, `split`, `tilt` or `mosaic`; file-missing, file-changed,
        undecodable-frame, bad-rescale; several-images, several-volumes, too-few-slices, missing-slices or
        implausible-spacing.
    """
    quiet()
    instances = list({instance.sha256: instance for instance in instances}.values())  # one file named twice is one
    check_classes(instances, spec)
    objects.fetch(instance.sha256 for instance in instances if instance.path is None)
    files = [open_instance(instance, objects, HEADER) for instance in instances]
    headers = [file.header for file in files]
    check_content(headers, instances, spec)
    check_intensities(headers)
    return _picture(files) if spec.dimensions == 2 else _stack(files, spec)


# --- one picture -----------------------------------------------------------------------------------------------


def _picture(files: Sequence[InstanceFile]) -> VolumePlan:
    if len(files) > 1 or max(number_of(files[0].header, "NumberOfFrames") or 1, 1) > 1:
        raise InputNotUsable("several-images", "the series holds several images where the model takes one")
    file = files[0]
    if is_mosaic(file.header):
        raise InputNotUsable("mosaic", "the image is a mosaic of slices where the model takes one picture")
    shape = (number_of(file.header, "Rows") or 0, number_of(file.header, "Columns") or 0)
    if min(shape) < 1:
        raise InputNotUsable("undecodable-frame", "the image does not say how many rows and columns it has")
    spacing = _picture_spacing(file.header)
    for distance, count in zip(spacing or (), shape, strict=False):
        check_spacing(distance, count, PIXEL_MM, "pixels")
    affine = _picture_affine(file.header)
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


def _picture_spacing(header: Dataset) -> tuple[float, float] | None:
    """PixelSpacing, else ImagerPixelSpacing (at the detector, not corrected for magnification)."""
    groups = [items_of(header, f"{kind}FunctionalGroupsSequence")[:1] for kind in ("PerFrame", "Shared")]
    measures = group_of([item for group in groups for item in group], "PixelMeasuresSequence")
    places = ((measures, "PixelSpacing"), (header, "PixelSpacing"), (header, "ImagerPixelSpacing"))
    for values in (numbers_of(dataset, name) for dataset, name in places):
        if len(values) == 2 and min(values) > 0:
            return values[0], values[1]
    return None


def _picture_affine(header: Dataset) -> np.ndarray | None:
    """Of a single slice that has a place; its third column is the unit normal, as one slice has no slice distance."""
    try:
        (plane,) = planes_of(header)
    except InputNotUsable:
        return None
    return plane.affine(plane.normal)


# --- volumes ---------------------------------------------------------------------------------------------------


def _stack(files: Sequence[InstanceFile], spec: ImagingInput) -> VolumePlan:
    frames = [frame for number, file in enumerate(files) for frame in _frames(file, number)]
    if any(is_scout(frame.kind.get("ImageType")) for frame in frames):
        raise InputNotUsable("localizer", "a frame of the series is a localizer (scout)")
    least = max(spec.min_slices, 2)
    if len(frames) < least:
        raise InputNotUsable("too-few-slices", f"{len(frames)} slices; the model needs {least}")
    volumes = volumes_of(frames, _counts(files))
    _check_slices(volumes, files, least)
    chosen = _chosen(volumes, spec)
    grid = chosen[0].grid
    straight = _straightening(chosen, files)
    one = grid.shape if straight is None else (grid.shape[0], straight.rows, grid.shape[2])
    affine = grid.affine if straight is None else straight.affine
    labels = tuple(volume.labels for volume in chosen) if spec.dimensions == 4 or len(volumes) > 1 else ()
    return VolumePlan(
        slices=tuple(tuple(_slice(frame, files) for frame in volume.frames) for volume in chosen),
        shape=(len(chosen), *one) if spec.dimensions == 4 else one,
        affine=affine,
        spacing_mm=(float(np.linalg.norm(affine[:3, 2])), *grid.first.spacing_mm),
        modality=_modality(files[0]),
        volumes=labels,
        source_shape=grid.shape,
        source_affine=grid.affine,
        straightening=straight,
        files={file.instance: file for file in files},
    )


def _frames(file: InstanceFile, number: int) -> list[Frame]:
    frames = frames_of(file.header, number)
    if not is_mosaic(file.header):
        return frames
    if len(frames) > 1:
        raise InputNotUsable("mosaic", "a multi-frame object of mosaics is not taken apart")
    header = open_instance(file.instance, file.objects, [*HEADER, *MOSAIC_HEADER]).header
    return [replace(frames[0], plane=plane, tile=tile) for plane, tile in tiles_of(header)]


def _slice(frame: Frame, files: Sequence[InstanceFile]) -> Slice:
    return Slice(instance=files[frame.file].instance, frame=frame.number, tile=frame.tile)


def _counts(files: Sequence[InstanceFile]) -> dict[str, int]:
    """How many volumes the series says it has, where all its instances say the same."""
    counts = {}
    for name in COUNTS:
        found = {number_of(file.header, name) for file in files}
        if len(found) == 1 and (count := found.pop()) is not None:
            counts[name] = count
    return counts


def _check_slices(volumes: Sequence[Volume], files: Sequence[InstanceFile], least: int) -> None:
    slices = len(volumes[0].frames)
    if slices < least:
        raise InputNotUsable("too-few-slices", f"{slices} slices in each volume; the model needs {least}")
    stated = number_of(files[0].header, "NumberOfSlices")  # PET (PS3.3 C.8.9.1.1.5)
    if stated is not None and slices < stated and _modality(files[0]) == "PT":
        raise InputNotUsable("missing-slices", f"{slices} slices of the {stated} that NumberOfSlices says there are")


def _chosen(volumes: Sequence[Volume], spec: ImagingInput) -> list[Volume]:
    if spec.dimensions == 4:
        return list(volumes)
    if len(volumes) > 1 and spec.take == "only":
        names = dict.fromkeys(name.partition("[")[0] for volume in volumes for name in volume.labels)
        reason = f"the series holds {len(volumes)} volumes, told apart by {' and '.join(names)}; the model takes one"
        raise InputNotUsable("several-volumes", reason)
    return [volumes[-1 if spec.take == "last" else 0]]


def _straightening(chosen: Sequence[Volume], files: Sequence[InstanceFile]) -> Straightening | None:
    headers = [files[number].header for number in {frame.file for volume in chosen for frame in volume.frames}]
    stated = [tilt for header in headers for tilt in _stated_tilt(header)]
    original = all((text_of(header, "ImageType") or "ORIGINAL").upper().startswith("ORIGINAL") for header in headers)
    return straightening_of(
        chosen[0].grid, modality=text_of(headers[0], "Modality") or "", stated_deg=stated, original=original
    )


def _stated_tilt(header: Dataset) -> tuple[float, ...]:
    groups = items_of(header, "SharedFunctionalGroupsSequence")[:1]
    places = (header, group_of(groups, "CTAcquisitionDetailsSequence"), group_of(groups, "CTGeometrySequence"))
    return next((found for place in places if (found := numbers_of(place, "GantryDetectorTilt"))), ())


def _modality(file: InstanceFile) -> str:
    return text_of(file.header, "Modality") or ""
