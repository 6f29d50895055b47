"""Between a scanner's grid and the model's: 5 mm voxels in RAS order, with MONAI's transforms. Imports torch and MONAI.

medflow's arrays are (z, y, x) with an affine from (x, y, z) indices to LPS millimetres (DICOM); MONAI's are channel
first, (channel, x, y, z), with an affine to RAS. The two differ in the sign of the first two rows.
"""

from __future__ import annotations

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.spatial.array import Orientation, Spacing, SpatialResample
from torch import Tensor

SPACING_MM = 5.0
WINDOW_HU = (-160.0, 240.0)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SLAB = 32  # slices
_AXES = (("L", "R"), ("P", "A"), ("I", "S"))


def to_model_grid(hu: np.ndarray, affine_lps: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Bring a CT (z, y, x) to the model's grid.

    Returns the windowed intensities (1, x, y, z), float32 in 0..1, and that grid's affine to RAS mm.
    """
    reduced, affine = _block_means(hu, affine_lps)
    volume = MetaTensor(
        torch.from_numpy(np.ascontiguousarray(reduced.transpose(2, 1, 0)))[None],
        affine=torch.from_numpy(_LPS_TO_RAS @ affine),
    )
    turned = Orientation("RAS", labels=_AXES)(volume)
    spaced = Spacing((SPACING_MM,) * 3, mode="bilinear", padding_mode="border", dtype=np.float64)(turned)
    assert isinstance(spaced, MetaTensor)  # noqa: S101 - what goes in as one comes out as one
    grid = np.asarray(spaced.affine, dtype=float)
    low, high = WINDOW_HU
    return ((spaced.as_tensor().float() - low) / (high - low)).clamp(0, 1), grid


def to_input_grid(
    probabilities: Tensor, grid_ras: np.ndarray, shape_zyx: tuple[int, int, int], affine_lps: np.ndarray
) -> np.ndarray:
    """The most probable class at each voxel of the input's grid, uint8 (z, y, x).

    ``probabilities`` (classes, x, y, z) are on the model's grid and are interpolated before the classes are compared:
    a mask resampled by nearest neighbour would keep the 5 mm steps. The output is made in slabs of slices, so that
    memory does not grow with the number of slices.
    """
    if probabilities.device.type == "mps":  # which has no float64, and MONAI's affines are
        probabilities = probabilities.cpu()
    volume = MetaTensor(probabilities, affine=torch.from_numpy(grid_ras))
    resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=np.float32)
    found = np.zeros(shape_zyx, dtype=np.uint8)
    for first in range(0, shape_zyx[0], _SLAB):
        slices = min(_SLAB, shape_zyx[0] - first)
        slab = _LPS_TO_RAS @ affine_lps
        slab[:3, 3] += slab[:3, 2] * first
        size = (shape_zyx[2], shape_zyx[1], slices)
        back = resample(volume, dst_affine=torch.from_numpy(slab), spatial_size=size)
        found[first : first + slices] = back.argmax(dim=0).to(torch.uint8).cpu().numpy().transpose(2, 1, 0)
    return found


def grid_to_lps(grid_ras: np.ndarray) -> np.ndarray:
    """A grid's affine to LPS mm."""
    return _LPS_TO_RAS @ grid_ras


def _block_means(hu: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average blocks of voxels where the grid is finer than the model's, so that resampling does not pick out noise."""
    spacing_xyz = np.linalg.norm(affine[:3, :3], axis=0)
    factors = np.maximum(1, np.floor(SPACING_MM / spacing_xyz)).astype(int)
    factors = np.minimum(factors, hu.shape[::-1])
    if np.all(factors == 1):
        return hu.astype(np.float32), affine
    fx, fy, fz = (int(factor) for factor in factors)
    z, y, x = (size // factor for size, factor in zip(hu.shape, (fz, fy, fx), strict=True))
    whole = hu[: z * fz, : y * fy, : x * fx].reshape(z, fz, y, fy, x, fx)
    reduced = affine.copy()
    reduced[:3, 3] = affine[:3, :3] @ ((factors - 1) / 2) + affine[:3, 3]
    reduced[:3, :3] = affine[:3, :3] * factors
    return whole.mean(axis=(1, 3, 5), dtype=np.float32), reduced
