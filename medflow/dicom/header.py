"""The data elements of a DICOM file up to its end: those that are wanted, and whether the file is whole.

pydicom's own reader takes what it can and logs where a data set ends early, and reads every nested item to skip it.
This walk only follows lengths (PS3.5 7.1 to 7.5), so it is several times faster, notices a missing byte anywhere, and
never holds more than the wanted values. Their conversion is pydicom's.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import BinaryIO

from pydicom.charset import convert_encodings
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian
from pydicom.values import convert_string

from medflow.errors import InputRejected, RejectCode

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
LAST_META = 0x0002FFFF
TRANSFER_SYNTAX, META_SOP_CLASS, CHARACTER_SET = 0x00020010, 0x00020002, 0x00080005
PIXELS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}  # PS3.5 7.1.2
COMMON = {b"CS", b"DA", b"DS", b"IS", b"LO", b"LT", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
VALUE_BYTES = 1 << 20  # a longer value of a wanted element is passed over
DEPTH = 100  # of sequences within sequences
PREAMBLE = 132
COMPARED = 1 << 20  # bytes at once
INFLATED = 2 << 30  # bytes that a deflated data set may grow to


@dataclass(kw_only=True, slots=True)
class Header:
    """What the walk found. ``dataset`` has the wanted elements, unconverted.

    ``pixel_bytes`` is the stated length of the pixel data (None: none, or encapsulated); ``fragments`` counts the items
    of encapsulated ones, of which the delimiter is missing if ``open_ended``.
    """

    dataset: Dataset = field(default_factory=Dataset)
    transfer_syntax: str | None = None
    sop_class: str | None = None
    marked: bool = False  # has the preamble and DICM
    has_meta: bool = False
    implicit: bool = False
    order: str = "<"
    pixel_bytes: int | None = None
    fragments: int = 0
    open_ended: bool = False


def read_header(file: BinaryIO, size: int, wanted: frozenset[int]) -> Header:
    """Walk through a file from its start.

    Raises
    ------
    InputRejected
        NOT_DICOM, TRUNCATED or TOO_LARGE (a deflated data set that grows without end).
    """
    header, start = _meta(file, size)
    if header.transfer_syntax == DeflatedExplicitVRLittleEndian:
        file, size, start = _inflated(file, start)
    header.order, header.implicit = _encoding(file, start, header)
    walk = _Walk(file=file, size=size, wanted=wanted | {CHARACTER_SET}, order=header.order, implicit=header.implicit)
    walk.walk(start)
    header.pixel_bytes, header.fragments, header.open_ended = walk.pixel_bytes, walk.fragments, walk.open_ended
    header.dataset = _dataset(walk.values, header)
    return header


def is_deflated(file: BinaryIO) -> bool:
    """Whether the data set of a seekable file is deflated, so that its size cannot be told; left at its start.

    Raises
    ------
    InputRejected
        NOT_DICOM or TRUNCATED.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    header, _ = _meta(file, size)
    file.seek(0)
    return header.transfer_syntax == DeflatedExplicitVRLittleEndian


def same_data_set(one: BinaryIO, other: BinaryIO) -> bool:
    """Whether two files hold the same data set, byte for byte, whatever their preambles and file meta groups say.

    Both are open from their start, and seekable. Files that are no DICOM are the same as no other.
    """
    begun: list[tuple[str | None, int]] = []
    for file in (one, other):
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            header, start = _meta(file, size)
        except InputRejected:
            return False
        begun.append((header.transfer_syntax, size - start))
        file.seek(start)
    if begun[0] != begun[1]:
        return False
    while block := one.read(COMPARED):
        if block != other.read(len(block)):
            return False
    return True


def _meta(file: BinaryIO, size: int) -> tuple[Header, int]:
    """What the file meta group says (PS3.10 7.1), and where the data set starts."""
    head = file.read(PREAMBLE)
    header = Header(marked=head[128:] == b"DICM")
    if not header.marked and not _looks_bare(head):
        kind = next((name for magic, name in FOREIGN if head.startswith(magic)), None)
        raise InputRejected(
            RejectCode.NOT_DICOM, "there is no DICOM header" + (f"; it looks like {kind}" if kind else "")
        )
    start = PREAMBLE if header.marked else 0
    meta = _Walk(file=file, size=size, wanted=frozenset((TRANSFER_SYNTAX, META_SOP_CLASS)), last=LAST_META)
    start = meta.walk(start)
    header.has_meta = meta.count > 0
    header.transfer_syntax = _uid(meta.values.get(TRANSFER_SYNTAX))
    header.sop_class = _uid(meta.values.get(META_SOP_CLASS))
    return header, start


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
    """Whether it may be a data set without preamble: it starts with group 0002 or 0008, in either byte order."""
    return len(head) >= 8 and head[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")


def _uid(element: tuple[bytes | None, bytes] | None) -> str | None:
    """A UID of the file meta information as text."""
    return element[1].decode("ascii", "replace").strip(" \x00") or None if element else None


def _encoding(file: BinaryIO, start: int, header: Header) -> tuple[str, bool]:
    """Byte order and whether VRs are implicit: as the transfer syntax says, unless the first element belies it."""
    file.seek(start)
    first = file.read(6)
    explicit = _is_vr(first[4:6])
    if header.transfer_syntax == ExplicitVRBigEndian:
        return ">", False
    if header.transfer_syntax is None and explicit and first[:1] == b"\x00":  # group 0008 with its bytes turned
        return ">", False
    implicit = header.transfer_syntax in (ImplicitVRLittleEndian, None)
    return "<", implicit and not explicit


def _is_vr(text: bytes) -> bool:
    return len(text) == 2 and 0x41 <= text[0] <= 0x5A and 0x41 <= text[1] <= 0x5A


def _inflated(file: BinaryIO, start: int) -> tuple[BinaryIO, int, int]:
    """The data set of a deflated file (PS3.5 A.5), its size, and 0 for where it starts."""
    file.seek(start)
    inflater, parts, total = zlib.decompressobj(-zlib.MAX_WBITS), [], 0
    try:
        while not inflater.eof and (data := inflater.unconsumed_tail or file.read(1 << 20)):
            parts.append(inflater.decompress(data, 16 << 20))
            total += len(parts[-1])
            if total > INFLATED:
                raise InputRejected(RejectCode.TOO_LARGE, f"the deflated data set grows beyond {INFLATED} bytes")
    except zlib.error:
        raise InputRejected(RejectCode.TRUNCATED, "the deflated data set is damaged") from None
    if not inflater.eof:
        raise InputRejected(RejectCode.TRUNCATED, "the deflated data set is cut off")
    return BytesIO(b"".join(parts)), total, 0


def _dataset(values: dict[int, tuple[bytes | None, bytes]], header: Header) -> Dataset:
    """The values as a pydicom data set, which converts each when it is asked for."""
    little = header.order == "<"
    elements = {}
    for tag, (vr, value) in values.items():
        name = vr.decode() if vr else None
        elements[BaseTag(tag)] = RawDataElement(BaseTag(tag), name, len(value), value, 0, vr is None, little)
    dataset = Dataset(elements)
    charset = values.get(CHARACTER_SET, (None, b""))[1]
    try:
        encodings = convert_encodings(convert_string(charset, little) or "ISO_IR 6")
    except (LookupError, ValueError):  # an unknown character set: what is ASCII in it stays readable
        encodings = ["iso8859"]
    dataset.set_original_encoding(header.implicit, little, encodings)
    return dataset


@dataclass(kw_only=True, slots=True)
class _Walk:
    """One pass over elements in one encoding. ``values`` maps tags to (VR or None, value)."""

    file: BinaryIO
    size: int
    wanted: frozenset[int]
    order: str = "<"
    implicit: bool = False
    last: int = UNDEFINED  # stop before the first greater tag
    values: dict[int, tuple[bytes | None, bytes]] = field(default_factory=dict)
    count: int = 0
    pixel_bytes: int | None = None
    fragments: int = 0
    open_ended: bool = False
    plain: Callable[[bytes], tuple[int, int, int]] = field(init=False)
    explicit: Callable[[bytes], tuple[int, int, bytes, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.plain = struct.Struct(f"{self.order}HHL").unpack
        self.explicit = struct.Struct(f"{self.order}HH2sH").unpack

    def walk(self, position: int) -> int:
        """Follow top-level elements from ``position`` to the end; returns where it stopped."""
        read, seek, size, wanted, last = self.file.read, self.file.seek, self.size, self.wanted, self.last
        after_pixels = False
        while True:
            seek(position)
            head = read(8)
            if len(head) < 8:
                if head and not after_pixels:
                    raise _cut("the data set ends in the middle of an element")
                return position
            tag, vr, length, start = self._element(head, position, self.implicit)
            if tag > last or (after_pixels and tag < 0x7FE00010):  # what follows is another part, or mere filling
                return position
            self.count += 1
            if length == UNDEFINED:
                end = self._sequence(start, self.implicit or vr == b"UN", 0, pixels=tag in PIXELS)
            else:
                end = start + length
            if end > size:
                raise _cut(f"the value of {BaseTag(tag)} should have {length} bytes, {max(size - start, 0)} are there")
            if tag in wanted and end - start <= VALUE_BYTES:
                seek(start)
                self.values[tag] = (vr, read(end - start))
            elif tag in PIXELS:
                after_pixels = True
                self.pixel_bytes = None if length == UNDEFINED else length
            position = end

    def _element(self, head: bytes, position: int, implicit: bool) -> tuple[int, bytes | None, int, int]:
        """Tag, VR (None if implicit), length, and where the value starts."""
        if implicit or (head[4:6] not in COMMON and not _is_vr(head[4:6])):  # some writers slip into implicit VR
            group, element, length = self.plain(head)
            return group << 16 | element, None, length, position + 8
        group, element, vr, short = self.explicit(head)
        if vr not in LONG:
            return group << 16 | element, vr, short, position + 8
        rest = self.file.read(4)
        if len(rest) < 4:
            raise _cut("the data set ends in the middle of an element")
        (length,) = struct.unpack(f"{self.order}L", rest)
        return group << 16 | element, vr, length, position + 12

    def _sequence(self, position: int, implicit: bool, depth: int, *, pixels: bool = False) -> int:
        """Follow the items of a sequence, or fragments, of undefined length; returns the end of its delimiter."""
        if depth > DEPTH:
            raise InputRejected(RejectCode.NOT_DICOM, f"its sequences are nested more than {DEPTH} deep")
        read, seek = self.file.read, self.file.seek
        while True:
            seek(position)
            head = read(8)
            if pixels and not head and position == self.size:
                self.open_ended = True
                return position
            if len(head) < 8:
                raise _cut("a sequence is cut off")
            group, element, length = self.plain(head)
            tag = group << 16 | element
            position += 8
            if tag == SEQUENCE_END:
                return position
            if tag != ITEM:
                raise InputRejected(RejectCode.TRUNCATED, "a sequence is damaged: there is no item where one should be")
            self.fragments += pixels
            position = self._item(position, implicit, depth + 1) if length == UNDEFINED else position + length
            if position > self.size:
                raise _cut("a sequence is cut off")

    def _item(self, position: int, implicit: bool, depth: int) -> int:
        """Follow the elements of an item of undefined length; returns the end of its delimiter."""
        read, seek = self.file.read, self.file.seek
        while True:
            seek(position)
            head = read(8)
            if len(head) < 8:
                raise _cut("an item of a sequence is cut off")
            tag, vr, length, start = self._element(head, position, implicit)
            if tag == ITEM_END:
                return position + 8
            position = self._sequence(start, implicit or vr == b"UN", depth) if length == UNDEFINED else start + length


def _cut(reason: str) -> InputRejected:
    return InputRejected(RejectCode.TRUNCATED, reason)
