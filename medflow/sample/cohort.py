"""A made-up intensive-care cohort as FHIR R4: some patients are sicker than others, and their signals show it.

Codes and UCUM units are those that the Challenge 2012 data are mapped to, so that a model trained on one reads the
other. Every resource carries the security label HTEST (test health data), and no name or number is anybody's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from typing import Any, NamedTuple

import numpy as np

from medflow.sample.imaging import Person

MRN_SYSTEM = "http://example.org/medflow-demo/mrn"
ICU_TYPE_SYSTEM = "urn:physionet:challenge-2012:icu-type"
_LOINC, _SNOMED, _UCUM = "http://loinc.org", "http://snomed.info/sct", "http://unitsofmeasure.org"
_FIRST_ADMISSION = datetime(2026, 3, 2, 6, 15, tzinfo=timezone(timedelta(hours=1)))
NIGHTS = tuple(datetime(2026, 3, day, 3, tzinfo=_FIRST_ADMISSION.tzinfo) for day in (10, 11))  # the ward is full
_HTEST = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "HTEST"}
_MEASURED_HOURS = 50
_LABORATORY_DELAY = timedelta(minutes=40)  # between the sample and its result: effective and issued differ

Resource = dict[str, Any]


class Signal(NamedTuple):
    """How one parameter behaves: its mean in health and in extremis, noise, range, digits and hours between values."""

    code: str
    unit: str
    healthy: float
    sick: float
    noise: float
    low: float
    high: float
    digits: int
    every_h: float
    laboratory: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Stay:
    """One person's stay. ``severity`` 0..1 is at admission and ``trend`` its change over 48 hours; neither is coded."""

    number: int
    person: Person
    admitted: datetime
    hours: int
    icu_type: int
    severity: float
    trend: float
    weight_kg: float
    height_cm: float

    @property
    def patient_id(self) -> str:
        """FHIR Patient.id."""
        return f"demo-patient-{self.number:03d}"

    @property
    def encounter_id(self) -> str:
        """FHIR Encounter.id."""
        return f"demo-stay-{self.number:03d}"


SIGNALS: Mapping[str, Signal] = {
    "HR": Signal("8867-4", "/min", 76, 122, 5, 30, 220, 0, 1),
    "RespRate": Signal("9279-1", "/min", 15, 30, 2, 4, 60, 0, 1),
    "SaO2": Signal("2708-6", "%", 98, 88, 1, 60, 100, 0, 2),
    "Temp": Signal("8310-5", "Cel", 36.8, 38.6, 0.25, 32, 42, 1, 4),
    "GCS": Signal("9269-2", "{score}", 15.4, 4, 0.7, 3, 15, 0, 4),
    "Urine": Signal("9187-6", "mL", 170, 20, 35, 0, 1500, 0, 2),
    "BUN": Signal("3094-0", "mg/dL", 14, 70, 4, 2, 200, 0, 12, True),
    "Creatinine": Signal("2160-0", "mg/dL", 0.9, 3.8, 0.2, 0.2, 20, 1, 12, True),
    "Glucose": Signal("2345-7", "mg/dL", 118, 215, 16, 20, 900, 0, 8, True),
    "HCO3": Signal("1963-8", "mmol/L", 25.5, 14, 1.2, 3, 50, 0, 12, True),
    "HCT": Signal("4544-3", "%", 36, 26, 1.5, 10, 65, 1, 12, True),
    "K": Signal("2823-3", "mmol/L", 4.0, 5.1, 0.25, 2, 9, 1, 12, True),
    "Na": Signal("2951-2", "mmol/L", 139, 134, 2, 110, 175, 0, 12, True),
    "Mg": Signal("2601-3", "mmol/L", 0.85, 0.8, 0.06, 0.3, 3, 2, 12, True),
    "Platelets": Signal("777-3", "10*3/uL", 235, 85, 18, 5, 1000, 0, 24, True),
    "WBC": Signal("6690-2", "10*3/uL", 8.5, 21, 1.2, 0.1, 120, 1, 24, True),
    "Albumin": Signal("1751-7", "g/dL", 3.8, 2.1, 0.15, 1, 5.5, 1, 48, True),
    "Bilirubin": Signal("1975-2", "mg/dL", 0.6, 5.5, 0.15, 0.1, 50, 1, 48, True),
    "ALT": Signal("1742-6", "U/L", 24, 260, 6, 3, 5000, 0, 48, True),
    "AST": Signal("1920-8", "U/L", 26, 320, 7, 3, 5000, 0, 48, True),
}
_PRESSURES = {  # (systolic, diastolic, mean) codes: invasive, non-invasive
    True: ("76215-3", "76213-8", "76214-6"),
    False: ("76534-7", "76535-4", "76536-2"),
}
_VENTILATED: Mapping[str, Signal] = {  # measured in whoever is ventilated
    "FiO2": Signal("3150-6", "1", 0.4, 0.9, 0.04, 0.21, 1, 2, 6),
    "pH": Signal("2744-1", "[pH]", 7.41, 7.2, 0.03, 6.8, 7.7, 2, 6, True),
    "PaCO2": Signal("2019-8", "mm[Hg]", 40, 50, 3, 15, 110, 0, 6, True),
    "PaO2": Signal("2703-7", "mm[Hg]", 125, 66, 9, 30, 500, 0, 6, True),
    "Lactate": Signal("2524-7", "mmol/L", 1.1, 7.5, 0.3, 0.3, 25, 1, 6, True),
}


def draw_stays(rng: np.random.Generator, count: int) -> list[Stay]:
    """Draw ``count`` stays of 50 hours and more, each of another person, spread over the same fortnight."""
    stays = []
    for number in range(1, count + 1):
        severity = float(np.clip(rng.beta(1.1, 1.6), 0.02, 0.98))
        sex = str(rng.choice(["M", "F"]))
        person = Person(
            mrn=f"DEMO-{number:06d}",
            family_name=f"Phantom-{number:03d}",
            given_name="Synthetic",
            birth_date=date(int(rng.integers(1936, 2004)), int(rng.integers(1, 13)), int(rng.integers(1, 29))),
            sex=sex,
        )
        stays.append(
            Stay(
                number=number,
                person=person,
                admitted=_FIRST_ADMISSION + timedelta(minutes=int(rng.integers(0, 14 * 24 * 60))),
                hours=int(rng.integers(_MEASURED_HOURS, 120)),
                icu_type=int(rng.integers(1, 5)),
                severity=severity,
                trend=float(np.clip(rng.normal(0.45 * (severity - 0.45), 0.1), -0.4, 0.4)),
                weight_kg=round(float(rng.normal(84 if sex == "M" else 71, 13)), 1),
                height_cm=round(float(rng.normal(177 if sex == "M" else 164, 7)), 0),
            )
        )
    return stays


def patient(stay: Stay) -> Resource:
    """FHIR Patient, with the record number that the images carry as PatientID."""
    person = stay.person
    return {
        "resourceType": "Patient",
        "id": stay.patient_id,
        "meta": {"security": [_HTEST]},
        "identifier": [{"use": "usual", "system": MRN_SYSTEM, "value": person.mrn}],
        "name": [{"use": "official", "family": person.family_name, "given": [person.given_name]}],
        "gender": {"M": "male", "F": "female"}[person.sex],
        "birthDate": person.birth_date.isoformat(),
    }


def encounter(stay: Stay) -> Resource:
    """FHIR Encounter: an acute inpatient stay with its kind of intensive care unit."""
    ended = stay.admitted + timedelta(hours=stay.hours)
    return {
        "resourceType": "Encounter",
        "id": stay.encounter_id,
        "meta": {"security": [_HTEST]},
        "status": "finished",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "ACUTE"},
        "type": [{"coding": [{"system": ICU_TYPE_SYSTEM, "code": str(stay.icu_type)}]}],
        "subject": {"reference": f"Patient/{stay.patient_id}"},
        "period": {"start": stay.admitted.isoformat(), "end": ended.isoformat()},
    }


def observations(rng: np.random.Generator, stay: Stay) -> Iterator[Resource]:
    """Every Observation of a stay, ids in the order of making."""
    for number, (system, code, unit, value, effective, issued) in enumerate(_values(rng, stay), start=1):
        found: Resource = {
            "resourceType": "Observation",
            "id": f"demo-obs-{stay.number:03d}-{number:04d}",
            "meta": {"security": [_HTEST]},
            "status": "final",
            "code": {"coding": [{"system": system, "code": code}]},
            "subject": {"reference": f"Patient/{stay.patient_id}"},
            "encounter": {"reference": f"Encounter/{stay.encounter_id}"},
            "effectiveDateTime": effective.isoformat(),
            "issued": issued.isoformat(),
        }
        if unit is None:
            found["valueBoolean"] = bool(value)
        else:
            found["valueQuantity"] = {"value": value, "unit": unit, "system": _UCUM, "code": unit}
        yield found


_Value = tuple[str, str, str | None, float, datetime, datetime]  # system, code, unit, value, effective, issued


def _values(rng: np.random.Generator, stay: Stay) -> Iterator[_Value]:
    def at(hour: float) -> datetime:
        return stay.admitted + timedelta(minutes=round(hour * 60))

    yield _LOINC, "29463-7", "kg", stay.weight_kg, at(0), at(0)
    yield _LOINC, "8302-2", "cm", stay.height_cm, at(0), at(0)
    ventilated = stay.severity > 0.35
    for signal in (*SIGNALS.values(), *(_VENTILATED.values() if ventilated else ())):
        own = rng.normal(0, signal.noise)  # what sets this person apart throughout
        for hour in _hours(rng, signal.every_h):
            mean = signal.healthy + (signal.sick - signal.healthy) * _severity(stay, hour) + own
            value = _rounded(np.clip(rng.normal(mean, signal.noise), signal.low, signal.high), signal.digits)
            issued = at(hour) + (_LABORATORY_DELAY if signal.laboratory else timedelta(0))
            yield _LOINC, signal.code, signal.unit, value, at(hour), issued
    codes = _PRESSURES[ventilated or stay.icu_type == 2]
    for hour in _hours(rng, 1):
        systolic = rng.normal(126 - 40 * _severity(stay, hour), 6)
        diastolic = min(rng.normal(66 - 20 * _severity(stay, hour), 4), systolic - 12)
        for code, value in zip(codes, (systolic, diastolic, (systolic + 2 * diastolic) / 3), strict=True):
            yield _LOINC, code, "mm[Hg]", _rounded(value, 0), at(hour), at(hour)
    if ventilated:
        for hour in _hours(rng, 4):
            yield _SNOMED, "40617009", None, 1.0, at(hour), at(hour)


def _severity(stay: Stay, hour: float) -> float:
    return float(np.clip(stay.severity + stay.trend * hour / 48, 0, 1))


def _hours(rng: np.random.Generator, every_h: float) -> np.ndarray:
    """Times of measurement in hours from admission: regular rounds, a little late as in life."""
    rounds = np.arange(rng.uniform(0.05, 0.5), _MEASURED_HOURS, every_h)
    return rounds + rng.uniform(0, 0.2, rounds.shape)


def _rounded(value: float, digits: int) -> float:
    rounded = round(float(value), digits)
    return int(rounded) if digits == 0 else rounded
