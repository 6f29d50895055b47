"""One DICOM file to one `DicomObject`: the header only, checked to be whole, never the pixels.

A file is taken only if it is a whole DICOM instance with the UIDs that place it, in a transfer syntax that DICOM knows.
Everything else about it may be wrong: a header with one bad date is still worth storing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from typing import BinaryIO

from pydicom.datadict import tag_for_keyword
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medflow.config import Settings
from medflow.dicom.elements import first_of, number_of, quiet, text_of
from medflow.dicom.header import Header, read_header
from medflow.dicom.identity import patient_of
from medflow.dicom.series import SERIES_NAMES, series_of
from medflow.dicom.times import Clock
from medflow.errors import InputRejected, RejectCode
from medflow.records import DicomObject, Instance, Study

UID_FORM = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")  # PS3.5 9.1

DIRECTORY = "1.2.840.10008.1.3.10"  # Media Storage Directory Storage
NON_PATIENT = {  # PS3.4 GG: objects that belong to no patient, study or series
    "1.2.840.10008.5.1.4.38.1",
    "1.2.840.10008.5.1.4.39.1",
    "1.2.840.10008.5.1.4.43.1",
    "1.2.840.10008.5.1.4.44.1",
    "1.2.840.10008.5.1.4.45.1",
    "1.2.840.10008.5.1.4.1.1.200.1",
    "1.2.840.10008.5.1.4.1.1.200.3",
    "1.2.840.10008.5.1.4.1.1.200.7",
    "1.2.840.10008.5.1.4.1.1.201.1",
}
PIXELS_ELSEWHERE = {"1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.95"}  # JPIP: the file has a URL in their place
UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
NAMES = (
    *UIDS,
    *("PatientID", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "PatientBirthDate", "PatientSex"),
    *("TimezoneOffsetFromUTC", "StudyDate", "StudyTime", "AcquisitionDateTime", "AcquisitionDate"),
    *("AcquisitionTime", "ContentDate", "ContentTime", "AccessionNumber", "StudyDescription", "InstanceNumber"),
    *SERIES_NAMES,
    *("Rows", "Columns", "NumberOfFrames", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation"),
)
TAGS = frozenset(tag for name in NAMES if (tag := tag_for_keyword(name)) is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A DICOM object, and what is worth saying about how it was read (kebab-case notes, counted in the tally)."""

    object: DicomObject
    notes: tuple[str, ...] = ()


def read_bytes(data: bytes, settings: Settings) -> Reading:
    """Read a whole file held in memory; see `read_object`."""
    return read_object(BytesIO(data), size=len(data), digest=sha256(data).hexdigest(), settings=settings)


def read_object(file: BinaryIO, *, size: int, digest: str, settings: Settings, path: str | None = None) -> Reading:
    """Read the header of one DICOM file.

    Parameters
    ----------
    file
        Open for reading in binary, seekable; left open.
    size, digest
        Length in bytes and SHA-256 (hex) of the whole file.
    settings
        For the identifier systems of issuers and the zone of times written without one.
    path
        Where the file stays, when it is taken in place.

    Raises
    ------
    InputRejected
        NOT_DICOM, TRUNCATED, MISSING_UID, INVALID_UID, UNKNOWN_TRANSFER_SYNTAX, NOT_AN_INSTANCE or TOO_LARGE.
    """
    quiet()
    header = read_header(file, size, TAGS)
    dataset = header.dataset
    uids = _checked_uids(header)
    transfer_syntax = _transfer_syntax(header)
    frames = max(number_of(dataset, "NumberOfFrames") or 1, 1)
    _check_pixels(header, uids["SOPClassUID"], transfer_syntax, frames)
    clock = Clock.of(dataset, settings)
    instance = Instance(
        sop_instance_uid=uids["SOPInstanceUID"],
        sop_class_uid=uids["SOPClassUID"],
        transfer_syntax_uid=transfer_syntax,
        sha256=digest,
        size=size,
        instance_number=number_of(dataset, "InstanceNumber"),
        rows=number_of(dataset, "Rows"),
        columns=number_of(dataset, "Columns"),
        frames=frames,
        acquired=clock.acquired(dataset),
        path=path,
    )
    series = series_of(dataset, uids["SeriesInstanceUID"])
    study = Study(
        study_instance_uid=uids["StudyInstanceUID"],
        accession_number=text_of(dataset, "AccessionNumber"),
        description=text_of(dataset, "StudyDescription"),
        started=clock.started(dataset),
    )
    patient = patient_of(dataset, settings)
    notes = clock.notes if patient.identifiers else (*clock.notes, "no-patient-id")
    return Reading(object=DicomObject(patient=patient, study=study, series=series, instance=instance), notes=notes)


def _checked_uids(header: Header) -> dict[str, str]:
    """The four UIDs that make an instance, each present and well-formed."""
    dataset = header.dataset
    sop_class = first_of(dataset, "SOPClassUID") or header.sop_class or ""
    if sop_class == DIRECTORY:
        raise InputRejected(RejectCode.NOT_AN_INSTANCE, "it is a media directory, whose file must be named DICOMDIR")
    if sop_class in NON_PATIENT:
        raise InputRejected(RejectCode.NOT_AN_INSTANCE, f"{UID(sop_class).name} belongs to no patient")
    found = {name: first_of(dataset, name) or "" for name in UIDS}
    missing = [name for name, uid in found.items() if not uid]
    if missing:
        if not header.marked and not any(tag in dataset for tag in TAGS):
            raise InputRejected(RejectCode.NOT_DICOM, "there is no DICOM header")
        raise InputRejected(RejectCode.MISSING_UID, f"{', '.join(missing)} missing or blank")
    invalid = [name for name, uid in found.items() if len(uid) > 64 or not UID_FORM.fullmatch(uid)]
    if invalid:
        raise InputRejected(RejectCode.INVALID_UID, f"{', '.join(invalid)} not of the form PS3.5 9.1 asks for")
    return found


def _transfer_syntax(header: Header) -> str:
    """The transfer syntax as stated; without any file meta information, as the encoding shows."""
    stated = header.transfer_syntax
    if stated:
        if not UID(stated).is_transfer_syntax or UID(stated).is_private:
            shown = stated if UID_FORM.fullmatch(stated) and len(stated) <= 64 else "what is stated"
            raise InputRejected(RejectCode.UNKNOWN_TRANSFER_SYNTAX, f"{shown} is not a transfer syntax of DICOM")
        return stated
    if header.has_meta or header.fragments:
        reason = "the file names no TransferSyntaxUID"
        raise InputRejected(RejectCode.UNKNOWN_TRANSFER_SYNTAX, reason)
    if header.implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if header.order == "<" else ExplicitVRBigEndian


def _check_pixels(header: Header, sop_class: str, transfer_syntax: str, frames: int) -> None:
    """Compare the pixel data with the image's dimensions, as far as lengths say it (PS3.5 8.1.1, A.4)."""
    if header.pixel_bytes is None and not header.fragments:
        # a file cut between two elements looks whole; stored, it would bar the whole one as a conflict
        if "Image Storage" in UID(sop_class).name and transfer_syntax not in PIXELS_ELSEWHERE:
            raise InputRejected(RejectCode.TRUNCATED, "it is an image without pixel data")
        return
    if header.open_ended and header.fragments <= frames:  # an offset table, then at least one fragment a frame
        raise InputRejected(RejectCode.TRUNCATED, "the compressed pixel data are cut off")
    if header.pixel_bytes is None or UID(transfer_syntax).is_encapsulated:
        return
    names = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
    rows, columns, samples, bits = (number_of(header.dataset, name) or 0 for name in names)
    pixels = rows * columns * samples * frames
    if text_of(header.dataset, "PhotometricInterpretation") == "YBR_FULL_422":
        pixels = pixels * 2 // 3
    needed = (pixels * bits + 7) // 8
    if header.pixel_bytes < needed:
        reason = f"the pixel data have {header.pixel_bytes} of the {needed} bytes that the image's dimensions ask for"
        raise InputRejected(RejectCode.TRUNCATED, reason)
