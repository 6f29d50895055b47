from dataclasses import replace
from datetime import date
from itertools import permutations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from medflow.errors import InputRejected, RejectCode
from medflow.records import (
    CodedFact,
    Coding,
    Encounter,
    FhirResource,
    Instant,
    Measurement,
    Patient,
    fhir_identifier,
)
from medflow.store.clinical import ClinicalWriter
from medflow.store.packed import pack
from medflow.store.tables import (
    Base,
    CodedFactRow,
    ConceptRow,
    EncounterRow,
    FhirResourceRow,
    MeasurementRow,
    PatientRow,
)
from medflow.store.versions import Outcome, absent_resources, known_contents

HEART_RATE = Coding(system="http://loinc.org", code="8867-4", display="Heart rate")
DIABETES = Coding(system="http://snomed.info/sct", code="73211009")


def patient(id="p1", **known) -> FhirResource:
    claim = Patient(identifiers=(fhir_identifier("local", id),), **known)
    return resource("Patient", id, repr(known), subject=id, patient=claim)


def encounter(id="e1", subject="p1", status="finished") -> FhirResource:
    visit = Encounter(id=id, subject=subject, status=status, start=Instant(utc_us=5))
    return resource("Encounter", id, status, subject=subject, encounter=visit)


def observation(id="o1", value=73.0, visit: str | None = "e1", **meta) -> FhirResource:
    measured = Measurement(
        subject="p1",
        encounter=visit,
        code=HEART_RATE,
        effective=Instant(utc_us=10, offset_min=60),
        available=Instant(utc_us=20),
        status="final",
        value=value,
        unit="/min",
    )
    return resource("Observation", id, f"{value} {meta}", subject="p1", measurements=(measured,), **meta)


def condition(id="c1") -> FhirResource:
    fact = CodedFact(kind="condition", subject="p1", encounter=None, code=DIABETES, start=Instant(utc_us=1))
    return resource("Condition", id, id, subject="p1", facts=(fact,))


def resource(type, id, content, **rest) -> FhirResource:
    raw = content.encode()
    return FhirResource(source="local", type=type, id=id, raw=raw, sha256=f"sha-{content}", **rest)


def deletion(type="Observation", id="o1", **rest) -> FhirResource:
    return FhirResource(source="local", type=type, id=id, raw=b"", sha256="", deleted=True, **rest)


def write(store, *resources, writer=None):
    with store.writing() as connection:
        return (writer or ClinicalWriter("local")).write(connection, [pack(item) for item in resources])


def rows(store, table, *columns):
    with store.reading() as connection:
        return connection.execute(select(*columns).select_from(table)).all()


def revision(store, table):
    return rows(store, table, table.revision)[0][0]


def contents(store) -> dict[str, list]:
    """Everything stored, without surrogate ids and revisions."""
    m, r, e, c = MeasurementRow, FhirResourceRow, EncounterRow, ConceptRow
    queries = {
        "resources": select(r.type, r.fhir_id, r.sha256, r.raw, r.deleted, r.version),
        "patients": select(PatientRow.birth_date, PatientRow.sex, PatientRow.complete),
        "encounters": select(e.fhir_id, e.status, e.start_us, PatientRow.sex).join(PatientRow, isouter=True),
        "measurements": select(r.fhir_id, m.value, m.mark_1, m.mark_2, e.fhir_id, c.code, PatientRow.sex)
        .join(r, r.id == m.resource_id)
        .join(PatientRow, PatientRow.id == m.patient_id)
        .join(e, e.id == m.encounter_id, isouter=True)
        .join(c, c.id == m.concept_id),
        "facts": select(CodedFactRow.kind, CodedFactRow.start_us),
    }
    with store.reading() as connection:
        return {name: sorted(connection.execute(query).all(), key=repr) for name, query in queries.items()}


def test_a_chunk_becomes_rows(store):
    outcomes = write(store, patient(sex="female"), encounter(), observation(), condition())

    assert outcomes == [Outcome.STORED] * 4
    (measured,) = rows(store, MeasurementRow, *MeasurementRow.__table__.c)
    assert (measured.effective_us, measured.effective_offset, measured.available_us) == (10, 60, 20)
    assert (measured.value, measured.unit, measured.status) == (73.0, "/min", "final")
    assert rows(store, EncounterRow, EncounterRow.status, EncounterRow.start_us) == [("finished", 5)]
    assert rows(store, CodedFactRow, CodedFactRow.kind, CodedFactRow.start_us) == [("condition", 1)]
    concepts = rows(store, ConceptRow, ConceptRow.code, ConceptRow.display)
    assert sorted(concepts) == [("73211009", None), ("8867-4", "Heart rate")]
    assert len({row.patient_id for row in rows(store, FhirResourceRow, FhirResourceRow.patient_id)}) == 1


def test_the_same_again_changes_nothing(store):
    everything = (patient(), encounter(), observation(), condition())
    write(store, *everything)
    before = contents(store), revision(store, EncounterRow), revision(store, PatientRow)

    assert write(store, *everything) == [Outcome.UNCHANGED] * 4
    assert (contents(store), revision(store, EncounterRow), revision(store, PatientRow)) == before


def test_a_new_version_replaces_its_rows_and_raises_revisions(store):
    write(store, patient(), encounter(), observation(value=73.0, version="1"))
    before = revision(store, EncounterRow), revision(store, PatientRow)

    assert write(store, observation(value=80.0, version="2")) == [Outcome.STORED]

    assert rows(store, MeasurementRow, MeasurementRow.value)[-1] == (80.0,)
    after = revision(store, EncounterRow), revision(store, PatientRow)
    assert all(new > old for new, old in zip(after, before, strict=True))


def test_an_older_version_never_overwrites_a_newer_one(store):
    write(store, observation(value=80.0, version="10"))
    assert write(store, observation(value=73.0, version="9")) == [Outcome.OLDER]
    write(store, observation("o2", 80.0, last_updated=Instant(utc_us=2)))
    assert write(store, observation("o2", 73.0, last_updated=Instant(utc_us=1))) == [Outcome.OLDER]
    assert {row.value for row in rows(store, MeasurementRow, MeasurementRow.value)} == {80.0}


def test_versions_may_come_together_in_any_order(store):
    versions = [observation(value=float(number), version=str(number)) for number in (1, 2, 3)]
    for number, order in enumerate(permutations(versions)):
        write(store, *(replace(item, id=f"o{number}") for item in order))
    assert {row.value for row in rows(store, MeasurementRow, MeasurementRow.value)} == {3.0}


def test_two_contents_of_one_id_in_one_ingest_are_a_conflict_unless_one_is_newer(store):
    for _ in range(2):
        writer = ClinicalWriter("local")
        write(store, observation(value=1.0), writer=writer)
        (outcome,) = write(store, observation(value=2.0), writer=writer)
        assert isinstance(outcome, InputRejected)
        assert outcome.code is RejectCode.IDENTITY_CONFLICT
    assert write(store, observation(value=2.0)) == [Outcome.STORED]  # a later ingest brings an update


def test_a_deletion_removes_rows_and_bytes(store):
    write(store, patient(), encounter(), observation(), condition())
    before = revision(store, EncounterRow)

    assert write(store, deletion(), deletion("Encounter", "e1"), deletion("Condition", "c1")) == [Outcome.STORED] * 3

    assert not rows(store, MeasurementRow, MeasurementRow.value)
    assert not rows(store, CodedFactRow, CodedFactRow.kind)
    assert rows(store, EncounterRow, EncounterRow.status, EncounterRow.start_us) == [(None, None)]
    assert revision(store, EncounterRow) > before
    left = rows(store, FhirResourceRow, FhirResourceRow.type, FhirResourceRow.raw, FhirResourceRow.deleted)
    assert sorted(left)[0] == ("Condition", b"", True)
    assert write(store, deletion()) == [Outcome.UNCHANGED]


def test_what_was_deleted_stays_away_in_either_order(store):
    write(store, observation("o1"), deletion(id="o1"))
    write(store, deletion(id="o2"))
    assert write(store, observation("o2", 1.0)) == [Outcome.OLDER]
    assert write(store, observation("o1"), observation("o2", 1.0)) == [Outcome.UNCHANGED] * 2
    assert not rows(store, MeasurementRow, MeasurementRow.value)
    assert write(store, observation("o2", 2.0)) == [Outcome.STORED]  # it was made anew


def test_a_deletion_that_is_older_than_the_resource_is_passed_over(store):
    write(store, observation(last_updated=Instant(utc_us=5)))
    assert write(store, deletion(last_updated=Instant(utc_us=4))) == [Outcome.OLDER]


def test_a_refused_patient_leaves_no_resource(store):
    write(store, patient(birth_date=date(1950, 1, 1)))
    (refused, stored) = write(store, patient(birth_date=date(1951, 1, 1)), observation())
    assert isinstance(refused, InputRejected)
    assert refused.code is RejectCode.PATIENT_MISMATCH
    assert stored is Outcome.STORED
    assert rows(store, PatientRow, PatientRow.birth_date) == [(date(1950, 1, 1),)]


def test_marks_depend_on_the_content_alone():
    (packed,) = pack(observation()).measurements
    assert (packed.mark_1, packed.mark_2) == (135425980452, 628287568889)
    assert pack(observation(id="o9", visit=None)).measurements[0][-2:] == packed[-2:]
    assert pack(observation(value=74.0)).measurements[0][-2:] != packed[-2:]


def test_absent_references_are_counted_by_type(store):
    write(store, patient())
    with store.reading() as connection:
        absent = absent_resources(
            connection, "local", {"Patient/p1", "Patient/p2", "Practitioner/1", "http://x/Group/1"}
        )
        known = known_contents(connection, "local", [("Patient", "p1"), ("Patient", "p2")])
    assert absent == {"Patient": 1, "Practitioner": 1, "Group": 1}
    assert [(key, digest) for key, (_, digest) in known.items()] == [(("Patient", "p1"), "sha-{}")]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_order_duplicates_and_chunks_do_not_change_what_is_stored(store, data):
    items = [
        patient(sex="female", birth_date=date(1950, 1, 1)),
        encounter(),
        *(observation("o1", float(number), version=str(number)) for number in (1, 2)),
        observation("o2", 5.0),
        condition(),
        deletion(id="o3"),
        observation("o3", 6.0),
    ]
    with store.writing() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())
    write(store, *items)
    expected = contents(store)
    with store.writing() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())
    order = data.draw(st.permutations(items + data.draw(st.lists(st.sampled_from(items), max_size=3))))
    cut = data.draw(st.integers(0, len(order)))
    write(store, *order[:cut])
    write(store, *order[cut:])
    assert contents(store) == expected
