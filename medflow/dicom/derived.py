"""What all DICOM objects that medflow makes of a model's answer have in common: identity, maker, patient and times.

Patient and study are copied from the source image, element by element, as a PACS files objects by them. Nothing of them
goes anywhere else: libraries that would check, or print, a name are given none.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC
from hashlib import sha256
from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.uid import UID

from medflow.dicom.elements import first_of, items_of, number_of
from medflow.dicom.maker import LO, Maker, ascii_text, uid_of
from medflow.dicom.pixels import Objects, open_instance
from medflow.dicom.times import offset_of
from medflow.records import Instance, ResultObject, digest_of

MANUFACTURER = "medflow"

COPIED = (  # PS3.3 C.7.1.1, C.7.2.1, C.7.2.2, C.7.1.3, C.7.2.3, and what their text is written in
    *("SpecificCharacterSet", "TimezoneOffsetFromUTC"),
    *("PatientName", "PatientID", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "TypeOfPatientID"),
    *("PatientBirthDate", "PatientBirthTime", "PatientSex", "OtherPatientIDsSequence", "PatientSpeciesDescription"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "ReferringPhysicianName"),
    *("AccessionNumber", "IssuerOfAccessionNumberSequence", "PatientAge", "PatientSize", "PatientWeight"),
    *("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID"),
    *("ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID"),
    *("ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription"),
)
TYPE_2 = (  # may be empty, may not be absent
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("ReferringPhysicianName", "AccessionNumber"),
)
ABOUT_SERIES = (
    *("SeriesInstanceUID", "SeriesNumber", "BodyPartExamined", "FrameOfReferenceUID", "PositionReferenceIndicator"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeObject:
    """A DICOM object as a file, and its record."""

    record: ResultObject
    data: bytes


def read_source(instance: Instance, objects: Objects) -> Dataset:
    """What objects made of an instance's series repeat of its header.

    Raises
    ------
    InputNotUsable
        As `pixels.open_instance`.
    """
    return open_instance(instance, objects, [*COPIED, *ABOUT_SERIES]).header


def blank_source(source: Dataset) -> Dataset:
    """A header with the source's place in its study, and no patient: for libraries to work from."""
    blank = Dataset()
    for name in TYPE_2:
        setattr(blank, name, "")
    for name in ("StudyInstanceUID", "SeriesInstanceUID"):
        setattr(blank, name, first_of(source, name) or "")
    blank.FrameOfReferenceUID = frame_of_reference(source)
    for name in ABOUT_SERIES[4:]:
        if name in source:
            setattr(blank, name, deepcopy(source[name].value))
    return blank


def frame_of_reference(source: Dataset) -> str:
    """The source's; one made for its series where it lacks what every image with a position must have."""
    return first_of(source, "FrameOfReferenceUID") or uid_of(
        "frame-of-reference", first_of(source, "SeriesInstanceUID")
    )


def series_number(source: Dataset, offset: int) -> int:
    """A number beside the source's, so that both are found together; it need not be the only one."""
    return offset + max(number_of(source, "SeriesNumber") or 0, 0) % 100_000


def complete(made: Dataset, source: Dataset, maker: Maker) -> None:
    """Give an object its patient, its study, its maker and the run's time."""
    for name in COPIED:
        if name in source and not source[name].is_empty:
            made[name] = deepcopy(source[name])
    if "DeidentificationMethod" not in made and "DeidentificationMethodCodeSequence" not in made:
        made.pop("PatientIdentityRemoved", None)  # may not be said without how (PS3.3 C.7.1.1)
    for name in TYPE_2:
        if name not in made:
            setattr(made, name, "")
    if body_part := first_of(source, "BodyPartExamined"):
        made.BodyPartExamined = body_part[:16]
    made.Manufacturer = MANUFACTURER
    made.ManufacturerModelName = ascii_text(maker.model, LO)
    made.DeviceSerialNumber = maker.digest[:LO]  # which model exactly: over its code, weights and spec
    made.SoftwareVersions = maker.software_versions
    made.SeriesDescription = maker.series_description
    moment = maker.issued.datetime().astimezone(
        offset_of(first_of(source, "TimezoneOffsetFromUTC")) or maker.zone or UTC
    )
    for name in ("InstanceCreation", "Content", "Series"):
        setattr(made, f"{name}Date", f"{moment:%Y%m%d}")
        setattr(made, f"{name}Time", f"{moment:%H%M%S}")
    for equipment in items_of(made, "ContributingEquipmentSequence"):
        equipment.ContributionDateTime = f"{moment:%Y%m%d%H%M%S%z}"


def made_object(made: Dataset, *, kind: str, sop_instance_uid: str, outputs: tuple[str, ...]) -> MadeObject:
    """Give an object its SOP Instance UID, which must follow from what it shows, and write it as a file."""
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    with BytesIO() as file:
        made.save_as(file, enforce_file_format=True)
        data = file.getvalue()
    record = ResultObject(
        kind=kind,
        sop_class_uid=str(made.SOPClassUID),
        sop_instance_uid=sop_instance_uid,
        series_uid=str(made.SeriesInstanceUID),
        study_uid=str(made.StudyInstanceUID),
        sha256=sha256(data).hexdigest(),
        size=len(data),
        content=digest_of(sop_instance_uid),
        outputs=outputs,
    )
    return MadeObject(record=record, data=data)
