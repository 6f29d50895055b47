"""Outcomes as the records tell them, through the real ingest: deaths, discharges, diagnoses, and what contradicts."""

from dataclasses import replace
from datetime import UTC, datetime

import orjson
import pytest

from medflow import steps
from medflow.config import load_settings
from medflow.evaluation.observed import CONTRADICTORY, KNOWN_BEFORE, UNKNOWN
from medflow.evaluation.outcomes import Moment, Question, outcomes_of
from medflow.plugin import SNOMED, Coding, Risk
from medflow.records import Instant, UnitKind
from medflow.registry import Registry
from medflow.store import Store
from medflow.store.outcomes import unit_names
from tests.stays import MRN, HeartRisk

ASKED = Instant.of(datetime(2026, 1, 1, 1, tzinfo=UTC)).utc_us  # the stay is from the 1st to the 5th, 00:00Z
DISPOSITION = "http://terminology.hl7.org/CodeSystem/discharge-disposition"
SEPSIS = Coding(system=SNOMED, code="91302008")
ALIVE_LATER = {"deceasedBoolean": False, "meta": {"lastUpdated": "2026-02-01T00:00:00Z"}}
ALIVE_EARLY = {"deceasedBoolean": False, "meta": {"lastUpdated": "2026-01-01T12:00:00Z"}}

# name: what the Patient says, the disposition, and what is found (with Europe/Berlin for what has no zone)
DEATHS = {
    "expired": ({}, "exp", 1),
    "home": ({}, "home", 0),
    "silent": ({}, None, UNKNOWN),
    "alive-later": (ALIVE_LATER, None, 0),
    "alive-early": (ALIVE_EARLY, None, UNKNOWN),
    "died-some-time": ({"deceasedBoolean": True}, None, UNKNOWN),
    "died-some-time-after-home": ({"deceasedBoolean": True}, "home", 0),
    "that-day": ({"deceasedDateTime": "2026-01-03"}, None, 1),
    "day-of-the-end": ({"deceasedDateTime": "2026-01-05"}, None, 1),
    "day-of-the-end-after-home": ({"deceasedDateTime": "2026-01-05"}, "home", 0),
    "next-day": ({"deceasedDateTime": "2026-01-06"}, None, 0),
    "that-month": ({"deceasedDateTime": "2026-01"}, None, UNKNOWN),
    "before-the-end-in-another-zone": ({"deceasedDateTime": "2026-01-05T03:00:00+04:00"}, None, 1),
    "after-the-end-in-another-zone": ({"deceasedDateTime": "2026-01-04T21:00:00-04:00"}, None, 0),
    "dead-before": ({"deceasedDateTime": "2026-01-01T00:30:00Z"}, "exp", KNOWN_BEFORE),
    "dead-and-home": ({"deceasedDateTime": "2026-01-03T00:00:00Z"}, "home", CONTRADICTORY),
    "expired-and-alive": (ALIVE_LATER, "exp", CONTRADICTORY),
    "other": ({}, "oth", UNKNOWN),
}


def patient(name: str, *, number: str | None = None, **says) -> dict:
    identifier = [{"system": MRN, "value": number or name}]
    return {"resourceType": "Patient", "id": name, "identifier": identifier, "gender": "female", **says}


def stay(name: str, disposition: str | None = None, *, of: str = "", status: str = "finished") -> dict:
    found = {
        "resourceType": "Encounter",
        "id": name,
        "status": status,
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "ACUTE"},
        "subject": {"reference": f"Patient/{of or name}"},
        "period": {"start": "2026-01-01T00:00:00Z", "end": "2026-01-05T00:00:00Z"},
    }
    if disposition is not None:
        code = {"coding": [{"system": DISPOSITION, "code": disposition}]}
        found["hospitalization"] = {"dischargeDisposition": code}
    return found


class Records:
    """A store that these records were taken into, in order, and what it says of the stays in them."""

    def __init__(self, folder, *batches: list[dict]) -> None:
        self.folder, self.settings = folder, load_settings(home=folder / "home")
        self.store = Store(self.settings).open()
        for number, batch in enumerate(batches):
            self.take(f"{number}.ndjson", batch, self.settings.source)

    def take(self, name: str, batch: list[dict], source: str) -> None:
        """Take one more file in, of a source."""
        settings = self.settings.model_copy(update={"source": source})
        site = steps.Site(settings=settings, store=self.store, registry=Registry(models={}, broken=()))
        path = self.folder / name
        path.write_bytes(b"\n".join(map(orjson.dumps, batch)))
        assert steps.ingest(site, steps.source_of("fhir", [path])).rejected == 0

    def said(self, output: Risk, *, zone: str | None = None) -> dict[str, int | str]:
        """The outcome of each stay, by its FHIR id."""
        settings = self.settings.model_copy(update={"timezone": zone})
        with self.store.reading() as connection:
            names = {unit: name for _, name, unit in unit_names(connection, UnitKind.ENCOUNTER, range(1, 100))}
            asked = [Moment(unit_id=unit, time_us=ASKED) for unit in names]
            found, _ = outcomes_of(connection, settings, Question(unit=UnitKind.ENCOUNTER, output=output), asked)
        return dict(zip(names.values(), found, strict=True))


DEATH = HeartRisk.spec.outputs[0]
RISK = Risk(name="sepsis", code=DEATH.code, outcome=SEPSIS)


@pytest.fixture(scope="module")
def deaths(tmp_path_factory):
    records = Records(
        tmp_path_factory.mktemp("deaths"),
        [patient(name, **says) for name, (says, _, _) in DEATHS.items()]
        + [patient("merged"), patient("unlike", deceasedDateTime="2026-01-03T10:00:00Z")],
        [stay(name, disposition) for name, (_, disposition, _) in DEATHS.items()],
        [
            stay("merged"),
            stay("unlike"),
            stay("void", "exp", of="home", status="entered-in-error"),
        ],
    )
    registry = [  # of the same people, under other ids
        patient("a", number="merged", deceasedDateTime="2026-01-03T10:00:00Z"),
        patient("b", number="unlike", deceasedDateTime="2026-01-09T10:00:00Z"),
    ]
    records.take("registry.ndjson", registry, "registry")
    yield records
    records.store.close()


@pytest.mark.parametrize("name", DEATHS)
def test_death_before_the_stay_ends(deaths, name):
    assert deaths.said(DEATH, zone="Europe/Berlin")[name] == DEATHS[name][2]


def test_a_day_without_a_zone_tells_nothing_unless_one_is_configured(deaths):
    said = deaths.said(DEATH)

    assert [said[name] for name in ("that-day", "next-day")] == [UNKNOWN, UNKNOWN]
    assert said["before-the-end-in-another-zone"] == 1


def test_what_any_source_says_of_a_patient_counts(deaths):
    said = deaths.said(DEATH)

    assert (said["merged"], said["unlike"]) == (1, CONTRADICTORY)


def test_a_stay_entered_in_error_has_no_outcome(deaths):
    assert deaths.said(DEATH)["void"] == UNKNOWN


def condition(name: str, *, status: str | None = None, **fields) -> dict:
    found = {
        "resourceType": "Condition",
        "id": f"c-{name}",
        "code": {"coding": [{"system": SEPSIS.system, "code": SEPSIS.code}]},
        "subject": {"reference": f"Patient/{name}"},
        **fields,
    }
    if status is not None:
        system = "http://terminology.hl7.org/CodeSystem/condition-ver-status"
        found["verificationStatus"] = {"coding": [{"system": system, "code": status}]}
    return found


def of_stay(name: str) -> dict:
    return {"encounter": {"reference": f"Encounter/{name}"}}


CONDITIONS = {
    "none": (None, 0),
    "in-the-stay": (condition("in-the-stay", onsetDateTime="2026-01-03T00:00:00Z"), 1),
    "coded-late": (condition("coded-late", recordedDate="2026-03-01T00:00:00Z", **of_stay("coded-late")), 1),
    "recorded-late": (condition("recorded-late", recordedDate="2026-03-01T00:00:00Z"), 0),
    "in-error": (condition("in-error", status="entered-in-error", onsetDateTime="2026-01-03T00:00:00Z"), 0),
    "refuted": (condition("refuted", status="refuted", onsetDateTime="2026-01-03T00:00:00Z"), 0),
    "before": (condition("before", onsetDateTime="2025-12-31T00:00:00Z", **of_stay("before")), KNOWN_BEFORE),
    "taken-back": (condition("taken-back", onsetDateTime="2026-01-03T00:00:00Z"), 0),
    "no-time": (condition("no-time", **of_stay("no-time")), UNKNOWN),
}


@pytest.fixture(scope="module")
def diagnoses(tmp_path_factory):
    records = Records(
        tmp_path_factory.mktemp("conditions"),
        [patient(name) for name in CONDITIONS] + [stay(name, "home") for name in CONDITIONS],
        [found for found, _ in CONDITIONS.values() if found is not None],
        [condition("taken-back", status="entered-in-error", onsetDateTime="2026-01-03T00:00:00Z")],
    )
    yield records
    records.store.close()


def test_where_nobody_has_such_a_condition_its_absence_tells_nothing(diagnoses):
    other = Coding(system=SNOMED, code="45007003")

    assert set(diagnoses.said(replace(RISK, outcome=other)).values()) == {UNKNOWN}


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_in_the_stay(diagnoses, name):
    assert diagnoses.said(RISK)[name] == CONDITIONS[name][1]
