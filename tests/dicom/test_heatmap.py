"""Heat maps as DICOM: on the right slices, with their numbers, correct by a stranger's check, and nothing too much."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from highdicom.pm import ParametricMap
from pydicom import dcmread
from pydicom.uid import DigitalXRayImageStorageForPresentation

from medflow.dicom.derived import Maker
from medflow.dicom.heatmap import padded, read_heat_map, write_heat_maps
from medflow.dicom.plan import VolumePlan, plan_volume
from medflow.dicom.volume import read_image
from medflow.drawing import blended, heat_range
from medflow.errors import InputNotUsable
from medflow.plugin import Image, ImagingInput
from medflow.records import Instant
from medflow.store import FolderObjects
from tests.dicom.test_tilt import CENTRE_MM, _scan
from tests.factories_dicom import ROOT, instance_of, slice_of, volume_of, write_series
from tests.services.dicom3tools import errors_of

VOLUME = ImagingInput(modality=("CT",))
PICTURE = ImagingInput(modality=("DX",), dimensions=2)
STORE = FolderObjects(Path("no-such-folder"))
MAKER = Maker(
    model="bright",
    version="1.2.0",
    title="Bright tissue",
    digest="ab" * 32,
    identity=("key", "1"),
    issued=Instant(utc_us=1_767_222_000_000_000),  # 2025-12-31T23:00Z
    zone=ZoneInfo("America/New_York"),
)
RADIOGRAPH = {
    "SOPClassUID": DigitalXRayImageStorageForPresentation,
    "Modality": "DX",
    "FrameOfReferenceUID": None,
    "ImagePositionPatient": None,
    "ImageOrientationPatient": None,
    "PatientOrientation": ["L", "F"],
    "BurnedInAnnotation": "NO",
}


def series(folder: Path, datasets, spec: ImagingInput = VOLUME) -> tuple[VolumePlan, Image]:
    instances = [
        instance_of(
            path,
            sop_class_uid=str(item.SOPClassUID),
            sop_instance_uid=str(item.SOPInstanceUID),
            frames=int(item.get("NumberOfFrames", 1)),
        )
        for path, item in zip(write_series(folder, datasets), datasets, strict=True)
    ]
    return plan_volume(instances, STORE, spec), read_image(instances, STORE, spec)


def counted(image: Image) -> np.ndarray:
    """Values that tell every voxel from every other."""
    return np.arange(image.array.size, dtype=np.float32).reshape(image.array.shape) / 7


def only(plan: VolumePlan, values: np.ndarray, image: Image, maker: Maker = MAKER):
    (made,) = write_heat_maps(plan, STORE, {"bright": values}, image.array, maker)
    return made


def read(data: bytes):
    return dcmread(BytesIO(data))


# --- volumes -----------------------------------------------------------------------------------------------------


def test_each_number_lies_where_its_voxel_lies_and_names_the_slice_it_explains(tmp_path):
    datasets = volume_of(5)
    plan, image = series(tmp_path, [datasets[number] for number in (3, 0, 4, 1, 2)])
    values = counted(image)

    made = read(only(plan, values, image).data)

    by_uid = {item.SOPInstanceUID: item for item in datasets}
    frames = np.frombuffer(made.FloatPixelData, "<f4").reshape(5, 6, 4)
    for frame, group in zip(frames, made.PerFrameFunctionalGroupsSequence, strict=True):
        (named,) = group.DerivationImageSequence[0].SourceImageSequence
        source = by_uid[named.ReferencedSOPInstanceUID]
        assert group.PlanePositionSequence[0].ImagePositionPatient == source.ImagePositionPatient
        z = round(source.ImagePositionPatient[2] / 2.5)
        np.testing.assert_array_equal(frame, values[z])
    assert made.FrameOfReferenceUID == datasets[0].FrameOfReferenceUID
    assert {item.ReferencedSOPInstanceUID for item in made.SourceImageSequence} == set(by_uid)
    shared = made.SharedFunctionalGroupsSequence[0]
    assert shared.PixelMeasuresSequence[0].PixelSpacing == [0.5, 0.75]
    assert shared.PixelMeasuresSequence[0].SliceThickness == 2.5


def test_highdicom_reads_the_volume_back_with_the_images_geometry(tmp_path):
    plan, image = series(tmp_path, volume_of(4))
    values = counted(image)
    values[0, 0, :2] = np.nan

    found = ParametricMap.from_dataset(read(only(plan, values, image).data)).get_volume()

    ours = np.where(np.isnan(values), padded(values)[1], values)
    at = found.map_reference_to_indices((image.affine @ [3, 5, 2, 1])[None, :3])[0]
    assert found.array[tuple(np.round(at).astype(int))] == pytest.approx(ours[2, 5, 3])
    assert sorted(found.array.ravel()) == pytest.approx(sorted(ours.ravel()))


def test_what_is_read_back_is_what_was_written(tmp_path):
    plan, image = series(tmp_path, volume_of(4))
    values = counted(image)
    values[1] = np.nan

    np.testing.assert_array_equal(read_heat_map(only(plan, values, image).data, plan).values, values)


def test_nothing_said_is_a_number_below_all_others_and_said_to_be_padding():
    values = np.array([np.nan, 1e9, 1e9 + 64, 0.5], np.float32)

    stored, padding = padded(values)

    assert padding < 0.5 and not np.isnan(stored).any()
    assert (stored == np.float32(padding)).tolist() == [True, False, False, False]
    assert padded(values[1:])[1] is None
    flat, below = padded(np.array([np.nan, 1e9, 1e9], np.float32))
    assert flat[0] == np.float32(below) < 1e9


def test_frames_of_a_multi_frame_source_are_named_by_number_and_the_instance_once(tmp_path):
    datasets = volume_of(4, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], StudyID="1", AccessionNumber="")
    for item in datasets:
        item.file_meta = read_meta()
        item.BodyPartExamined, item.KVP, item.AcquisitionNumber = "CHEST", 120, 1
    enhanced = LegacyConvertedEnhancedCTImage(
        datasets, f"{ROOT}.7", 7, f"{ROOT}.7.1", 1, transfer_syntax_uid="1.2.840.10008.1.2.1"
    )
    plan, image = series(tmp_path / "enhanced", [enhanced])
    values = counted(image)

    made = read(only(plan, values, image).data)

    assert [item.ReferencedSOPInstanceUID for item in made.SourceImageSequence] == [f"{ROOT}.7.1"]
    assert {item.ReferencedSOPClassUID for item in made.SourceImageSequence} == {enhanced.SOPClassUID}
    (listed,) = made.ReferencedSeriesSequence
    assert len(listed.ReferencedInstanceSequence) == 1
    numbers = [
        group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        for group in made.PerFrameFunctionalGroupsSequence
    ]
    assert sorted(numbers) == [1, 2, 3, 4]
    np.testing.assert_array_equal(read_heat_map(only(plan, values, image).data, plan).values, values)


def read_meta():
    """File meta information of an uncompressed slice."""
    from pydicom.dataset import FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    return meta


@pytest.mark.parametrize("tilt", [-9.5, 22])
def test_a_map_of_a_straightened_volume_lies_on_the_askew_slices_themselves(tmp_path, tilt):
    datasets = _scan(tilt)
    plan, image = series(tmp_path, datasets)
    assert plan.straightened

    made = read(only(plan, image.array, image).data)

    frames = np.frombuffer(made.FloatPixelData, "<f4").reshape(int(made.NumberOfFrames), made.Rows, made.Columns)
    z, row, column = np.unravel_index(frames.argmax(), frames.shape)
    corner = np.array(made.PerFrameFunctionalGroupsSequence[z].PlanePositionSequence[0].ImagePositionPatient)
    along = np.array(made.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient)
    place = corner + along[:3] * column * 0.75 + along[3:] * row * 1.0
    assert np.abs(place - CENTRE_MM).max() <= 1.0
    assert (made.Rows, made.Columns) == (datasets[0].Rows, datasets[0].Columns)
    back = read_heat_map(only(plan, image.array, image).data, plan).values
    assert back.shape == image.array.shape
    away = np.subtract(*(np.unravel_index(np.nanargmax(one), one.shape) for one in (back, image.array)))
    assert np.abs(away).max() <= 1


def test_a_map_of_another_image_is_not_taken_for_this_ones(tmp_path):
    plan, image = series(tmp_path / "one", volume_of(4))
    other, _ = series(tmp_path / "other", volume_of(5))

    with pytest.raises(InputNotUsable, match="not of this image"):
        read_heat_map(only(plan, counted(image), image).data, other)


def test_each_volume_of_several_has_a_map_of_its_own(tmp_path):
    datasets = [
        slice_of(10 * volume + number, AcquisitionNumber=volume + 1, TemporalPositionIndex=volume + 1)
        for volume in range(2)
        for number in range(3)
    ]
    for item in datasets:
        item.ImagePositionPatient = [-10.0, -20.0, 2.5 * ((int(item.InstanceNumber) - 1) % 10)]
    plan, image = series(tmp_path, datasets, ImagingInput(modality=("CT",), dimensions=4))
    values = counted(image)
    assert image.array.shape == (2, 3, 6, 4)

    made = write_heat_maps(plan, STORE, {"bright": values}, image.array, MAKER)

    found = [read_heat_map(item.data, plan) for item in made]
    assert [item.volume for item in found] == [0, 1]
    np.testing.assert_array_equal(np.stack([item.values for item in found]), values)
    sources = [{ref.ReferencedSOPInstanceUID for ref in read(item.data).SourceImageSequence} for item in made]
    assert sources == [{item.SOPInstanceUID for item in datasets[:3]}, {item.SOPInstanceUID for item in datasets[3:]}]


# --- projections -------------------------------------------------------------------------------------------------


def test_a_radiograph_is_shown_in_colours_and_the_numbers_are_kept_beside(tmp_path):
    plan, image = series(tmp_path, [slice_of(**RADIOGRAPH)], PICTURE)
    values = counted(image)
    values[0] = np.nan

    data = only(plan, values, image).data

    made = read(data)
    assert list(made.ImageType) == ["DERIVED", "SECONDARY"]
    assert made.PhotometricInterpretation == "RGB"
    np.testing.assert_array_equal(made.pixel_array, blended(image.array, values))
    assert [item.ReferencedSOPInstanceUID for item in made.SourceImageSequence] == [f"{ROOT}.1.1.1"]
    assert (list(made.PatientOrientation), made.BurnedInAnnotation) == (["L", "F"], "NO")
    np.testing.assert_array_equal(read_heat_map(data, plan).values, values)


def test_a_source_that_is_silent_on_burned_in_text_leaves_its_picture_silent(tmp_path):
    silent = {**RADIOGRAPH, "PatientOrientation": "", "BurnedInAnnotation": ""}
    plan, image = series(tmp_path, [slice_of(**silent)], PICTURE)

    made = read(only(plan, counted(image), image).data)

    assert "BurnedInAnnotation" not in made
    assert not made.PatientOrientation


def test_colours_stand_for_what_spoke_for_the_answer_only():
    pixels = np.tile(np.linspace(0, 100, 4, dtype=np.float32), (4, 1))
    values = np.zeros((4, 4), np.float32)
    values[0], values[1], values[2] = -5, np.nan, 2

    shown = blended(pixels, values).astype(int)

    grey = np.ptp(shown, axis=2) == 0
    assert grey.all(axis=1).tolist() == [True, True, False, True]
    assert heat_range(values) == (0.0, 2.0)
    assert heat_range(np.full((2, 2), np.nan, np.float32)) == (0.0, 1.0)
    assert heat_range(np.array([-3.0, -1.0], np.float32)) == (-3.0, -1.0)


# --- both --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", [False, True])
def test_dciodvfy_finds_no_error(tmp_path, projection):
    complete = {"BodyPartExamined": "CHEST", "StudyID": "7", "AccessionNumber": "A7", "ReferringPhysicianName": ""}
    datasets = [slice_of(**RADIOGRAPH, **complete)] if projection else volume_of(4, **complete)
    plan, image = series(tmp_path / "source", datasets, PICTURE if projection else VOLUME)
    values = counted(image)
    values[..., 0] = np.nan

    assert errors_of(only(plan, values, image).data, tmp_path) == []


@pytest.mark.parametrize("projection", [False, True])
def test_the_same_map_of_the_same_run_is_the_same_file_and_another_map_another_object(tmp_path, projection):
    datasets = [slice_of(**RADIOGRAPH)] if projection else volume_of(3)
    plan, image = series(tmp_path, datasets, PICTURE if projection else VOLUME)

    one, same, other = (only(plan, values, image) for values in (counted(image), counted(image), counted(image) + 1))

    assert one.data == same.data
    assert one.record.sop_instance_uid.startswith("2.25.")
    assert other.record.sop_instance_uid != one.record.sop_instance_uid
    assert other.record.series_uid == one.record.series_uid != datasets[0].SeriesInstanceUID
    assert (one.record.kind, one.record.outputs) == ("heat-map", ("bright",))


@pytest.mark.parametrize("projection", [False, True])
def test_the_patient_is_in_the_patients_place_and_nowhere_else(tmp_path, projection, caplog, capsys):
    about = {"PatientName": "Zaphod^Beeblebrox", "PatientID": "ZB42", "PatientBirthDate": "19790312"}
    datasets = [slice_of(**RADIOGRAPH, **about)] if projection else volume_of(3, **about)
    plan, image = series(tmp_path, datasets, PICTURE if projection else VOLUME)

    with caplog.at_level(0):
        data = only(plan, counted(image), image).data

    made = read(data)
    assert (made.PatientName, made.PatientID, made.PatientBirthDate) == tuple(about.values())
    assert made.StudyInstanceUID == datasets[0].StudyInstanceUID
    for secret in ("Zaphod", "ZB42", "19790312"):
        assert data.count(secret.encode()) == 1
        assert secret not in caplog.text + "".join(capsys.readouterr())


@pytest.mark.parametrize("projection", [False, True])
def test_the_model_and_the_time_of_the_run_are_on_it(tmp_path, projection):
    spec = PICTURE if projection else VOLUME
    datasets = [slice_of(**RADIOGRAPH)] if projection else volume_of(3)
    there, image = series(tmp_path / "zone", datasets, spec)
    for item in datasets:
        del item.TimezoneOffsetFromUTC
    here, _ = series(tmp_path / "none", datasets, spec)

    placed, unplaced = (read(only(plan, counted(image), image).data) for plan in (there, here))

    assert (placed.Manufacturer, placed.ManufacturerModelName, placed.DeviceSerialNumber) == (
        "medflow",
        "bright",
        "ab" * 32,
    )
    assert placed.SoftwareVersions[0] == "1.2.0"
    assert placed.ContributingEquipmentSequence[0].ManufacturerModelName == "bright"
    assert (placed.ContentDate, placed.ContentTime) == ("20260101", "000000")  # the source says +0100
    assert (unplaced.ContentDate, unplaced.ContentTime) == ("20251231", "180000")  # MEDFLOW_TIMEZONE
