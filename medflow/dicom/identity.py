"""Who a DICOM object says it is about: PatientID within its issuer, as the identifier that FHIR would use.

PS3.3 C.7.1.1 and 10.14: a PatientID is unique only within its assigning authority, named by IssuerOfPatientID or by
the universal id in its qualifiers. Which FHIR system that is, only the site knows (``MEDFLOW_ISSUER_SYSTEMS``).
"""

from __future__ import annotations

from urllib.parse import quote

from pydicom.dataset import Dataset

from medflow.config import Settings
from medflow.dicom.elements import first_of, items_of, text_of
from medflow.dicom.times import date_of
from medflow.records import Identifier, Patient

NO_ISSUER = "urn:medflow:dicom-patient-id"
SEXES = {"M": "male", "F": "female", "O": "other"}  # PS3.3 C.2.3.1 to FHIR AdministrativeGender


def patient_of(dataset: Dataset, settings: Settings) -> Patient:
    """The claim of one header; without identifiers when PatientID is blank."""
    patient_id = text_of(dataset, "PatientID")
    identifiers = () if patient_id is None else (Identifier(system=_system(dataset, settings), value=patient_id),)
    return Patient(
        identifiers=identifiers,
        birth_date=date_of(first_of(dataset, "PatientBirthDate")),
        sex=SEXES.get(first_of(dataset, "PatientSex") or ""),
        complete=True,
    )


def _system(dataset: Dataset, settings: Settings) -> str:
    """The identifier system of the PatientID: as configured for its issuer, else one made from the issuer."""
    issuer = text_of(dataset, "IssuerOfPatientID")
    universal, kind = None, None
    for qualifiers in items_of(dataset, "IssuerOfPatientIDQualifiersSequence")[:1]:
        universal = text_of(qualifiers, "UniversalEntityID")
        kind = text_of(qualifiers, "UniversalEntityIDType")
    for name in (issuer, universal):
        if name is not None and name in settings.issuer_systems:
            return settings.issuer_systems[name]
    if universal is not None and kind == "ISO":
        return f"urn:oid:{universal}"
    if (name := issuer or universal) is not None:
        return f"urn:medflow:dicom-issuer:{quote(name, safe='')}"
    return settings.default_patient_system or NO_ISSUER
