"""DICOM objects as records, and into the store with their patients: what selection is tested with, without files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medflow.errors import InputRejected
from medflow.records import DicomObject, Identifier, Instance, Instant, Patient, Series, Study
from medflow.store import Store
from medflow.store.imaging import store_objects
from medflow.store.patients import resolve_patients

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
LATE = Instant(utc_us=4_000_000_000_000_000)
INSTANCE = frozenset(Instance.__dataclass_fields__)
STUDY = frozenset(("started", "accession_number", "study_description"))


def object_of(number: int = 0, *, study: str = "1.1", series: str = "1.1.1", **changes: Any) -> DicomObject:
    """One CT slice; ``changes`` are fields of its instance, study or series, by the records' names."""
    acquired = Instant(utc_us=2_000_000 - number, offset_min=60)
    instance: dict[str, Any] = {"sha256": f"{number:064d}", "size": 1, "instance_number": number, "acquired": acquired}
    instance |= {"sop_instance_uid": f"{series}.{number}", "sop_class_uid": CT_IMAGE, "transfer_syntax_uid": "1.2.4"}
    of_series: dict[str, Any] = {"modality": "CT", "body_part": "Chest", "contrast": False}
    of_study: dict[str, Any] = {}
    for name, value in changes.items():
        level = instance if name in INSTANCE else of_study if name in STUDY else of_series
        level[name.removeprefix("study_")] = value
    return DicomObject(
        patient=Patient(),
        study=Study(study_instance_uid=study, **of_study),
        series=Series(series_instance_uid=series, **of_series),
        instance=Instance(**instance),
    )


def patients(store: Store, *names: str) -> list[int]:
    """The ids of new patients."""
    claims = [Patient(identifiers=(Identifier(system="urn:x", value=name),)) for name in names]
    with store.writing() as connection:
        found = resolve_patients(connection, claims)
    assert all(isinstance(one, int) for one in found)
    return found  # type: ignore[return-value]  # checked above


def put(store: Store, objects: Sequence[DicomObject], patient: int | None = None) -> list[str]:
    """Store objects; the outcome of each."""
    with store.writing() as connection:
        outcomes = store_objects(connection, [(item, patient) for item in objects])
    return [str(outcome.code) if isinstance(outcome, InputRejected) else outcome for outcome in outcomes]
