"""Nights of a score of whoever is there: what is scored anew, and what becomes of the earlier results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import orjson
import pytest

from medflow import steps
from medflow.plugin import (
    LOINC,
    SNOMED,
    Case,
    Channel,
    Coding,
    Model,
    ModelSpec,
    Prediction,
    Risk,
    TimeSeriesInput,
    UnitKind,
)
from medflow.records import Instant
from medflow.registry import Registry
from medflow.scoring import ScoreTally
from tests.models import CARD, registered

PULSE = Coding(system=LOINC, code="8867-4")
NIGHTS = {number: f"2026-03-0{number}T03:00:00+01:00" for number in range(1, 6)}


class LastDay(Model[float]):
    """The mean pulse of the last 30 hours, as if it were a risk."""

    spec: ClassVar[ModelSpec] = ModelSpec(
        name="last-day",
        version="1.0.0",
        title="Last day",
        unit=UnitKind.ENCOUNTER,
        accepts=(
            TimeSeriesInput(
                channels=(Channel(name="HR", codes=(PULSE,), unit="/min"),),
                window=timedelta(hours=30),
                step=timedelta(hours=1),
                anchor="prediction-time",
            ),
        ),
        outputs=(
            Risk(
                name="worse",
                code=Coding(system=SNOMED, code="225338004"),
                outcome=Coding(system=SNOMED, code="45007003"),
                horizon=timedelta(hours=24),
                calibrated=True,
            ),
        ),
        card=CARD,
        batch_size=8,
    )

    def load(self, device: str) -> None:
        """Nothing to load."""

    def prepare(self, case: Case) -> float:
        """The mean pulse."""
        return float(np.nanmean(case.series.values))

    def predict(self, batch: Sequence[float]) -> list[Prediction]:
        """Of each."""
        return [Prediction(values={"worse": pulse / 100}) for pulse in batch]


@pytest.fixture
def ward(store, settings, tmp_path: Path) -> Ward:
    registry = Registry(models={"last-day": registered(LastDay)}, broken=())
    return Ward(steps.Site(settings=settings, store=store, registry=registry), tmp_path)


class Ward:
    """Stays and their values go in; night by night their results come out."""

    def __init__(self, site: steps.Site, folder: Path) -> None:
        self.site, self.folder = site, folder

    def take(self, *resources: dict[str, Any]) -> None:
        """What the day's export holds."""
        path = self.folder / "day.ndjson"
        path.write_bytes(b"\n".join(map(orjson.dumps, resources)))
        tally = steps.ingest(self.site, steps.source_of("fhir", [path]))
        assert tally.rejected == 0

    def night(self, number: int) -> ScoreTally:
        """Score as of that night."""
        return self.score(NIGHTS[number])

    def score(self, as_of: str) -> ScoreTally:
        """Score as of any moment."""
        return steps.score(self.site, as_of=Instant.of(datetime.fromisoformat(as_of)))

    def assessments(self, stay: int) -> list[tuple[str, str, float]]:
        """What was delivered of a stay, by night: its occurrence, its status, and the risk in percent."""
        steps.deliver(self.site, str(self.folder / "out"))
        last: dict[str, dict[str, Any]] = {}
        for line in (self.folder / "out" / "RiskAssessment.ndjson").read_bytes().splitlines():
            found = orjson.loads(line)
            last[found["id"]] = found  # the last line of an id counts
        rows = [
            (
                item["occurrenceDateTime"],
                item["status"],
                item["prediction"][0]["probabilityRange"]["high"]["value"],
            )
            for item in last.values()
            if item["encounter"]["reference"] == f"Encounter/e{stay}"
        ]
        return sorted(rows)


def stay(number: int, *, ended: str | None = None) -> list[dict[str, Any]]:
    encounter: dict[str, Any] = {
        "resourceType": "Encounter",
        "id": f"e{number}",
        "status": "in-progress" if ended is None else "finished",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "ACUTE"},
        "subject": {"reference": f"Patient/p{number}"},
        "period": {"start": "2026-02-28T08:00:00+01:00"} | ({"end": ended} if ended else {}),
    }
    return [{"resourceType": "Patient", "id": f"p{number}", "gender": "female"}, encounter]


def pulse(number: int, at: str, value: float, *, issued: str | None = None, status: str = "final") -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": f"o{number}-{at.replace(':', '')}",
        "status": status,
        "code": {"coding": [{"system": PULSE.system, "code": PULSE.code}]},
        "subject": {"reference": f"Patient/p{number}"},
        "encounter": {"reference": f"Encounter/e{number}"},
        "effectiveDateTime": f"2026-{at}:00+01:00",
        "issued": f"2026-{issued or at}:00+01:00",
        "valueQuantity": {"value": value, "unit": "/min", "system": "http://unitsofmeasure.org", "code": "/min"},
    }


def admitted(ward: Ward, numbers: Iterable[int]) -> None:
    for number in numbers:
        ward.take(*stay(number), pulse(number, "02-28T20:00", 40.0))


def counts(tally: ScoreTally) -> tuple[int, int]:
    return tally.selected, tally.done


def test_each_night_scores_anew_only_who_is_there_and_has_new_values(ward: Ward) -> None:
    admitted(ward, (1, 2, 3))

    first = ward.night(1)
    ward.take(pulse(1, "03-01T20:00", 60.0))
    ward.take(*stay(3, ended="2026-03-01T22:00:00+01:00"), pulse(3, "03-01T20:00", 60.0))
    second = ward.night(2)

    assert counts(first) == (3, 3)
    assert counts(second) == (1, 1)
    assert ward.assessments(1) == [(NIGHTS[1], "amended", 40.0), (NIGHTS[2], "preliminary", 60.0)]  # the window moved
    assert ward.assessments(2) == [(NIGHTS[1], "preliminary", 40.0)]
    assert ward.assessments(3) == [(NIGHTS[1], "preliminary", 40.0)]


def test_the_same_night_twice_does_nothing(ward: Ward) -> None:
    admitted(ward, (1,))
    ward.night(1)
    before = ward.assessments(1)

    assert counts(ward.night(1)) == (0, 0)
    assert ward.assessments(1) == before


def test_a_result_that_comes_late_changes_nothing_that_night_and_counts_the_next(ward: Ward) -> None:
    admitted(ward, (1,))
    ward.take(pulse(1, "03-01T02:00", 90.0, issued="03-01T04:00"))

    first, again, second = ward.night(1), ward.night(1), ward.night(2)

    assert [counts(tally) for tally in (first, again, second)] == [(1, 1), (0, 0), (1, 1)]
    assert ward.assessments(1) == [(NIGHTS[1], "amended", 40.0), (NIGHTS[2], "preliminary", 90.0)]


def test_a_night_that_was_missed_is_covered_by_the_next_and_not_made_up_for(ward: Ward) -> None:
    admitted(ward, (1,))
    ward.night(1)
    ward.take(pulse(1, "03-01T20:00", 60.0), pulse(1, "03-02T20:00", 80.0))

    third, second = ward.night(3), ward.night(2)

    assert counts(third) == (1, 1)
    assert counts(second) == (0, 0)
    assert ward.assessments(1) == [(NIGHTS[1], "amended", 40.0), (NIGHTS[3], "preliminary", 80.0)]


def test_a_moment_that_has_not_come_yet_stops_no_night(ward: Ward) -> None:
    admitted(ward, (1,))
    ward.take(pulse(1, "03-01T20:00", 60.0))
    ward.score("2999-01-01T03:00:00+01:00")

    assert counts(ward.night(1)) == (1, 1)


def test_a_stay_without_new_values_keeps_its_result_which_says_until_when_it_holds(ward: Ward) -> None:
    admitted(ward, (1,))
    ward.night(1)

    assert counts(ward.night(4)) == (0, 0)
    assert ward.assessments(1) == [(NIGHTS[1], "preliminary", 40.0)]
    line = (ward.folder / "out" / "RiskAssessment.ndjson").read_bytes().splitlines()[-1]
    when = orjson.loads(line)["prediction"][0]["whenPeriod"]
    assert when == {"start": NIGHTS[1], "end": NIGHTS[2]}


def test_a_value_taken_back_gives_a_score_of_now_not_of_the_night_before_it_came(ward: Ward) -> None:
    admitted(ward, (1,))
    ward.take(pulse(1, "03-01T02:00", 50.0))
    ward.night(1)
    ward.take(pulse(1, "03-01T20:00", 60.0))
    ward.night(2)

    ward.take(pulse(1, "03-01T20:00", 60.0, issued="03-02T04:00", status="entered-in-error"))
    morning = "2026-03-02T06:00:00+01:00"
    found = ward.score(morning)

    assert counts(found) == (1, 1)
    assert ward.assessments(1) == [
        (NIGHTS[1], "amended", 45.0),
        (NIGHTS[2], "amended", 55.0),
        (morning, "preliminary", 50.0),
    ]


def test_a_window_that_has_become_empty_is_refused_with_the_reason(ward: Ward) -> None:
    admitted(ward, (1,))
    ward.night(1)
    ward.take(pulse(1, "02-28T21:00", 44.0, issued="03-03T12:00"))  # charted days later

    found = ward.night(4)

    assert (found.selected, found.done, found.dead) == (1, 0, 1)
    assert dict(found.reasons) == {"too-few-measurements": 1}
    assert ward.assessments(1) == [(NIGHTS[1], "preliminary", 40.0)]
