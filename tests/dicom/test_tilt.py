"""CT of a tilted gantry: all lies where it was, and masks find their way back; any other sideways shift is refused."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from medflow.dicom.geometry import Grid, grid_of, planes_of
from medflow.dicom.nifti import ras_affine
from medflow.dicom.tilt import Straightening, straightening_of
from medflow.dicom.volume import plan_volume, read_image
from medflow.errors import InputNotUsable
from medflow.plugin import Image, ImagingInput
from medflow.store import FolderObjects
from tests.factories_dicom import instance_of, slice_of, write_series
from tests.services import missing

VOLUME = ImagingInput(modality=("CT",))
NOWHERE = FolderObjects(Path("no-such-folder"))
CENTRE_MM, WIDTH_MM = np.array([0, 0, 18.0]), np.array([5, 7, 6.0])
SLICES, ROWS, COLUMNS, SPACING, TABLE_MM = 12, 40, 32, (1.0, 0.75), 3.0


def _cloud(places: np.ndarray) -> np.ndarray:
    """What is in the scanner: a cloud of up to 1000 HU, by LPS mm (..., 3)."""
    return 1000 * np.exp(-(((places - CENTRE_MM) / WIDTH_MM) ** 2).sum(-1))


def _scan(tilt: float, **changes: Any) -> list[Dataset]:
    """A scan of the cloud: the table moves along z, the slices are askew to it."""
    down = np.array([0, np.cos(np.deg2rad(tilt)), -np.sin(np.deg2rad(tilt))])
    row, column = np.indices((ROWS, COLUMNS))
    datasets = []
    for number in range(SLICES):
        corner = np.array([-12.0, -20.0, TABLE_MM * number])
        places = corner + row[..., None] * SPACING[0] * down + column[..., None] * [SPACING[1], 0, 0]
        elements: dict[str, Any] = {
            "ImagePositionPatient": [f"{value:.6f}" for value in corner],
            "ImageOrientationPatient": [1, 0, 0, *(f"{value:.6f}" for value in down)],
            "GantryDetectorTilt": tilt,
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "Manufacturer": "SIEMENS",
            **{"Rows": ROWS, "Columns": COLUMNS, "PixelSpacing": list(SPACING), "RescaleSlope": 1, "BitsStored": 16},
            **{"RescaleIntercept": -1024, "PixelRepresentation": 1, "HighBit": 15},
            "PixelData": (_cloud(places) + 1024).round().astype("<i2").tobytes(),
        }
        datasets.append(slice_of(number, **{**elements, **changes}))
    return datasets


def _read(folder: Path, datasets: list[Dataset]) -> Image:
    return read_image([instance_of(path) for path in write_series(folder, datasets)], NOWHERE, VOLUME)


def _refusal(folder: Path, datasets: list[Dataset]) -> str:
    with pytest.raises(InputNotUsable) as caught:
        _read(folder, datasets)
    return caught.value.code


def _places(image: Image) -> np.ndarray:
    z, y, x = np.indices(image.array.shape)
    assert image.affine is not None
    return np.einsum("ij,j...->...i", image.affine, np.stack([x, y, z, np.ones_like(x)]).astype(float))[..., :3]


@pytest.mark.parametrize("tilt", [-30, -9.5, 9.5, 22])
def test_what_is_scanned_lies_where_it_was(tmp_path: Path, tilt: float) -> None:
    image = _read(tmp_path, _scan(tilt))

    assert image.affine is not None
    axes = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)  # straight
    assert image.spacing_mm == pytest.approx((TABLE_MM * np.cos(np.deg2rad(tilt)), *SPACING), rel=1e-5)
    off = np.abs(image.array - _cloud(_places(image)))
    assert off[image.array > 1].max() < 6  # of 1000: what a line between two rows is off
    assert (image.array > 1).sum() > 5000
    assert image.array.shape[1] > ROWS


def test_nothing_is_cut_off_and_what_no_slice_covers_is_the_smallest_value(tmp_path: Path) -> None:
    datasets = _scan(20, PixelData=np.full((ROWS, COLUMNS), 1024 + 50, "<i2").tobytes())
    datasets[3].PixelData = np.full((ROWS, COLUMNS), 1024 + 10, "<i2").tobytes()

    image = _read(tmp_path, datasets)

    others = [z for z in range(SLICES) if z != 3]
    assert set(np.unique(image.array[others])) == {10, 50}
    assert ((image.array[others] == 50).sum(axis=(1, 2)) == ROWS * COLUMNS).all()


@pytest.mark.parametrize("tilt", [-22, 15])
def test_dcm2niix_straightens_to_the_same_voxels(tmp_path: Path, tilt: float) -> None:
    tool = shutil.which("dcm2niix") or missing("dcm2niix")
    image = _read(tmp_path / "in", _scan(tilt, SeriesNumber=1))
    (tmp_path / "out").mkdir()
    subprocess.run(
        [tool, "-z", "n", "-f", "%s", "-o", tmp_path / "out", tmp_path / "in"], check=True, capture_output=True
    )

    (path,) = (tmp_path / "out").glob("*Tilt*.nii")
    theirs = nibabel.load(path)
    assert theirs.affine is not None and image.affine is not None
    ours = nibabel.nifti1.Nifti1Image(image.array.transpose(2, 1, 0)[:, ::-1], np.eye(4))  # rows the other way round
    turned = ras_affine(image.affine) @ np.array(
        [[1, 0, 0, 0], [0, -1, 0, ours.shape[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1]]
    )

    assert theirs.shape == ours.shape
    np.testing.assert_allclose(theirs.affine[:3, :3], turned[:3, :3], atol=1e-4)
    if tilt > 0:  # of a negative tilt dcm2niix misplaces the origin (1.0.20220720): its cloud is 18 mm too low
        np.testing.assert_allclose(theirs.affine, turned, atol=1e-3)
        inside = np.asarray(ours.dataobj) > 20
        np.testing.assert_allclose(np.asarray(theirs.dataobj)[inside], np.asarray(ours.dataobj)[inside], atol=1)


def test_a_mask_comes_back_to_where_the_cloud_is_on_the_slices_themselves(tmp_path: Path) -> None:
    instances = [instance_of(path) for path in write_series(tmp_path, _scan(18))]
    plan = plan_volume(instances, NOWHERE, VOLUME)
    image = read_image(instances, NOWHERE, VOLUME)

    source = plan.on_source(image.array > 300)

    assert plan.straightened and plan.source_affine is not None
    assert source.shape == plan.source_shape == (SLICES, ROWS, COLUMNS)
    z, y, x = np.indices(source.shape)
    places = np.einsum("ij,j...->...i", plan.source_affine, np.stack([x, y, z, np.ones_like(x)]).astype(float))[..., :3]
    truth = _cloud(places)
    assert source[truth > 420].all() and not source[truth < 200].any()  # a row is up to 120 HU from the next
    assert abs(int(source.sum()) - int((truth > 300).sum())) < 0.03 * source.sum()


def _grid(tilt: float) -> Grid:
    return grid_of([planes_of(dataset)[0] for dataset in _scan(tilt)])


def _straightening(tilt: float) -> Straightening:
    found = straightening_of(_grid(tilt), modality="CT", stated_deg=[tilt], original=True)
    assert found is not None
    return found


@settings(max_examples=40, deadline=None)
@given(st.floats(1, 34), st.booleans(), st.integers(0, 2**31))
def test_a_smooth_mask_survives_the_way_there_and_back(tilt: float, negative: bool, seed: int) -> None:
    way = _straightening(-tilt if negative else tilt)
    rows = np.random.default_rng(seed).integers(0, ROWS, (SLICES, COLUMNS, 2))
    rows.sort(axis=-1)
    row = np.arange(ROWS)[None, :, None]
    mask = (row >= rows[:, None, :, 0]) & (row <= rows[:, None, :, 1])  # one run in each column
    straight = np.zeros((SLICES, way.rows, COLUMNS), np.float32)
    straight[:, :ROWS] = mask

    way.straighten(straight)
    back = way.on_source(straight >= 0.5)

    differing = back != mask
    assert (differing.sum(axis=1) <= 2).all()  # at most one row at each end of a run
    amid = (mask == np.roll(mask, 1, axis=1)) & (mask == np.roll(mask, -1, axis=1))
    amid[:, [0, -1]] = False
    np.testing.assert_allclose(way.on_source(straight)[amid], mask[amid], atol=1e-6)


def test_labels_stay_labels() -> None:
    way = _straightening(11)
    labels = np.random.default_rng(0).integers(0, 5, (2, SLICES, way.rows, COLUMNS)).astype(np.uint8)

    back = way.on_source(labels)

    assert back.dtype == np.uint8
    assert back.shape == (2, SLICES, ROWS, COLUMNS)


# --- what is no tilt -------------------------------------------------------------------------------------------


def test_slices_that_shift_though_they_are_not_askew_are_refused(tmp_path: Path) -> None:
    datasets = _scan(0)
    for number, dataset in enumerate(datasets):
        dataset.ImagePositionPatient = [-12, -20 + 0.5 * number, TABLE_MM * number]

    assert _refusal(tmp_path, datasets) == "tilted-slices"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"Modality": "MR"}, "tilted-slices"),
        ({"GantryDetectorTilt": 0}, "tilt-contradicted"),
        ({"GantryDetectorTilt": 17}, "tilt-contradicted"),
    ],
)
def test_a_shift_that_no_header_accounts_for_is_refused(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    assert _refusal(tmp_path, _scan(20, **changes)) == code


def test_a_tilt_that_positions_know_nothing_of_is_refused(tmp_path: Path) -> None:
    assert _refusal(tmp_path / "original", _scan(0, GantryDetectorTilt=20)) == "tilt-contradicted"

    reformatted = _scan(0, GantryDetectorTilt=20, ImageType=["DERIVED", "SECONDARY", "MPR"])
    assert _read(tmp_path / "reformatted", reformatted).array.shape == (SLICES, ROWS, COLUMNS)


def test_a_header_without_the_tilt_is_taken_by_its_positions(tmp_path: Path) -> None:
    assert _read(tmp_path, _scan(20, GantryDetectorTilt="")).array.shape[1] > ROWS


def test_no_gantry_tilts_so_far() -> None:
    with pytest.raises(InputNotUsable) as caught:
        straightening_of(_grid(40), modality="CT", stated_deg=[40], original=True)

    assert caught.value.code == "tilted-slices"


def test_a_straight_stack_has_nothing_to_straighten(tmp_path: Path) -> None:
    plan = plan_volume([instance_of(path) for path in write_series(tmp_path, _scan(0))], NOWHERE, VOLUME)
    mask = np.ones(plan.shape, bool)

    assert not plan.straightened
    assert plan.on_source(mask) is mask
