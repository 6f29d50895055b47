"""Slices of a CT whose gantry was tilted: told from wrong positions, brought onto a straight grid, and masks back.

A tilted gantry leaves slices that are parallel but not above one another: the table moves along the patient, while the
slices lie askew to it, so each is shifted within its own plane against the one before. That is the only shift that is
taken for a tilt. To straighten is to shift every slice back along its columns, by linear interpolation between two rows
and never between slices; the grid is made as much taller as the slices are shifted, so that no pixel falls off it, and
what no slice covers takes the smallest value of its volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import asin, atan2, ceil, degrees, floor

import numpy as np

from medflow.dicom.geometry import Grid
from medflow.errors import InputNotUsable

STRAIGHT = 0.01  # how far a slice may be shifted against the one before, as a part of their distance
ALONG_PATIENT_DEG = 1.0  # between the way from slice to slice and the patient's long axis
SAME_TILT_DEG = 1.0  # between what GantryDetectorTilt says and how the slices lie
LARGEST_TILT_DEG = 35.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Straightening:
    """How the slices of one volume come onto a straight grid of ``rows`` rows.

    Row r of slice z, which has ``source_rows`` rows, lies at row ``r + shifts[z]`` of the straight grid.
    """

    shifts: np.ndarray
    rows: int
    source_rows: int
    affine: np.ndarray

    def straighten(self, volume: np.ndarray) -> None:
        """Shift in place: of a volume (z, rows, x) whose slices fill their first ``source_rows`` rows."""
        lowest = volume[:, : self.source_rows].min()
        for target, shift in zip(volume, self.shifts, strict=True):
            whole, part = floor(shift), np.float32(shift - floor(shift))
            source = np.pad(target[: self.source_rows], ((1, 1), (0, 0)), mode="edge")
            mixed = part * source[:-1] + (1 - part) * source[1:]  # of rows r - 1 and r, for r in 0 .. source_rows
            first, last = (0 if part <= 0.5 else 1), self.source_rows + (1 if part >= 0.5 else 0)
            target[...] = lowest
            target[whole + first : whole + last] = mixed[first:last]

    def on_source(self, mask: np.ndarray) -> np.ndarray:
        """A mask (..., z, rows, x) on the straight grid, onto that of the slices: see `VolumePlan.on_source`."""
        source = np.empty((*mask.shape[:-2], self.source_rows, mask.shape[-1]), mask.dtype)
        for z, shift in enumerate(self.shifts):
            if not np.issubdtype(mask.dtype, np.floating):
                start = floor(shift + 0.5)
                source[..., z, :, :] = mask[..., z, start : start + self.source_rows, :]
                continue
            start, part = floor(shift), mask.dtype.type(shift - floor(shift))
            end = min(start + 1 + self.source_rows, self.rows)
            rows = mask[..., z, start:end, :]
            after = rows[..., 1:, :] if end - start > self.source_rows else rows
            source[..., z, :, :] = (1 - part) * rows[..., : self.source_rows, :] + part * after
        return source


def straightening_of(grid: Grid, *, modality: str, stated_deg: Sequence[float], original: bool) -> Straightening | None:
    """How to straighten a stack; None where it is straight already.

    ``stated_deg`` are GantryDetectorTilt of its slices, where they have one; the sign means different things to
    different vendors. ``original`` slices are as acquired, not reformatted (PS3.3 C.7.6.1.1.2).

    Raises
    ------
    InputNotUsable
        tilted-slices: shifted as no tilt of a gantry shifts them; tilt-contradicted: or not as the header says.
    """
    first, distance = grid.first, grid.distance_mm
    along_rows, along_columns = grid.sideways
    tilts = {abs(tilt) for tilt in stated_deg}
    if max(abs(along_rows), abs(along_columns)) <= STRAIGHT * distance:
        askew = degrees(asin(min(1.0, float(np.hypot(*first.normal[:2])))))
        if modality == "CT" and original and tilts and max(tilts) > SAME_TILT_DEG and askew < max(tilts) / 2:
            reason = f"the gantry was tilted by {max(tilts):g} degrees, but the slices' positions know nothing of it"
            raise InputNotUsable("tilt-contradicted", reason)
        return None
    upward = float(grid.step @ first.normal)
    tilt = degrees(atan2(abs(along_columns), upward))
    off_axis = degrees(asin(min(1.0, float(np.hypot(*grid.step[:2])) / distance)))
    if modality != "CT" or abs(along_rows) > STRAIGHT * distance or tilt > LARGEST_TILT_DEG:
        raise _sideways(f"by {np.hypot(along_rows, along_columns):.2f} mm from one to the next")
    if off_axis > ALONG_PATIENT_DEG:
        raise _sideways("though the slices are not askew to the way the table goes")
    if tilts and max(abs(stated - tilt) for stated in tilts) > SAME_TILT_DEG:
        stated = " and ".join(f"{value:g}" for value in sorted(tilts))
        reason = f"GantryDetectorTilt says {stated} degrees, the slices' positions {tilt:.1f}"
        raise InputNotUsable("tilt-contradicted", reason)
    return _straightening(grid, along_columns / first.spacing_mm[0], upward)


def _sideways(how: str) -> InputNotUsable:
    return InputNotUsable("tilted-slices", f"the slices shift sideways, as no tilted gantry makes them: {how}")


def _straightening(grid: Grid, rows_a_slice: float, upward: float) -> Straightening:
    shifts = np.arange(len(grid.order)) * rows_a_slice
    before = -floor(shifts.min())
    source_rows = grid.first.shape[0]
    affine = grid.first.affine(grid.first.normal * upward)
    affine[:3, 3] -= before * affine[:3, 1]
    shifts = shifts + before
    return Straightening(shifts=shifts, rows=source_rows + ceil(shifts.max()), source_rows=source_rows, affine=affine)
