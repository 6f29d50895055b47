"""What one object's header says of its series: what models ask for when they choose among series.

An enhanced multi-frame object says part of it in functional groups (PS3.3 C.7.6.16), shared by all frames or by frame.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.dataset import Dataset

from medflow.dicom.elements import first_of, items_of, number_of, numbers_of, text_of
from medflow.records import Series

SERIES_NAMES = (
    *("Modality", "BodyPartExamined", "SeriesDescription", "ProtocolName", "SeriesNumber", "FrameOfReferenceUID"),
    *("Laterality", "ImageType", "ContrastBolusAgent", "ContrastBolusAgentSequence", "SliceThickness"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
NO_AGENT = frozenset(("NONE", "NO", "NO CONTRAST", "WITHOUT", "WITHOUT CONTRAST"))  # written where blank is meant


def series_of(dataset: Dataset, series_instance_uid: str) -> Series:
    """The series level of a data set that has the elements of SERIES_NAMES, where the file has them."""
    return Series(
        series_instance_uid=series_instance_uid,
        modality=text_of(dataset, "Modality") or "",
        body_part=text_of(dataset, "BodyPartExamined"),
        description=text_of(dataset, "SeriesDescription"),
        protocol_name=text_of(dataset, "ProtocolName"),
        image_type=text_of(dataset, "ImageType"),
        contrast=_contrast(dataset),
        slice_thickness_mm=_slice_thickness(dataset),
        series_number=number_of(dataset, "SeriesNumber"),
        frame_of_reference_uid=first_of(dataset, "FrameOfReferenceUID"),
        laterality=text_of(dataset, "Laterality"),
    )


def _contrast(dataset: Dataset) -> bool:
    """Whether a contrast agent is named (PS3.3 C.7.6.4, for enhanced objects C.7.6.4b)."""
    agent = text_of(dataset, "ContrastBolusAgent")
    return (agent is not None and agent.upper() not in NO_AGENT) or bool(
        items_of(dataset, "ContrastBolusAgentSequence")
    )


def _slice_thickness(dataset: Dataset) -> float | None:
    """SliceThickness in mm; of an enhanced object the least of its frames'."""
    stated = [thickness for holder in _holders(dataset) if (thickness := _positive(holder)) is not None]
    return min(stated, default=None)


def _holders(dataset: Dataset) -> Iterator[Dataset]:
    yield dataset
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for item in items_of(dataset, groups):
            yield from items_of(item, "PixelMeasuresSequence")


def _positive(dataset: Dataset) -> float | None:
    values = numbers_of(dataset, "SliceThickness")
    return values[0] if values and values[0] > 0 else None
