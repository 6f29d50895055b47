"""The files of stored instances: their headers, where pixel data begin, and whether each is still what was taken in.

A header is read once, with the place where the pixel data begin; after that only the pixels' own bytes are looked at.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medflow.dicom.codecs import check_transfer_syntax
from medflow.dicom.elements import first_of
from medflow.errors import InputNotUsable, ObjectDamaged
from medflow.records import Instance

TAGS = (  # what decoding needs to know
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ExtendedOffsetTable"),
    *("ExtendedOffsetTableLengths", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"),
)
PIXEL_GROUP = 0x7FE0
KEYWORDS = {0x0010: "PixelData", 0x0008: "FloatPixelData", 0x0009: "DoubleFloatPixelData"}  # its elements
VRS = {"OB", "OW", "OF", "OD", "UN"}
UNDEFINED = 0xFFFFFFFF
IN_MEMORY = 64 << 20  # bytes; of a larger file no more is held than the frames at hand


class Objects(Protocol):
    """Files by their SHA-256 (hex): the object store."""

    def open(self, digest: str) -> BinaryIO:
        """The object; raises KeyError if it is not there."""
        ...

    def fetch(self, digests: Iterable[str]) -> None:
        """Bring near what is about to be opened."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where the pixel data element and its value stand in a file; the SHA-256 of all before it, if it may change."""

    keyword: str
    vr: str
    element: int
    start: int
    length: int
    before: bytes | None


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceFile:
    """An instance, where its bytes are, its header, and the transfer syntax that the file itself states."""

    instance: Instance
    objects: Objects
    header: Dataset
    transfer_syntax: str
    place: _Place | None


def open_instance(instance: Instance, objects: Objects, tags: Sequence[str]) -> InstanceFile:
    """Read an instance's header: the elements of ``tags`` (keywords), those that decoding needs, and no others.

    Raises
    ------
    InputNotUsable
        file-missing, file-changed, unsupported-transfer-syntax or undecodable-frame.
    """
    with _bytes_of(instance, objects) as file:
        try:
            wanted = [*dict.fromkeys((*tags, *TAGS))]
            header = dcmread(file, stop_before_pixels=True, force=True, specific_tags=wanted)  # type: ignore[arg-type]  # keywords
            stated = first_of(getattr(header, "file_meta", Dataset()), "TransferSyntaxUID")
            transfer_syntax = stated or instance.transfer_syntax_uid
            check_transfer_syntax(transfer_syntax)
            place = _place(file, header, instance, transfer_syntax)
        except OSError as error:
            raise InputNotUsable("file-missing", f"a file of the series cannot be read: {error.strerror}") from None
        except InputNotUsable:
            raise
        except Exception as error:  # whatever pydicom's converters raise on damaged bytes
            raise InputNotUsable("undecodable-frame", f"a header cannot be read ({type(error).__name__})") from None
    return InstanceFile(instance=instance, objects=objects, header=header, transfer_syntax=transfer_syntax, place=place)


def _place(file: BinaryIO, header: Dataset, instance: Instance, transfer_syntax: str) -> _Place | None:
    """Of the element that the reader stopped at; None if it is no pixel data, or within a deflated data set."""
    if transfer_syntax == DeflatedExplicitVRLittleEndian:
        return None
    implicit, little = header.original_encoding
    order, element_at = "<" if little else ">", file.tell()
    head = file.read(12)
    if len(head) < 8:
        return None
    group, element = struct.unpack_from(f"{order}HH", head)
    vr = "OW" if implicit else head[4:6].decode("ascii", "replace")
    at = 4 if implicit else 8
    if group != PIXEL_GROUP or element not in KEYWORDS or len(head) < at + 4 or vr not in VRS:
        return None
    (length,) = struct.unpack_from(f"{order}L", head, at)
    before = None
    if instance.path is not None:
        file.seek(0)
        before = sha256(file.read(element_at)).digest()
    start = element_at + at + 4
    return _Place(keyword=KEYWORDS[element], vr=vr, element=element_at, start=start, length=length, before=before)


def _bytes_of(instance: Instance, objects: Objects) -> BinaryIO:
    """An instance's file, open; an object store that is out of reach raises its own error, which is not the data's."""
    try:
        return Path(instance.path).open("rb") if instance.path is not None else objects.open(instance.sha256)
    except (FileNotFoundError, KeyError):
        raise InputNotUsable("file-missing", "a file of the series is no longer where it was stored") from None
    except ObjectDamaged as error:
        raise InputNotUsable("file-changed", error.message) from None
    except OSError as error:
        raise InputNotUsable("file-missing", f"a file of the series cannot be read: {error.strerror}") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelSource:
    """The pixel data of an instance whose file is the one that was taken in: in memory, or still in the file."""

    file: InstanceFile
    keyword: str
    vr: str
    start: int
    length: int
    data: bytes | None
    stat: tuple[int, ...] | None = None

    @classmethod
    def of(cls, file: InstanceFile) -> PixelSource:
        """Check the file; raises `InputNotUsable` file-missing or file-changed, ValueError without pixel data."""
        instance, place = file.instance, file.place
        with _bytes_of(instance, file.objects) as opened:
            try:
                whole = place is None or instance.size <= IN_MEMORY
                data = opened.read() if whole else None
                stat = _stat(opened)
                _check_unchanged(file, opened, data)
            except OSError as error:
                reason = f"a file of the series cannot be read: {error.strerror}"
                raise InputNotUsable("file-missing", reason) from None
        if place is None:
            return cls._parsed(file, data or b"")
        length = instance.size - place.start if place.length == UNDEFINED else place.length
        return cls(
            file=file, keyword=place.keyword, vr=place.vr, start=place.start, length=length, data=data, stat=stat
        )

    @classmethod
    def _parsed(cls, file: InstanceFile, data: bytes) -> PixelSource:
        """Of a deflated data set, which is read as a whole."""
        dataset = dcmread(BytesIO(data), force=True)
        for keyword in KEYWORDS.values():
            if keyword in dataset:
                element = dataset[keyword]
                value: bytes = element.value
                return cls(file=file, keyword=keyword, vr=element.VR, start=0, length=len(value), data=value)
        raise ValueError("no pixel data")

    def open(self) -> BinaryIO:
        """The pixel data, from their first byte."""
        if self.data is not None:
            opened: BinaryIO = BytesIO(self.data)
        else:
            opened = _bytes_of(self.file.instance, self.file.objects)
            if self.file.instance.path is not None and _stat(opened) != self.stat:
                opened.close()
                raise _changed()
        opened.seek(self.start)
        return opened


def _check_unchanged(file: InstanceFile, opened: BinaryIO, data: bytes | None) -> None:
    """A file that stays in place must still be the one that was taken in, and whose header was read."""
    instance, place = file.instance, file.place
    size = len(data) if data is not None else opened.seek(0, os.SEEK_END)
    if size != instance.size:
        raise _changed()
    if instance.path is None:
        return
    if data is not None:
        digest = sha256(data)
    else:
        opened.seek(0)
        digest = file_digest(opened, "sha256")  # type: ignore[arg-type]  # a binary file, whatever it is called
    if digest.hexdigest() != instance.sha256:
        raise _changed()
    if place is not None and place.before is not None:
        opened.seek(0)
        before = memoryview(data)[: place.element] if data is not None else opened.read(place.element)
        if sha256(before).digest() != place.before:
            raise _changed()


def _changed() -> InputNotUsable:
    return InputNotUsable("file-changed", "a file of the series has changed since it was taken in: ingest it again")


def _stat(opened: BinaryIO) -> tuple[int, ...] | None:
    try:
        found = os.fstat(opened.fileno())
    except OSError:  # an object that is no file of this machine
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
