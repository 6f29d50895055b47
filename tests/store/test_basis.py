"""Which measurement stands behind a channel: the last that the model was given, on both engines, never a later one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import orjson
import pytest
from sqlalchemy import event

from medflow.fhir.read import Context, read_resource
from medflow.plugin import LOINC, Channel, Coding, TimeSeriesInput
from medflow.records import Instant
from medflow.store import Connection, Store
from medflow.store.basis import last_measurements
from medflow.store.clinical import ClinicalWriter
from medflow.store.packed import pack
from medflow.store.tables import EncounterRow

ADMITTED = datetime(2026, 3, 1, tzinfo=UTC)
END = Instant.of(ADMITTED + timedelta(hours=4))
RATE, COMA, UREA = (
    Channel(name=name, codes=(Coding(system=LOINC, code=code),), unit=unit, valid_range=(1, 300))
    for name, code, unit in (("rate", "8867-4", "/min"), ("coma", "9269-2", "{score}"), ("urea", "3094-0", "mg/dL"))
)
SPEC = TimeSeriesInput(channels=(RATE, COMA, UREA), window=timedelta(hours=4), step=timedelta(hours=1))


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


def write(connection: Connection, *resources: dict, source: str = "ward") -> None:
    """One ingest of these."""
    raws = [(item, orjson.dumps(item)) for item in resources]
    read = [read_resource(item, raw, Context(source=source)).resource for item, raw in raws]
    ClinicalWriter(source).write(connection, [pack(item) for item in read])


def behind(connection: Connection, *moments: Instant, channels=SPEC.channels, visit: str = "e1") -> list[dict]:
    query = EncounterRow.__table__.select().where(EncounterRow.fhir_id == visit)
    encounter = connection.execute(query).one().id
    return [
        dict(found)
        for found in last_measurements(
            connection, SPEC, channels, [(encounter, moment) for moment in moments or (END,)]
        )
    ]


def test_the_last_value_of_each_channel_within_the_window_is_named(store: Store) -> None:
    with store.writing() as connection:
        write(connection, patient(), stay(), value("o1", 1), value("o3", 3), value("o2", 2), value("c1", 1, 9, COMA))

        assert behind(connection) == [{"rate": "Observation/o3", "coma": "Observation/c1"}]
        assert behind(connection, channels=(COMA,)) == [{"coma": "Observation/c1"}]
        assert behind(connection, Instant.of(ADMITTED + timedelta(hours=2)), END) == [
            {"rate": "Observation/o1", "coma": "Observation/c1"},
            {"rate": "Observation/o3", "coma": "Observation/c1"},
        ]


def test_what_was_not_yet_known_is_never_named(store: Store) -> None:
    with store.writing() as connection:
        write(connection, patient(), stay(), value("o1", 1), value("late", 3, issued=4.01), value("after", 4))

        assert behind(connection) == [{"rate": "Observation/o1"}]


@pytest.mark.parametrize(
    "refused",
    [
        {"number": 900},
        {"unit": "mg/dL"},
        {"status": "entered-in-error"},
        {"visit": "e2"},
    ],
)
def test_what_the_model_was_not_given_is_never_named(store: Store, refused: dict) -> None:
    with store.writing() as connection:
        write(connection, patient(), stay(), value("o1", 1), value("odd", 3, **refused))

        assert behind(connection) == [{"rate": "Observation/o1"}]


def test_a_measurement_of_the_patient_that_names_no_encounter_counts(store: Store) -> None:
    with store.writing() as connection:
        write(connection, patient(), stay(), value("o1", 1), value("any", 2, visit=None))

        assert behind(connection) == [{"rate": "Observation/any"}]


def test_an_id_of_another_source_names_nothing_here(store: Store) -> None:
    with store.writing() as connection:
        write(connection, patient("p1", "M1"), stay(), value("o1", 1))
        write(connection, patient("q9", "M1"), value("o2", 2, of="q9", visit=None), source="laboratory")

        assert behind(connection) == [{}]


def test_many_units_cost_a_handful_of_statements(store: Store) -> None:
    with store.writing() as connection:
        write(connection, patient(), stay(), value("o1", 1))
        issued: list[str] = []
        event.listen(connection, "before_cursor_execute", lambda *args: issued.append(args[2]))

        found = behind(connection, *[END] * 900)

    assert found == [{"rate": "Observation/o1"}] * 900
    assert len(issued) <= 8
