"""Organs of an abdominal CT phantom: a small MONAI UNet behind a sliding window.

It was trained on generated phantoms and nothing else. It shows that medflow's path for volumes holds - geometry,
resampling, masks, volumes - and says "out of scope" to whatever does not look like a phantom, a patient included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from medflow.inference.weights import load_weights
from medflow.plugin import (
    SNOMED,
    Case,
    Coding,
    ImagingInput,
    InputNotUsable,
    LabelMask,
    Model,
    ModelCard,
    ModelSpec,
    Prediction,
    Segment,
    UnitKind,
    Weights,
)

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

WEIGHTS = Weights(file="abdomen.safetensors", sha256="1eec1617f7d0fd316e4c53121d814cea931c3399a11c8565852a78bdc9ebf823")
PATCH = (48, 48, 48)  # voxels of 5 mm
_SPACING_RANGE_MM = (0.2, 12.0)
_FIELD_RANGE_MM = (60.0, 1500.0)


class Organ(NamedTuple):
    """An organ as the phantoms have it: its code, and the volumes and mean densities that are plausible."""

    site: Coding
    volume_ml: tuple[float, float]
    mean_hu: tuple[float, float]


# In the order of the network's classes 1 to 4, which are `medflow.sample.LABELS`.
ORGANS = {
    "liver": Organ(Coding(system=SNOMED, code="10200004", display="Liver"), (200, 1400), (75, 130)),
    "spleen": Organ(Coding(system=SNOMED, code="78961009", display="Spleen"), (50, 350), (105, 160)),
    "left_kidney": Organ(Coding(system=SNOMED, code="18639004", display="Left kidney"), (30, 220), (150, 220)),
    "right_kidney": Organ(Coding(system=SNOMED, code="9846003", display="Right kidney"), (30, 220), (150, 220)),
}
_LEAST_CONFIDENCE = 0.8  # mean probability of the voxels called an organ
_MOST_DEVIATION_HU = 35.0  # of the voxels inside an organ: a phantom's are noise only

CARD = ModelCard(
    intended_use="Showing and testing medflow's path for volumes on phantoms. NOT FOR PATIENTS: the model has never "
    "seen one. Not a medical device.",
    training_data="160 phantoms made by medflow.sample (seeded): ellipsoids with Gaussian noise, on grids of many "
    "spacings, orientations and tilts. No patient, no real scanner.",
    licence="Apache-2.0 (code and weights); no data of others",
    metrics={
        "mean Dice, 24 held-out phantoms": "liver 0.982, spleen 0.971, left kidney 0.969, right kidney 0.970",
        "least Dice of any organ": "0.942",
        "mean absolute volume error against the formula": "liver 1.8 %, spleen 2.1 %, kidneys 2.0 and 2.0 %",
    },
    limits="Phantoms only. Whatever differs from them in an organ's size, density, texture or the network's confidence "
    "is answered with out of scope; that is meant to include every patient, but is no guarantee. All four organs must "
    "be whole and in the field of view.",
)


def network() -> Module:
    """The untrained network: (n, 1, x, y, z) windowed intensities to logits (n, 5, x, y, z)."""
    from monai.networks.nets.unet import UNet

    return UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=len(ORGANS) + 1,
        channels=(8, 16, 32, 64),
        strides=(2, 2, 2),
        num_res_units=1,
        norm="BATCH",  # Hounsfield units are absolute: normalising each patch by itself would lose them
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A CT on the model's grid, and the way back. ``volume`` is (1, x, y, z) in 0..1; ``grid_ras`` its affine."""

    volume: Tensor
    grid_ras: np.ndarray
    shape_zyx: tuple[int, int, int]
    affine_lps: np.ndarray


class AbdomenPhantomCT(Model[Prepared]):
    """Segments liver, spleen and kidneys of a phantom."""

    spec = ModelSpec(
        name="abdomen-phantom-ct",
        version="0.1.0",
        title="Liver, spleen and kidneys of a CT phantom (not for patients)",
        unit=UnitKind.SERIES,
        accepts=(ImagingInput(modality=("CT",), dimensions=3, body_parts=("ABDOMEN", "PHANTOM"), min_slices=12),),
        outputs=tuple(
            Segment(name=name, body_site=organ.site, valid_ml=(0, 2 * organ.volume_ml[1]))
            for name, organ in ORGANS.items()
        ),
        card=CARD,
        weights=(WEIGHTS,),
        batch_size=2,
        memory_mib=2048,
        tolerance=1e-3,
    )

    def load(self, device: str) -> None:
        """Build the network and put its weights on ``device``."""
        import torch

        net = network()
        net.load_state_dict(load_weights(__package__ or "medflow_monai", WEIGHTS))
        self._device = torch.device(device)
        self._network = net.eval().to(self._device)

    def prepare(self, case: Case) -> Prepared:
        """Check the geometry and bring the CT to the model's grid."""
        from medflow_monai.volumes import to_model_grid

        image = case.image
        affine = usable_affine(image.array, image.affine)
        volume, grid = to_model_grid(image.array, affine)
        return Prepared(volume=volume, grid_ras=grid, shape_zyx=image.array.shape, affine_lps=affine)

    def predict(self, batch: Sequence[Prepared]) -> list[Prediction]:
        """Masks on the grid of each input, or out of scope."""
        return [self._segment(item) for item in batch]

    def close(self) -> None:
        """Let the network go."""
        del self._network

    def _segment(self, item: Prepared) -> Prediction:
        from medflow_monai.volumes import to_input_grid

        probabilities = segment(self._network, item.volume.to(self._device))
        confidence, labels = probabilities.max(dim=0)
        if reason := unlike_phantom(item.volume[0].numpy(), labels.cpu().numpy(), confidence.cpu().numpy()):
            return Prediction(
                out_of_scope=f"the picture is unlike the phantoms that the model was trained on: {reason}"
            )
        back = to_input_grid(probabilities, item.grid_ras, item.shape_zyx, item.affine_lps)
        return Prediction(
            values={name: LabelMask(labels=back, value=label) for label, name in enumerate(ORGANS, start=1)}
        )


def segment(net: Module, volume: Tensor) -> Tensor:
    """Class probabilities (5, x, y, z) of a volume (1, x, y, z), by MONAI's sliding window with Gaussian weights."""
    import torch
    from monai.inferers.utils import sliding_window_inference

    with torch.inference_mode():
        logits = sliding_window_inference(
            volume[None], PATCH, sw_batch_size=4, predictor=net, overlap=0.5, mode="gaussian"
        )
    assert isinstance(logits, torch.Tensor)  # noqa: S101 - one output, so one tensor
    return torch.softmax(logits[0], dim=0)


def usable_affine(array: np.ndarray, affine: np.ndarray | None) -> np.ndarray:
    """The affine, if a volume (z, y, x) of such geometry can be a body.

    Raises
    ------
    InputNotUsable
        No position, voxels that are no numbers, or spacing or field of view that no abdomen CT has.
    """
    if affine is None:
        raise InputNotUsable("no-geometry", "the series says nothing of its position and orientation")
    spacing_xyz = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = _SPACING_RANGE_MM
    if not (np.isfinite(affine).all() and np.all(spacing_xyz >= low) and np.all(spacing_xyz <= high)):
        raise InputNotUsable("spacing-implausible", f"voxel spacing must be {low} to {high} mm along every axis")
    cosines = np.abs(np.linalg.det(affine[:3, :3] / spacing_xyz))
    if cosines < 0.98:
        raise InputNotUsable("axes-oblique", "the axes of the grid are not at right angles")
    field = spacing_xyz * array.shape[::-1]
    low, high = _FIELD_RANGE_MM
    if np.any(field < low) or np.any(field > high):
        raise InputNotUsable("field-implausible", f"the field of view must be {low:.0f} to {high:.0f} mm on every axis")
    if not np.isfinite(array).all():
        raise InputNotUsable("image-not-finite", "the image has voxels that are no numbers")
    return affine


def unlike_phantom(volume: np.ndarray, labels: np.ndarray, confidence: np.ndarray) -> str | None:
    """What tells a picture from the phantoms of training, or None; all arrays (x, y, z) on the model's grid."""
    from medflow_monai.volumes import SPACING_MM, WINDOW_HU

    low, high = WINDOW_HU
    for label, (name, organ) in enumerate(ORGANS.items(), start=1):
        inside = labels == label
        volume_ml = inside.sum() * SPACING_MM**3 / 1000
        if not organ.volume_ml[0] <= volume_ml <= organ.volume_ml[1]:
            return f"{name}: size"
        values = volume[inside] * (high - low) + low
        if not organ.mean_hu[0] <= np.median(values) <= organ.mean_hu[1]:
            return f"{name}: density"
        quarter, three_quarters = np.percentile(values, (25, 75))
        if three_quarters - quarter > 1.35 * _MOST_DEVIATION_HU:
            return f"{name}: texture"
        if confidence[inside].mean() < _LEAST_CONFIDENCE:
            return f"{name}: confidence"
    return None
