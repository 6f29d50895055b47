"""Whether two files hold the same instance, though who passed it on wrote it anew.

Applications that receive an object and pass it on keep its elements and choose how these are written (PS3.5 7.1, 7.5):
VRs stated or implied, sequences and items with lengths or delimiters, group lengths or none. All else is content.
"""

from __future__ import annotations

import os
from typing import BinaryIO

from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medflow.dicom.elements import quiet
from medflow.dicom.header import is_deflated

NATIVE = {ImplicitVRLittleEndian, ExplicitVRLittleEndian}  # the same values, byte for byte
HELD = 512 << 20  # bytes; larger files are not held in memory to be compared


def same_elements(one: BinaryIO, other: BinaryIO) -> bool:
    """Whether two files have the same elements with the same values, byte for byte, however they are written.

    Both are seekable. A file that is larger than `HELD`, or that pydicom cannot read, is the same as no other; so is a
    deflated one, whose size cannot be told before.
    """
    quiet()
    try:
        first, second = (_read(file) for file in (one, other))
        if first is None or second is None:
            return False
        syntaxes = {dataset.file_meta.TransferSyntaxUID for dataset in (first, second)}
        return (len(syntaxes) == 1 or syntaxes <= NATIVE) and _same(first, second)
    except Exception:  # noqa: BLE001 - whatever pydicom raises on what it cannot read
        return False


def _read(file: BinaryIO) -> Dataset | None:
    if file.seek(0, os.SEEK_END) > HELD:
        return None
    return None if is_deflated(file) else dcmread(file)


def _same(one: Dataset, other: Dataset) -> bool:
    tags = _tags(one)
    return tags == _tags(other) and all(_same_values(one, other, tag) for tag in tags)


def _tags(dataset: Dataset) -> list[BaseTag]:
    """In order, without group lengths (gggg,0000), which say how it is written."""
    return sorted(tag for tag in dataset.keys() if tag.element)  # noqa: SIM118 - iterating itself would convert each


def _same_values(one: Dataset, other: Dataset, tag: BaseTag) -> bool:
    if _is_sequence(one, tag) != _is_sequence(other, tag):
        return False
    if not _is_sequence(one, tag):
        return _same_bytes(one, other, tag)
    items = one[tag].value, other[tag].value
    return len(items[0]) == len(items[1]) and all(map(_same, *items))


def _is_sequence(dataset: Dataset, tag: BaseTag) -> bool:
    vr = dataset.get_item(tag).VR
    if vr is None:
        try:
            vr = dictionary_VR(tag)
        except KeyError:  # a private element whose VR is not stated: its bytes are compared
            return False
    return vr == "SQ"


def _same_bytes(one: Dataset, other: Dataset, tag: BaseTag) -> bool:
    """Of the few elements that pydicom converts as it reads, such as PixelRepresentation, what they say is compared."""
    raw = one.get_item(tag), other.get_item(tag)
    if isinstance(raw[0], RawDataElement) and isinstance(raw[1], RawDataElement):
        return (raw[0].value or b"") == (raw[1].value or b"")
    return str(one[tag].value) == str(other[tag].value)
