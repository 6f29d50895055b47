"""What each frame of a series says of itself: where it lies, and what may tell its volume from the others.

Plain objects say it in their data set, enhanced ones in functional groups (PS3.3 C.7.6.16), and of diffusion three
vendors say it in private elements. Whatever says it, a fact has one name, that which plugins read in `Image.volumes`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from medflow.dicom.elements import first_of, items_of, numbers_of, text_of, value_of
from medflow.dicom.geometry import Plane, group_of, planes_of
from medflow.dicom.times import DATETIME, local_time

SYNONYMS = {  # fact: the elements that give it, the first that is there, each in the data set or a functional group
    "TemporalPositionIndex": ("FrameContentSequence.TemporalPositionIndex", "TemporalPositionIdentifier"),
    "TemporalPositionTimeOffset": ("TemporalPositionSequence.TemporalPositionTimeOffset",),
    "NominalPercentageOfCardiacPhase": (
        *("CardiacSynchronizationSequence.NominalPercentageOfCardiacPhase", "NominalPercentageOfCardiacPhase"),
    ),
    "NominalCardiacTriggerDelayTime": ("CardiacSynchronizationSequence.NominalCardiacTriggerDelayTime",),
    "NominalPercentageOfRespiratoryPhase": (
        *("RespiratorySynchronizationSequence.NominalPercentageOfRespiratoryPhase",),
        *("NominalPercentageOfRespiratoryPhase",),
    ),
    "NominalRespiratoryTriggerDelayTime": (
        *("RespiratorySynchronizationSequence.NominalRespiratoryTriggerDelayTime",),
    ),
    "FrameReferenceTime": ("FrameReferenceTime",),
    "EchoTime": ("MREchoSequence.EffectiveEchoTime", "EchoTime", "EffectiveEchoTime"),
    "EchoNumbers": ("EchoNumbers",),
    "InversionTime": ("MRModifierSequence.InversionTimes", "InversionTime", "InversionTimes"),
    "RepetitionTime": ("MRTimingAndRelatedParametersSequence.RepetitionTime", "RepetitionTime"),
    "FlipAngle": ("MRTimingAndRelatedParametersSequence.FlipAngle", "FlipAngle"),
    "DiffusionBValue": ("MRDiffusionSequence.DiffusionBValue", "DiffusionBValue"),
    "KVP": ("CTXRayDetailsSequence.KVP", "KVP"),
    "SliceThickness": ("PixelMeasuresSequence.SliceThickness", "SliceThickness"),
    "TriggerTime": ("TriggerTime",),
    "AcquisitionNumber": ("FrameContentSequence.FrameAcquisitionNumber", "AcquisitionNumber"),
    "InstanceNumber": ("InstanceNumber",),
}
KINDS = {  # words for the kind of a picture
    "ComplexImageComponent": (*("MRImageFrameTypeSequence.ComplexImageComponent", "ComplexImageComponent"),),
    "ConvolutionKernel": ("CTReconstructionSequence.ConvolutionKernel", "ConvolutionKernel"),
    "ImageType": (
        *("MRImageFrameTypeSequence.FrameType", "CTImageFrameTypeSequence.FrameType"),
        *("PETFrameTypeSequence.FrameType", "ImageType"),
    ),
}
COMPONENTS = {"M": "MAGNITUDE", "P": "PHASE", "R": "REAL", "I": "IMAGINARY"}  # as some vendors abbreviate in ImageType
ECHO = re.compile(r"(ECHO|TE)_?\d+")  # a value of ImageType that says which echo, not which kind
SPATIAL = {"StackID", "InStackPositionNumber", "ImagePositionPatient", "SliceLocation", "ImageOrientationPatient"}
INDEX_NAMES = {"EffectiveEchoTime": "EchoTime", "InversionTimes": "InversionTime", "FrameAcquisitionNumber": None}
B_VALUES = (  # private creator, group, last byte of the element
    ("SIEMENS MR HEADER", 0x0019, 0x0C),
    ("GEMS_PARM_01", 0x0043, 0x39),
    ("Philips Imaging DD 001", 0x2001, 0x03),
)
UNASSIGNED = ("UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence")
FRAME_HEADER = sorted(
    {name for names in (*SYNONYMS.values(), *KINDS.values()) for name in names if "." not in name}
    | {f"{group:04x}{element:04x}" for _, group, last in B_VALUES for element in (0x10, 0x1000 + last)}
    | {"StackID", "DiffusionGradientOrientation", "DimensionIndexSequence", "SharedFunctionalGroupsSequence"}
    | {"AcquisitionDateTime", "AcquisitionDate", "AcquisitionTime", "PerFrameFunctionalGroupsSequence"}
)
START = datetime(1900, 1, 1)  # noqa: DTZ001 - seconds on the clock of the series, for comparing only


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frame:
    """One slice of a series: frame ``number`` of file ``file``, both counted from 0.

    ``facts`` are numbers by DICOM keyword; one of several values carries its index (DiffusionGradientOrientation[0]).
    ``kind`` are words that say what kind of picture it is. ``acquired_s`` is when, in seconds on the series' clock.
    ``tile`` is the (row, column) where the slice begins in a frame that is a mosaic.
    """

    file: int
    number: int
    plane: Plane
    facts: Mapping[str, float] = field(default_factory=dict)
    kind: Mapping[str, str] = field(default_factory=dict)
    stack: str | None = None
    acquired_s: float | None = None
    tile: tuple[int, int] | None = None


def frames_of(header: Dataset, file: int) -> list[Frame]:
    """The frames of one instance, from its header (`FRAME_HEADER` and what `planes_of` reads).

    Raises
    ------
    InputNotUsable
        missing-geometry.
    """
    planes = planes_of(header)
    shared = items_of(header, "SharedFunctionalGroupsSequence")[:1]
    per_frame = items_of(header, "PerFrameFunctionalGroupsSequence")
    groups = [(one, *shared) for one in per_frame] or [tuple(shared)]
    names = _dimensions(header)
    return [
        _frame(_Groups(groups=own, dataset=header), names, plane, file, number)
        for number, (plane, own) in enumerate(zip(planes, groups, strict=True))
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Groups:
    """Where a frame's attributes stand: its own functional groups, the shared ones, and the data set."""

    groups: tuple[Dataset, ...]
    dataset: Dataset

    def number(self, paths: Sequence[str]) -> float | None:
        """The first value of the first element of ``paths`` that has one."""
        for path in paths:
            place, name = self._having(path)
            if place is not None and (values := numbers_of(place, name)):
                return values[0]
        return None

    def text(self, paths: Sequence[str]) -> str | None:
        """All values, joined by backslashes, of the first element of ``paths`` that has one."""
        for path in paths:
            place, name = self._having(path)
            if place is not None and (text := text_of(place, name)):
                return text
        return None

    def _having(self, path: str) -> tuple[Dataset | None, str]:
        """The item or data set that has the element at the end of ``path``, and its name; None where none has it."""
        sequence, _, name = path.rpartition(".")
        if self.groups:
            for one in (sequence,) if sequence else UNASSIGNED:
                if name in (item := group_of(self.groups, one)):
                    return item, name
        return (self.dataset if not sequence and name in self.dataset else None), name


def _frame(groups: _Groups, dimensions: Sequence[str | None], plane: Plane, file: int, number: int) -> Frame:
    found = {name: groups.number(paths) for name, paths in SYNONYMS.items()}
    if found["DiffusionBValue"] is None:
        found["DiffusionBValue"] = _private_b_value(groups.dataset)
    found |= {f"DiffusionGradientOrientation[{index}]": value for index, value in enumerate(_gradient(groups))}
    content = group_of(groups.groups, "FrameContentSequence")
    for name, value in zip(dimensions, numbers_of(content, "DimensionIndexValues"), strict=False):
        if name is not None and found.get(name) is None:
            found[name] = value
    return Frame(
        file=file,
        number=number,
        plane=plane,
        facts={name: _rounded(value) for name, value in found.items() if value is not None},
        kind=_kind(groups),
        stack=first_of(content, "StackID") or first_of(groups.dataset, "StackID"),
        acquired_s=_acquired(groups),
    )


def _rounded(value: float) -> float:
    """To six digits, as one value may be written with more in one slice than in the next."""
    return value if value.is_integer() else float(f"{value:.6g}")


def _dimensions(header: Dataset) -> list[str | None]:
    """For each dimension index (PS3.3 C.7.6.17) the fact that it numbers; None where it numbers places."""
    names: list[str | None] = []
    for index, item in enumerate(items_of(header, "DimensionIndexSequence")):
        pointer = value_of(item, "DimensionIndexPointer")
        keyword = keyword_for_tag(pointer) if isinstance(pointer, int) else ""
        if keyword in SPATIAL:
            names.append(None)
        else:
            names.append(INDEX_NAMES.get(keyword, keyword) if keyword else f"DimensionIndexValues[{index}]")
    return names


def _gradient(groups: _Groups) -> tuple[float, ...]:
    diffusion = group_of(groups.groups, "MRDiffusionSequence")
    for place in (*items_of(diffusion, "DiffusionGradientDirectionSequence")[:1], groups.dataset):
        if len(values := numbers_of(place, "DiffusionGradientOrientation")) == 3:
            return values
    return ()


def _private_b_value(dataset: Dataset) -> float | None:
    for creator, group, last in B_VALUES:
        if str(_private(dataset, group, 0x10)).strip() == creator:
            value = _private(dataset, group, 0x1000 + last)
            first: Any = value[0] if isinstance(value, MultiValue) and value else value
            try:
                return float(first) % 100_000  # GE adds 10^9 to some
            except (TypeError, ValueError):
                return None
    return None


def _private(dataset: Dataset, group: int, element: int) -> Any:
    try:
        return dataset[group, element].value
    except Exception:  # noqa: BLE001 - absent, or whatever pydicom's converters raise
        return None


def _kind(groups: _Groups) -> dict[str, str]:
    kind = {name: text for name, paths in KINDS.items() if (text := groups.text(paths))}
    values = kind.pop("ImageType", "").upper().split("\\")[2:]
    short = [COMPONENTS[value] for value in values if value in COMPONENTS]
    if len(short) == 1:
        kind.setdefault("ComplexImageComponent", short[0])
    if rest := [value for value in values if value not in COMPONENTS and not ECHO.fullmatch(value)]:
        kind["ImageType"] = "\\".join(rest)
    return kind


def _acquired(groups: _Groups) -> float | None:
    moment = groups.text(("FrameContentSequence.FrameAcquisitionDateTime", "AcquisitionDateTime"))
    match = DATETIME.fullmatch(moment or "")
    day, time = (match[1], match[2]) if match else (groups.text(["AcquisitionDate"]), groups.text(["AcquisitionTime"]))
    found = local_time(day, time)
    return (found - START).total_seconds() if found else None
