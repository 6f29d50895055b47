"""Published scans become the volumes that others made of them, voxel for voxel; what is no scan never becomes one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, DigitalXRayImageStorageForPresentation, MRImageStorage

from medflow.dicom.nifti import nifti_of
from medflow.dicom.volume import plan_volume, read_image
from medflow.errors import InputNotUsable
from medflow.plugin import Image, ImagingInput
from medflow.records import Instance
from medflow.store import FolderObjects
from tests.factories_dicom import instance_of

NOWHERE = FolderObjects(Path("no-such-folder"))
VOLUME, VOLUMES = ImagingInput(modality=("CT",)), ImagingInput(modality=("MR",), dimensions=4)
REFERENCES = {
    **{f"20180918GE/mr_000{number}": f"DCM2NIIX_regression_test_{number}" for number in (4, 5, 6, 7)},
    "20180918Si/mr_0003": "EPI_PE=AP_3",
    "20180918Si/mr_0004": "EPI_PE=PA_4",
    "20180918Si/mr_0005": "EPI_PE=RL_5",
    "20180918Si/mr_0006": "EPI_PE=LR_6",
}


def _instances(files: Iterable[Path], sop_class: str) -> list[Instance]:
    return [instance_of(path, sop_class_uid=sop_class) for path in files if path.suffix != ".txt"]


def _same_orientation(image: Image, reference: nibabel.nifti1.Nifti1Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Our voxels with the reference's axes and directions, only reordered; our affine of them, and the reference's."""
    ours = nifti_of(image)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(ours.affine), nibabel.orientations.io_orientation(reference.affine)
    )
    turned = ours.as_reoriented(turn)
    assert turned.affine is not None and reference.affine is not None
    return np.asarray(turned.dataobj), turned.affine, reference.affine


@pytest.mark.parametrize("series", REFERENCES)
def test_a_series_of_dcm_qa_nih_equals_its_reference(realdata: Callable[[str], Path], series: str) -> None:
    root = realdata("dcm_qa_nih") / "dcm_qa_nih"
    reference = nibabel.load(root / "Ref" / f"{REFERENCES[series]}.nii")

    image = read_image(_instances((root / "In" / series).iterdir(), MRImageStorage), NOWHERE, VOLUMES)

    voxels, affine, expected = _same_orientation(image, reference)
    np.testing.assert_array_equal(voxels, np.asarray(reference.dataobj))
    np.testing.assert_allclose(affine, expected, atol=1e-5)
    assert len({tuple(labels.items()) for labels in image.volumes}) == len(image.array)


def test_the_ge_series_of_150_files_is_ten_volumes_of_15_slices(realdata: Callable[[str], Path]) -> None:
    folder = realdata("dcm_qa_nih") / "dcm_qa_nih" / "In" / "20180918GE" / "mr_0004"
    instances = _instances(folder.iterdir(), MRImageStorage)

    plan = plan_volume(instances, NOWHERE, VOLUMES)

    assert (len(instances), plan.shape) == (150, (10, 15, 64, 64))
    assert plan.volumes == tuple({"TemporalPositionIndex": number} for number in range(1, 11))


def test_a_mosaic_is_no_picture(realdata: Callable[[str], Path]) -> None:
    folder = realdata("dcm_qa_nih") / "dcm_qa_nih" / "In" / "20180918Si" / "mr_0003"

    with pytest.raises(InputNotUsable) as caught:
        read_image(
            _instances(folder.iterdir(), MRImageStorage)[:1], NOWHERE, ImagingInput(modality=("MR",), dimensions=2)
        )

    assert caught.value.code == "mosaic"


def test_a_jpeg2000_ct_has_the_affine_of_its_mask_and_the_voxels_of_dcm2niix(
    realdata: Callable[[str], Path], tmp_path: Path
) -> None:
    """The mask is on the grid of the DICOM files themselves: nothing is resampled, only axes are turned."""
    root = realdata("totalseg_ct")
    reference = nibabel.load(root / "example_seg_dicom.nii.gz")

    image = read_image(_instances((root / "example_ct_dicom").iterdir(), CTImageStorage), NOWHERE, VOLUME)

    voxels, affine, expected = _same_orientation(image, reference)
    mask = np.asarray(reference.dataobj)
    np.testing.assert_allclose(affine, expected, atol=1e-4)
    assert voxels.shape == mask.shape == (512, 512, 20)
    assert image.spacing_mm == (2.0, 0.9765625, 0.9765625)  # SliceThickness says 3
    assert (mask == 5).sum() == 366_708
    assert 50 < float(voxels[mask == 5].mean()) < 120  # HU of a liver
    if tool := shutil.which("dcm2niix"):
        command = [tool, "-z", "n", "-f", "ct", "-o", tmp_path, root / "example_ct_dicom"]
        subprocess.run(command, check=True, capture_output=True)
        theirs = nibabel.load(next(tmp_path.glob("*.nii")))
        voxels, affine, expected = _same_orientation(image, theirs)
        np.testing.assert_array_equal(voxels, np.asarray(theirs.dataobj))
        np.testing.assert_allclose(affine, expected, atol=1e-4)


def test_no_file_of_highdicom_becomes_a_volume_and_only_scans_become_pictures(realdata: Callable[[str], Path]) -> None:
    """Segmentations, slide microscopy, structured reports and annotations; a CT slice and a film are among them."""
    pictures, files = [], sorted(realdata("highdicom").rglob("*.dcm"))
    for path in files:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        instances = [instance_of(path, sop_class_uid=header.SOPClassUID)]
        for dimensions in (3, 4):
            with pytest.raises(InputNotUsable):
                read_image(instances, NOWHERE, ImagingInput(modality=(header.Modality,), dimensions=dimensions))
        try:
            plan_volume(instances, NOWHERE, ImagingInput(modality=(header.Modality,), dimensions=2))
            pictures.append(header.SOPClassUID)
        except InputNotUsable as error:
            assert error.code == "not-an-image"
    assert len(files) == 25
    assert sorted(pictures) == [DigitalXRayImageStorageForPresentation, CTImageStorage]


def test_an_enhanced_ct_of_dcmqi_is_its_single_slices(realdata: Callable[[str], Path]) -> None:
    root = realdata("dcmqi") / "dcmqi" / "data" / "segmentations" / "24x38x3"
    (path,) = (root / "multiframe").glob("*.dcm")
    header = pydicom.dcmread(path, stop_before_pixels=True)

    enhanced = read_image([instance_of(path, sop_class_uid=header.SOPClassUID)], NOWHERE, VOLUME)
    single = read_image(_instances((root / "image").glob("*.dcm"), CTImageStorage), NOWHERE, VOLUME)

    np.testing.assert_array_equal(enhanced.array, single.array)
    np.testing.assert_allclose(enhanced.affine, single.affine, atol=1e-5)  # type: ignore[arg-type]  # neither is None
    assert (enhanced.array.shape, enhanced.spacing_mm) == ((3, header.Rows, header.Columns), (2.5, 0.7, 0.7))
