"""The bytes of stored instances: their headers, and frames decoded into modality values, or a reason.

Everything between a file and a float32 array of a slice is here; where slices lie is `medflow.dicom.volume`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID

from medflow.dicom.elements import first_of, items_of, number_of, numbers_of
from medflow.dicom.geometry import group_of
from medflow.errors import InputNotUsable, ObjectDamaged
from medflow.records import Instance


class Objects(Protocol):
    """Files by their SHA-256 (hex): the object store."""

    def open(self, digest: str) -> BinaryIO:
        """The object; raises KeyError if it is not there."""
        ...

    def fetch(self, digests: Iterable[str]) -> None:
        """Bring near what is about to be opened."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceFile:
    """An instance, where its bytes are, and its header."""

    instance: Instance
    objects: Objects
    header: Dataset


def open_instance(instance: Instance, objects: Objects, tags: Sequence[str]) -> InstanceFile:
    """Read an instance's header, the elements of ``tags`` (keywords) and no others.

    Raises
    ------
    InputNotUsable
        file-missing, file-changed or undecodable-frame.
    """
    with _bytes_of(instance, objects) as file:
        try:
            header = dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(tags))  # type: ignore[arg-type]  # keywords
        except OSError as error:
            raise InputNotUsable("file-missing", f"a file of the series cannot be read: {error.strerror}") from None
        except Exception as error:  # whatever pydicom's converters raise on damaged bytes
            raise InputNotUsable("undecodable-frame", f"a header cannot be read ({type(error).__name__})") from None
    return InstanceFile(instance=instance, objects=objects, header=header)


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


def decode(wanted: Iterable[tuple[InstanceFile, Mapping[int, np.ndarray]]]) -> None:
    """Decode frames, of any number of instances, each into its target.

    Each instance comes with the frames wanted of it (numbered from 0) and where each goes: (rows, columns) float32
    arrays, filled with the values after the modality LUT.

    Raises
    ------
    InputNotUsable
        file-missing, file-changed, undecodable-frame or bad-rescale.
    """
    for file, targets in wanted:
        _decode_one(file, targets)


def _decode_one(file: InstanceFile, targets: Mapping[int, np.ndarray]) -> None:
    dataset = _whole(file)
    frames = sorted(targets)
    try:
        for frame, pixels in zip(frames, iter_pixels(dataset, indices=frames), strict=True):
            target = targets[frame]
            if pixels.shape != target.shape:
                raise InputNotUsable("undecodable-frame", "a decoded frame has another size than its header says")
            target[...] = _values(pixels, dataset, frame)
    except InputNotUsable:
        raise
    except Exception as error:  # decoders raise whatever their libraries do; the text may quote the data
        reason = f"the pixels of an instance cannot be decoded ({type(error).__name__})"
        raise InputNotUsable("undecodable-frame", reason, transfer_syntax=file.instance.transfer_syntax_uid) from None
    if not all(np.isfinite(target).all() for target in targets.values()):
        raise InputNotUsable("undecodable-frame", "the pixels of an instance are not finite numbers")


def _whole(file: InstanceFile) -> Dataset:
    """The data set with its pixel data; a file that stays in place must still be the one that was taken in."""
    with _bytes_of(file.instance, file.objects) as opened:
        try:
            data = opened.read()
        except OSError as error:
            raise InputNotUsable("file-missing", f"a file of the series cannot be read: {error.strerror}") from None
    if len(data) != file.instance.size or (file.instance.path and sha256(data).hexdigest() != file.instance.sha256):
        raise InputNotUsable("file-changed", "a file of the series has changed since it was taken in: ingest it again")
    dataset = dcmread(BytesIO(data), force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = UID(file.instance.transfer_syntax_uid)
    return dataset


def _values(pixels: np.ndarray, dataset: Dataset, frame: int) -> np.ndarray:
    """Stored pixel values to modality values; MONOCHROME1 mirrored within the range that the bits stored allow."""
    source = _lut_source(dataset, frame)
    values = _modality_values(pixels, source)
    if first_of(dataset, "PhotometricInterpretation") == "MONOCHROME1":
        bits = number_of(dataset, "BitsStored") or pixels.dtype.itemsize * 8
        signed = number_of(dataset, "PixelRepresentation") == 1
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        ends = _modality_values(np.array([low, high]), source)
        values = float(ends.sum()) - values
    return values


def _lut_source(dataset: Dataset, frame: int) -> Dataset:
    """Where the rescale of a frame stands: in its functional groups (PS3.3 C.7.6.16.2.9), else in the data set."""
    per_frame = items_of(dataset, "PerFrameFunctionalGroupsSequence")
    if per_frame:
        groups = (per_frame[frame], *items_of(dataset, "SharedFunctionalGroupsSequence")[:1])
        return group_of(groups, "PixelValueTransformationSequence")
    return dataset


def _modality_values(pixels: np.ndarray, source: Dataset) -> np.ndarray:
    if items_of(source, "ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(pixels, source), np.float64)
    if "RescaleSlope" not in source and "RescaleIntercept" not in source:
        return pixels.astype(np.float64)
    slope, intercept = numbers_of(source, "RescaleSlope"), numbers_of(source, "RescaleIntercept")
    if len(slope) != 1 or len(intercept) != 1 or slope[0] == 0:
        raise InputNotUsable("bad-rescale", "RescaleSlope and RescaleIntercept are not a pair of numbers")
    return pixels * slope[0] + intercept[0]
