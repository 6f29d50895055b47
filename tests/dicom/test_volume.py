"""Volumes: the array, its affine and its intensities are right, or the series is refused with the reason."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    MRImageStorage,
    SegmentationStorage,
)

from medflow.dicom.volume import read_image
from medflow.errors import InputNotUsable
from medflow.plugin import Image, ImagingInput
from medflow.store import FolderObjects
from tests.factories_dicom import ROOT, instance_of, slice_of, to_bytes, volume_of, write_series

VOLUME = ImagingInput(modality=("CT",))
PICTURE = ImagingInput(modality=("DX",), dimensions=2)
NOWHERE = FolderObjects(Path("no-such-folder"))


def _read(folder: Path, datasets: Sequence[Dataset], spec: ImagingInput = VOLUME, **changes: Any) -> Image:
    paths = write_series(folder, datasets)
    return read_image([instance_of(path, **changes) for path in paths], NOWHERE, spec)


def _refusal(folder: Path, datasets: Sequence[Dataset], spec: ImagingInput = VOLUME, **changes: Any) -> str:
    with pytest.raises(InputNotUsable) as caught:
        _read(folder, datasets, spec, **changes)
    return caught.value.code


# --- volumes ---------------------------------------------------------------------------------------------------


def test_slices_are_ordered_by_position_whatever_their_numbers(tmp_path: Path) -> None:
    datasets = volume_of(5)
    for number, dataset in enumerate(datasets):
        dataset.InstanceNumber = 100 - number

    image = _read(tmp_path, [datasets[i] for i in (3, 0, 4, 1, 2)])

    assert image.array.dtype == np.float32
    assert image.array.shape == (5, 6, 4)
    assert image.array[:, 0, 0].tolist() == [-1000 + 200 * z for z in range(5)]  # rescale: 2 * 100 z - 1000
    assert image.modality == "CT"


def test_the_affine_maps_column_row_slice_to_lps_millimetres(tmp_path: Path) -> None:
    image = _read(tmp_path, volume_of(4))

    assert image.affine is not None
    assert image.spacing_mm == (2.5, 0.5, 0.75)  # PixelSpacing is rows first; SliceThickness plays no part
    np.testing.assert_allclose(image.affine @ [0, 0, 0, 1], [-10, -20, 0, 1])
    np.testing.assert_allclose(image.affine @ [3, 5, 2, 1], [-10 + 3 * 0.75, -20 + 5 * 0.5, 5, 1])


@pytest.mark.parametrize("seed", range(4))
def test_an_oblique_stack_lies_where_its_positions_say(tmp_path: Path, seed: int) -> None:
    axes, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    rows, columns = axes[:, 0], axes[:, 1]
    normal = np.cross(rows, columns)
    datasets = volume_of(4)
    for number, dataset in enumerate(datasets):
        position = np.array([1.0, 2.0, 3.0]) + normal * 1.25 * number
        dataset.ImagePositionPatient = [f"{value:.6f}" for value in position]
        dataset.ImageOrientationPatient = [f"{value:.6f}" for value in (*rows, *columns)]

    image = _read(tmp_path, datasets)

    assert image.affine is not None
    expected = np.array([1.0, 2.0, 3.0]) + 2 * 0.75 * rows + 5 * 0.5 * columns + 3 * 1.25 * normal
    np.testing.assert_allclose((image.affine @ [2, 5, 3, 1])[:3], expected, atol=1e-4)
    assert np.linalg.det(image.affine) > 0


def test_each_slice_has_its_own_rescale(tmp_path: Path) -> None:
    datasets = volume_of(3)
    for number, dataset in enumerate(datasets):
        dataset.RescaleSlope, dataset.RescaleIntercept = number + 1, 7

    image = _read(tmp_path, datasets)

    assert image.array[:, 0, 1].tolist() == [1 * 1 + 7, 2 * 101 + 7, 3 * 201 + 7]


def test_signed_pixels_with_unused_bits(tmp_path: Path) -> None:
    pixels = (np.full(24, -5, "<i2").view("<u2") & 0x0FFF).tobytes()  # 12 bits stored, the upper four not extended
    datasets = volume_of(2, PixelRepresentation=1, PixelData=pixels)

    assert (_read(tmp_path, datasets).array == -1010).all()


def test_an_enhanced_multi_frame_object_equals_its_single_frames(tmp_path: Path) -> None:
    datasets = volume_of(4, PatientName="Nobody^Known", StudyID="1", ReferringPhysicianName="", AccessionNumber="")
    for dataset in datasets:
        dataset.SeriesNumber, dataset.Manufacturer, dataset.PositionReferenceIndicator = 1, "Nobody", ""
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.SpecificCharacterSet = "ISO_IR 100"
        dataset.file_meta = pydicom.dcmread(_as_file(tmp_path / "one.dcm", dataset)).file_meta
    enhanced = LegacyConvertedEnhancedCTImage(
        datasets[::-1], f"{ROOT}.8", 8, f"{ROOT}.8.1", 1, transfer_syntax_uid="1.2.840.10008.1.2.1"
    )
    single = _read(tmp_path / "single", datasets)

    multi = _read(tmp_path / "multi", [enhanced], sop_class_uid=enhanced.SOPClassUID)

    np.testing.assert_array_equal(multi.array, single.array)
    np.testing.assert_allclose(multi.affine, single.affine)  # type: ignore[arg-type]  # neither is None


def _as_file(path: Path, dataset: Dataset) -> Path:
    path.write_bytes(to_bytes(dataset))
    return path


def test_bytes_come_from_the_object_store(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path / "objects")
    paths = write_series(tmp_path / "in", volume_of(3))
    instances = [replace(instance_of(path), path=None) for path in paths]
    for path in paths:
        objects.put(path.read_bytes())

    assert read_image(instances, objects, VOLUME).array.shape == (3, 6, 4)


def test_a_file_that_is_named_twice_is_one_slice(tmp_path: Path) -> None:
    instances = [instance_of(path) for path in write_series(tmp_path, volume_of(3))]

    again = [*instances, replace(instances[1], sop_instance_uid=f"{ROOT}.99")]

    assert read_image(again, NOWHERE, VOLUME).array.shape == (3, 6, 4)


@pytest.mark.parametrize("tilt", [0, 20])
def test_reading_holds_little_more_than_the_volume(tmp_path: Path, tilt: float) -> None:
    pixels, down = bytes(2 * 256 * 256), [0, np.cos(np.deg2rad(tilt)), -np.sin(np.deg2rad(tilt))]
    elements = {"Rows": 256, "Columns": 256, "PixelData": pixels, "GantryDetectorTilt": tilt}
    datasets = volume_of(48, ImageOrientationPatient=[1, 0, 0, *(f"{value:.6f}" for value in down)], **elements)
    instances = [instance_of(path) for path in write_series(tmp_path, datasets)]
    read_image(instances[:3], NOWHERE, VOLUME, workers=1)  # starts what stays

    tracemalloc.start()
    image = read_image(instances, NOWHERE, VOLUME, workers=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1.5 * image.array.nbytes


# --- refused volumes -------------------------------------------------------------------------------------------


def test_a_missing_slice_is_noticed(tmp_path: Path) -> None:
    datasets = volume_of(9)
    del datasets[4]

    assert _refusal(tmp_path, datasets) == "missing-slices"


def test_positions_off_the_grid_within_the_tolerance_pass(tmp_path: Path) -> None:
    datasets = volume_of(5)
    datasets[2].ImagePositionPatient = [-10, -20, 5.04]  # 1.6 % of 2.5 mm
    assert _read(tmp_path / "near", datasets).spacing_mm == (2.5, 0.5, 0.75)

    datasets[2].ImagePositionPatient = [-10, -20, 5.06]
    assert _refusal(tmp_path / "far", datasets) == "irregular-gaps"


def test_a_series_of_time_points_is_never_one_tall_volume(tmp_path: Path) -> None:
    datasets = volume_of(3) + volume_of(3, SOPInstanceUID=f"{ROOT}.77")

    assert _refusal(tmp_path, datasets) == "indistinct-volumes"


def test_two_slices_at_one_place_are_duplicates(tmp_path: Path) -> None:
    datasets = volume_of(4)
    datasets[1].ImagePositionPatient = datasets[2].ImagePositionPatient

    assert _refusal(tmp_path, datasets) == "duplicate-positions"


def test_a_tilted_gantry_is_refused(tmp_path: Path) -> None:
    datasets = volume_of(4)
    for number, dataset in enumerate(datasets):
        dataset.ImagePositionPatient = [-10, -20 + 0.3 * number, 2.5 * number]

    assert _refusal(tmp_path, datasets) == "tilted-slices"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"ImagePositionPatient": None}, "missing-geometry"),
        ({"ImageOrientationPatient": None}, "missing-geometry"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "missing-geometry"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.7071, 0.7071, 0]}, "missing-geometry"),
        ({"PixelSpacing": None}, "missing-geometry"),
        ({"PixelSpacing": [0, 1]}, "missing-geometry"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "mixed-orientation"),
        ({"PixelSpacing": [0.5, 0.8]}, "mixed-pixel-spacing"),
        ({"Rows": 4, "Columns": 6}, "mixed-sizes"),
        ({"FrameOfReferenceUID": "1.2.3"}, "mixed-frame-of-reference"),
        ({"RescaleSlope": 0}, "bad-rescale"),
        ({"RescaleIntercept": None}, "bad-rescale"),
        ({"RescaleSlope": None, "RescaleIntercept": None}, "bad-rescale"),
        ({"RescaleType": "Z_EFF"}, "bad-rescale"),
        ({"ImagePositionPatient": [1e9, -20, 7.5]}, "missing-geometry"),
        ({"Modality": "MR"}, "mixed-content"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour-image"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "mosaic"),
        ({"PixelData": b"\0\0"}, "undecodable-frame"),
    ],
)
def test_one_odd_slice_refuses_the_series(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    datasets = [*volume_of(3), slice_of(3, **changes)]

    assert _refusal(tmp_path, datasets) == code


@pytest.mark.parametrize("modality", ["CT", "PT", "MR"])
def test_what_measures_must_say_in_what(tmp_path: Path, modality: str) -> None:
    datasets = volume_of(3, Modality=modality, RescaleSlope=None, RescaleIntercept=None)

    if modality == "MR":  # its values are in no unit
        assert _read(tmp_path, datasets, VOLUME).array[0, 0, 1] == 1
    else:
        assert _refusal(tmp_path, datasets) == "bad-rescale"


@pytest.mark.parametrize("unit", ["HU", "hu", "US", None])
def test_ct_is_in_hounsfield_units(tmp_path: Path, unit: str | None) -> None:
    datasets = volume_of(3) if unit is None else volume_of(3, RescaleType=unit)

    assert _read(tmp_path, datasets, VOLUME).array[0, 0, 1] == -998


@pytest.mark.parametrize("modality", ["CT", "PT"])
def test_measured_values_stay_whatever_they_are_shown_as(tmp_path: Path, modality: str) -> None:
    image = _read(tmp_path, volume_of(3, Modality=modality, PhotometricInterpretation="MONOCHROME1"), VOLUME)

    assert image.array[:, 0, 1].tolist() == [-998, -798, -598]


def test_slices_inverted_by_different_rescales_are_refused(tmp_path: Path) -> None:
    datasets = volume_of(3, Modality="MR", PhotometricInterpretation="MONOCHROME1")
    datasets[1].RescaleSlope = 3

    assert _refusal(tmp_path, datasets) == "bad-rescale"


def test_too_few_slices(tmp_path: Path) -> None:
    assert _refusal(tmp_path / "one", volume_of(1)) == "too-few-slices"
    assert _refusal(tmp_path / "three", volume_of(3), replace(VOLUME, min_slices=4)) == "too-few-slices"


def test_what_is_no_image_is_never_a_volume(tmp_path: Path) -> None:
    assert _refusal(tmp_path, volume_of(3), sop_class_uid=SegmentationStorage) == "not-an-image"


def test_a_file_that_is_gone_or_has_changed_is_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path, volume_of(3))
    instances = [instance_of(path) for path in paths]

    data = bytearray(paths[1].read_bytes())
    data[-1] ^= 1
    paths[1].write_bytes(data)
    with pytest.raises(InputNotUsable) as changed:
        read_image(instances, NOWHERE, VOLUME)
    paths[1].unlink()
    with pytest.raises(InputNotUsable) as gone:
        read_image(instances, NOWHERE, VOLUME)

    assert (changed.value.code, gone.value.code) == ("file-changed", "file-missing")


# --- pictures --------------------------------------------------------------------------------------------------


def _film(**changes: Any) -> Dataset:
    elements = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None, "Modality": "DX"}
    elements |= {"RescaleSlope": None, "RescaleIntercept": None, "SOPClassUID": DigitalXRayImageStorageForPresentation}
    return slice_of(0, **{**elements, **changes})


def test_a_film_has_the_detectors_spacing_and_no_place(tmp_path: Path) -> None:
    image = _read(tmp_path, [_film(ImagerPixelSpacing=[0.2, 0.3])], PICTURE)

    assert image.array.shape == (6, 4)
    assert (image.spacing_mm, image.affine) == ((0.2, 0.3), None)


def test_without_spacing_none_is_made_up(tmp_path: Path) -> None:
    assert _read(tmp_path, [_film()], PICTURE).spacing_mm is None


def test_monochrome1_is_mirrored_within_the_bits_stored(tmp_path: Path) -> None:
    image = _read(tmp_path, [_film(PhotometricInterpretation="MONOCHROME1")], PICTURE)

    assert image.array[0, :2].tolist() == [4095, 4094]


def test_monochrome1_is_mirrored_after_its_rescale(tmp_path: Path) -> None:
    film = _film(PhotometricInterpretation="MONOCHROME1", RescaleSlope=2, RescaleIntercept=-10)

    assert _read(tmp_path, [film], PICTURE).array[0, :2].tolist() == [2 * 4095 - 10, 2 * 4094 - 10]


def test_a_modality_lut_is_applied(tmp_path: Path) -> None:
    lut = Dataset()
    lut.add_new("LUTDescriptor", "US", [24, 0, 16])
    lut.add_new("LUTData", "US", [value * value for value in range(24)])
    lut.ModalityLUTType = "US"

    image = _read(tmp_path, [_film(ModalityLUTSequence=[lut])], PICTURE)

    assert image.array.ravel().tolist() == [value * value for value in range(24)]


def test_a_single_slice_with_a_place_has_an_affine(tmp_path: Path) -> None:
    image = _read(tmp_path, [slice_of()], PICTURE)

    assert image.affine is not None
    np.testing.assert_allclose(image.affine @ [1, 1, 0, 1], [-10 + 0.75, -20 + 0.5, 0, 1])


def test_a_series_of_several_films_is_refused(tmp_path: Path) -> None:
    assert _refusal(tmp_path, [_film(), _film(SOPInstanceUID=f"{ROOT}.5")], PICTURE) == "several-images"


def test_colour_is_refused() -> None:
    path = Path(str(get_testdata_file("SC_rgb_rle.dcm")))
    instance = instance_of(path, sop_class_uid="1.2.840.10008.5.1.4.1.1.7")

    with pytest.raises(InputNotUsable) as caught:
        read_image([instance], NOWHERE, PICTURE)

    assert caught.value.code == "colour-image"


def test_compressed_pixels_equal_the_plain_ones() -> None:
    def read(name: str) -> np.ndarray:
        path = Path(str(get_testdata_file(name)))
        return read_image([instance_of(path, sop_class_uid=MRImageStorage)], NOWHERE, PICTURE).array

    plain = read("MR_small.dcm")

    for name in ("MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"):
        np.testing.assert_array_equal(read(name), plain)
    for name in ("MR_small_bigendian.dcm", "MR_small_implicit.dcm"):
        np.testing.assert_array_equal(read(name), plain)
