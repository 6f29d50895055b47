"""One DICOM file to one `DicomObject`: the header only, checked to be whole, never the pixels.

pydicom is lenient: it logs where a data set ends early and goes on. A hospital's archive cannot be, so the reader
watches how far the parser had to look, and compares the pixel data's stated length with what is there (PS3.5 7.1, A.4).
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from typing import BinaryIO

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medflow.config import Settings
from medflow.dicom.elements import first_of, number_of, quiet, text_of
from medflow.dicom.identity import patient_of
from medflow.dicom.times import Clock
from medflow.errors import InputRejected, RejectCode
from medflow.records import DicomObject, Instance, Series, Study

UID_FORM = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")  # PS3.5 9.1
PREAMBLE = 132
MAX_INFLATED = 2 << 30  # bytes that a deflated data set may grow to

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
UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
TAGS = [
    *UIDS,
    *("PatientID", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "PatientBirthDate", "PatientSex"),
    *("TimezoneOffsetFromUTC", "StudyDate", "StudyTime", "AcquisitionDateTime", "AcquisitionDate", "AcquisitionTime"),
    *("ContentDate", "ContentTime", "AccessionNumber", "StudyDescription", "SeriesDescription", "Modality"),
    *("BodyPartExamined", "SeriesNumber", "FrameOfReferenceUID", "Laterality", "InstanceNumber"),
    *("Rows", "Columns", "NumberOfFrames", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation"),
]


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
    watched = _Watched(file)
    dataset = _parse(watched, size)
    uids = _checked_uids(dataset, watched, size)
    transfer_syntax = _transfer_syntax(dataset)
    frames = max(number_of(dataset, "NumberOfFrames") or 1, 1)
    if transfer_syntax != DeflatedExplicitVRLittleEndian:
        watched.check_end(size)
        _check_pixels(watched, dataset, transfer_syntax, size, frames)
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
    series = Series(
        series_instance_uid=uids["SeriesInstanceUID"],
        modality=text_of(dataset, "Modality") or "",
        body_part=text_of(dataset, "BodyPartExamined"),
        description=text_of(dataset, "SeriesDescription"),
        series_number=number_of(dataset, "SeriesNumber"),
        frame_of_reference_uid=first_of(dataset, "FrameOfReferenceUID"),
        laterality=text_of(dataset, "Laterality"),
    )
    study = Study(
        study_instance_uid=uids["StudyInstanceUID"],
        accession_number=text_of(dataset, "AccessionNumber"),
        description=text_of(dataset, "StudyDescription"),
        started=clock.started(dataset),
    )
    patient = patient_of(dataset, settings)
    notes = clock.notes if patient.identifiers else (*clock.notes, "no-patient-id")
    return Reading(object=DicomObject(patient=patient, study=study, series=series, instance=instance), notes=notes)


class _Watched:
    """A file that remembers whether the parser asked for bytes beyond its end."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek = file.seek
        self.tell = file.tell
        self.ended_early = False

    def read(self, count: int = -1) -> bytes:
        data = self.file.read(count)
        if 0 < len(data) < count <= 8:  # the parser reads element headers in pieces of at most 8 bytes
            self.ended_early = True
        return data

    def check_end(self, size: int) -> None:
        if self.ended_early or self.tell() > size:
            raise InputRejected(RejectCode.TRUNCATED, "the data set ends in the middle of an element")


def _parse(file: _Watched, size: int) -> Dataset:
    """The header, or why it is not one."""
    quiet()
    head = file.read(PREAMBLE + 512)
    file.seek(0)
    file.ended_early = False
    marked = head[128:PREAMBLE] == b"DICM"
    if not marked and not _looks_bare(head):
        kind = next((name for magic, name in FOREIGN if head.startswith(magic)), None)
        hint = f"; it looks like {kind}" if kind else ""
        raise InputRejected(RejectCode.NOT_DICOM, f"there is no DICOM header{hint}")
    if DeflatedExplicitVRLittleEndian.encode() in head:
        _check_inflates(file, head)
    try:
        dataset = dcmread(file, stop_before_pixels=True, force=not marked, specific_tags=TAGS)  # type: ignore[arg-type]  # a file-like object
        return _whole(dataset)
    except InputRejected:
        raise
    except (EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputRejected(RejectCode.UNREADABLE, f"the file cannot be read: {error.strerror}") from None
        raise InputRejected(RejectCode.TRUNCATED, "the header ends too early") from None
    except InvalidDicomError:
        raise InputRejected(RejectCode.NOT_DICOM, "there is no DICOM header") from None
    except zlib.error:
        raise InputRejected(RejectCode.TRUNCATED, "the deflated data set is cut off or damaged") from None
    except Exception as error:  # whatever pydicom's converters raise on damaged bytes
        if file.ended_early or file.tell() >= size:
            raise InputRejected(RejectCode.TRUNCATED, "the header ends too early") from None
        code = RejectCode.NOT_DICOM
        raise InputRejected(code, f"the header is damaged and cannot be read ({type(error).__name__})") from None


FOREIGN = (
    (b"\x1f\x8b", "a gzip file: unpack it first"),
    (b"PK\x03\x04", "a zip archive: name it .zip"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"%PDF", "a PDF document"),
    (b"{", "JSON"),
    (b"<", "XML"),
)


def _looks_bare(head: bytes) -> bool:
    """Whether it may be a data set without preamble: starts with group 0002 or 0008 (PS3.10 before 1993 had none)."""
    return len(head) >= 8 and head[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")


def _whole(dataset: Dataset) -> Dataset:
    """Refuse a data set with a value shorter than its stated length."""
    for element in dataset.elements():
        length = getattr(element, "length", None)
        value = element.value
        if length is not None and isinstance(value, bytes) and 0 < length != 0xFFFFFFFF and len(value) < length:
            raise InputRejected(RejectCode.TRUNCATED, f"the value of {element.tag} is cut off")
    return dataset


def _check_inflates(file: _Watched, head: bytes) -> None:
    """Refuse a deflated data set that grows beyond MAX_INFLATED, before it is inflated in memory."""
    if head[PREAMBLE : PREAMBLE + 4] != b"\x02\x00\x00\x00":
        return
    (length,) = struct.unpack_from("<L", head, PREAMBLE + 8)
    file.seek(PREAMBLE + 12 + length)
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    data = b"-"
    try:
        while data and not inflater.eof:
            data = inflater.unconsumed_tail or file.read(1 << 20)
            total += len(inflater.decompress(data, 16 << 20))
            if total > MAX_INFLATED:
                raise InputRejected(RejectCode.TOO_LARGE, f"the deflated data set grows beyond {MAX_INFLATED} bytes")
    except zlib.error:
        pass  # the parser reports it
    file.seek(0)


def _checked_uids(dataset: Dataset, file: _Watched, size: int) -> dict[str, str]:
    """The four UIDs that make an instance, each present and well-formed."""
    sop_class = first_of(dataset, "SOPClassUID") or first_of(dataset.file_meta, "MediaStorageSOPClassUID") or ""
    if sop_class == DIRECTORY:
        raise InputRejected(RejectCode.NOT_AN_INSTANCE, "it is a media directory, whose file must be named DICOMDIR")
    if sop_class in NON_PATIENT:
        raise InputRejected(RejectCode.NOT_AN_INSTANCE, f"{UID(sop_class).name} belongs to no patient")
    found = {name: first_of(dataset, name) or "" for name in UIDS}
    missing = [name for name, uid in found.items() if not uid]
    if missing:
        if dataset.preamble is None and not any(name in dataset for name in TAGS):  # type: ignore[attr-defined]  # of FileDataset
            raise InputRejected(RejectCode.NOT_DICOM, "none of the elements that every DICOM object has is there")
        file.check_end(size)
        raise InputRejected(RejectCode.MISSING_UID, f"{', '.join(missing)} missing or blank")
    invalid = [name for name, uid in found.items() if len(uid) > 64 or not UID_FORM.fullmatch(uid)]
    if invalid:
        raise InputRejected(RejectCode.INVALID_UID, f"{', '.join(invalid)} not of the form PS3.5 9.1 asks for")
    return found


def _transfer_syntax(dataset: Dataset) -> str:
    """The transfer syntax as stated; without any file meta information, as the encoding shows."""
    stated = first_of(dataset.file_meta, "TransferSyntaxUID")
    if stated:
        if not UID(stated).is_transfer_syntax or UID(stated).is_private:
            shown = stated if UID_FORM.fullmatch(stated) and len(stated) <= 64 else "what is stated"
            raise InputRejected(RejectCode.UNKNOWN_TRANSFER_SYNTAX, f"{shown} is not a transfer syntax of DICOM")
        return stated
    if len(dataset.file_meta):
        reason = "the file meta information names no TransferSyntaxUID"
        raise InputRejected(RejectCode.UNKNOWN_TRANSFER_SYNTAX, reason)
    implicit, little = dataset.original_encoding
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


# --- pixel data: is all of it there? ---------------------------------------------------------------------------


def _check_pixels(file: _Watched, dataset: Dataset, transfer_syntax: str, size: int, frames: int) -> None:
    """Compare the pixel data's stated length with the file's and with the image's dimensions; decodes nothing."""
    start = file.tell()
    header = file.file.read(12)
    if not header:
        return  # no pixel data: a report, a plan, a presentation state
    order = ">" if transfer_syntax == ExplicitVRBigEndian else "<"
    implicit = dataset.original_encoding[0]
    wide = not implicit and header[4:6] in (b"OB", b"OW", b"OF", b"OD", b"UN")
    if len(header) < (12 if wide else 8):
        raise InputRejected(RejectCode.TRUNCATED, "the file ends where the pixel data begin")
    (length,) = struct.unpack_from(f"{order}L", header, 8 if wide else 4)
    start += 12 if wide else 8
    if length == 0xFFFFFFFF:
        _check_fragments(file, start, size, frames, order)
        return
    if start + length > size:
        reason = f"the pixel data have {size - start} of the {length} bytes that they should have"
        raise InputRejected(RejectCode.TRUNCATED, reason)
    if (needed := _native_bytes(dataset, transfer_syntax, frames)) and length < needed:
        reason = f"the pixel data have {length} of the {needed} bytes that the image's dimensions ask for"
        raise InputRejected(RejectCode.TRUNCATED, reason)


def _native_bytes(dataset: Dataset, transfer_syntax: str, frames: int) -> int:
    """How long native pixel data have to be (PS3.5 8.1.1); 0 where the dimensions are not stated."""
    if UID(transfer_syntax).is_encapsulated:
        return 0
    names = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
    rows, columns, samples, bits = (number_of(dataset, name) or 0 for name in names)
    pixels = rows * columns * samples * frames
    if text_of(dataset, "PhotometricInterpretation") == "YBR_FULL_422":
        pixels = pixels * 2 // 3
    return (pixels * bits + 7) // 8


def _check_fragments(file: _Watched, start: int, size: int, frames: int, order: str) -> None:
    """Walk the fragments of encapsulated pixel data (PS3.5 A.4) to the delimiter."""
    read, seek = file.file.read, file.file.seek
    seek(start)
    items = 0
    while len(header := read(8)) == 8:
        group, element, length = struct.unpack(f"{order}HHL", header)
        if (group, element) == (0xFFFE, 0xE0DD):
            return
        start += 8 + length
        if (group, element) != (0xFFFE, 0xE000) or start > size:
            break
        seek(start)
        items += 1
    else:
        if not header and items > frames:  # offset table and every frame; only the delimiter was left out
            return
    raise InputRejected(RejectCode.TRUNCATED, "the compressed pixel data are cut off or damaged")
