"""What frames say of themselves in plain elements, functional groups and private ones; enhanced objects as volumes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import EnhancedMRImageStorage

from medflow.dicom.frames import frames_of
from medflow.dicom.volume import plan_volume, read_image
from medflow.errors import InputNotUsable
from medflow.plugin import ImagingInput
from medflow.store import FolderObjects
from tests.factories_dicom import COLUMNS, ROWS, instance_of, slice_of, write_series

NOWHERE = FolderObjects(Path("no-such-folder"))
VOLUMES = ImagingInput(modality=("MR",), dimensions=4)


def _facts(**elements: Any) -> Mapping[str, float]:
    return frames_of(slice_of(**elements), 0)[0].facts


def test_plain_elements_go_by_one_name() -> None:
    facts = _facts(EchoTime="4.76", TemporalPositionIdentifier=3, DiffusionGradientOrientation=[0, 0.6, 0.8])

    assert facts["EchoTime"] == 4.76
    assert facts["TemporalPositionIndex"] == 3
    assert [facts[f"DiffusionGradientOrientation[{index}]"] for index in range(3)] == [0, 0.6, 0.8]


def test_what_is_no_number_is_no_fact() -> None:
    dataset = slice_of(TriggerTime="")
    dataset.add_new("EchoTime", "DS", "")

    assert not {"TriggerTime", "EchoTime", "DiffusionBValue"} & set(frames_of(dataset, 0)[0].facts)


@pytest.mark.parametrize(
    ("creator", "tag", "vr", "value"),
    [
        ("SIEMENS MR HEADER", 0x0019100C, "IS", 800),
        ("GEMS_PARM_01", 0x00431039, "IS", [1_000_000_800, 0, 0, 0]),
        ("Philips Imaging DD 001", 0x20011003, "FL", 800.0),
        ("SIEMENS MR HEADER", 0x0019100C, "UN", b"800 "),
    ],
)
def test_b_values_of_three_vendors(creator: str, tag: int, vr: str, value: Any) -> None:
    dataset = slice_of()
    dataset.add_new(Tag(tag >> 16, 0x10), "LO", creator)
    dataset.add_new(tag, vr, value)

    assert frames_of(dataset, 0)[0].facts["DiffusionBValue"] == 800


def test_a_private_element_of_somebody_else_is_no_b_value() -> None:
    dataset = slice_of()
    dataset.add_new(0x00190010, "LO", "SOMEBODY ELSE")
    dataset.add_new(0x0019100C, "IS", 800)

    assert "DiffusionBValue" not in frames_of(dataset, 0)[0].facts


@pytest.mark.parametrize(
    ("image_type", "kind"),
    [
        (["ORIGINAL", "PRIMARY", "M", "NORM", "ECHO_01"], {"ComplexImageComponent": "MAGNITUDE", "ImageType": "NORM"}),
        (["ORIGINAL", "PRIMARY", "P", "NORM"], {"ComplexImageComponent": "PHASE", "ImageType": "NORM"}),
        (
            ["ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"],
            {"ComplexImageComponent": "MAGNITUDE", "ImageType": "M_FFE\\FFE"},
        ),
        (["ORIGINAL", "PRIMARY"], {}),
    ],
)
def test_image_type_says_what_kind_of_picture_it_is(image_type: list[str], kind: dict[str, str]) -> None:
    assert frames_of(slice_of(ImageType=image_type), 0)[0].kind == kind


def test_the_time_of_acquisition_goes_across_midnight() -> None:
    late, early = (
        frames_of(slice_of(AcquisitionDate=day, AcquisitionTime=time), 0)[0].acquired_s
        for day, time in (("20240102", "235959.5"), ("20240103", "000001"))
    )

    assert late is not None and early is not None
    assert early - late == 1.5


# --- enhanced objects ------------------------------------------------------------------------------------------


def _group(**elements: Any) -> Dataset:
    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return item


def _enhanced(
    volumes: int, slices: int, *, pointer: int | None = None, indexed: bool = True, **changes: Any
) -> Dataset:
    """Enhanced MR, all volumes of a slice before the next slice; the second dimension index is of ``pointer``."""
    dataset = slice_of(SOPClassUID=EnhancedMRImageStorage, Modality="MR", NumberOfFrames=volumes * slices)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(dataset, name)
    dataset.SharedFunctionalGroupsSequence = [
        _group(
            PlaneOrientationSequence=[_group(ImageOrientationPatient=[*ROWS, *COLUMNS])],
            PixelMeasuresSequence=[_group(PixelSpacing=[0.5, 0.75])],
            PixelValueTransformationSequence=[_group(RescaleSlope=2, RescaleIntercept=-1, RescaleType="US")],
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        _group(
            PlanePositionSequence=[_group(ImagePositionPatient=[-10, -20, 2.5 * z])],
            FrameContentSequence=[
                _group(StackID="1", InStackPositionNumber=z + 1, DimensionIndexValues=[z + 1, v + 1] if indexed else [])
            ],
        )
        for z in range(slices)
        for v in range(volumes)
    ]
    dataset.DimensionIndexSequence = [
        _group(DimensionIndexPointer=Tag("InStackPositionNumber")),
        _group(DimensionIndexPointer=Tag(pointer or "TemporalPositionIndex")),
    ]
    dataset.PixelData = b"".join(
        np.full((6, 4), 100 * v + z, "<u2").tobytes() for z in range(slices) for v in range(volumes)
    )
    for name, value in changes.items():
        setattr(dataset, name, value)
    return dataset


def _each(dataset: Dataset, volumes: int, group: str, **values: list[Any]) -> Dataset:
    """Give every frame a functional group with the value of its volume."""
    for index, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        setattr(frame, group, [_group(**{name: each[index % volumes] for name, each in values.items()})])
    return dataset


def _read(folder: Path, dataset: Dataset, spec: ImagingInput = VOLUMES) -> Any:
    (path,) = write_series(folder, [dataset])
    return read_image([instance_of(path, sop_class_uid=EnhancedMRImageStorage)], NOWHERE, spec)


def _refusal(folder: Path, dataset: Dataset, spec: ImagingInput = VOLUMES) -> str:
    with pytest.raises(InputNotUsable) as caught:
        _read(folder, dataset, spec)
    return caught.value.code


def test_a_dimension_index_splits_an_enhanced_object(tmp_path: Path) -> None:
    image = _read(tmp_path, _enhanced(3, 4))

    assert image.array.shape == (3, 4, 6, 4)
    assert image.array[..., 0, 0].tolist() == [[2.0 * (100 * v + z) - 1 for z in range(4)] for v in range(3)]
    assert image.volumes == tuple({"TemporalPositionIndex": v + 1.0} for v in range(3))
    assert image.spacing_mm == (2.5, 0.5, 0.75)


def test_the_values_themselves_are_named_rather_than_their_index(tmp_path: Path) -> None:
    dataset = _enhanced(2, 4, pointer=Tag("EffectiveEchoTime"))

    image = _read(tmp_path, _each(dataset, 2, "MREchoSequence", EffectiveEchoTime=[2.3, 4.6]))

    assert image.volumes == ({"EchoTime": 2.3}, {"EchoTime": 4.6})


def test_a_private_dimension_tells_volumes_apart_too(tmp_path: Path) -> None:
    image = _read(tmp_path, _enhanced(2, 4, pointer=0x20051011))

    assert image.volumes == ({"DimensionIndexValues[1]": 1.0}, {"DimensionIndexValues[1]": 2.0})


def test_functional_groups_split_without_any_dimension_index(tmp_path: Path) -> None:
    direction = [_group(DiffusionGradientOrientation=[0, 0, 1])]
    dataset = _each(
        _enhanced(2, 4, indexed=False),
        2,
        "MRDiffusionSequence",
        DiffusionBValue=[0.0, 1000.0],
        DiffusionGradientDirectionSequence=[[], direction],
    )

    assert [labels["DiffusionBValue"] for labels in _read(tmp_path, dataset).volumes] == [0, 1000]


def test_magnitude_and_phase_in_one_object_are_no_volumes(tmp_path: Path) -> None:
    dataset = _each(_enhanced(2, 4), 2, "MRImageFrameTypeSequence", ComplexImageComponent=["MAGNITUDE", "PHASE"])

    assert _refusal(tmp_path, dataset) == "mixed-content"


def test_a_frame_that_is_a_scout_refuses_the_object(tmp_path: Path) -> None:
    frame_type = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
    dataset = _each(_enhanced(1, 4), 1, "MRImageFrameTypeSequence", FrameType=[frame_type])

    assert _refusal(tmp_path, dataset) == "localizer"


def test_nothing_that_tells_frames_apart_refuses_the_object(tmp_path: Path) -> None:
    assert _refusal(tmp_path, _enhanced(2, 4, indexed=False)) == "indistinct-volumes"


def test_two_stacks_in_one_object_are_refused(tmp_path: Path) -> None:
    dataset = _enhanced(1, 6)
    for z, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        frame.FrameContentSequence[0].StackID = str(1 + z // 3)

    assert _refusal(tmp_path, dataset) == "several-stacks"


@pytest.mark.parametrize(("take", "first"), [("first", -1.0), ("last", 399.0)])
def test_a_model_says_which_volume_it_takes(tmp_path: Path, take: Any, first: float) -> None:
    image = _read(tmp_path, _enhanced(3, 4), ImagingInput(modality=("MR",), take=take))

    assert image.array.shape == (4, 6, 4)
    assert image.array[0, 0, 0] == first
    assert image.volumes == ({"TemporalPositionIndex": 1.0 if take == "first" else 3.0},)


def test_a_model_that_takes_the_only_volume_is_told_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(InputNotUsable, match="3 volumes, told apart by TemporalPositionIndex") as caught:
        _read(tmp_path, _enhanced(3, 4), ImagingInput(modality=("MR",)))

    assert caught.value.code == "several-volumes"


def test_four_dimensions_of_a_single_volume(tmp_path: Path) -> None:
    image = _read(tmp_path, _enhanced(1, 4, indexed=False))

    assert (image.array.shape, image.volumes) == ((1, 4, 6, 4), ({},))


def test_slices_are_counted_in_each_volume(tmp_path: Path) -> None:
    assert _refusal(tmp_path, _enhanced(3, 4), ImagingInput(modality=("MR",), dimensions=4, min_slices=5)) == (
        "too-few-slices"
    )


def test_the_plan_says_which_frame_is_which_slice(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, [_enhanced(3, 4)])
    instance = instance_of(path, sop_class_uid=EnhancedMRImageStorage)

    plan = plan_volume([instance], NOWHERE, VOLUMES)

    assert [[item.frame for item in volume] for volume in plan.slices] == [[v, 3 + v, 6 + v, 9 + v] for v in range(3)]
    assert {item.instance for volume in plan.slices for item in volume} == {instance}
    assert (plan.shape, plan.source_shape) == ((3, 4, 6, 4), (4, 6, 4))
