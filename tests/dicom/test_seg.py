"""Segmentations: right on the source's slices for whoever reads them, proper DICOM, and of nobody but their patient."""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from math import cos, radians, sin
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pydicom
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

from medflow.dicom.derived import MadeObject, Maker
from medflow.dicom.plan import VolumePlan, plan_volume
from medflow.dicom.seg import read_segmentation, write_segmentations
from medflow.errors import InputNotUsable
from medflow.plugin import SNOMED, Coding, ImagingInput, LabelMask, Mask, Segment
from medflow.records import Instant
from medflow.store import FolderObjects
from tests.factories_dicom import ROOT, instance_of, to_bytes, volume_of, write_series
from tests.seg_readers import by_highdicom, by_pydicom
from tests.services.dicom3tools import errors_of

NOWHERE = FolderObjects(Path("no-such-folder"))
LIVER = Segment(
    name="liver", body_site=Coding(system=SNOMED, code="10200004", display="Liver structure"), valid_ml=(0, 1e6)
)
LESION = Segment(
    name="lesion",
    body_site=Coding(system=SNOMED, code="10200004", display="Liver structure"),
    valid_ml=(0, 1e6),
    property_category=Coding(system=SNOMED, code="49755003", display="Morphologically Altered Structure"),
    property_type=Coding(system="urn:a-hospital:codes", code="hcc", display="Hepatocellular carcinoma"),
)
CHANCE = replace(LIVER, name="chance", fractional=True)
MAKER = Maker(
    model="abdomen",
    version="2.1.0",
    title="Abdominal organs \\ é",
    digest="ab" * 32,
    identity=("input-key", "1700000000000000"),
    issued=Instant(utc_us=1_700_000_000_123_456),  # 2023-11-14T22:13:20Z
)
Masks = Sequence[tuple[Segment, np.ndarray]]


def plan_of(folder: Path, datasets: Sequence[Dataset], modality: str = "CT") -> VolumePlan:
    """How files of these data sets become a volume."""
    return plan_of_files(write_series(folder, datasets), modality)


def plan_of_files(paths: Sequence[Path], modality: str) -> VolumePlan:
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    instances = [
        instance_of(path, sop_instance_uid=str(header.SOPInstanceUID), sop_class_uid=str(header.SOPClassUID))
        for path, header in zip(paths, headers, strict=True)
    ]
    return plan_volume(instances, NOWHERE, ImagingInput(modality=(modality,)))


def written(plan: VolumePlan, masks: Sequence[tuple[Segment, Mask]], maker: Maker = MAKER) -> MadeObject:
    (made,) = write_segmentations(plan, NOWHERE, masks, maker)
    return made


def dataset_of(made: MadeObject) -> Any:
    return pydicom.dcmread(BytesIO(made.data))


def slices_of(plan: VolumePlan) -> list[tuple[str, int]]:
    return [(item.instance.sop_instance_uid, item.frame) for item in plan.slices[0]]


def noise(shape: tuple[int, ...], *, seed: int = 0) -> np.ndarray:
    """Booleans, none in the first slice: a frame that is left out."""
    mask = np.random.default_rng(seed).random(shape) < 0.4
    mask[0] = False
    return mask


# --- sources ---------------------------------------------------------------------------------------------------


def axial(folder: Path) -> VolumePlan:
    return plan_of(folder, volume_of(5))


def odd_sized(folder: Path) -> VolumePlan:
    """35 pixels a frame: the bits of frames share bytes."""
    pixels = np.arange(35, dtype="<u2").tobytes() + b"\0\0"
    return plan_of(folder, volume_of(5, Rows=7, Columns=5, PixelData=pixels[:70]))


def oblique(folder: Path) -> VolumePlan:
    """Turned by 30 degrees about the patient's long axis and by 20 about the rows; the slices offered upside down."""
    turn, nod = radians(30), radians(20)
    rows = np.array([cos(turn), sin(turn), 0.0])
    columns = np.array([-sin(turn) * cos(nod), cos(turn) * cos(nod), sin(nod)])
    datasets = volume_of(4)
    for number, dataset in enumerate(datasets):
        dataset.ImageOrientationPatient = [f"{value:.10f}" for value in (*rows, *columns)]
        dataset.ImagePositionPatient = [f"{value:.8f}" for value in 40 - 3.3 * number * np.cross(rows, columns)]
    return plan_of(folder, datasets)


def tilted(folder: Path) -> VolumePlan:
    """A gantry tilted by 15 degrees: the image is straightened, the segmentation is not."""
    tilt = radians(15)
    datasets = volume_of(5)
    for number, dataset in enumerate(datasets):
        dataset.ImageOrientationPatient = [1, 0, 0, 0, f"{cos(tilt):.10f}", f"{-sin(tilt):.10f}"]
        dataset.ImagePositionPatient = [0, 0, 3.0 * number]
    return plan_of(folder, datasets)


def enhanced(folder: Path) -> VolumePlan:
    """One multi-frame object whose frames are not in the order of their places."""
    datasets = volume_of(5)
    for dataset in datasets:
        dataset.AccessionNumber = dataset.StudyID = dataset.ReferringPhysicianName = ""
        dataset.SeriesNumber, dataset.Manufacturer, dataset.PositionReferenceIndicator = 1, "Nobody", ""
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.SpecificCharacterSet = "ISO_IR 100"
        dataset.file_meta = pydicom.dcmread(BytesIO(to_bytes(dataset))).file_meta
    several = LegacyConvertedEnhancedCTImage(
        datasets, f"{ROOT}.8", 8, f"{ROOT}.8.1", 1, transfer_syntax_uid="1.2.840.10008.1.2.1"
    )
    order = (3, 0, 4, 1, 2)
    groups, frames = several.PerFrameFunctionalGroupsSequence, several.pixel_array
    several.PerFrameFunctionalGroupsSequence = [groups[place] for place in order]
    several.PixelData = frames[list(order)].tobytes()
    return plan_of(folder, [several])


SOURCES = {
    "single-frame CT": axial,
    "frames of 35 pixels": odd_sized,
    "oblique": oblique,
    "tilted gantry": tilted,
    "enhanced multi-frame": enhanced,
}


@pytest.fixture(params=SOURCES)
def plan(request: pytest.FixtureRequest, tmp_path: Path) -> VolumePlan:
    return SOURCES[request.param](tmp_path / "source")


def apart(shape: tuple[int, ...]) -> Masks:
    first = noise(shape)
    return [(LIVER, first), (LESION, noise(shape, seed=1) & ~first)]


def overlapping(shape: tuple[int, ...]) -> Masks:
    return [(LIVER, noise(shape)), (LESION, noise(shape, seed=1))]


def alone(shape: tuple[int, ...]) -> Masks:
    return [(LIVER, noise(shape))]


def empty(shape: tuple[int, ...]) -> Masks:
    return [(LIVER, np.zeros(shape, bool)), (LESION, np.zeros(shape, bool))]


@pytest.mark.parametrize("masks_of", [apart, overlapping, alone, empty])
def test_others_find_no_error_and_read_the_masks_back(
    plan: VolumePlan, masks_of: Callable[[tuple[int, ...]], Masks], tmp_path: Path
) -> None:
    masks = masks_of(plan.shape)
    on_slices = {segment.name: plan.on_source(mask) for segment, mask in masks}

    made = written(plan, masks)

    assert errors_of(made.data, tmp_path) == []
    slices = slices_of(plan)
    for read in (by_highdicom(made.data, slices), by_pydicom(made.data, slices)):
        assert read.keys() == on_slices.keys()
        for name, mask in on_slices.items():
            np.testing.assert_array_equal(read[name], mask)


def test_others_read_probabilities_back_in_steps_of_255(plan: VolumePlan, tmp_path: Path) -> None:
    chances = (np.random.default_rng(2).random(plan.shape) * noise(plan.shape)).astype(np.float32)
    levels = np.around(plan.on_source(chances) * 255)

    made = written(plan, [(CHANCE, chances)])

    assert errors_of(made.data, tmp_path) == []
    np.testing.assert_allclose(by_highdicom(made.data, slices_of(plan))["chance"] * 255, levels, atol=1e-4)
    np.testing.assert_array_equal(by_pydicom(made.data, slices_of(plan))["chance"], levels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_of_a_label_map_become_the_very_object_that_booleans_do(plan: VolumePlan, dtype: type) -> None:
    labels = np.random.default_rng(6).choice(np.array([0, 7, 200], dtype), plan.shape)
    labels[0] = 0

    made = written(plan, labels_of(labels))
    other = written(plan, [(segment, np.asarray(mask)) for segment, mask in labels_of(labels)])

    assert made.data == other.data
    assert any(mask.any() for mask in read_segmentation(made.data, plan).values())


def labels_of(labels: np.ndarray) -> list[tuple[Segment, LabelMask]]:
    return [(LIVER, LabelMask(labels=labels, value=200)), (LESION, LabelMask(labels=labels, value=7))]


def test_masks_of_two_label_maps_and_of_one_label_twice_may_overlap(tmp_path: Path) -> None:
    plan = axial(tmp_path)
    labels = noise(plan.shape).astype(np.uint8)
    other = LabelMask(labels=noise(plan.shape, seed=1).astype(np.uint8), value=1)
    masks = {"liver": LabelMask(labels=labels, value=1), "again": LabelMask(labels=labels, value=1), "other": other}

    made = written(plan, [(replace(LIVER, name=name), mask) for name, mask in masks.items()])

    for name, mask in by_highdicom(made.data, slices_of(plan)).items():
        np.testing.assert_array_equal(mask, masks[name])


def test_a_hundred_labels_take_no_array_each(tmp_path: Path) -> None:
    datasets = volume_of(64, Rows=256, Columns=256, PixelData=bytes(2 * 256 * 256))
    plan = plan_of(tmp_path, datasets)
    labels = np.zeros(plan.shape, np.uint8)
    for value in range(1, 101):
        row, column = divmod(value - 1, 10)
        labels[value % 62 : value % 62 + 2, row * 25 : row * 25 + 20, column * 25 : column * 25 + 20] = value
    masks = [(replace(LIVER, name=f"s{value}"), LabelMask(labels=labels, value=value)) for value in range(1, 101)]
    written(plan, masks[:1])  # imports what it needs

    tracemalloc.start()
    made = written(plan, masks)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 40 * 2**20  # as booleans the masks alone would be 400 MiB
    assert (read_segmentation(made.data, plan)["s77"] == (labels == 77)).all()


def test_medflow_reads_its_own_masks_on_the_grid_of_the_image(plan: VolumePlan) -> None:
    mask, middle = np.zeros(plan.shape, bool), plan.shape[1] // 2
    mask[1:3, middle : middle + 2, 1:3] = True
    made = written(plan, [(LIVER, mask)])

    found = read_segmentation(made.data, plan)["liver"]

    assert found.shape == plan.shape
    if plan.straightened:  # twice the nearest row: a row may be lost on the way, no more
        assert (found != mask).sum() <= 0.5 * mask.sum()
        assert found.any()
    else:
        np.testing.assert_array_equal(found, mask)


def test_frames_lie_where_the_slices_of_the_source_do(plan: VolumePlan) -> None:
    made = dataset_of(written(plan, alone(plan.shape)))
    orientation = made.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    spacing = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    affine = np.zeros((3, 2))
    affine[:, 0] = np.array(orientation[:3], float) * float(spacing[1])
    affine[:, 1] = np.array(orientation[3:], float) * float(spacing[0])
    assert plan.source_affine is not None

    np.testing.assert_allclose(affine, plan.source_affine[:3, :2], atol=1e-6)
    sources = dict(zip(slices_of(plan), range(len(plan.slices[0])), strict=True))
    for group in made.PerFrameFunctionalGroupsSequence:
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        z = sources[source.ReferencedSOPInstanceUID, int(source.get("ReferencedFrameNumber", 1)) - 1]
        np.testing.assert_allclose(position, (plan.source_affine @ (0, 0, z, 1))[:3], atol=1e-3)


# --- what the object says --------------------------------------------------------------------------------------


def test_every_image_is_named_and_every_frame_names_its_own(tmp_path: Path) -> None:
    plan = enhanced(tmp_path)
    made = dataset_of(written(plan, alone(plan.shape)))

    assert [item.ReferencedSOPInstanceUID for item in made.SourceImageSequence] == [f"{ROOT}.8.1"]
    (series,) = made.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == f"{ROOT}.8"
    sources = [
        group.DerivationImageSequence[0].SourceImageSequence[0] for group in made.PerFrameFunctionalGroupsSequence
    ]
    frames = [item.frame + 1 for item in plan.slices[0]]
    assert frames not in ([1, 2, 3, 4, 5], [5, 4, 3, 2, 1])
    assert sorted(int(source.ReferencedFrameNumber) for source in sources) == sorted(frames[1:])  # the first is empty
    assert {source.SpatialLocationsPreserved for source in sources} == {"YES"}
    assert made.NumberOfFrames == 4


def test_segments_are_coded_and_tracked_and_the_model_is_the_algorithm(tmp_path: Path) -> None:
    made = dataset_of(written(axial(tmp_path), apart((5, 6, 4))))

    liver, lesion = made.SegmentSequence
    assert (liver.SegmentLabel, lesion.SegmentLabel) == ("liver", "lesion")
    assert liver.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert liver.AnatomicRegionSequence[0].CodingSchemeDesignator == "SCT"
    kind = lesion.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("hcc", "99MEDFLOW")
    assert made.CodingSchemeIdentificationSequence[0].CodingSchemeName == "urn:a-hospital:codes"
    assert liver.TrackingID == "abdomen liver"
    assert liver.TrackingUID != lesion.TrackingUID
    algorithm = liver.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("abdomen", "2.1.0")
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"
    assert (made.Manufacturer, made.ManufacturerModelName) == ("medflow", "abdomen")
    assert made.SeriesDescription == "Abdominal organs / ? (2.1.0)"
    assert made.ContentCreatorName == ""


def test_it_is_filed_under_the_sources_patient_and_study_at_the_time_of_the_run(tmp_path: Path) -> None:
    names = "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce"
    source = volume_of(3, SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=names, PatientAge="073Y")
    made = dataset_of(written(plan_of(tmp_path, source), alone((3, 6, 4))))

    assert made.PatientName == names
    for name in ("PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyInstanceUID", "StudyDate"):
        assert made[name].value == source[0][name].value, name
    assert made.FrameOfReferenceUID == source[0].FrameOfReferenceUID
    assert made.SeriesInstanceUID != source[0].SeriesInstanceUID
    assert (made.ContentDate, made.ContentTime) == ("20231114", "231320")  # in the source's +0100


def test_the_same_result_is_the_same_object_and_another_mask_another(tmp_path: Path) -> None:
    plan = axial(tmp_path)
    later = replace(MAKER, issued=Instant(utc_us=1_800_000_000_000_000))
    first, again, after, other, model = (
        written(plan, alone(plan.shape)),
        written(plan, alone(plan.shape)),
        written(plan, alone(plan.shape), later),
        written(plan, [(LIVER, noise(plan.shape, seed=5))]),
        written(plan, alone(plan.shape), replace(MAKER, digest="cd" * 32)),
    )

    assert again.data == first.data
    assert after.data != first.data
    assert (after.record.sop_instance_uid, after.record.content) == (
        first.record.sop_instance_uid,
        first.record.content,
    )
    assert len({item.record.sop_instance_uid for item in (first, other, model)}) == 3
    assert other.record.series_uid == first.record.series_uid != model.record.series_uid


def test_probabilities_and_booleans_are_an_object_each(tmp_path: Path) -> None:
    plan = axial(tmp_path)
    chances = noise(plan.shape).astype(np.float32)

    binary, fractional = write_segmentations(plan, NOWHERE, [(CHANCE, chances), (LIVER, chances > 0)], MAKER)

    assert (binary.record.outputs, fractional.record.outputs) == (("liver",), ("chance",))
    assert [dataset_of(made).SegmentationType for made in (binary, fractional)] == ["BINARY", "FRACTIONAL"]
    assert dataset_of(fractional).SegmentationFractionalType == "PROBABILITY"
    assert binary.record.series_uid == fractional.record.series_uid
    assert {made.record.sop_class_uid for made in (binary, fractional)} == {SegmentationStorage}


@pytest.mark.parametrize("odd", [{"PatientSex": "?"}, {"PatientBirthDate": "02.01.1950"}, {"PatientName": "a=b=c=d"}])
def test_a_source_with_odd_values_is_segmented_and_they_are_told_to_nobody(
    odd: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(logging.DEBUG)
    datasets = volume_of(3, FrameOfReferenceUID=None, PatientID=None, StudyDate=None, TimezoneOffsetFromUTC=None, **odd)

    made = dataset_of(written(plan_of(tmp_path, datasets), alone((3, 6, 4))))

    (name,) = odd
    assert made[name].value == odd[name]
    assert (made.PatientID, made.StudyDate) == ("", "")
    assert made.FrameOfReferenceUID.startswith("2.25.")
    assert odd[name] not in caplog.text.replace("?", "") or odd[name] == "?"
    assert not [item for item in recwarn if odd[name] in str(item.message) and odd[name] != "?"]


def test_what_a_source_says_by_half_is_not_repeated(tmp_path: Path) -> None:
    source = volume_of(3, SpecificCharacterSet="", PatientIdentityRemoved="YES", IssuerOfPatientID="")
    made = written(plan_of(tmp_path / "in", source), alone((3, 6, 4)))

    assert errors_of(made.data, tmp_path) == []
    assert "PatientIdentityRemoved" not in dataset_of(made)


# --- reading others' -------------------------------------------------------------------------------------------


def test_masks_of_other_slices_are_refused(tmp_path: Path) -> None:
    made = written(axial(tmp_path / "one"), alone((5, 6, 4)))
    datasets = volume_of(5)
    for dataset in datasets:
        dataset.ImagePositionPatient[0] += 1.0

    with pytest.raises(InputNotUsable) as caught:
        read_segmentation(made.data, plan_of(tmp_path / "other", datasets))

    assert caught.value.code == "other-slices"


@pytest.mark.parametrize(("data", "code"), [(b"PK\3\4", "not-a-segmentation"), (b"", "not-a-segmentation")])
def test_what_is_no_segmentation_is_refused(data: bytes, code: str) -> None:
    with pytest.raises(InputNotUsable) as caught:
        read_segmentation(data)

    assert caught.value.code == code


def test_the_voxels_of_dcmqis_segmentations_are_those_that_its_authors_count(realdata: Callable[[str], Path]) -> None:
    folder = next(realdata("dcmqi").rglob("segmentations"))
    truth, _ = nrrd.read(str(folder / "liver_seg.nrrd"))

    liver = read_segmentation((folder / "liver.dcm").read_bytes())["Liver"]
    overlapping = read_segmentation((folder / "partial_overlaps.dcm").read_bytes())

    assert liver.sum() == 107_098
    np.testing.assert_array_equal(liver, truth.T == 1)
    assert [int(mask.sum()) for mask in overlapping.values()] == [9602, 11888, 10743, 6693, 4713]


def test_dcmqis_real_multi_frame_image_is_segmented(realdata: Callable[[str], Path], tmp_path: Path) -> None:
    source = next(realdata("dcmqi").rglob("23x38x3/multiframe/mf.dcm"))
    plan = plan_of_files([source], "CT")

    made = written(plan, apart(plan.shape))

    assert errors_of(made.data, tmp_path) == []
    for name, mask in by_highdicom(made.data, slices_of(plan)).items():
        np.testing.assert_array_equal(mask, dict((item.name, own) for item, own in apart(plan.shape))[name])
