"""Which encounters are due and what a model is given of them: on both engines, with nothing from the future."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as tuned
from hypothesis import strategies as st
from sqlalchemy import Connection, case, delete, insert, select, update

from medflow.errors import InputNotUsable
from medflow.plugin import Channel, Coding, TimeSeries, TimeSeriesInput
from medflow.records import Instant, Unit, UnitKind
from medflow.store import Store
from medflow.store.jobs import enqueue, register_model
from medflow.store.tables import ConceptRow, EncounterRow, FhirResourceRow, JobRow, MeasurementRow, PatientRow
from medflow.store.timeseries import due_encounters, load_series
from tests.rolled_back import rolled_back

ADMITTED = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR_US = 3_600_000_000
START = Instant.of(ADMITTED).utc_us
END = Instant(utc_us=START + 48 * HOUR_US)
LATER = Instant(utc_us=START + 1000 * HOUR_US)
HEART_RATE, GLUCOSE, URINE = (Coding(system="http://loinc.org", code=code) for code in ("8867-4", "2345-7", "9187-6"))
UNREAD = Coding(system="http://loinc.org", code="0000-0")

SPEC = TimeSeriesInput(
    channels=(
        Channel(name="HR", codes=(HEART_RATE,), unit="/min", valid_range=(10, 300)),
        Channel(name="HR highest", codes=(HEART_RATE,), unit="/min", aggregate="max"),
        Channel(name="Glucose", codes=(GLUCOSE,), unit="mg/dL", units={"mmol/L": 18.0}, aggregate="last"),
        Channel(name="Urine", codes=(URINE,), unit="mL", aggregate="sum"),
    ),
    window=timedelta(hours=48),
    step=timedelta(hours=1),
    statics=("age", "sex", "encounter-type:urn:unit|icu"),
)
OPEN_SPEC = replace(SPEC, anchor="prediction-time")


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """A measurement, in hours after admission; known at once unless said otherwise."""

    code: Coding = HEART_RATE
    hour: float = 1.0
    value: float | None = 80.0
    unit: str | None = "/min"
    known: float | None = None
    status: str = "final"
    of_encounter: bool = True


def model(connection: Connection) -> int:
    return register_model(connection, name="m", version="1", digest="d", distribution="x", spec={})


def admit(connection: Connection, *, end_hour: float | None = None, status: str = "in-progress") -> int:
    patient = connection.execute(
        insert(PatientRow).values(birth_date=date(1960, 3, 2), sex="male", revision=0, complete=True)
    ).inserted_primary_key
    assert patient is not None
    encounter = connection.execute(
        insert(EncounterRow).values(
            source="local",
            fhir_id=f"e{patient[0]}",
            patient_id=patient[0],
            status=status,
            types=["urn:unit|icu"],
            start_us=START,
            start_offset=60,
            end_us=None if end_hour is None else int(START + end_hour * HOUR_US),
            revision=1,
        )
    ).inserted_primary_key
    assert encounter is not None
    return encounter[0]


def measure(connection: Connection, encounter: int, items: Iterable[Value]) -> None:
    """Store measurements as an ingest would: one resource each, and the revisions of whom they name raised."""
    items = list(items)
    patient = connection.execute(select(EncounterRow.patient_id).where(EncounterRow.id == encounter)).scalar_one()
    for code in {item.code for item in items} - set(_concepts(connection)):
        connection.execute(insert(ConceptRow).values(system=code.system, code=code.code))
    concepts = _concepts(connection)
    rows = []
    for item in items:
        effective = int(START + item.hour * HOUR_US)
        available = effective if item.known is None else int(START + item.known * HOUR_US)
        content = (item.code.code, effective, available, item.value, item.unit, item.status)
        mark = sha256(repr(content).encode()).digest()
        resource = connection.execute(
            insert(FhirResourceRow).values(
                source="local", type="Observation", fhir_id=_next(connection), sha256="", raw=b"", deleted=False
            )
        ).inserted_primary_key
        assert resource is not None
        rows.append(
            {
                "resource_id": resource[0],
                "ordinal": 0,
                "patient_id": patient,
                "encounter_id": encounter if item.of_encounter else None,
                "concept_id": concepts[item.code],
                "effective_us": effective,
                "effective_offset": 0,
                "available_us": available,
                "status": item.status,
                "value": item.value,
                "unit": item.unit,
                "mark_1": int.from_bytes(mark[:5], "big"),
                "mark_2": int.from_bytes(mark[5:10], "big"),
            }
        )
    if rows:
        connection.execute(insert(MeasurementRow), rows)
    latest = max((row["available_us"] for row in rows), default=0)
    connection.execute(
        update(PatientRow)
        .where(PatientRow.id == patient)
        .values(
            revision=PatientRow.revision + 1,
            latest_us=case((PatientRow.latest_us < latest, latest), else_=PatientRow.latest_us),
        )
    )
    if any(item.of_encounter for item in items):
        connection.execute(
            update(EncounterRow).where(EncounterRow.id == encounter).values(revision=EncounterRow.revision + 1)
        )


def _concepts(connection: Connection) -> dict[Coding, int]:
    query = select(ConceptRow.id, ConceptRow.system, ConceptRow.code)
    return {Coding(system=system, code=code): key for key, system, code in connection.execute(query)}


def _next(connection: Connection) -> str:
    return f"o{len(connection.execute(select(FhirResourceRow.id)).all())}"


def forget(connection: Connection) -> None:
    """Remove every measurement."""
    connection.execute(delete(MeasurementRow))


def key_of(connection: Connection, spec: TimeSeriesInput = SPEC, as_of: Instant = LATER) -> str:
    (due,) = due_encounters(connection, spec, as_of=as_of, model_id=model(connection))
    return due.input_key


def series_of(connection: Connection, encounter: int, until: Instant = END) -> TimeSeries:
    (found,) = load_series(connection, SPEC, [(encounter, until)]).cases()
    assert isinstance(found, TimeSeries)
    return found


def due_ids(connection: Connection, spec: TimeSeriesInput, as_of: Instant) -> list[int]:
    return [item.unit.id for item in due_encounters(connection, spec, as_of=as_of, model_id=model(connection))]


# --- anchored at admission -----------------------------------------------------------------------------------


def test_an_encounter_is_due_once_its_window_has_passed(store: Store) -> None:
    with store.writing() as connection:
        encounter = admit(connection)
        measure(connection, encounter, [Value()])

        before = list(
            due_encounters(connection, SPEC, as_of=Instant(utc_us=END.utc_us - 1), model_id=model(connection))
        )
        (due,) = due_encounters(connection, SPEC, as_of=END, model_id=model(connection))

    assert before == []
    assert due.unit == Unit(kind=UnitKind.ENCOUNTER, id=encounter)
    assert due.prediction_time == Instant(utc_us=END.utc_us, offset_min=60)


@pytest.mark.parametrize(
    "stay", [{"end_hour": 47.0}, {"status": "cancelled"}, {"status": "planned"}, {"status": "entered-in-error"}]
)
def test_a_stay_that_was_over_or_never_was_is_not_due(store: Store, stay: dict) -> None:
    with store.writing() as connection:
        measure(connection, admit(connection, **stay), [Value()])

        assert due_ids(connection, SPEC, LATER) == []


def test_a_stay_that_ended_after_its_window_is_due(store: Store) -> None:
    with store.writing() as connection:
        encounter = admit(connection, end_hour=90.0, status="finished")
        measure(connection, encounter, [Value()])

        assert due_ids(connection, SPEC, LATER) == [encounter]


def test_an_encounter_without_anything_the_model_reads_is_not_due(store: Store) -> None:
    with store.writing() as connection:
        admit(connection)
        measure(connection, admit(connection), [Value(code=UNREAD), Value(hour=50), Value(status="entered-in-error")])

        assert due_ids(connection, SPEC, LATER) == []


@pytest.mark.parametrize("of_encounter", [True, False])
def test_what_was_looked_at_is_due_again_only_when_it_changed(store: Store, of_encounter: bool) -> None:
    with store.writing() as connection:
        encounter = admit(connection)
        measure(connection, encounter, [Value()])
        first = list(due_encounters(connection, SPEC, as_of=LATER, model_id=model(connection)))
        enqueue(connection, model(connection), first)

        assert due_ids(connection, SPEC, LATER) == []

        measure(connection, encounter, [Value(hour=30, of_encounter=of_encounter)])
        (again,) = due_encounters(connection, SPEC, as_of=LATER, model_id=model(connection))

    assert again.input_key != first[0].input_key


@pytest.mark.parametrize("change", [{"birth_date": date(1950, 1, 1)}, {"sex": "female"}])
def test_the_statics_are_part_of_the_key(store: Store, change: dict) -> None:
    with store.writing() as connection:
        measure(connection, admit(connection), [Value()])
        before = key_of(connection)

        connection.execute(update(PatientRow).values(**change))

        assert key_of(connection) != before


def test_keys_are_the_same_on_every_engine(store: Store) -> None:
    with store.writing() as connection:
        measure(connection, admit(connection), [Value(), Value(code=URINE, value=50.5, unit="mL")])

        assert key_of(connection).startswith("360fc0266b632d0d")


values = st.builds(
    Value,
    code=st.sampled_from([HEART_RATE, GLUCOSE, URINE, UNREAD]),
    hour=st.floats(-10, 60, allow_nan=False).map(lambda hour: round(hour, 2)),
    value=st.none() | st.floats(allow_nan=False, width=32),
    unit=st.sampled_from(["/min", "mmol/L", "mg/dL", "mL", None, "furlong"]),
    known=st.none() | st.floats(0, 60).map(lambda hour: round(hour, 2)),
    status=st.sampled_from(["final", "preliminary", "amended", "entered-in-error"]),
    of_encounter=st.booleans(),
)
ANCHOR = Value(value=90.0)  # so that there is always something to see
wild = tuned(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@wild
@given(seen=st.lists(values, max_size=12), later=st.lists(values, max_size=6))
def test_nothing_known_after_the_prediction_time_changes_a_key_or_a_value(
    store: Store, seen: Sequence[Value], later: Sequence[Value]
) -> None:
    with rolled_back(store) as connection:
        encounter = admit(connection)
        measure(connection, encounter, [ANCHOR, *seen])
        key, before = key_of(connection), series_of(connection, encounter)
        now_key = key_of(connection, OPEN_SPEC, END)

        measure(connection, encounter, [replace(item, known=48.01 + index) for index, item in enumerate(later)])

        assert key_of(connection) == key
        assert key_of(connection, OPEN_SPEC, END) == now_key
        np.testing.assert_array_equal(series_of(connection, encounter).values, before.values)


@wild
@given(data=st.data(), items=st.lists(values, max_size=12))
def test_the_order_of_rows_does_not_matter(store: Store, data: st.DataObject, items: Sequence[Value]) -> None:
    with rolled_back(store) as connection:
        encounter = admit(connection)
        measure(connection, encounter, [ANCHOR, *items])
        key, before = key_of(connection), series_of(connection, encounter)

        forget(connection)
        measure(connection, encounter, data.draw(st.permutations([ANCHOR, *items])))

        assert key_of(connection) == key
        np.testing.assert_array_equal(series_of(connection, encounter).values, before.values)


# --- anchored at the prediction time -------------------------------------------------------------------------


def test_whoever_is_still_there_is_due_now(store: Store) -> None:
    now = Instant(utc_us=START + 5 * HOUR_US, offset_min=120)
    with store.writing() as connection:
        here = admit(connection)
        back_then = admit(connection, end_hour=9.0, status="finished")
        for encounter in (here, back_then, admit(connection, end_hour=4.0, status="finished")):
            measure(connection, encounter, [Value()])

        due = list(due_encounters(connection, OPEN_SPEC, as_of=now, model_id=model(connection)))

    assert [item.unit.id for item in due] == [here, back_then]
    assert {item.prediction_time for item in due} == {now}


def test_time_alone_makes_nobody_due(store: Store) -> None:
    with store.writing() as connection:
        encounter = admit(connection)
        measure(connection, encounter, [Value()])
        hour_5, hour_400 = (Instant(utc_us=START + hours * HOUR_US) for hours in (5, 400))
        enqueue(
            connection,
            model(connection),
            list(due_encounters(connection, OPEN_SPEC, as_of=hour_5, model_id=model(connection))),
        )

        assert due_ids(connection, OPEN_SPEC, hour_400) == []
        connection.execute(update(EncounterRow).values(revision=9))  # something changed that the model does not read
        (due,) = due_encounters(connection, OPEN_SPEC, as_of=hour_400, model_id=model(connection))
        assert due.input_key == connection.execute(select(JobRow.input_key)).scalar_one()


def test_a_result_issued_since_the_last_look_makes_an_encounter_due_without_another_ingest(store: Store) -> None:
    with store.writing() as connection:
        encounter = admit(connection)
        measure(connection, encounter, [Value(), Value(hour=2, known=7)])
        hour_5, hour_8 = (Instant(utc_us=START + hours * HOUR_US) for hours in (5, 8))
        enqueue(
            connection,
            model(connection),
            list(due_encounters(connection, OPEN_SPEC, as_of=hour_5, model_id=model(connection))),
        )

        assert due_ids(connection, OPEN_SPEC, hour_5) == []
        assert due_ids(connection, OPEN_SPEC, hour_8) == [encounter]


# --- what a model is given -----------------------------------------------------------------------------------


def test_values_of_a_step_are_joined_as_the_channel_says(store: Store) -> None:
    with store.writing() as connection:
        encounter = admit(connection)
        measure(
            connection,
            encounter,
            [
                Value(hour=2.9, value=100),
                Value(hour=2.0, value=50),
                Value(code=GLUCOSE, hour=2.5, value=5.0, unit="mmol/L"),
                Value(code=GLUCOSE, hour=2.2, value=250.0, unit="mg/dL"),
                Value(code=URINE, hour=0, value=30, unit="mL", of_encounter=False),
                Value(code=URINE, hour=0.5, value=40, unit="mL"),
            ],
        )

        series = series_of(connection, encounter)

    assert series.values.shape == (48, 4)
    assert series.values.dtype == np.float32
    np.testing.assert_array_equal(series.values[2], [75, 100, 90, np.nan])
    np.testing.assert_array_equal(series.values[0], [np.nan, np.nan, np.nan, 70])
    assert np.isnan(series.values[3:]).all()
    np.testing.assert_array_equal(series.statics, [65, 1, 1])  # one day before the 66th birthday


def test_wrong_units_and_impossible_values_are_refused_and_counted(store: Store) -> None:
    with store.writing() as connection:
        encounter = admit(connection)
        measure(connection, encounter, [Value(code=GLUCOSE, unit="{mg/dL}"), Value(code=URINE, value=1e35, unit="mL")])

        (refused,) = load_series(connection, SPEC, [(encounter, END)]).cases()

    assert isinstance(refused, InputNotUsable)
    assert refused.code == "too-few-measurements"
    assert "1 in another unit and 1 out of range" in refused.message


def test_another_encounters_measurements_are_not_this_ones(store: Store) -> None:
    with store.writing() as connection:
        encounter, other = admit(connection), admit(connection)
        measure(connection, encounter, [Value(value=60)])
        measure(connection, other, [Value(value=70)])

        found = load_series(connection, SPEC, [(other, END), (encounter, END), (other, Instant(utc_us=START))]).cases()

    assert [item.values[1, 0] for item in found[:2] if isinstance(item, TimeSeries)] == [70, 60]
    assert isinstance(found[2], InputNotUsable)  # its window ended before anything was measured


def test_thousands_of_units_are_read_in_pieces(store: Store) -> None:
    with store.writing() as connection:
        encounter = admit(connection)
        measure(connection, encounter, [Value()])

        found = load_series(connection, SPEC, [(encounter, END)] * 2500).cases()

    assert len(found) == 2500
    assert all(isinstance(item, TimeSeries) for item in found)
