"""Masks to DICOM Segmentation objects and back (PS3.3 A.51, C.8.20), through highdicom.

A mask goes back onto the very slices that the image was read from, each frame with a reference to its source, so that a
viewer lays it over them without guessing. All masks of a job are one object; masks of probabilities are another, as an
object has one SegmentationType.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels.utils import iter_pixels
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SegmentationStorage,
)

from medflow.dicom.derived import (
    LO,
    MANUFACTURER,
    MadeObject,
    Maker,
    ascii_text,
    blank_source,
    complete,
    made_object,
    read_source,
    series_number,
)
from medflow.dicom.elements import first_of, items_of, number_of, quiet, text_of
from medflow.dicom.geometry import Plane, group_of, places_of, planes_of
from medflow.dicom.pixels import Objects
from medflow.dicom.plan import VolumePlan
from medflow.errors import InputNotUsable
from medflow.plugin import LabelMask, Mask, Segment
from medflow.records import Coding

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription

KIND = "segmentation"
LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
UNCOMPRESSED = {ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian}
LAYOUT = 1  # part of every object's identity: raised when the same masks are written differently
SERIES_OFFSET = 100_000
PLACEHOLDER = "2.25."  # then the slice's number: it stands for a slice until its real references are put in
LEVELS = 255  # MaximumFractionalValue
SAME_PLACE = 0.25  # pixels, or slices, between where a frame lies and where a slice does
HALF = 0.5
SCHEMES = {  # FHIR system to DICOM coding scheme designator (PS3.16 8)
    "http://snomed.info/sct": "SCT",
    "http://loinc.org": "LN",
    "http://dicom.nema.org/resources/ontology/DCM": "DCM",
    "http://unitsofmeasure.org": "UCUM",
    "http://purl.org/sig/ont/fma": "FMA",
    "http://www.radlex.org": "RADLEX",
    "http://radlex.org": "RADLEX",
    "http://hl7.org/fhir/sid/icd-10": "I10",
}
PRIVATE_SCHEME = "99MEDFLOW"


# --- writing ---------------------------------------------------------------------------------------------------


def write_segmentations(
    plan: VolumePlan, objects: Objects, masks: Sequence[tuple[Segment, Mask]], maker: Maker
) -> list[MadeObject]:
    """One object of the boolean masks and one of the fractional ones, as far as there are any.

    Parameters
    ----------
    plan
        How the image that the masks lie on was made of its series.
    objects
        The object store, for the header of a source image.
    masks
        Each on the grid of the image, (z, y, x) or (rows, columns): boolean, or of a fractional segment 0..1. Those of
        one label map are written from it, without a boolean array of each.
    maker
        The model.

    Raises
    ------
    InputNotUsable
        The source can no longer be read, or says not where it lies.
    """
    quiet()
    fractional = [(segment, mask) for segment, mask in masks if segment.fractional]
    binary = [(segment, mask) for segment, mask in masks if not segment.fractional]
    source = _Source(plan, read_source(plan.slices[0][0].instance, objects))
    return [_write(source, number, part, maker) for number, part in enumerate((binary, fractional), 1) if part]


class _Source:
    """The slices that masks lie on, as headers that highdicom can work from: one frame each, and no patient."""

    def __init__(self, plan: VolumePlan, header: Dataset) -> None:
        if plan.source_affine is None:
            raise InputNotUsable("missing-geometry", "a segmentation needs an image that says where it lies")
        self.plan, self.header = plan, header
        self.slices = plan.slices[0]  # of several volumes the first stands for all: they share one grid
        self.affine = plan.source_affine
        self.shape = (len(self.slices), *plan.source_shape[-2:])

    def headers(self) -> list[Dataset]:
        along_rows, along_columns = (self.affine[:3, axis] / self._length(axis) for axis in (0, 1))
        distance = abs(float(np.cross(along_rows, along_columns) @ self.affine[:3, 2]))  # along the normal, tilt or not
        blank = blank_source(self.header)
        blank.Modality = self.plan.modality
        blank.Rows, blank.Columns = self.shape[1:]
        blank.ImageOrientationPatient = [_decimal(value) for value in (*along_rows, *along_columns)]
        blank.PixelSpacing = [_decimal(self._length(axis)) for axis in (1, 0)]
        blank.SliceThickness = blank.SpacingBetweenSlices = _decimal(distance)
        return [self._slice_header(blank, z, position) for z, position in enumerate(self._positions())]

    def _length(self, axis: int) -> float:
        return float(np.linalg.norm(self.affine[:3, axis]))

    def _slice_header(self, blank: Dataset, z: int, position: np.ndarray) -> Dataset:
        header = Dataset()
        header.update(blank)
        header.SOPClassUID = CTImageStorage  # of one frame
        header.SOPInstanceUID = f"{PLACEHOLDER}{z + 1}"
        header.InstanceNumber = z + 1
        header.ImagePositionPatient = [_decimal(value) for value in position]
        return header

    def _positions(self) -> Iterator[np.ndarray]:
        """As the source says them; of a slice cut out of a larger frame, which says nothing of it, by the grid."""
        planes = {}
        for z, item in enumerate(self.slices):
            if item.tile is not None:
                yield (self.affine @ (0.0, 0.0, float(z), 1.0))[:3]
                continue
            if item.instance not in planes:
                planes[item.instance] = planes_of(self.plan.files[item.instance].header)
            yield planes[item.instance][item.frame].position

    def reference(self, placeholder: str, reference: Dataset) -> None:
        """Turn a reference to a slice's placeholder into one to its instance, and its frame where it has several."""
        item = self.slices[int(placeholder.removeprefix(PLACEHOLDER)) - 1]
        reference.ReferencedSOPClassUID = item.instance.sop_class_uid
        reference.ReferencedSOPInstanceUID = item.instance.sop_instance_uid
        if (number_of(self.plan.files[item.instance].header, "NumberOfFrames") or 1) > 1:
            reference.ReferencedFrameNumber = item.frame + 1
        if item.tile is not None:
            reference.SpatialLocationsPreserved = "NO"

    def references(self) -> list[Dataset]:
        """A reference to each instance."""
        found = []
        for instance in dict.fromkeys(item.instance for item in self.slices):
            reference = Dataset()
            reference.ReferencedSOPClassUID = instance.sop_class_uid
            reference.ReferencedSOPInstanceUID = instance.sop_instance_uid
            found.append(reference)
        return found


def _decimal(value: Any) -> str:
    """A DS of at most 16 characters (PS3.5 6.2)."""
    number = float(value) + 0.0
    return next(text for digits in range(16, 5, -1) if len(text := f"{number:.{digits}g}") <= 16)


def _write(source: _Source, instance_number: int, masks: Sequence[tuple[Segment, Mask]], maker: Maker) -> MadeObject:
    from highdicom.seg import Segmentation

    segments = [segment for segment, _ in masks]
    drawn = _drawn(source, masks)
    series = first_of(source.header, "SeriesInstanceUID") or ""
    uid = maker.uid(KIND, LAYOUT, series, drawn.content)
    headers = source.headers()
    shown = drawn.shown or [0]  # of empty masks one slice: an object has a frame
    made = Segmentation(
        source_images=[headers[z] for z in shown],
        pixel_array=drawn.on(shown),
        segmentation_type="FRACTIONAL" if segments[0].fractional else "BINARY",
        segment_descriptions=[_description(number, item, maker, uid) for number, item in enumerate(segments, 1)],
        max_fractional_value=LEVELS,
        omit_empty_frames=bool(drawn.shown),
        series_instance_uid=maker.uid(KIND, series),
        series_number=series_number(source.header, SERIES_OFFSET),
        sop_instance_uid=uid,
        instance_number=instance_number,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=ascii_text(maker.model, LO),
        software_versions=tuple(maker.software_versions),  # pyright: ignore[reportArgumentType]  # any number of them
        device_serial_number=maker.digest[:LO],
        content_label="SEGMENTATION",
        content_description=ascii_text(maker.title, LO),
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    _refer(made, source)
    organization = maker.uid("dimensions", uid)
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    complete(made, source.header, maker)
    made.ContentCreatorName = ""
    _identify_schemes(made, segments)
    return made_object(made, kind=KIND, sop_instance_uid=uid, outputs=tuple(segment.name for segment in segments))


def _drawn(source: _Source, masks: Sequence[tuple[Segment, Mask]]) -> _Drawn:
    segments = [segment for segment, _ in masks]
    fractional = segments[0].fractional
    numbers = None if fractional else _numbered(source, [mask for _, mask in masks])
    if numbers is not None:
        return _Drawn(segments, [numbers])
    return _Drawn(segments, [_levels(_on_slices(source, np.asarray(mask))) for _, mask in masks], apart=True)


class _Drawn:
    """Masks on the source's slices: as the numbers of segments, or ``apart`` in an array for each, uint8 (z, y, x)."""

    def __init__(self, segments: Sequence[Segment], arrays: Sequence[np.ndarray], *, apart: bool = False) -> None:
        self._fractional, self._arrays, self._apart = segments[0].fractional, arrays, apart
        filled = np.array([[plane.any() for plane in array] for array in arrays])
        self.shown: list[int] = np.flatnonzero(filled.any(axis=0)).tolist()  # the slices on which there is something
        self.content = self._digest(segments)

    def _digest(self, segments: Sequence[Segment]) -> str:
        """A digest of what the object shows: another mask is another object."""
        total = sha256(repr((self._apart, self._arrays[0].shape, *segments)).encode())
        packed = self._apart and not self._fractional
        for array in self._arrays:
            total.update((np.packbits(array) if packed else np.ascontiguousarray(array)).data)
        return total.hexdigest()

    def on(self, shown: Sequence[int]) -> np.ndarray:
        """What highdicom takes of these slices: segment numbers (z, y, x), or (z, y, x, segment)."""
        if not self._apart:
            return self._arrays[0][shown]
        stack = np.stack([array[shown] for array in self._arrays], axis=-1)
        return stack.astype(np.float32) / np.float32(LEVELS) if self._fractional else stack


def _on_slices(source: _Source, array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(source.plan.on_source(array)).reshape(source.shape)


def _levels(array: np.ndarray) -> np.ndarray:
    """uint8: 0 and 1, or probabilities in the levels that are written."""
    return array.view(np.uint8) if array.dtype == np.bool_ else np.around(array * LEVELS).astype(np.uint8)


def _numbered(source: _Source, masks: Sequence[Mask]) -> np.ndarray | None:
    """The number of the segment, from 1, that each voxel is in; None where one is in two."""
    numbers = np.zeros(source.shape, np.uint8 if len(masks) < 256 else np.uint16)
    for labels, segments in _layers(masks):
        plain = labels.dtype == np.bool_
        table = np.zeros(2 if plain else np.iinfo(labels.dtype).max + 1, numbers.dtype)
        table[list(segments)] = list(segments.values())
        for place, plane in zip(numbers, _on_slices(source, labels), strict=True):
            if plain and not plane.any():
                continue
            found = plane * table[1] if plain else table[plane]
            if np.minimum(place, found).any():
                return None
            place |= found
    return numbers


def _layers(masks: Sequence[Mask]) -> list[tuple[np.ndarray, dict[int, int]]]:
    """Arrays of labels, and the segments' numbers by label: one for all masks that share it, but for a label twice."""
    layers: list[tuple[np.ndarray, dict[int, int]]] = []
    for number, mask in enumerate(masks, 1):
        array, value = (mask.labels, mask.value) if isinstance(mask, LabelMask) else (mask, 1)
        free = (segments for labels, segments in layers if labels is array and value not in segments)
        segments = next(free, None)
        if segments is None:
            layers.append((array, segments := {}))
        segments[value] = number
    return layers


def _description(number: int, segment: Segment, maker: Maker, uid: str) -> SegmentDescription:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription

    algorithm = AlgorithmIdentificationSequence(
        name=ascii_text(maker.model, LO),
        version=ascii_text(maker.version, LO),
        family=codes.DCM.ArtificialIntelligence,
        parameters={"digest": maker.digest},
    )
    return SegmentDescription(
        segment_number=number,
        segment_label=ascii_text(segment.name, LO),
        segmented_property_category=_code(segment.property_category),
        segmented_property_type=_code(segment.property_type or segment.body_site),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_id=ascii_text(f"{maker.model} {segment.name}", LO),
        tracking_uid=maker.uid("tracking", uid, segment.name),
        anatomic_regions=[_code(segment.body_site)],
    )


def _code(coding: Coding) -> Code:
    """A coding as DICOM writes it; a code of a system without a designator keeps its own under a private one."""
    meaning = ascii_text(coding.display or coding.code, LO)
    return Code(coding.code, SCHEMES.get(coding.system, PRIVATE_SCHEME), meaning)


def _identify_schemes(made: Dataset, segments: Sequence[Segment]) -> None:
    """Say which system the private designator stands for (PS3.3 C.12.1.1.7)."""
    used = [code for item in segments for code in (item.property_category, item.property_type, item.body_site) if code]
    systems = sorted({code.system for code in used} - SCHEMES.keys())
    if systems:
        scheme = Dataset()
        scheme.CodingSchemeDesignator = PRIVATE_SCHEME
        scheme.CodingSchemeName = ascii_text(", ".join(systems), 1024)
        made.CodingSchemeIdentificationSequence = [scheme]


def _refer(made: Dataset, source: _Source) -> None:
    """Put the references to the real instances and frames in place of the slices' placeholders."""
    made.SourceImageSequence = source.references()
    made.ReferencedSeriesSequence[0].ReferencedInstanceSequence = source.references()
    found = {  # frames of several segments on one slice share theirs
        id(reference): reference
        for group in made.PerFrameFunctionalGroupsSequence
        for derivation in items_of(group, "DerivationImageSequence")
        for reference in derivation.SourceImageSequence
    }
    for reference in found.values():
        source.reference(str(reference.ReferencedSOPInstanceUID), reference)


# --- reading ---------------------------------------------------------------------------------------------------


def read_segmentation(data: bytes, plan: VolumePlan | None = None) -> dict[str, np.ndarray]:
    """The masks of a segmentation object by SegmentLabel: bool (z, y, x), or float32 0..1 of a fractional one.

    A label that several segments share gets the segment's number after it.

    Parameters
    ----------
    data
        The file.
    plan
        How the image was made that the masks are wanted on: they are given on its grid, straightened if it is. Without
        it they are given on the object's own planes, in order along their normal.

    Raises
    ------
    InputNotUsable
        not-a-segmentation, undecodable-frame, or missing-geometry; other-slices: a frame lies on none of the plan's.
    """
    quiet()
    try:
        dataset = dcmread(BytesIO(data), force=True)
    except Exception as error:
        raise InputNotUsable("undecodable-frame", f"the segmentation cannot be read ({type(error).__name__})") from None
    if first_of(dataset, "SOPClassUID") not in (SegmentationStorage, LABEL_MAP_STORAGE):
        raise InputNotUsable("not-a-segmentation", "the object is not a DICOM Segmentation")
    planes = planes_of(dataset)
    if plan is None:
        places = places_of(planes)
        return _masks(dataset, places, (int(places.max()) + 1, *planes[0].shape))
    shape = (len(plan.slices[0]), *plan.source_shape[-2:])
    masks = _masks(dataset, _places_on(plan, planes), shape)
    return {name: _on_image(plan, mask) for name, mask in masks.items()}


def _masks(dataset: Dataset, places: np.ndarray, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    labels = _labels(dataset)
    kind = first_of(dataset, "SegmentationType")
    masks = {number: np.zeros(shape, np.float32 if kind == "FRACTIONAL" else np.bool_) for number in labels}
    try:
        for frame, (pixels, z) in enumerate(zip(_pixels_of(dataset), places, strict=True)):
            if kind == "LABELMAP":
                for number, mask in masks.items():
                    mask[z] |= pixels == number
            elif kind == "FRACTIONAL":
                masks[_segment_of(dataset, frame)][z] = pixels / np.float32(dataset.MaximumFractionalValue)
            else:
                masks[_segment_of(dataset, frame)][z] |= pixels.astype(bool)
    except Exception as error:
        reason = f"a frame of the segmentation cannot be decoded ({type(error).__name__})"
        raise InputNotUsable("undecodable-frame", reason) from None
    return {labels[number]: mask for number, mask in masks.items()}


def _pixels_of(dataset: Dataset) -> Iterator[np.ndarray]:
    """Each frame's stored values; of single bits by their place, as pydicom loses some where frames share a byte."""
    if dataset.BitsAllocated != 1 or dataset.file_meta.TransferSyntaxUID not in UNCOMPRESSED:
        yield from iter_pixels(dataset)
        return
    data, count = np.frombuffer(dataset.PixelData, np.uint8), dataset.Rows * dataset.Columns
    for start in range(0, count * int(dataset.NumberOfFrames), count):
        bits = np.unpackbits(data[start // 8 : -(-(start + count) // 8)], bitorder="little")
        yield bits[start % 8 : start % 8 + count].reshape(dataset.Rows, dataset.Columns)


def _places_on(plan: VolumePlan, planes: Sequence[Plane]) -> np.ndarray:
    """The slice of the plan that each plane is, which must lie where the slice does."""
    if plan.source_affine is None:
        raise InputNotUsable("missing-geometry", "the image does not say where it lies")
    inverse = np.linalg.inv(plan.source_affine)
    found = np.array([(inverse @ (*plane.position, 1.0))[:3] for plane in planes])
    places = np.rint(found[:, 2]).astype(int)
    alike = all(plane.shape == plan.source_shape[-2:] for plane in planes)
    away = np.abs(found - np.stack([np.zeros_like(places), np.zeros_like(places), places], axis=1)).max()
    if not alike or away > SAME_PLACE or places.min() < 0 or places.max() >= len(plan.slices[0]):
        raise InputNotUsable("other-slices", "the segmentation is not of the slices of the image")
    return places


def _on_image(plan: VolumePlan, mask: np.ndarray) -> np.ndarray:
    shape = plan.shape[-3:]
    if plan.straightening is None:
        return mask.reshape(shape)
    straight = np.zeros(shape, np.float32)
    straight[:, : plan.source_shape[-2]] = mask
    plan.straightening.straighten(straight)
    return straight if mask.dtype != np.bool_ else straight >= HALF


def _labels(dataset: Dataset) -> dict[int, str]:
    segments = {number_of(item, "SegmentNumber") or 0: item for item in items_of(dataset, "SegmentSequence")}
    names = {number: text_of(item, "SegmentLabel") or str(number) for number, item in segments.items()}
    counted = Counter(names.values())
    return {number: name if counted[name] == 1 else f"{name} {number}" for number, name in names.items()}


def _groups(dataset: Dataset, frame: int) -> tuple[Dataset, ...]:
    own = items_of(dataset, "PerFrameFunctionalGroupsSequence")[frame]
    return (own, *items_of(dataset, "SharedFunctionalGroupsSequence")[:1])


def _segment_of(dataset: Dataset, frame: int) -> int:
    identified = group_of(_groups(dataset, frame), "SegmentIdentificationSequence")
    return number_of(identified, "ReferencedSegmentNumber") or 0
