"""NIfTI files of images: the same voxels at the same places, and nothing of the patient."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medflow.dicom.nifti import nifti_of, ras_affine, write_nifti
from medflow.dicom.volume import read_image
from medflow.errors import ConfigurationError
from medflow.plugin import Image, ImagingInput
from medflow.store import FolderObjects
from tests.factories_dicom import instance_of, volume_of, write_series
from tests.services import missing


def _image(shape: tuple[int, ...] = (3, 6, 4), affine: np.ndarray | None = None) -> Image:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    affine = np.array([[0.5, 0, 0, 1], [0, 0.75, 0, 2], [0, 0, 2.5, 3], [0, 0, 0, 1.0]]) if affine is None else affine
    return Image(array=array, spacing_mm=(2.5, 0.75, 0.5), affine=affine, modality="CT")


def test_left_posterior_becomes_right_anterior_and_back() -> None:
    affine = _image().affine
    assert affine is not None

    np.testing.assert_array_equal(ras_affine(affine) @ [2, 1, 1, 1], [-2, -2.75, 5.5, 1])
    np.testing.assert_array_equal(ras_affine(ras_affine(affine)), affine)


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "scan.NII.GZ"])
def test_a_file_has_each_voxel_at_its_place(tmp_path: Path, name: str) -> None:
    image = _image()

    write_nifti(image, tmp_path / name)

    read = nibabel.load(tmp_path / name)
    assert (read.shape, read.get_data_dtype()) == ((4, 6, 3), np.float32)
    assert read.get_fdata()[3, 5, 1] == image.array[1, 5, 3]
    np.testing.assert_allclose(read.affine @ [3, 5, 1, 1], [-2.5, -5.75, 5.5, 1])
    assert (int(read.header["sform_code"]), int(read.header["qform_code"])) == (1, 1)
    assert read.header.get_xyzt_units()[0] == "mm"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_volumes_come_last() -> None:
    made = nifti_of(_image((2, 3, 6, 4)))

    assert made.shape == (4, 6, 3, 2)
    assert np.asarray(made.dataobj)[3, 5, 1, 1] == _image((2, 3, 6, 4)).array[1, 1, 5, 3]


def test_axes_that_are_askew_stand_in_the_sform_alone() -> None:
    made = nifti_of(_image(affine=np.array([[0.5, 0, 0, 1], [0, 0.75, 0.3, 2], [0, 0, 2.5, 3], [0, 0, 0, 1.0]])))

    assert (int(made.header["sform_code"]), int(made.header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(made.affine[1, 2], -0.3)


@pytest.mark.parametrize(("spacing", "zooms"), [((0.2, 0.3), (0.3, 0.2, 1)), (None, (1, 1, 1))])
def test_a_picture_without_a_place_says_so(spacing: tuple[float, float] | None, zooms: tuple[float, ...]) -> None:
    image = Image(array=np.ones((6, 4), np.float32), spacing_mm=spacing, affine=None, modality="DX")

    made = nifti_of(image)

    assert made.shape == (4, 6, 1)
    assert made.header.get_zooms() == pytest.approx(zooms)
    assert (int(made.header["sform_code"]), int(made.header["qform_code"])) == (0, 0)


def test_nothing_of_the_patient_is_written(tmp_path: Path) -> None:
    instances = [instance_of(path) for path in write_series(tmp_path / "in", volume_of(3))]
    image = read_image(instances, FolderObjects(tmp_path / "none"), ImagingInput(modality=("CT",)))

    write_nifti(image, tmp_path / "scan.nii")

    written = (tmp_path / "scan.nii").read_bytes()
    assert len(written) == 352 + image.array.nbytes
    assert not any(text in written for text in (b"Nobody", b"P1", b"1950", b"1.2.826"))


@pytest.mark.parametrize("name", ["scan.png", "no-such-folder/scan.nii.gz"])
def test_a_file_that_cannot_be_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError):
        write_nifti(_image(), tmp_path / name)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", [1, 2])
def test_dcm2niix_puts_an_oblique_series_at_the_same_places(tmp_path: Path, seed: int) -> None:
    tool = shutil.which("dcm2niix") or missing("dcm2niix")
    axes = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    normal, datasets = np.cross(axes[0], axes[1]), volume_of(5, SeriesNumber=1)
    for number, dataset in enumerate(datasets):
        dataset.ImagePositionPatient = [f"{value:.6f}" for value in [12.0, -7, 30] + 2.5 * number * normal]
        dataset.ImageOrientationPatient = [f"{value:.6f}" for value in (*axes[0], *axes[1])]
    instances = [instance_of(path) for path in write_series(tmp_path / "in", datasets)]
    (tmp_path / "out").mkdir()
    command = [tool, "-z", "n", "-f", "x", "-o", tmp_path / "out", tmp_path / "in"]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = (tmp_path / "out").glob("*.nii")
    theirs = nibabel.load(path)

    ours = nifti_of(read_image(instances, FolderObjects(tmp_path / "none"), ImagingInput(modality=("CT",))))

    assert theirs.affine is not None and ours.affine is not None
    change = np.linalg.inv(theirs.affine) @ ours.affine  # from our indices to theirs
    np.testing.assert_allclose(change, change.round(), atol=1e-3)
    indices = np.stack([*np.indices(ours.shape), np.ones(ours.shape)]).reshape(4, -1)
    x, y, z = (change.round() @ indices)[:3].astype(int)
    np.testing.assert_array_equal(np.asarray(theirs.dataobj)[x, y, z], np.asarray(ours.dataobj).ravel())
