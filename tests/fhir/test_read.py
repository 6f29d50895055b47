import json
from datetime import UTC, date, datetime
from hashlib import sha256
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflow.errors import InputRejected, RejectCode
from medflow.fhir.read import Context, Reading, read_resource, resolve
from medflow.records import MAX_BASES, Coding, Identifier, Instant, Sequence, fhir_identifier
from medflow.store.packed import codings_of, pack

HERE = Context(source="local")
HEART_RATE = Coding(system="http://loinc.org", code="8867-4")


def read(resource: dict, context: Context = HERE, **options) -> Reading:
    return read_resource(resource, orjson.dumps(resource), context, **options)


def observation(**elements) -> dict:
    return {
        "resourceType": "Observation",
        "id": "o1",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4", "display": "Heart rate"}]},
        "subject": {"reference": "Patient/p1"},
        "encounter": {"reference": "Encounter/e1"},
        "effectiveDateTime": "2012-01-01T01:00:00+01:00",
        **elements,
    }


def quantity(value, code="/min", system="http://unitsofmeasure.org", unit=None) -> dict:
    return {"valueQuantity": {"value": value, "code": code, "system": system, **({"unit": unit} if unit else {})}}


def only(resource: dict, context: Context = HERE):
    (measurement,) = read(resource, context).resource.measurements
    return measurement


def at(*parts) -> Instant:
    return Instant.of(datetime(*parts, tzinfo=UTC))


def test_a_quantity_becomes_a_measurement():
    found = only(observation(**quantity(73), issued="2012-01-01T00:30:00Z"))

    assert (found.subject, found.encounter, found.code) == ("p1", "e1", HEART_RATE)
    assert (found.value, found.unit, found.status) == (73.0, "/min", "final")
    assert found.effective == Instant(utc_us=at(2012, 1, 1).utc_us, offset_min=60)
    assert found.available == at(2012, 1, 1, 0, 30)


def test_without_issued_it_was_known_when_it_was_true():
    found = only(observation(**quantity(73)))
    assert found.available.utc_us == found.effective.utc_us


def test_a_period_counts_from_its_end():
    period = {"start": "2012-01-01T00:00:00Z", "end": "2012-01-01T06:00:00Z"}
    found = only({**observation(**quantity(73)), "effectivePeriod": period, "effectiveDateTime": None})
    assert found.effective == found.available == at(2012, 1, 1, 6)


@pytest.mark.parametrize(
    ("element", "value"), [({"valueBoolean": True}, 1.0), ({"valueBoolean": False}, 0.0), ({"valueInteger": 3}, 3.0)]
)
def test_booleans_and_integers_are_numbers(element, value):
    found = only(observation(**element))
    assert (found.value, found.unit, found.value_code) == (value, None, None)


def test_a_coded_value_is_a_code():
    coded = {"coding": [{"system": "http://snomed.info/sct", "code": "260373001"}]}
    found = only(observation(valueCodeableConcept=coded))
    assert (found.value, found.value_code) == (None, Coding(system="http://snomed.info/sct", code="260373001"))


def test_components_are_measurements_of_their_own():
    codes = [{"coding": [{"system": "http://loinc.org", "code": code}]} for code in ("8480-6", "8462-4")]
    components = [{"code": code, **quantity(value, "mm[Hg]")} for code, value in zip(codes, (120, 80), strict=True)]
    found = read(observation(component=components)).resource.measurements
    assert [(item.code.code, item.value) for item in found] == [("8480-6", 120.0), ("8462-4", 80.0)]


def test_one_value_is_counted_under_one_code_and_loinc_comes_first():
    coding = [{"system": "urn:ward", "code": "HR"}, {"system": "http://loinc.org", "code": "8867-4"}]
    assert only(observation(code={"coding": coding}, **quantity(73))).code == HEART_RATE


def test_the_other_codings_of_a_value_are_kept():
    ward, loinc = {"system": "urn:ward", "code": "HR"}, {"system": "http://loinc.org", "code": "8867-4"}
    found = only(observation(code={"coding": [ward, loinc]}, **quantity(73)))
    assert (found.code, found.also) == (HEART_RATE, (Coding(system="urn:ward", code="HR"),))


def test_the_order_of_codings_makes_no_other_concept():
    coding = [{"system": "urn:ward", "code": "HR"}, {"system": "urn:other", "code": "8867-4"}]
    rows = [
        pack(read(observation(code={"coding": its}, **quantity(73))).resource).measurements[0]
        for its in (coding, coding[::-1], [*coding, coding[0]])
    ]
    assert rows[0] == rows[1] == rows[2]
    assert codings_of(rows[0].code[1]) == {
        Coding(system="urn:ward", code="HR"),
        Coding(system="urn:other", code="8867-4"),
    }


def test_a_limit_is_told_from_a_value_by_its_unit():
    limit = quantity(5, "ng/L")
    limit["valueQuantity"]["comparator"] = "<"
    assert only(observation(**limit)).unit == "<ng/L"


@pytest.mark.parametrize(
    ("text", "unit"), [("mmHg", "{mmHg}"), ("x}/min{", "{x)/min(}"), ("{beats}/min", "{(beats)/min}")]
)
def test_a_unit_in_words_never_becomes_one_of_ucum(text, unit):
    assert only(observation(valueQuantity={"value": 5, "unit": text})).unit == unit


@pytest.mark.parametrize(("status", "known"), [("corrected", 9), ("amended", 9), ("final", 0)])
def test_a_correction_without_issued_was_known_when_it_was_stored(status, known):
    found = only(observation(status=status, meta={"lastUpdated": "2012-01-01T09:00:00Z"}, **quantity(73)))
    assert found.available.utc_us == at(2012, 1, 1, known).utc_us


def test_nothing_is_known_before_it_was_true():
    found = only(observation(issued="2011-12-31T00:00:00Z", **quantity(73)))
    assert found.available.utc_us == found.effective.utc_us


def test_how_an_encounter_began_is_read():
    stay = {
        "resourceType": "Encounter",
        "id": "e1",
        "status": "in-progress",
        "class": {"code": "IMP"},
        "priority": {"coding": [{"system": "urn:p", "code": "EM"}, {"system": "urn:q", "code": "1"}]},
        "hospitalization": {"admitSource": {"coding": [{"system": "urn:s", "code": "emd"}]}},
    }
    found = read(stay).resource.encounter
    assert [coding.code for coding in found.priority] == ["EM", "1"]
    assert found.admit_source == (Coding(system="urn:s", code="emd"),)


def test_a_unit_that_is_only_text_equals_no_unit_that_a_model_accepts():
    assert only(observation(valueQuantity={"value": 73, "unit": "/min"})).unit == "{/min}"


@pytest.mark.parametrize("status", ["entered-in-error", "cancelled", "unknown"])
def test_what_was_never_measured_gives_no_row(status):
    assert read(observation(status=status, **quantity(73))).resource.measurements == ()


@pytest.mark.parametrize(
    ("elements", "note"),
    [
        ({"subject": {"reference": "Device/d1"}}, "subject-not-a-patient"),
        ({"subject": {"display": "somebody"}}, "subject-not-a-patient"),
        ({"effectiveDateTime": "2012-01-01"}, "date-without-zone"),
        ({"effectiveDateTime": "2012-01"}, "date-without-day"),
        ({"code": {"text": "heart rate"}}, "value-without-code"),
        ({"modifierExtension": [{"url": "http://x", "valueBoolean": True}]}, "modifier-extension"),
    ],
)
def test_what_would_be_a_guess_stays_a_resource_with_a_note(elements, note):
    reading = read(observation(**quantity(73), **elements))
    assert reading.resource.measurements == ()
    assert note in reading.notes


def test_a_zone_places_dates_true_from_the_start_known_at_the_end():
    berlin = Context(source="local", zone=ZoneInfo("Europe/Berlin"))
    found = only(observation(**quantity(73)) | {"effectiveDateTime": "2012-07-01"}, berlin)
    assert found.effective.utc_us == at(2012, 6, 30, 22).utc_us
    assert found.available.utc_us == at(2012, 7, 1, 22).utc_us - 1


def test_a_zone_places_times():
    berlin = Context(source="local", zone=ZoneInfo("Europe/Berlin"))
    found = only(observation(**quantity(73)) | {"effectiveDateTime": "2012-07-01T10:00:00"}, berlin)
    assert (found.effective.utc_us, found.effective.offset_min) == (at(2012, 7, 1, 8).utc_us, 120)


def test_a_patient_is_claimed_by_its_identifiers_in_use():
    identifiers = [
        {"system": "urn:mrn", "value": "7"},
        {"system": "urn:mrn", "value": "6", "use": "old"},
        {"value": "no system"},
    ]
    reading = read(
        {
            "resourceType": "Patient",
            "id": "p1",
            "identifier": identifiers,
            "birthDate": "1950-01-02",
            "gender": "female",
            "deceasedDateTime": "2012",
        }
    )
    patient = reading.resource.patient
    assert patient is not None
    assert patient.identifiers == (fhir_identifier("local", "p1"), Identifier(system="urn:mrn", value="7"))
    assert (patient.birth_date, patient.sex, patient.deceased) == (date(1950, 1, 2), "female", True)
    assert patient.complete
    assert reading.notes == ("identifier-without-system",)


def test_an_encounter_keeps_what_models_ask_for():
    reading = read(
        {
            "resourceType": "Encounter",
            "id": "e1",
            "status": "finished",
            "class": {"system": "http://x", "code": "IMP"},
            "type": [{"coding": [{"system": "urn:icu", "code": "4"}]}],
            "subject": {"reference": "Patient/p1"},
            "period": {"start": "2012-01-01T00:00:00Z", "end": "2012-01-03T00:00:00Z"},
            "hospitalization": {"dischargeDisposition": {"coding": [{"system": "http://y", "code": "home"}]}},
        }
    )
    found = reading.resource.encounter
    assert found is not None
    assert (found.subject, found.status, found.encounter_class) == ("p1", "finished", "IMP")
    assert found.types == (Coding(system="urn:icu", code="4"),)
    assert (found.start, found.end, found.discharge_disposition) == (at(2012, 1, 1), at(2012, 1, 3), "home")


def test_conditions_and_medications_are_facts():
    condition = {
        "resourceType": "Condition",
        "id": "c1",
        "subject": {"reference": "Patient/p1"},
        "code": {"coding": [{"system": "http://snomed.info/sct", "code": "38341003"}]},
        "onsetDateTime": "2011-01-01T00:00:00Z",
        "abatementDateTime": "2012-01-01T00:00:00Z",
        "recordedDate": "2011-02-01T00:00:00Z",
        "clinicalStatus": {"coding": [{"system": "http://x", "code": "resolved"}]},
    }
    request = {
        "resourceType": "MedicationRequest",
        "id": "m1",
        "status": "active",
        "intent": "order",
        "subject": {"reference": "Patient/p1"},
        "contained": [
            {"resourceType": "Medication", "id": "m", "code": {"coding": [{"system": "urn:atc", "code": "C07"}]}}
        ],
        "medicationReference": {"reference": "#m"},
        "authoredOn": "2012-01-01T00:00:00Z",
    }
    (fact,) = read(condition).resource.facts
    assert (fact.kind, fact.code.code, fact.status) == ("condition", "38341003", "resolved")
    assert (fact.start, fact.end, fact.recorded) == (at(2011, 1, 1), at(2012, 1, 1), at(2011, 2, 1))
    (fact,) = read(request).resource.facts
    assert (fact.kind, fact.code.code, fact.recorded) == ("medication", "C07", at(2012, 1, 1))


def test_references_mean_what_the_bundle_says():
    bundle = Context(
        source="local",
        links={"urn:uuid:1": "Patient/p1", "http://ehr/fhir/Patient/2": "Patient/2"},
        bases=frozenset({"http://ehr/fhir"}),
    )
    assert resolve("urn:uuid:1", bundle) == "Patient/p1"
    assert resolve("Patient/3/_history/4", bundle) == "Patient/3"
    assert resolve("http://ehr/fhir/Patient/9", bundle) == "Patient/9"
    assert resolve("http://other/fhir/Patient/9", bundle) == "http://other/fhir/Patient/9"
    assert [resolve(text, bundle) for text in ("#p", "urn:uuid:9", "Patient?identifier=1")] == [None] * 3


def test_another_servers_patient_is_never_taken_for_ours():
    found = only(observation(**quantity(73)) | {"subject": {"reference": "http://other/fhir/Patient/p1"}})
    assert found.subject == "http://other/fhir/Patient/p1"


def test_every_reference_is_reported():
    performers = [{"reference": "Practitioner\\/d1"}, {"reference": "#c"}, {"reference": "Organization?identifier=x|1"}]
    text = observation(**quantity(73), performer=performers)
    raw = orjson.dumps(text).replace(b"\\\\/", b"\\/")
    reading = read_resource(orjson.loads(raw), raw, HERE)
    assert reading.references == {"Patient/p1", "Encounter/e1", "Practitioner/d1", "Organization?identifier=x|1"}


TRICKY = st.sampled_from(['"reference":"Patient/other"', "reference", '"reference"', "\\", 'a"', "ü"])


@given(
    subject=st.text("abc-é/", min_size=1),
    performers=st.lists(st.text("abc-é/", min_size=1), max_size=3),
    words=st.lists(TRICKY | st.text(), min_size=1, max_size=3),
    options=st.sampled_from([{"separators": (",", ":")}, {}, {"indent": 1}, {"ensure_ascii": False}]),
)
def test_references_are_found_in_bytes_as_in_what_they_say(
    subject: str, performers: list[str], words: list[str], options: dict
) -> None:
    resource = observation(
        subject={"reference": f"Patient/{subject}", "display": words[0]},
        performer=[{"reference": f"Practitioner/{name}"} for name in performers],
        note=[{"text": word} for word in words],
        focus=[{"reference": "#inside"}, {"type": "reference"}],
    )

    found = read_resource(resource, json.dumps(resource, **options).encode(), HERE).references

    assert found == {f"Patient/{subject}", "Encounter/e1", *(f"Practitioner/{name}" for name in performers)}


def test_version_and_time_come_from_meta_and_the_id_from_the_entry():
    meta = {"versionId": "3", "lastUpdated": "2012-01-01T00:00:00Z"}
    found = read(observation(meta=meta)).resource
    assert (found.version, found.last_updated) == ("3", at(2012, 1, 1))
    assert read(observation() | {"id": None}, id="from-full-url").resource.id == "from-full-url"
    with pytest.raises(InputRejected) as caught:
        read(observation() | {"id": None})
    assert caught.value.code is RejectCode.MISSING_ID


def molecular(**elements) -> dict:
    return {"resourceType": "MolecularSequence", "id": "s1", "type": "dna", "coordinateSystem": 0, **elements}


def test_dna_of_a_molecular_sequence_can_be_read():
    found = read(molecular(observedSeq=" acgtN ", patient={"reference": "Patient/p1"}))

    assert found.resource.sequence == Sequence(
        name="MolecularSequence/s1", bases="ACGTN", sha256=sha256(b"ACGTN").hexdigest()
    )
    assert (found.resource.subject, found.notes) == ("p1", ())


@pytest.mark.parametrize(
    ("elements", "specimen"),
    [
        ({"specimen": {"reference": "Specimen/x1"}}, "x1"),
        ({"specimen": {"reference": "Specimen/x1"}, "patient": {"reference": "Patient/p1"}}, None),
        ({"specimen": {"reference": "Specimen/x1"}, "patient": {"display": "somebody"}}, None),
        ({"specimen": {"reference": "Substance/x1"}}, None),
        ({"specimen": {"display": "tube"}}, None),
        ({}, None),
    ],
)
def test_a_molecular_sequence_names_its_specimen_where_it_names_no_patient(elements, specimen):
    assert read(molecular(observedSeq="ACGT", **elements)).resource.specimen == specimen


@pytest.mark.parametrize(
    ("elements", "note"),
    [
        ({"type": "aa", "observedSeq": "ACGT"}, "sequence-not-dna"),
        ({"type": "rna", "observedSeq": "ACGT"}, "sequence-not-dna"),
        ({"observedSeq": " "}, "sequence-without-bases"),
        ({"repository": [{"type": "directlink"}]}, "sequence-without-bases"),
        ({"observedSeq": "ACGU"}, "sequence-with-other-letters"),
        ({"observedSeq": "ACGT\nACGT"}, "sequence-with-other-letters"),
        ({"observedSeq": "A" * (MAX_BASES + 1)}, "sequence-too-long"),
        ({"observedSeq": "ACGT", "modifierExtension": [{"url": "urn:x"}]}, "modifier-extension"),
    ],
)
def test_a_molecular_sequence_that_models_cannot_read_stays_a_resource_with_a_note(elements, note):
    found = read(molecular(**elements))

    assert (found.resource.sequence, found.notes) == (None, (note,))


def test_a_specimen_and_an_order_have_the_names_that_are_in_use():
    old = {"value": "old", "use": "old"}
    specimen = {"identifier": [{"system": "urn:lab", "value": "A"}, old], "accessionIdentifier": {"value": "B"}}
    order = {"identifier": [{"system": "urn:lab", "value": "A"}], "requisition": {"system": "urn:lab", "value": "A"}}

    names = [
        read({"resourceType": kind, "id": "1", "subject": {"reference": "Patient/p1"}, **elements}).resource.names
        for kind, elements in (("Specimen", specimen), ("ServiceRequest", order))
    ]

    lab = Identifier(system="urn:lab", value="A")
    assert names == [(lab, Identifier(system="", value="B")), (lab,)]
    assert read({"resourceType": "Specimen", "id": "1", "status": "entered-in-error", **specimen}).resource.names == ()
