"""A stored series to the array that a model reads: right in geometry and intensity, or refused with the reason.

Intensities are after the modality LUT (PS3.3 C.11.1) and before any windowing; MONOCHROME1 is inverted, so that
larger is brighter in every image. A volume is filled slice by slice into one float32 array.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medflow.dicom.pixels import Objects, decode
from medflow.dicom.plan import Slice, VolumePlan, plan_volume
from medflow.plugin import Image, ImagingInput
from medflow.records import Instance

__all__ = ["Slice", "VolumePlan", "plan_volume", "read_image"]


def read_image(instances: Sequence[Instance], objects: Objects, spec: ImagingInput, *, workers: int = 0) -> Image:
    """The image or volume of one series.

    For ``spec.dimensions`` 2 the series must be one single-frame image; its ``spacing_mm`` is PixelSpacing, else
    ImagerPixelSpacing (at the detector, not corrected for magnification), else None. For 3 it must be one regular
    stack of parallel slices, from single-frame or enhanced multi-frame objects, ordered along the slice normal.
    ``workers`` is for `pixels.decode`.

    Raises
    ------
    InputNotUsable
        With a code of `plan_volume` or `pixels.decode`.
    """
    plan = plan_volume(instances, objects, spec)
    array = np.empty(plan.shape, np.float32)
    targets: dict[Instance, dict[int, np.ndarray]] = {}
    flat = array.reshape(-1, *plan.shape[-2:])
    for target, item in zip(flat, (item for volume in plan.slices for item in volume), strict=True):
        targets.setdefault(item.instance, {})[item.frame] = target
    decode(((plan.files[instance], frames) for instance, frames in targets.items()), workers=workers)
    return Image(
        array=array, spacing_mm=plan.spacing_mm, affine=plan.affine, modality=plan.modality, volumes=plan.volumes
    )
