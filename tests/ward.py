"""Records of one ward as FHIR, hour by hour after an admission: what was measured, and when that was known."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from medflow.plugin import LOINC, Channel, Coding

ADMITTED = datetime(2026, 3, 1, tzinfo=UTC)
RATE, COMA, UREA = (
    Channel(name=name, codes=(Coding(system=LOINC, code=code),), unit=unit, valid_range=(1, 300))
    for name, code, unit in (("rate", "8867-4", "/min"), ("coma", "9269-2", "{score}"), ("urea", "3094-0", "mg/dL"))
)


def at(hour: float) -> str:
    return (ADMITTED + timedelta(hours=hour)).isoformat()


def patient(name: str = "p1", *identifiers: str) -> dict:
    return {
        "resourceType": "Patient",
        "id": name,
        "identifier": [{"system": "urn:mrn", "value": value} for value in identifiers],
    }


def stay(name: str = "e1", of: str = "p1", end: float | None = None, version: int = 1) -> dict:
    period = {"start": at(0)} | ({} if end is None else {"end": at(end)})
    return {
        "resourceType": "Encounter",
        "id": name,
        "meta": {"versionId": str(version)},
        "status": "in-progress" if end is None else "finished",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "ACUTE"},
        "subject": {"reference": f"Patient/{of}"},
        "period": period,
    }


def value(name: str, hour: float, number: float = 80, channel: Channel = RATE, **changes) -> dict:
    """An Observation of stay e1; ``issued`` in hours, ``of`` and ``visit`` ids, ``unit`` and ``version`` may differ."""
    code, unit = channel.codes[0], changes.get("unit", channel.unit)
    visit = changes.get("visit", "e1")
    return {
        "resourceType": "Observation",
        "id": name,
        "meta": {"versionId": str(changes.get("version", 1))},
        "status": changes.get("status", "final"),
        "code": {"coding": [{"system": code.system, "code": code.code}]},
        "subject": {"reference": f"Patient/{changes.get('of', 'p1')}"},
        **({"encounter": {"reference": f"Encounter/{visit}"}} if visit else {}),
        "effectiveDateTime": at(hour),
        "issued": at(changes.get("issued", hour)),
        "valueQuantity": {"value": number, "unit": unit, "system": "http://unitsofmeasure.org", "code": unit},
    }
