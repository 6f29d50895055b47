"""DICOM objects of known content, for whatever test needs some: whole, proper, and nobody's."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from medflow.records import Instance

ROOT = "1.2.826.0.1.3680043.8.498.1"  # test UIDs hang below this one
ROWS = np.array([1.0, 0.0, 0.0])
COLUMNS = np.array([0.0, 1.0, 0.0])


def slice_of(number: int = 0, *, study: int = 1, series: int = 1, **elements: Any) -> Dataset:
    """A CT slice of 6 x 4 pixels; ``elements`` are set last, and None takes an element away."""
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = f"{ROOT}.{study}.{series}.{number + 1}"
    dataset.StudyInstanceUID = f"{ROOT}.{study}"
    dataset.SeriesInstanceUID = f"{ROOT}.{study}.{series}"
    dataset.PatientID = f"P{study}"
    dataset.PatientName = "Nobody^Known"
    dataset.PatientBirthDate = "19500102"
    dataset.PatientSex = "F"
    dataset.StudyDate, dataset.StudyTime = "20240102", "101112"
    dataset.AcquisitionDate, dataset.AcquisitionTime = "20240102", f"1015{number % 60:02d}"
    dataset.TimezoneOffsetFromUTC = "+0100"
    dataset.Modality = "CT"
    dataset.InstanceNumber = number + 1
    dataset.FrameOfReferenceUID = f"{ROOT}.{study}.9"
    dataset.ImagePositionPatient = [-10.0, -20.0, 2.5 * number]
    dataset.ImageOrientationPatient = [*ROWS, *COLUMNS]
    dataset.PixelSpacing = [0.5, 0.75]
    dataset.SliceThickness = 99  # misleading on purpose: it must not matter
    dataset.RescaleSlope, dataset.RescaleIntercept = 2, -1000
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = 6, 4
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = (np.arange(24, dtype="<u2") + 100 * number).tobytes()
    for name, value in elements.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def volume_of(slices: int = 4, **elements: Any) -> list[Dataset]:
    """The slices of one regular series."""
    return [slice_of(number, **elements) for number in range(slices)]


def to_bytes(dataset: Dataset, transfer_syntax: str = ExplicitVRLittleEndian) -> bytes:
    """The file, with preamble and file meta information."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = transfer_syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", "")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "")
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=False, implicit_vr=False, little_endian=True)
    body = buffer.getvalue()
    return body if body[128:132] == b"DICM" else bytes(128) + b"DICM" + body


def write_series(folder: Path, datasets: Sequence[Dataset]) -> list[Path]:
    """One file each, named by number."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03d}.dcm" for number in range(len(datasets))]
    for path, dataset in zip(paths, datasets, strict=True):
        path.write_bytes(to_bytes(dataset))
    return paths


def instance_of(path: Path, **changes: Any) -> Instance:
    """The record of a file that stays in place."""
    data = path.read_bytes()
    fields: dict[str, Any] = {
        "sop_instance_uid": f"{ROOT}.{path.name}",
        "sop_class_uid": CTImageStorage,
        "transfer_syntax_uid": ExplicitVRLittleEndian,
        "sha256": sha256(data).hexdigest(),
        "size": len(data),
        "path": str(path),
    }
    return Instance(**{**fields, **changes})
