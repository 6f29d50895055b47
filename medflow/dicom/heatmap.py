"""Heat maps as DICOM objects that name the images they explain (PS3.3 A.75 and A.8).

Where slices have a place, a Parametric Map: the numbers themselves, on the slices of the source. A projection has none,
and few viewers show parametric maps over it: there a Secondary Capture, the source with the map in colours over it, for
people to look at; the numbers are in a private element beside, for `read_heat_map`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from medflow.dicom.derived import (
    ABOUT_SERIES,
    COPIED,
    MadeObject,
    blank_source,
    complete,
    made_object,
    series_number,
)
from medflow.dicom.elements import first_of, quiet, text_of
from medflow.dicom.geometry import planes_of
from medflow.dicom.maker import KIND, LO, HeatMap, Maker, ascii_text
from medflow.dicom.pixels import Objects, open_instance
from medflow.dicom.plan import Slice, VolumePlan
from medflow.drawing import blended
from medflow.errors import InputNotUsable
from medflow.records import Instance

LAYOUT = 1  # part of every object's identity: raised when the same map is written differently
SERIES_OFFSET = 200_000  # of the series number, beside the source's
PLACEHOLDER = "2.25."  # then the slice's number: it stands for a slice until its real references are put in
PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"
SHOWN = ("Laterality", "PatientOrientation", "BurnedInAnnotation")
PRIVATE = (0x0077, "medflow heat map")  # the block of a secondary capture that holds the numbers
PRIVATE_MAP = 0x01  # OF: float32, row by row, NaN where nothing is said


def write_heat_maps(
    plan: VolumePlan, objects: Objects, maps: Mapping[str, np.ndarray], pixels: np.ndarray, maker: Maker
) -> list[MadeObject]:
    """The objects of each output's heat map: one, or one for each volume of a series of several.

    Parameters
    ----------
    plan
        How the image was made of its series.
    objects
        The object store, for the header of a source image.
    maps
        By output: float32, on the grid of the image, NaN where nothing is said.
    pixels
        The image as the model was given it.
    maker
        The model.

    Raises
    ------
    InputNotUsable
        The source can no longer be read, or (missing-geometry) has several slices and says not where they lie.
    """
    quiet()
    header = open_instance(plan.slices[0][0].instance, objects, [*COPIED, *ABOUT_SERIES, *SHOWN]).header
    source = _Source(plan=plan, header=header, series_uid=first_of(header, "SeriesInstanceUID") or "")
    if plan.source_affine is None:
        if pixels.ndim != 2:
            raise InputNotUsable("missing-geometry", "a heat map of slices needs an image that says where they lie")
        return [_capture(source, output, values, pixels, maker) for output, values in maps.items()]
    return [
        _parametric_map(source, output, number, volume, maker)
        for output, values in maps.items()
        for number, volume in enumerate(_on_slices(plan, values))
        if not np.isnan(volume).all()
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """The series that is explained."""

    plan: VolumePlan
    header: Dataset
    series_uid: str


def _on_slices(plan: VolumePlan, values: np.ndarray) -> np.ndarray:
    """(volumes, z, rows, columns) on the slices as they lie."""
    found = plan.on_source(values).reshape(len(plan.slices), -1, *plan.source_shape[-2:])
    return np.ascontiguousarray(found, np.float32)


# --- volumes, and slices that have a place -----------------------------------------------------------------------


def _parametric_map(source: _Source, output: str, volume: int, values: np.ndarray, maker: Maker) -> MadeObject:
    """A Parametric Map of one volume (z, rows, columns): a frame for each slice of the source."""
    import highdicom as hd
    from highdicom.pm import ParametricMap, RealWorldValueMapping

    plan, header, slices = source.plan, source.header, source.plan.slices[volume]
    stored, padding = padded(values)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    uid = maker.uid(KIND, LAYOUT, source.series_uid, output, volume, sha256(stored.tobytes()).hexdigest())
    mapping = RealWorldValueMapping(
        lut_label="RELEVANCE",
        lut_explanation=_explained(output),
        unit=codes.UCUM.NoUnits,
        value_range=(
            low if padding is None else padding,
            high,
        ),  # with the padding: some readers refuse what is outside
    )
    window = hd.VOILUTTransformation(
        window_center=(low + high) / 2, window_width=max(high - low, 1e-6), voi_lut_function="LINEAR_EXACT"
    )
    made = ParametricMap(
        source_images=_as_single_frames(slices, plan, blank_source(header)),
        pixel_array=stored,
        series_instance_uid=maker.uid(KIND, source.series_uid),
        series_number=series_number(header, SERIES_OFFSET),
        sop_instance_uid=uid,
        instance_number=volume + 1,
        manufacturer="medflow",
        manufacturer_model_name=ascii_text(maker.model, LO),
        software_versions=tuple(maker.software_versions),  # type: ignore[arg-type]  # any number of them
        device_serial_number=maker.digest[:LO],
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        pixel_measures=hd.PixelMeasuresSequence(
            pixel_spacing=_pixel_spacing(plan),
            slice_thickness=_distance(plan),
            spacing_between_slices=_distance(plan) if len(slices) > 1 else None,
        ),
        content_label="HEAT_MAP",
        content_description=_explained(output),
        voi_lut_transformations=[window],
    )
    if padding is not None:
        made.FloatPixelPaddingValue = made.FloatPixelPaddingRangeLimit = padding  # a range of one value
    dimensions = maker.uid(KIND, "dimensions", uid)
    for item in (made.DimensionOrganizationSequence[0], *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    _name_sources(made, slices)
    _complete(made, header, maker)
    return made_object(made, kind=KIND, sop_instance_uid=uid, outputs=(output,))


def padded(values: np.ndarray) -> tuple[np.ndarray, float | None]:
    """The values with a number below all of them in place of NaN, and that number; None where there is no NaN.

    Float Pixel Padding Value (PS3.3 C.7.6.24): many readers take a NaN for a defect.
    """
    nothing = np.isnan(values)
    if not nothing.any():
        return values, None
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    padding = np.float32(max(low - max(high - low, abs(low), 1.0), float(np.finfo(np.float32).min)))
    return np.where(nothing, padding, values).astype(np.float32), float(padding)


def _as_single_frames(slices: Sequence[Slice], plan: VolumePlan, blank: Dataset) -> list[Dataset]:
    """What highdicom must know of each slice: its place, and an instance of its own that stands for the real one."""
    affine = np.asarray(plan.source_affine)
    rows, columns = plan.source_shape[-2:]
    along = np.concatenate([affine[:3, column] / np.linalg.norm(affine[:3, column]) for column in (0, 1)])
    found = []
    for z, item in enumerate(slices):
        frame = Dataset()
        frame.update(blank)
        frame.SOPClassUID, frame.SOPInstanceUID = CTImageStorage, f"{PLACEHOLDER}{z + 1}"
        frame.Rows, frame.Columns = rows, columns
        frame.ImageOrientationPatient = [_number(value) for value in along]
        frame.ImagePositionPatient = [_number(value) for value in _position(plan, item, z)]
        frame.PixelSpacing = [_number(value) for value in _pixel_spacing(plan)]
        frame.SliceThickness = _number(_distance(plan))
        found.append(frame)
    return found


def _position(plan: VolumePlan, item: Slice, z: int) -> np.ndarray:
    """As the source says it; of a slice cut out of a larger frame, which says nothing of it, by the grid."""
    if item.tile is None:
        return planes_of(plan.files[item.instance].header)[item.frame].position
    return (np.asarray(plan.source_affine) @ (0.0, 0.0, float(z), 1.0))[:3]


def _pixel_spacing(plan: VolumePlan) -> tuple[float, float]:
    affine = np.asarray(plan.source_affine)
    return float(np.linalg.norm(affine[:3, 1])), float(np.linalg.norm(affine[:3, 0]))


def _distance(plan: VolumePlan) -> float:
    """Between slices, along their normal."""
    affine = np.asarray(plan.source_affine)
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    return abs(float(affine[:3, 2] @ normal / np.linalg.norm(normal)))


def _number(value: float) -> str:
    """A DS of at most 16 characters (PS3.5 6.2)."""
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(value))


def _name_sources(made: Dataset, slices: Sequence[Slice]) -> None:
    """Put the source's instances and frames where their places were held; no UID is left to chance."""
    for group in made.PerFrameFunctionalGroupsSequence:
        for item in group.DerivationImageSequence[0].SourceImageSequence:
            found = slices[int(str(item.ReferencedSOPInstanceUID).removeprefix(PLACEHOLDER)) - 1]
            item.update(_reference(found.instance))
            if found.instance.frames > 1:
                item.ReferencedFrameNumber = found.frame + 1
    (series,) = made.ReferencedSeriesSequence
    series.ReferencedInstanceSequence = _references(slices)
    made.SourceImageSequence = _references(slices)


def _references(slices: Sequence[Slice]) -> list[Dataset]:
    """Each instance once, in the order of the slices."""
    return [_reference(instance) for instance in dict.fromkeys(item.instance for item in slices)]


def _reference(instance: Instance) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = instance.sop_class_uid
    item.ReferencedSOPInstanceUID = instance.sop_instance_uid
    return item


# --- projections -------------------------------------------------------------------------------------------------


def _capture(source: _Source, output: str, values: np.ndarray, pixels: np.ndarray, maker: Maker) -> MadeObject:
    """A Secondary Capture: the image in grey with the map in colours over it, and the map's numbers beside."""
    from highdicom.sc import SCImage

    header, instance = source.header, source.plan.slices[0][0].instance
    uid = maker.uid(KIND, LAYOUT, source.series_uid, output, sha256(values.tobytes()).hexdigest())
    made = SCImage(
        pixel_array=blended(pixels, values),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # put right below: highdicom takes no empty one
        study_instance_uid=first_of(header, "StudyInstanceUID") or "",
        series_instance_uid=maker.uid(KIND, source.series_uid),
        series_number=series_number(header, SERIES_OFFSET),
        sop_instance_uid=uid,
        instance_number=1,
        manufacturer="medflow",
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.ConversionType = "WSD"
    orientation = text_of(header, "PatientOrientation")
    setattr(made, "PatientOrientation", orientation.split("\\") if orientation else "")  # noqa: B010 - highdicom types it
    made.DerivationDescription = f"{_explained(output)} in colours over the image"
    made.SourceImageSequence = [_purpose(_reference(instance))]
    series = Dataset()
    series.SeriesInstanceUID = source.series_uid
    series.ReferencedInstanceSequence = [_reference(instance)]
    made.ReferencedSeriesSequence = [series]
    if said := first_of(header, "BurnedInAnnotation"):
        made.BurnedInAnnotation = said  # nothing is burned in here; what the source has stays
    block = made.private_block(*PRIVATE, create=True)
    block.add_new(PRIVATE_MAP, "OF", np.ascontiguousarray(values, "<f4").tobytes())
    _complete(made, header, maker)
    made.DateOfSecondaryCapture, made.TimeOfSecondaryCapture = made.ContentDate, made.ContentTime
    return made_object(made, kind=KIND, sop_instance_uid=uid, outputs=(output,))


def _purpose(item: Dataset) -> Dataset:
    from highdicom.sr import CodedConcept

    item.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)]
    return item


# --- both --------------------------------------------------------------------------------------------------------


def _explained(output: str) -> str:
    return ascii_text(f"What spoke for {output}", LO)


def _complete(made: Dataset, header: Dataset, maker: Maker) -> None:
    """What all made objects have; and the model as equipment that contributed, beside highdicom."""
    from highdicom import ContributingEquipment

    complete(made, header, maker)
    made.pop(
        "BodyPartExamined", None
    )  # whether it is one of a pair decides whether Laterality may be empty: sources err
    made.Laterality = text_of(header, "Laterality") or ""
    model = ContributingEquipment(
        manufacturer="medflow",
        purpose_of_reference=codes.DCM.ProcessingEquipment,
        manufacturer_model_name=ascii_text(maker.model, LO),
        software_versions=maker.software_versions,
        device_serial_number=maker.digest[:LO],
        contribution_description=f"{maker.series_description}: the algorithm that was explained",
    )
    made.ContributingEquipmentSequence = [model, *made.ContributingEquipmentSequence]
    for item in made.ContributingEquipmentSequence:
        item.ContributionDateTime = f"{made.ContentDate}{made.ContentTime}"


# --- reading -----------------------------------------------------------------------------------------------------


def read_heat_map(data: bytes, plan: VolumePlan) -> HeatMap:
    """A heat map that medflow wrote, of the image that ``plan`` makes.

    Raises
    ------
    InputNotUsable
        heat-map-unreadable: the object is another than was written for this image.
    """
    quiet()
    try:
        made = dcmread(BytesIO(data), force=True)
        if str(made.SOPClassUID) != PARAMETRIC_MAP:
            numbers = made.private_block(*PRIVATE)[PRIVATE_MAP].value
            return HeatMap(values=np.frombuffer(numbers, "<f4").reshape(plan.shape))
        values = _on_image(plan, _frames_in_order(made, plan))
        return HeatMap(
            values=values.reshape(plan.shape[-len(plan.source_shape) :]), volume=int(made.InstanceNumber) - 1
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputNotUsable("heat-map-unreadable", "the stored heat map is not of this image") from None


def _frames_in_order(made: Dataset, plan: VolumePlan) -> np.ndarray:
    shape = (int(made.NumberOfFrames), int(made.Rows), int(made.Columns))
    if shape != (len(plan.slices[0]), *plan.source_shape[-2:]):
        raise ValueError("another grid")
    frames = np.frombuffer(made.FloatPixelData, "<f4").reshape(shape)
    groups = made.PerFrameFunctionalGroupsSequence
    positions = np.array([item.PlanePositionSequence[0].ImagePositionPatient for item in groups], np.float64)
    affine = np.asarray(plan.source_affine)
    found = frames[np.argsort((positions - affine[:3, 3]) @ affine[:3, 2])]
    padding = made.get("FloatPixelPaddingValue")
    return found if padding is None else np.where(found == np.float32(padding), np.float32(np.nan), found)


def _on_image(plan: VolumePlan, values: np.ndarray) -> np.ndarray:
    """From the slices as they lie, onto the image: each row to the nearest one where the volume is straightened."""
    if plan.straightening is None:
        return values
    straight = np.full(plan.shape[-3:], np.nan, np.float32)
    for target, rows, shift in zip(straight, values, plan.straightening.shifts, strict=True):
        start = min(int(np.floor(shift + 0.5)), len(target) - len(rows))
        target[start : start + len(rows)] = rows
    return straight
