"""What is no picture of a patient's inside is refused before anyone looks at its geometry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    EnhancedMRImageStorage,
    MRImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    VLWholeSlideMicroscopyImageStorage,
)

from medflow.dicom.gate import check_classes, check_content
from medflow.errors import InputNotUsable
from medflow.plugin import ImagingInput
from medflow.records import Instance
from tests.factories_dicom import volume_of

VOLUME = ImagingInput(modality=("CT",))
PICTURE = ImagingInput(modality=("DX",), dimensions=2)


def _instances(*classes: str) -> list[Instance]:
    return [
        Instance(sop_instance_uid=f"1.{number}", sop_class_uid=uid, transfer_syntax_uid="1.2", sha256="0", size=0)
        for number, uid in enumerate(classes)
    ]


def _refusal(headers: Sequence[Dataset], spec: ImagingInput = VOLUME, uid: str = CTImageStorage) -> str | None:
    try:
        check_content(headers, _instances(*[uid] * len(headers)), spec)
    except InputNotUsable as error:
        return error.code
    return None


@pytest.mark.parametrize(
    ("classes", "code"),
    [
        ((), "too-few-slices"),
        ((SegmentationStorage,), "not-an-image"),
        ((VLWholeSlideMicroscopyImageStorage,), "not-an-image"),
        ((BasicTextSRStorage,), "not-an-image"),
        (("1.2.3.4",), "not-an-image"),
        ((CTImageStorage, SegmentationStorage), "not-an-image"),
        ((SecondaryCaptureImageStorage,), "secondary-capture"),
        ((MultiFrameGrayscaleWordSecondaryCaptureImageStorage,), "secondary-capture"),
        ((MRImageStorage, EnhancedMRImageStorage), "mixed-content"),
    ],
)
def test_a_kind_of_object_that_makes_no_volume_is_refused_unopened(classes: tuple[str, ...], code: str) -> None:
    with pytest.raises(InputNotUsable) as caught:
        check_classes(_instances(*classes), VOLUME)

    assert caught.value.code == code
    assert "1.2.3.4" not in caught.value.message  # an unknown UID may say where it is from


def test_a_model_may_ask_for_secondary_captures() -> None:
    named = ImagingInput(modality=("CT",), sop_classes=(SecondaryCaptureImageStorage,))

    check_classes(_instances(SecondaryCaptureImageStorage), named)
    check_classes(_instances(SecondaryCaptureImageStorage), PICTURE)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, None),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "secondary-capture"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, None),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"], "BurnedInAnnotation": "YES"}, "secondary-capture"),
        ({"BurnedInAnnotation": "NO"}, None),
        ({"ConversionType": "WSD"}, "secondary-capture"),
        ({"ConversionType": "DF"}, "secondary-capture"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour-image"),
        ({"PhotometricInterpretation": None}, "colour-image"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "mixed-content"),
        ({"Modality": "PT"}, "mixed-content"),
    ],
)
def test_one_image_that_is_none_refuses_the_series(changes: dict[str, Any], code: str | None) -> None:
    odd = volume_of(1)[0]
    for name, value in changes.items():
        if value is None:
            delattr(odd, name)
        else:
            setattr(odd, name, value)

    assert _refusal([*volume_of(3), odd]) == code


def test_what_a_header_says_is_not_quoted() -> None:
    with pytest.raises(InputNotUsable) as caught:
        check_content(volume_of(1, PhotometricInterpretation="DOE^JOHN"), _instances(CTImageStorage), VOLUME)

    assert "DOE" not in caught.value.message


def test_nothing_is_opened_of_a_series_that_is_no_image() -> None:
    from medflow.dicom.volume import plan_volume
    from medflow.store import FolderObjects

    with pytest.raises(InputNotUsable) as caught:
        plan_volume(_instances(SegmentationStorage), FolderObjects(Path("no-such-folder")), VOLUME)

    assert caught.value.code == "not-an-image"
