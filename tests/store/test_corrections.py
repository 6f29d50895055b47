"""What was known when, through the whole of an ingest: corrections, late parts, duplicates, retractions; both engines.

Observations are FHIR as a hospital sends it, read and written as an ingest does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as tuned
from hypothesis import strategies as st
from sqlalchemy import Connection, func, select

from medflow.errors import InputNotUsable
from medflow.fhir.read import Context, read_resource
from medflow.plugin import LOINC, Channel, CodedValue, Coding, TimeSeries, TimeSeriesInput
from medflow.records import FhirResource, Identifier, Instant, Patient
from medflow.store import Store
from medflow.store.clinical import ClinicalWriter
from medflow.store.jobs import enqueue, register_model
from medflow.store.packed import pack
from medflow.store.patients import resolve_patients
from medflow.store.tables import EncounterRow, MeasurementRow, PatientRow
from medflow.store.timeseries import due_encounters, load_series
from medflow.store.versions import Outcome
from tests.rolled_back import rolled_back

UCUM = "http://unitsofmeasure.org"
ADMITTED = datetime(2026, 3, 1, 12, tzinfo=UTC)
START = Instant.of(ADMITTED).utc_us
HOUR_US = 3_600_000_000
HEART_RATE, GLUCOSE, SYSTOLIC, DIASTOLIC, HEIGHT = "8867-4", "2345-7", "8480-6", "8462-4", "8302-2"
PANEL, URINE, WARD = "85354-9", "9187-6", "urn:ward"
SPEC = TimeSeriesInput(
    channels=(
        Channel(name="HR", codes=(Coding(system=LOINC, code=HEART_RATE),), unit="/min", valid_range=(10, 300)),
        Channel(
            name="Glucose",
            codes=(Coding(system=WARD, code="GLU"), Coding(system=LOINC, code=GLUCOSE)),
            unit="mg/dL",
            molar_mass_g_mol=180.156,
            aggregate="last",
        ),
        Channel(name="Systolic", codes=(Coding(system=LOINC, code=SYSTOLIC),), unit="mm[Hg]", aggregate="max"),
        Channel(
            name="Urine",
            codes=(Coding(system=LOINC, code=URINE), Coding(system=WARD, code="URINE")),
            unit="mL",
            aggregate="sum",
        ),
        Channel(
            name="Eyes",
            codes=(Coding(system=LOINC, code="9267-6"),),
            unit=None,
            values=(CodedValue(code=Coding(system=WARD, code="to-pain"), value=2.0),),
        ),
    ),
    window=timedelta(hours=12),
    step=timedelta(hours=1),
    statics=("age", Channel(name="Height", codes=(Coding(system=LOINC, code=HEIGHT),), unit="cm")),
    min_measurements=0,
)
OPEN_SPEC = replace(SPEC, anchor="prediction-time")
END = Instant(utc_us=START + 12 * HOUR_US)


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One version of an Observation: what it says, true at ``hour`` and known at ``known`` after admission."""

    id: str = "o1"
    version: int = 1
    code: str = HEART_RATE
    hour: float = 1.0
    known: float = 1.0
    value: float = 80.0
    unit: str = "/min"
    status: str = "final"
    patient: str = "p1"
    parts: dict[str, float] = field(default_factory=dict)
    issued: bool = True  # or else only meta.lastUpdated says when it was known
    local: str | None = None  # a second coding, of the ward

    def resource(self) -> dict[str, Any]:
        coding = [{"system": LOINC, "code": self.code}]
        if self.local is not None:
            coding.append({"system": WARD, "code": self.local})
        found: dict[str, Any] = {
            "resourceType": "Observation",
            "id": self.id,
            "meta": {"versionId": str(self.version), "lastUpdated": _at(self.known)},
            "status": self.status,
            "code": {"coding": coding},
            "subject": {"reference": f"Patient/{self.patient}"},
            "encounter": {"reference": "Encounter/e1"},
            "effectiveDateTime": _at(self.hour),
        }
        if self.issued:
            found["issued"] = _at(self.known)
        if self.parts:
            found["component"] = [
                {"code": {"coding": [{"system": LOINC, "code": code}]}, "valueQuantity": _quantity(value, "mm[Hg]")}
                for code, value in self.parts.items()
            ]
        else:
            found["valueQuantity"] = _quantity(self.value, self.unit)
        return found


def _quantity(value: float, unit: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "system": UCUM, "code": unit}


def _at(hour: float) -> str:
    return (ADMITTED + timedelta(hours=hour)).isoformat()


PATIENT = {"resourceType": "Patient", "id": "p1", "birthDate": "1960-01-01", "gender": "male"}
ENCOUNTER = {
    "resourceType": "Encounter",
    "id": "e1",
    "status": "in-progress",
    "class": {"code": "IMP"},
    "subject": {"reference": "Patient/p1"},
    "period": {"start": _at(0)},
}


def packed(resource: dict[str, Any]):
    return pack(read_resource(resource, orjson.dumps(resource), Context(source="local")).resource)


def ingest(connection: Connection, versions: Iterable[Version], *, others: Sequence[dict] = ()) -> list:
    """One ingest of its own."""
    resources = [packed(item) for item in others] + [packed(item.resource()) for item in versions]
    return ClinicalWriter("local").write(connection, resources)


def admit(connection: Connection) -> int:
    ingest(connection, [], others=[PATIENT, ENCOUNTER])
    return connection.execute(select(EncounterRow.id)).scalar_one()


def hour(hours: float) -> Instant:
    return Instant(utc_us=round(START + hours * HOUR_US))


def seen(connection: Connection, at: Instant = END) -> tuple[np.ndarray, np.ndarray]:
    """What a model is given at a moment, its window ending then."""
    encounter = connection.execute(select(EncounterRow.id)).scalar_one()
    block = load_series(connection, SPEC, [(encounter, at)])
    assert not block.refused
    return block.values[0], block.statics[0]


def rate(connection: Connection, at: float) -> float:
    """The heart rate of the first hour that was measured, as a model is given it at a moment."""
    values = seen(connection, hour(at))[0][:, 0]
    measured = values[~np.isnan(values)]
    return float(measured[0]) if len(measured) else float("nan")


# --- corrections ---------------------------------------------------------------------------------------------


def test_a_corrected_value_is_known_until_its_correction(store: Store) -> None:
    with store.writing() as connection:
        admit(connection)
        ingest(connection, [Version(value=80, known=1)])
        ingest(connection, [Version(version=2, value=90, known=5, status="corrected")])
        ingest(connection, [Version(version=3, value=95, known=9, status="corrected")])

        assert [rate(connection, at) for at in (4.99, 5, 8.99, 9)] == [80, 90, 90, 95]
        latest = connection.execute(select(PatientRow.latest_us)).scalar_one()

    assert latest == hour(9).utc_us


@pytest.mark.parametrize("again", [(1, 0), (1, 0, 2, 1, 0), (2, 1, 0), (0, 2, 1)])
def test_versions_may_come_in_any_order_and_again(store: Store, again: tuple[int, ...]) -> None:
    versions = [Version(version=n, value=70 + n, known=float(n), status="amended") for n in (1, 4, 7)]
    with store.writing() as connection:
        admit(connection)
        for index in (2, *again, *again):
            ingest(connection, [versions[index]])

        assert [rate(connection, at) for at in (1.5, 4.5, 7.5)] == [
            71 if 0 in again else 77,
            74 if 1 in again else 71,
            77,
        ]


def test_a_correction_without_issued_is_known_from_when_it_was_stored(store: Store) -> None:
    with store.writing() as connection:
        admit(connection)
        ingest(connection, [Version(value=80, known=1)])
        ingest(connection, [Version(version=2, value=90, known=6, status="amended", issued=False)])

        assert [rate(connection, at) for at in (5, 6)] == [80, 90]


@pytest.mark.parametrize("newer", [{"status": "entered-in-error"}, {"status": "cancelled"}, {"patient": "p2"}])
def test_a_value_that_is_taken_back_never_was(store: Store, newer: dict) -> None:
    with store.writing() as connection:
        admit(connection)
        ingest(connection, [Version(value=80, known=1)])
        ingest(connection, [Version(version=2, value=85, known=2, status="amended")])
        ingest(connection, [replace(Version(version=3, value=90, known=6), **newer)])

        assert all(np.isnan(rate(connection, at)) for at in (1.5, 3, 7))


def test_a_deleted_value_never_was(store: Store) -> None:
    with store.writing() as connection:
        admit(connection)
        ingest(connection, [Version(known=1)])
        ingest(connection, [Version(version=2, value=85, known=2)])
        gone = FhirResource(source="local", type="Observation", id="o1", raw=b"", sha256="", deleted=True, version="3")
        ClinicalWriter("local").write(connection, [pack(gone)])

        assert connection.execute(select(func.count()).select_from(MeasurementRow)).scalar_one() == 0


def test_a_component_that_came_later_is_not_known_earlier(store: Store) -> None:
    panel = Version(code=PANEL, parts={DIASTOLIC: 70.0}, known=1)
    with store.writing() as connection:
        admit(connection)
        ingest(connection, [panel])
        ingest(connection, [replace(panel, version=2, known=4, parts={DIASTOLIC: 70.0, SYSTOLIC: 120.0})])

        before, after = seen(connection, hour(3.5))[0][:, 2], seen(connection, hour(4.5))[0][:, 2]

    assert np.isnan(before).all()
    assert np.nanmax(after) == 120


def test_a_correction_makes_an_open_encounter_due_and_time_alone_does_not(store: Store) -> None:
    with store.writing() as connection:
        admit(connection)
        model = register_model(connection, name="m", version="1", digest="d", distribution="x", spec={})
        ingest(connection, [Version(known=1), Version(id="o2", value=70, hour=2, known=8)])

        def due(at: float) -> int:
            found = list(due_encounters(connection, OPEN_SPEC, as_of=hour(at), model_id=model))
            enqueue(connection, model, found)
            return len(found)

        assert [due(3), due(4), due(8.5), due(9)] == [1, 0, 1, 0]
        ingest(connection, [Version(version=2, value=99, known=9.5, status="corrected")])
        assert [due(10), due(11)] == [1, 0]


def test_patients_that_turn_out_to_be_one_keep_the_later_of_their_latest_moments(store: Store) -> None:
    number = {"system": "urn:mrn", "value": "7"}
    with store.writing() as connection:
        resolve_patients(connection, [Patient(identifiers=(Identifier(**number),), birth_date=date(1960, 1, 1))])
        ingest(connection, [Version(known=5)])  # of a patient known by a reference only
        ingest(connection, [], others=[{**PATIENT, "identifier": [number]}])

        assert connection.execute(select(PatientRow.latest_us)).scalars().all() == [hour(5).utc_us]


# --- nothing from the future, whatever it is -----------------------------------------------------------------

quarters = st.integers(0, 40).map(lambda n: n / 4)
kinds = st.sampled_from(
    [(URINE, "mL"), (HEART_RATE, "/min"), (GLUCOSE, "mg/dL"), (GLUCOSE, "mmol/L"), (HEIGHT, "cm"), (URINE, "Cel")]
)
firsts = kinds.flatmap(
    lambda kind: st.builds(
        Version,
        id=st.sampled_from(["o1", "o2", "o3", "o4"]),
        code=st.just(kind[0]),
        hour=quarters,
        value=st.integers(20, 200).map(float),
        unit=st.just(kind[1]),
        local=st.sampled_from([None, "GLU", "URINE"]),
    )
) | st.builds(
    Version,
    id=st.sampled_from(["b1", "b2"]),
    code=st.just(PANEL),
    hour=quarters,
    parts=st.dictionaries(st.sampled_from([SYSTOLIC, DIASTOLIC]), st.integers(40, 200).map(float), min_size=1),
)


@st.composite
def histories(draw: st.DrawFn) -> list[Version]:
    """Observations with their corrections, each known later than what it corrects."""
    found = []
    for first in draw(st.lists(firsts, min_size=1, max_size=6, unique_by=lambda item: item.id)):
        known = first.hour + draw(quarters)
        found.append(replace(first, known=known))
        for version in range(2, 2 + draw(st.integers(0, 2))):
            known += 0.25 + draw(quarters)
            value = draw(st.integers(20, 200).map(float))
            parts = {SYSTOLIC: value, DIASTOLIC: 60.0} if first.parts else {}
            found.append(
                replace(
                    first, version=version, known=known, value=value, parts=parts, status="corrected",
                    issued=draw(st.booleans()),
                )
            )  # fmt: skip
    return found


wild = tuned(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@wild
@given(history=histories())
def test_nothing_issued_after_the_prediction_time_ever_changes_a_score(
    store: Store, history: Sequence[Version]
) -> None:
    with rolled_back(store) as connection:
        admit(connection)
        ingest(connection, [item for item in history if item.known <= 12])
        before = seen(connection)

        ingest(connection, [item for item in history if item.known > 12])

        for one, other in zip(before, seen(connection), strict=True):
            np.testing.assert_array_equal(one, other)


@tuned(parent=wild, max_examples=5)
@given(history=histories(), data=st.data())
def test_order_duplicates_and_ingesting_again_never_change_a_score(
    store: Store, history: Sequence[Version], data: st.DataObject
) -> None:
    moments = [hour(at) for at in (3, 7, 12, 30)]
    copies = [replace(item, id=f"{item.id}-copy") for item in history]
    with rolled_back(store) as connection:
        admit(connection)
        ingest(connection, history)
        before = [seen(connection, at) for at in moments]

        ingest(connection, data.draw(st.permutations([*history, *copies])))
        again = [seen(connection, at) for at in moments]
    with rolled_back(store) as connection:
        admit(connection)
        shuffled = data.draw(st.permutations([*history, *copies]))
        for start in range(0, len(shuffled), 8):
            ingest(connection, shuffled[start : start + 8])
        after = [seen(connection, at) for at in moments]

    for one, other, third in zip(before, again, after, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[0], third[0])
        np.testing.assert_array_equal(one[1], other[1])
        np.testing.assert_array_equal(one[1], third[1])


# --- what counts ---------------------------------------------------------------------------------------------


def test_two_codings_of_one_value_are_one_value_and_two_drains_are_two(store: Store) -> None:
    with store.writing() as connection:
        admit(connection)
        both = Version(code=URINE, local="URINE", value=50, unit="mL")
        alone = {**replace(both, id="o2", local=None).resource()}
        alone["code"] = {"coding": [{"system": WARD, "code": "URINE"}]}
        ingest(connection, [both], others=[alone])

        assert np.nansum(seen(connection)[0][:, 3]) == 100


def test_a_channel_of_a_local_code_reads_what_has_a_loinc_too(store: Store) -> None:
    with store.writing() as connection:
        admit(connection)
        ingest(connection, [Version(code="14749-6", local="GLU", value=5.0, unit="mmol/L")])

        assert np.nanmax(seen(connection)[0][:, 1]) == np.float32(5 * 18.0156)


def test_a_coded_answer_stands_for_its_number_or_is_refused_and_told(store: Store) -> None:
    def answer(id: str, code: str) -> dict[str, Any]:
        found = Version(id=id, code="9267-6").resource()
        del found["valueQuantity"]
        coding = [{"system": LOINC, "code": "LA6555-6"}, {"system": WARD, "code": code}]
        return {**found, "valueCodeableConcept": {"coding": coding}}

    with store.writing() as connection:
        encounter = admit(connection)
        ingest(connection, [], others=[answer("o1", "to-pain"), answer("o2", "asleep")])

        assert np.nanmax(seen(connection)[0][:, 4]) == 2
        strict = replace(SPEC, min_measurements=2)
        (refused,) = load_series(connection, strict, [(encounter, END)]).cases()

    assert isinstance(refused, InputNotUsable)
    assert "1 measurements in the window, 2 needed" in refused.message
    assert "refused were 1 as a coded answer that stands for no number" in refused.message


def test_a_limit_is_refused_unless_the_channel_takes_it(store: Store) -> None:
    limit = Version().resource()
    limit["valueQuantity"]["comparator"] = "<"
    with store.writing() as connection:
        encounter = admit(connection)
        ingest(connection, [], others=[limit])
        channel = replace(SPEC.channels[0], units={"</min": 1.0})

        assert np.isnan(seen(connection)[0][:, 0]).all()
        (found,) = load_series(connection, replace(SPEC, channels=(channel,)), [(encounter, END)]).cases()

    assert isinstance(found, TimeSeries)
    assert np.nanmax(found.values) == 80


def test_only_the_statuses_asked_for_count(store: Store) -> None:
    with store.writing() as connection:
        encounter = admit(connection)
        ingest(connection, [Version(status="preliminary"), Version(id="o2", hour=3, value=70)])
        (found,) = load_series(connection, replace(SPEC, statuses=("final",)), [(encounter, END)]).cases()

    assert isinstance(found, TimeSeries)
    assert np.nanmax(found.values[:, 0]) == 70


# --- what is static, and coverage ----------------------------------------------------------------------------


def test_a_static_channel_is_the_last_value_known_however_old(store: Store) -> None:
    heights = [
        Version(id="h1", code=HEIGHT, hour=-9000, known=-9000, value=1.8, unit="m"),
        Version(id="h2", code=HEIGHT, hour=-5000, known=-5000, value=178, unit="cm"),
        Version(id="h3", code=HEIGHT, hour=-10, known=-10, value=70, unit="kg"),
        Version(id="h4", code=HEIGHT, hour=2, known=20, value=179, unit="cm"),
    ]
    with store.writing() as connection:
        admit(connection)
        ingest(connection, heights)

        assert [seen(connection, hour(at))[1][1] for at in (-6000, 12, 20)] == [180, 178, 179]
        assert seen(connection)[1][0] == 66


def test_a_new_height_makes_a_stay_due_again(store: Store) -> None:
    with store.writing() as connection:
        admit(connection)
        model = register_model(connection, name="m", version="1", digest="d", distribution="x", spec={})
        ingest(connection, [Version()])
        (first,) = due_encounters(connection, SPEC, as_of=END, model_id=model)
        ingest(connection, [Version(id="h", code=HEIGHT, value=180, unit="cm")])
        (second,) = due_encounters(connection, SPEC, as_of=END, model_id=model)

    assert first.input_key != second.input_key


def test_what_the_encounter_says_of_itself_is_one_nought_or_unknown(store: Store) -> None:
    names = (
        "encounter-class:IMP",
        "encounter-priority:urn:p|EM",
        "encounter-priority:urn:p|R",
        "admit-source:urn:s|er",
    )
    urgent = {"coding": [{"system": "urn:q", "code": "1"}, {"system": "urn:p", "code": "EM"}]}
    with store.writing() as connection:
        ingest(connection, [Version()], others=[PATIENT, {**ENCOUNTER, "priority": urgent}])
        encounter = connection.execute(select(EncounterRow.id)).scalar_one()
        block = load_series(connection, replace(SPEC, statics=names), [(encounter, END)])

    np.testing.assert_array_equal(block.statics[0], [1, 1, 0, np.nan])


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        ({"min_measurements": 4}, "too-few-measurements", "3 measurements in the window, 4 needed"),
        ({"min_channels": 3}, "too-few-channels", "values of 2 channels in the window, 3 needed"),
        ({"min_steps": 3}, "too-few-steps", "values in 2 steps of the window, 3 needed"),
        ({"required": "Systolic"}, "channel-missing", "no value of Systolic, which is required"),
        ({"required": "Height"}, "channel-missing", "no value of Height, which is required"),
    ],
)
def test_too_little_is_refused_and_says_what_was_lacking(store: Store, asked: dict, code: str, words: str) -> None:
    items = [Version(), Version(id="o2", hour=1.5), Version(id="o3", hour=3, code=URINE, value=5, unit="mL")]
    items += [Version(id="o4", unit="Cel"), Version(id="o5", value=900)]
    asked, required = {name: asked[name] for name in asked.keys() - {"required"}}, asked.get("required")

    def asking(item: Any) -> Any:
        return replace(item, required=item.name == required) if isinstance(item, Channel) else item

    spec = replace(SPEC, channels=tuple(map(asking, SPEC.channels)), statics=tuple(map(asking, SPEC.statics)), **asked)
    with store.writing() as connection:
        encounter = admit(connection)
        ingest(connection, items)
        (refused,) = load_series(connection, spec, [(encounter, END)]).cases()

    assert isinstance(refused, InputNotUsable)
    assert refused.code == code
    assert words in refused.message
    assert "refused were 1 in another unit and 1 out of range" in refused.message


def test_an_older_version_of_another_patient_is_passed_over(store: Store) -> None:
    with store.writing() as connection:
        admit(connection)
        ingest(connection, [Version(version=2, value=90, known=6)])
        outcomes = ingest(connection, [Version(version=1, value=80, known=1, patient="p2")])

        assert outcomes == [Outcome.OLDER]
        assert connection.execute(select(func.count()).select_from(MeasurementRow)).scalar_one() == 1
