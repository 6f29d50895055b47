"""Small cohorts of stays as FHIR, and a model that scores them: for evaluating what it said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import orjson

from medflow.plugin import (
    LOINC,
    SNOMED,
    Case,
    Channel,
    Classification,
    ClassLabel,
    Coding,
    Model,
    ModelSpec,
    Prediction,
    Risk,
    SequenceInput,
    TimeSeriesInput,
    UnitKind,
)
from tests.models import CARD

HEART_RATE = Coding(system=LOINC, code="8867-4")
MRN = "urn:example:mrn"
VISIT = "urn:example:visit"


class HeartRisk(Model[float]):
    """Says that a heart rate of 50 is a risk of death of 0, and one of 150 a certainty; from the first hour."""

    spec: ClassVar[ModelSpec] = ModelSpec(
        name="heart-risk",
        version="1.0.0",
        title="Death by heart rate",
        unit=UnitKind.ENCOUNTER,
        accepts=(
            TimeSeriesInput(
                channels=(Channel(name="HR", codes=(HEART_RATE,), unit="/min", units={"/min": 1.0}),),
                window=timedelta(hours=1),
                step=timedelta(hours=1),
            ),
        ),
        outputs=(
            Risk(
                name="death",
                code=Coding(system=SNOMED, code="225338004"),
                outcome=Coding(system=SNOMED, code="419099009"),
                threshold=0.6,
            ),
        ),
        card=CARD,
        batch_size=32,
    )

    def load(self, device: str) -> None:
        """Nothing to load."""

    def prepare(self, case: Case) -> float:
        """The mean heart rate."""
        return float(np.nanmean(case.series.values))

    def predict(self, batch: Sequence[float]) -> list[Prediction]:
        """Of each."""
        return [Prediction(values={"death": min(max((rate - 50) / 100, 0.0), 1.0)}) for rate in batch]


class Letters(Model[str]):
    """Which letter a sequence has most of: the shares of A, C and the others are the classes' probabilities."""

    spec: ClassVar[ModelSpec] = ModelSpec(
        name="letters",
        version="1.0.0",
        title="Letters",
        unit=UnitKind.SEQUENCE,
        accepts=(SequenceInput(length=8),),
        outputs=(
            Classification(
                name="letter",
                code=Coding(system="urn:example", code="letter"),
                classes=tuple(
                    ClassLabel(name=name, code=Coding(system="urn:example", code=f"L-{name}"))
                    for name in ("mostly-a", "mostly-c", "other")
                ),
            ),
        ),
        card=CARD,
        batch_size=32,
    )

    def load(self, device: str) -> None:
        """Nothing to load."""

    def prepare(self, case: Case) -> str:
        """The bases."""
        return case.sequence.bases

    def predict(self, batch: Sequence[str]) -> list[Prediction]:
        """Of each."""
        shares = [np.array([text.count("A"), text.count("C"), len(text)], dtype=float) / len(text) for text in batch]
        return [Prediction(values={"letter": np.array([a, c, 1 - a - c])}) for a, c, _ in shares]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stay:
    """One stay of one patient: admitted on 2026-01-01, measured at once, and what became known later."""

    number: int
    rate: float
    disposition: str | None = None
    sex: str = "female"
    born: str = "1950-06-01"
    patient: int | None = None
    deceased: str | bool | None = None
    ended: bool = True

    @property
    def risk(self) -> float:
        """What `HeartRisk` says."""
        return (self.rate - 50) / 100


def write_stays(folder: Path, stays: Iterable[Stay]) -> Path:
    """NDJSON of these stays; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "stays.ndjson"
    path.write_bytes(b"\n".join(orjson.dumps(item) for stay in stays for item in _resources(stay)))
    return path


def _resources(stay: Stay) -> list[dict[str, Any]]:
    who = stay.patient if stay.patient is not None else stay.number
    patient: dict[str, Any] = {
        "resourceType": "Patient",
        "id": f"p{who}",
        "identifier": [{"system": MRN, "value": f"M{who:04d}"}],
        "gender": stay.sex,
        "birthDate": stay.born,
    }
    if stay.deceased is not None:
        patient["deceasedBoolean" if isinstance(stay.deceased, bool) else "deceasedDateTime"] = stay.deceased
    encounter: dict[str, Any] = {
        "resourceType": "Encounter",
        "id": f"e{stay.number}",
        "identifier": [{"system": VISIT, "value": f"V{stay.number:04d}"}],
        "status": "finished" if stay.ended else "in-progress",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "ACUTE"},
        "subject": {"reference": f"Patient/p{who}"},
        "period": {"start": "2026-01-01T00:00:00Z"},
    }
    if stay.ended:
        encounter["period"]["end"] = "2026-01-05T00:00:00Z"
    if stay.disposition is not None:
        system = "http://terminology.hl7.org/CodeSystem/discharge-disposition"
        coding = [{"system": system, "code": stay.disposition}]
        encounter["hospitalization"] = {"dischargeDisposition": {"coding": coding}}
    observation = {
        "resourceType": "Observation",
        "id": f"o{stay.number}",
        "status": "final",
        "code": {"coding": [{"system": HEART_RATE.system, "code": HEART_RATE.code}]},
        "subject": {"reference": f"Patient/p{who}"},
        "encounter": {"reference": f"Encounter/e{stay.number}"},
        "effectiveDateTime": "2026-01-01T00:10:00Z",
        "valueQuantity": {
            "value": stay.rate,
            "unit": "/min",
            "system": "http://unitsofmeasure.org",
            "code": "/min",
        },
    }
    return [patient, encounter, observation]
