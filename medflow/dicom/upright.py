"""A volume turned so that its axes run as nearly as they can to the patient's left, back and head.

Only whole quarter turns and mirrorings of the axes, so no voxel changes: it is for looking at, with the sides named.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medflow.dicom.nifti import ras_affine

FEET_TO_HEAD = "LPS"  # the codes that (x, y, z) run towards


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Upright:
    """How arrays (z, y, x) of one grid are turned; ``spacing_mm`` (z, y, x) is of the turned grid."""

    turn: np.ndarray
    spacing_mm: tuple[float, float, float]

    @classmethod
    def of(cls, affine: np.ndarray, spacing_mm: tuple[float, ...]) -> Upright:
        """For the grid whose affine maps indices (x, y, z) to LPS millimetres."""
        from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

        turn = ornt_transform(io_orientation(ras_affine(affine)), axcodes2ornt(FEET_TO_HEAD))
        turned = {int(to): spacing for (to, _), spacing in zip(turn, reversed(spacing_mm), strict=True)}
        return cls(turn=turn, spacing_mm=(turned[2], turned[1], turned[0]))

    def apply(self, array: np.ndarray) -> np.ndarray:
        """An array (z, y, x) of the grid, turned: z towards the head, y towards the back, x towards the left."""
        from nibabel.orientations import apply_orientation

        return apply_orientation(array.T, self.turn).T

    def stored_place(self, axis: int, place: int, shape: tuple[int, ...]) -> str:
        """Which slice of the grid as it is stored a place along a turned axis is, as ``z = 12``.

        ``axis`` and ``shape`` are in the order (z, y, x) of the turned array.
        """
        source = next(index for index, (to, _) in enumerate(self.turn) if int(to) == 2 - axis)
        mirrored = self.turn[source][1] < 0
        return f"{'xyz'[source]} = {shape[axis] - 1 - place if mirrored else place}"
