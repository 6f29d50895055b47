"""The phantoms as proper DICOM: a CT series of slices and chest radiographs, with fixed UIDs under 2.25 (PS3.5 B.2)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
)

from medflow import __version__

ISSUER = "MEDFLOW-DEMO"
_IMPLEMENTATION = UID(f"2.25.{uuid5(NAMESPACE_URL, 'medflow/sample').int}")
_RESCALE_INTERCEPT = -1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """Who is on the pictures; everything about them is made up. ``sex`` is DICOM's M, F or O."""

    mrn: str
    family_name: str
    given_name: str
    birth_date: date
    sex: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """One imaging study: ``key`` makes its UIDs, ``taken`` (aware) is when the pictures were made."""

    key: str
    person: Person
    taken: datetime
    description: str
    number: int


def uid(key: str) -> str:
    """A UID derived from ``key``: the same one every time (PS3.5 B.2, a UUID as a decimal number under 2.25)."""
    return f"2.25.{uuid5(NAMESPACE_URL, f'medflow/sample/{key}').int}"


def write_ct(folder: Path, study: Study, hu: np.ndarray, affine: np.ndarray) -> list[Path]:
    """Write a volume as CT Image Storage files, one a slice (PS3.3 A.3).

    ``hu`` is (z, y, x) in Hounsfield units, -1024 to 3071; ``affine`` (4, 4) maps array indices (x, y, z, 1) to LPS mm,
    and its axes must be at right angles.
    """
    folder.mkdir(parents=True, exist_ok=True)
    column_mm, row_mm, slice_mm = np.linalg.norm(affine[:3, :3], axis=0)
    row_direction, column_direction = affine[:3, 0] / column_mm, affine[:3, 1] / row_mm
    axial = abs(affine[2, 2]) / slice_mm > 0.9
    stored = np.round(hu - _RESCALE_INTERCEPT).astype(np.uint16)
    paths = []
    for index, pixels in enumerate(stored):
        ds = _common(study, CTImageStorage, "CT", index + 1, series="ct")
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] if axial else ["DERIVED", "SECONDARY", "MPR"]
        if not axial:
            ds.DerivationDescription = "Sampled on a reformatted grid"
        ds.BodyPartExamined = "ABDOMEN"
        ds.PatientPosition = "HFS"
        ds.FrameOfReferenceUID = uid(f"{study.key}/frame")
        ds.PositionReferenceIndicator = None
        ds.PixelSpacing = [_decimal(row_mm), _decimal(column_mm)]
        ds.SliceThickness = _decimal(slice_mm)
        ds.ImageOrientationPatient = [_decimal(v) for v in (*row_direction, *column_direction)]
        ds.ImagePositionPatient = [_decimal(v) for v in affine[:3, 2] * index + affine[:3, 3]]
        ds.KVP = "120"
        ds.AcquisitionNumber = 1
        ds.RescaleIntercept = str(_RESCALE_INTERCEPT)
        ds.RescaleSlope = "1"
        ds.RescaleType = "HU"
        ds.WindowCenter, ds.WindowWidth = "60", "400"
        paths.append(_save(folder / f"ct-{index + 1:03d}.dcm", ds, pixels, bits=12, photometric="MONOCHROME2"))
    return paths


def write_radiograph(
    path: Path, study: Study, picture: np.ndarray, *, modality: str = "DX", inverted: bool = False
) -> Path:
    """Write a chest radiograph as DX (PS3.3 A.26) or CR (PS3.3 A.2).

    ``picture`` is (rows, columns) in 0..1, where 1 is dense and shown white; ``inverted`` stores the same picture as
    MONOCHROME1, its lowest value shown white.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sop_class = DigitalXRayImageStorageForPresentation if modality == "DX" else ComputedRadiographyImageStorage
    ds = _common(study, sop_class, modality, 1, series=modality)
    ds.BodyPartExamined = "CHEST"
    ds.ViewPosition = "PA"
    ds.PatientOrientation = ["L", "F"]
    ds.WindowCenter, ds.WindowWidth = "2048", "4096"
    if modality == "DX":
        ds.ImageType = ["ORIGINAL", "PRIMARY", ""]
        _dx(ds, inverted)
    else:
        ds.ImageType = ["ORIGINAL", "PRIMARY"]
    stored = np.round(np.clip(picture, 0, 1) * 4095).astype(np.uint16)
    photometric = "MONOCHROME1" if inverted else "MONOCHROME2"
    return _save(path, ds, 4095 - stored if inverted else stored, bits=12, photometric=photometric)


def chest(rng: np.random.Generator, *, opacity: float = 0.0, size: int = 224) -> np.ndarray:
    """A chest-like picture (rows, columns) in 0..1: two dark lungs, a heart, ribs; ``opacity`` clouds the lungs."""
    y, x = np.mgrid[0:size, 0:size] / size
    body = 1 / (1 + np.exp(((np.abs(x - 0.5) / 0.46) ** 4 + (np.abs(y - 0.55) / 0.62) ** 6 - 1) * 12))
    lungs = np.zeros_like(x)
    for centre, width in ((0.29, 0.15), (0.71, 0.14)):
        lungs = np.maximum(lungs, 1 / (1 + np.exp((((x - centre) / width) ** 2 + ((y - 0.45) / 0.32) ** 2 - 1) * 6)))
    heart = np.exp(-((((x - 0.57) / 0.13) ** 2 + ((y - 0.64) / 0.15) ** 2) ** 2))
    spine = np.exp(-(((x - 0.5) / 0.07) ** 2))
    ribs = 0.035 * np.sin((y + 0.6 * (x - 0.5) ** 2) * 58) * lungs
    picture = 0.08 + 0.62 * body - 0.42 * lungs * (1 - 0.85 * heart) + 0.12 * spine * body + ribs
    for _ in range(9):
        at = rng.uniform(0.18, 0.82), rng.uniform(0.3, 0.75)
        cloud = np.exp(-(((x - at[0]) ** 2 + (y - at[1]) ** 2) / rng.uniform(0.004, 0.012)))
        picture += 0.2 * opacity * cloud * lungs
    return np.clip(picture + rng.normal(0, 0.012, x.shape), 0, 1)


def _common(study: Study, sop_class: str, modality: str, number: int, *, series: str) -> Dataset:
    """Patient, study, series, equipment and SOP common modules (PS3.3 C.7.1 to C.7.5, C.12.1)."""
    ds = Dataset()
    person, taken = study.person, study.taken
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = sop_class
    ds.SOPInstanceUID = uid(f"{study.key}/{series}/{number}")
    ds.StudyInstanceUID = uid(study.key)
    ds.SeriesInstanceUID = uid(f"{study.key}/{series}")
    ds.TimezoneOffsetFromUTC = taken.strftime("%z")
    ds.StudyDate = ds.SeriesDate = taken.strftime("%Y%m%d")
    ds.StudyTime = ds.SeriesTime = taken.strftime("%H%M%S")
    acquired = taken + timedelta(seconds=number)
    ds.AcquisitionDate = ds.ContentDate = acquired.strftime("%Y%m%d")
    ds.AcquisitionTime = ds.ContentTime = acquired.strftime("%H%M%S")
    ds.AccessionNumber = f"DEMO{study.number:06d}"
    ds.StudyID = str(study.number)
    ds.StudyDescription = study.description
    ds.SeriesDescription = f"{study.description} (phantom)"
    ds.ReferringPhysicianName = None
    ds.Modality = modality
    ds.SeriesNumber = 1
    ds.InstanceNumber = number
    ds.Manufacturer = "medflow"
    ds.ManufacturerModelName = "sample generator"
    ds.DeviceSerialNumber = "0"
    ds.SoftwareVersions = __version__
    ds.PatientName = f"{person.family_name}^{person.given_name}"
    ds.PatientID = person.mrn
    ds.IssuerOfPatientID = ISSUER
    ds.PatientBirthDate = person.birth_date.strftime("%Y%m%d")
    ds.PatientSex = person.sex
    return ds


def _dx(ds: Dataset, inverted: bool) -> None:
    """What DX asks for beyond CR (PS3.3 C.8.11)."""
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.ImageLaterality = "U"
    ds.LossyImageCompression = "00"
    ds.BurnedInAnnotation = "NO"
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = 1 if inverted else -1  # -1: higher values are less X-ray on the detector
    ds.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    ds.DetectorType = ds.PositionerType = None
    ds.DetectorID = "0"
    ds.ImagerPixelSpacing = [1.6, 1.6]
    ds.AcquisitionContextSequence = []
    region = Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "816094009", "SCT", "Chest"
    ds.AnatomicRegionSequence = [region]
    view = Dataset()
    view.CodeValue, view.CodingSchemeDesignator, view.CodeMeaning = "399348003", "SCT", "postero-anterior"
    view.ViewModifierCodeSequence = []
    ds.ViewCodeSequence = [view]


def _save(path: Path, ds: Dataset, pixels: np.ndarray, *, bits: int, photometric: str) -> Path:
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = photometric
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, bits, bits - 1, 0
    ds.PixelData = pixels.astype("<u2").tobytes()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _IMPLEMENTATION
    ds.file_meta = meta
    dcmwrite(path, ds, enforce_file_format=True)
    return path


def _decimal(value: float) -> str:
    """A DICOM decimal string: at most 16 characters (PS3.5 6.2)."""
    text = f"{float(value) + 0.0:.10f}".rstrip("0").rstrip(".")[:16]
    return "0" if text in ("-0", "") else text
