"""An image as a NIfTI file, voxel for voxel what a model is given, for any viewer to check.

DICOM counts to the patient's left, back and head (LPS), NIfTI to the right, front and head (RAS); so does MONAI. Only
the affine changes, never the voxels. Nothing but voxels, affine and units is written.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np

from medflow.errors import ConfigurationError
from medflow.plugin import Image

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SCANNER, UNKNOWN = 1, 0  # NIFTI_XFORM codes
SUFFIXES = (".nii.gz", ".nii")
RIGHT_ANGLE = 1e-4  # cosine; a qform cannot say more than a rotation


def ras_affine(affine: np.ndarray) -> np.ndarray:
    """An affine to LPS millimetres, as one from the same indices to RAS millimetres; or the other way round."""
    return LPS_TO_RAS @ affine


def nifti_of(image: Image) -> Nifti1Image:
    """The image with axes (x, y, z), and volumes last; float32.

    An image without a place gets its spacing only, marked as of unknown orientation. Where axes are not at right angles
    the affine stands in the sform alone.
    """
    from nibabel.nifti1 import Nifti1Image

    array = image.array[None] if image.array.ndim == 2 else image.array
    data = array.transpose((3, 2, 1, 0) if array.ndim == 4 else (2, 1, 0))
    affine = _affine(image)
    code = UNKNOWN if image.affine is None else SCANNER
    made = Nifti1Image(data, affine, dtype=np.float32)
    made.set_sform(affine, code)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    square = float(np.abs(axes.T @ axes - np.eye(3)).max()) < RIGHT_ANGLE
    made.set_qform(affine, code if square else UNKNOWN)
    made.header.set_xyzt_units("mm" if image.spacing_mm is not None else "unknown")
    return made


def write_nifti(image: Image, path: Path) -> None:
    """Write ``path``, compressed if it ends with .nii.gz; it is there whole or not at all.

    Raises
    ------
    ConfigurationError
        It ends neither with .nii nor .nii.gz, or cannot be written.
    """
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise ConfigurationError(f"{path.name} is no NIfTI file: give it a name that ends with .nii.gz or .nii")
    partial = path.with_name(f".{uuid4().hex}{suffix}")
    try:
        nifti_of(image).to_filename(partial)
        os.replace(partial, path)
    except OSError as error:
        raise ConfigurationError(f"{path.name} cannot be written ({error.strerror}): name another place") from None
    finally:
        partial.unlink(missing_ok=True)


def _affine(image: Image) -> np.ndarray:
    if image.affine is not None:
        return ras_affine(image.affine)
    rows, columns = image.spacing_mm or (1.0, 1.0)
    return np.diag([columns, rows, 1.0, 1.0])
