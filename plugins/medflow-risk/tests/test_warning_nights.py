"""The early-warning score on two nights in a row, from FHIR to FHIR."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from medflow import steps
from medflow.config import load_settings
from medflow.records import Instant
from medflow_risk.warning import LOW_MMHG

NIGHTS = ("2026-03-02T03:00:00+00:00", "2026-03-03T03:00:00+00:00")
VITALS = {"8867-4": ("/min", 88), "9279-1": ("/min", 17), "8310-5": ("Cel", 37.1), "9269-2": ("{score}", 14)}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[steps.Site]:
    site = steps.open_site(load_settings(home=tmp_path / "home"))
    yield site
    site.store.close()


def stay(number: int) -> list[dict[str, Any]]:
    encounter = {
        "resourceType": "Encounter",
        "id": f"e{number}",
        "status": "in-progress",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "ACUTE"},
        "subject": {"reference": f"Patient/p{number}"},
        "period": {"start": "2026-03-01T04:00:00Z"},
    }
    return [
        {"resourceType": "Patient", "id": f"p{number}", "gender": "male", "birthDate": "1950-01-01"},
        encounter,
    ]


def day(number: int, date: str, pressures: dict[int, float]) -> Iterator[dict[str, Any]]:
    """Vital signs at every hour of ``pressures``, and the mean arterial pressure that it gives."""
    for hour, pressure in pressures.items():
        for code, (unit, value) in {**VITALS, "76214-6": ("mm[Hg]", pressure)}.items():
            at = f"{date}T{hour:02}:10:00Z"
            yield {
                "resourceType": "Observation",
                "id": f"o{number}-{date}-{hour}-{code}",
                "status": "final",
                "code": {"coding": [{"system": "http://loinc.org", "code": code}]},
                "subject": {"reference": f"Patient/p{number}"},
                "encounter": {"reference": f"Encounter/e{number}"},
                "effectiveDateTime": at,
                "issued": at,
                "valueQuantity": {"value": value, "unit": unit, "system": "http://unitsofmeasure.org", "code": unit},
            }


def take(site: steps.Site, path: Path, *resources: dict[str, Any]) -> None:
    path.write_bytes(b"\n".join(map(orjson.dumps, resources)))
    tally = steps.ingest(site, steps.source_of("fhir", [path]))
    assert (tally.stored, tally.rejected) == (len(resources), 0)


def delivered(site: steps.Site, folder: Path, kind: str) -> list[dict[str, Any]]:
    """The present state of every result of a type, in the order of their times."""
    steps.deliver(site, str(folder))
    last = {found["id"]: found for found in map(orjson.loads, (folder / f"{kind}.ndjson").read_bytes().splitlines())}
    return sorted(last.values(), key=lambda found: (found["encounter"]["reference"], found["issued"]))


def test_two_nights_of_three_stays(site: steps.Site, tmp_path: Path) -> None:
    first_day = dict.fromkeys(range(5, 24, 2), 85.0)
    take(
        site,
        tmp_path / "day-1.ndjson",
        *(item for n in (1, 2, 3) for item in (*stay(n), *day(n, "2026-03-01", first_day))),
    )
    nights = [Instant.of(datetime.fromisoformat(night)) for night in NIGHTS]

    first = steps.score(site, ("early-warning",), as_of=nights[0])
    better = dict.fromkeys(range(5, 24, 2), 95.0)
    worse = {10: 70.0, 11: LOW_MMHG - 5, 12: LOW_MMHG - 5, 13: 70.0}
    take(site, tmp_path / "day-2.ndjson", *day(1, "2026-03-02", better), *day(2, "2026-03-02", worse))
    second = steps.score(site, ("early-warning",), as_of=nights[1])
    again = steps.score(site, ("early-warning",), as_of=nights[1])

    assert [tally.done for tally in (first, second, again)] == [3, 2, 0]
    seen = [
        (item["encounter"]["reference"][-2:], item["effectiveDateTime"] == NIGHTS[1], item["status"])
        for item in delivered(site, tmp_path / "out", "Observation")
    ]
    assert seen == [
        ("e1", False, "amended"),
        ("e1", True, "preliminary"),
        ("e2", False, "amended"),
        ("e2", True, "preliminary"),
        ("e3", False, "preliminary"),
    ]
    silent = delivered(site, tmp_path / "out", "Observation")[3]
    assert "for two hours has come already" in str(silent)
    assert "valueQuantity" not in silent


def test_a_stay_without_arterial_pressure_is_refused_with_the_reason(site: steps.Site, tmp_path: Path) -> None:
    hours = dict.fromkeys(range(5, 24, 2), 85.0)
    without = [item for item in day(1, "2026-03-01", hours) if "76214-6" not in item["id"]]
    take(site, tmp_path / "day.ndjson", *stay(1), *without)

    found = steps.score(site, ("early-warning",), as_of=Instant.of(datetime.fromisoformat(NIGHTS[0])))

    assert dict(found.reasons) == {"no-arterial-pressure": 1}
