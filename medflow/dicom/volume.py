"""A stored series to the array that a model reads: right in geometry and intensity, or refused with the reason.

Intensities are after the modality LUT (PS3.3 C.11.1) and before any windowing; MONOCHROME1 is inverted, so that
larger is brighter in every image. A volume is filled slice by slice into one float32 array.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from medflow.dicom.elements import number_of
from medflow.dicom.pixels import Objects, decode, expect
from medflow.dicom.plan import Slice, VolumePlan, plan_volume
from medflow.plugin import Image, ImagingInput
from medflow.records import Instance

__all__ = ["Slice", "VolumePlan", "plan_volume", "read_image"]

MOSAICS = 8  # decoded at once


def read_image(instances: Sequence[Instance], objects: Objects, spec: ImagingInput, *, workers: int = 0) -> Image:
    """The image, volume or volumes of one series.

    For ``spec.dimensions`` 2 the series must be one single-frame image; its ``spacing_mm`` is PixelSpacing, else
    ImagerPixelSpacing (at the detector, not corrected for magnification), else None. For 3 it must be one regular
    stack of parallel slices, from single-frame objects, enhanced multi-frame ones or mosaics, ordered along the slice
    normal; or several, of which ``spec.take`` names one. For 4 it may be one or several on the same grid.
    ``workers`` is for `pixels.decode`.

    Raises
    ------
    InputNotUsable
        With a code of `plan_volume` or `pixels.decode`.
    """
    expect(instances, workers=workers)
    plan = plan_volume(instances, objects, spec)
    array = np.empty(plan.shape, np.float32)
    volumes = array.reshape(len(plan.slices), -1, *plan.shape[-2:])
    rows = plan.source_shape[-2]
    wanted = [
        (item, target[:rows])
        for slices, volume in zip(plan.slices, volumes, strict=True)
        for item, target in zip(slices, volume, strict=True)
    ]
    if wanted[0][0].tile is None:
        _decode_frames(plan, wanted, workers)
    else:
        _decode_tiles(plan, wanted, workers)
    if plan.straightening is not None:
        for volume in volumes:
            plan.straightening.straighten(volume)
    return Image(
        array=array, spacing_mm=plan.spacing_mm, affine=plan.affine, modality=plan.modality, volumes=plan.volumes
    )


def _decode_frames(plan: VolumePlan, wanted: Iterable[tuple[Slice, np.ndarray]], workers: int) -> None:
    targets: dict[Instance, dict[int, np.ndarray]] = {}
    for item, target in wanted:
        targets.setdefault(item.instance, {})[item.frame] = target
    decode(((plan.files[instance], frames) for instance, frames in targets.items()), workers=workers)


def _decode_tiles(plan: VolumePlan, wanted: Iterable[tuple[Slice, np.ndarray]], workers: int) -> None:
    """Mosaics, a few at a time: each is decoded as a whole, then its tiles are cut out."""
    by_instance: dict[Instance, list[tuple[Slice, np.ndarray]]] = {}
    for item, target in wanted:
        by_instance.setdefault(item.instance, []).append((item, target))
    instances = list(by_instance)
    for start in range(0, len(instances), MOSAICS):
        some = instances[start : start + MOSAICS]
        sizes = [(number_of(plan.files[one].header, name) or 0 for name in ("Rows", "Columns")) for one in some]
        frames = [np.empty(tuple(size), np.float32) for size in sizes]
        decode([(plan.files[one], {0: frame}) for one, frame in zip(some, frames, strict=True)], workers=workers)
        for one, frame in zip(some, frames, strict=True):
            for item, target in by_instance[one]:
                row, column = item.tile or (0, 0)
                target[...] = frame[row : row + target.shape[0], column : column + target.shape[1]]
