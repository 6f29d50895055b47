"""What a series must be before anyone looks where its slices lie: greyscale pictures of a patient, of one kind."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.uid import UID

from medflow.dicom.elements import first_of, number_of, text_of
from medflow.errors import InputNotUsable
from medflow.plugin import ImagingInput
from medflow.records import Instance
from medflow.series_rule import IMAGE_CLASSES, SECONDARY_CAPTURES, excluded_classes, is_scout

GATE_HEADER = (
    *("Modality", "ImageType", "SamplesPerPixel", "PhotometricInterpretation"),
    *("ConversionType", "BurnedInAnnotation"),
)
SCREENS = {"SCREEN SAVE", "SCREENSHOT", "SCREEN CAPTURE", "SCREEN"}  # in ImageType, of what a console showed
COLOURS = {"PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT", "HSV", "CMYK"}
CAPTURED = {"DV", "DF", "SD", "SI", "WSD", "DRW"}  # ConversionType: video, film, scan, workstation, drawing


def is_image(instance: Instance) -> bool:
    """Whether an instance is of a SOP class whose pixels are a picture of a patient's inside."""
    return instance.sop_class_uid in IMAGE_CLASSES


def check_classes(instances: Sequence[Instance], spec: ImagingInput) -> None:
    """Refuse what is no image, by SOP class alone: nothing is opened.

    Raises
    ------
    InputNotUsable
        too-few-slices (nothing is there), not-an-image, secondary-capture or mixed-content.
    """
    if not instances:
        raise InputNotUsable("too-few-slices", "the series has no instances")
    for instance in instances:
        if not is_image(instance):
            name = UID(instance.sop_class_uid).name
            known = name if name != instance.sop_class_uid else "an object of a private or unknown kind"
            raise InputNotUsable("not-an-image", f"{known} is not an image that models are given")
        if instance.sop_class_uid in excluded_classes(spec):
            raise InputNotUsable("secondary-capture", "secondary captures (screenshots and the like) make no volume")
    if len({instance.sop_class_uid for instance in instances}) > 1:
        raise InputNotUsable("mixed-content", "the series mixes kinds of images: they differ in SOP class")


def check_content(headers: Sequence[Dataset], instances: Sequence[Instance], spec: ImagingInput) -> None:
    """Refuse pictures that are none of a patient's inside, or not all of one kind.

    Raises
    ------
    InputNotUsable
        colour-image, localizer, secondary-capture or mixed-content.
    """
    for header, instance in zip(headers, instances, strict=True):
        photometric = first_of(header, "PhotometricInterpretation")
        if number_of(header, "SamplesPerPixel") != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
            raise InputNotUsable("colour-image", f"{_known(photometric)} is not a greyscale image")
        if is_scout(text_of(header, "ImageType")):
            raise InputNotUsable("localizer", "an image of the series is a localizer (scout)")
        if instance.sop_class_uid not in spec.sop_classes and _is_capture(header, instance):
            raise InputNotUsable("secondary-capture", "an image of the series was captured from a screen or a film")
    for name in ("PhotometricInterpretation", "Modality"):
        if len({first_of(header, name) for header in headers}) > 1:
            raise InputNotUsable("mixed-content", f"the series mixes kinds of images: they differ in {name}")


def _known(photometric: str | None) -> str:
    return photometric if photometric in COLOURS else "an unknown photometric interpretation"


def _is_capture(header: Dataset, instance: Instance) -> bool:
    """What a workstation or film scanner made, though its SOP class may be that of a scanner (PS3.3 C.8.6.1)."""
    values = (text_of(header, "ImageType") or "").upper().split("\\")
    if not SCREENS.isdisjoint(values):
        return True
    if instance.sop_class_uid in SECONDARY_CAPTURES:
        return False  # as a picture it is taken: whoever asks for one knows what kind it is
    burned_in = "SECONDARY" in values and first_of(header, "BurnedInAnnotation") == "YES"
    return burned_in or first_of(header, "ConversionType") in CAPTURED
