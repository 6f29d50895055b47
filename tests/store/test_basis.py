"""Which measurement stands behind a channel: the last that the model was given, on both engines, never a later one."""

from __future__ import annotations

from datetime import timedelta

import orjson
import pytest
from sqlalchemy import event

from medflow.fhir.read import Context, read_resource
from medflow.plugin import TimeSeriesInput
from medflow.records import Instant
from medflow.store import Connection, Store
from medflow.store.basis import last_measurements
from medflow.store.clinical import ClinicalWriter
from medflow.store.packed import pack
from medflow.store.tables import EncounterRow
from tests.ward import ADMITTED, COMA, RATE, UREA, patient, stay, value

END = Instant.of(ADMITTED + timedelta(hours=4))
SPEC = TimeSeriesInput(channels=(RATE, COMA, UREA), window=timedelta(hours=4), step=timedelta(hours=1))


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
