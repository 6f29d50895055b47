import json
from hashlib import sha256

import pytest
from sqlalchemy import select, update

from medflow.plugin import SequenceInput
from medflow.records import FhirResource, Identifier, Instant, Patient, Sequence, UnitKind, fhir_identifier
from medflow.store import jobs
from medflow.store.clinical import ClinicalWriter
from medflow.store.genomics import SequenceItem, due_sequences, load_sequences, store_sequences
from medflow.store.ledger import now_us
from medflow.store.packed import pack
from medflow.store.patients import resolve_patients
from medflow.store.specimens import has_names, named
from medflow.store.tables import JobRow, PatientIdentifierRow, PatientRow, SequenceRow
from medflow.store.units import unit_facts


def molecular(bases: str | None = "ACGT", subject: str | None = "p1", **rest) -> FhirResource:
    sequence = None
    if bases is not None:
        digest = sha256(bases.encode()).hexdigest()
        sequence = Sequence(name="MolecularSequence/s1", bases=bases, sha256=digest)
    return resource("MolecularSequence", "s1", f"{bases} {subject}", subject=subject, sequence=sequence, **rest)


def specimen(*names: str, subject: str | None = "p1", type: str = "Specimen", id: str = "x1") -> FhirResource:
    called = tuple(Identifier(system="", value=name) for name in names)
    return resource(type, id, f"{names} {subject}", subject=subject, names=called)


def resource(type: str, id: str, content: str, **rest) -> FhirResource:
    digest = sha256(content.encode()).hexdigest()
    return FhirResource(source="local", type=type, id=id, raw=content.encode(), sha256=digest, **rest)


def tube(subject: str | None = "p1", status: str = "available") -> FhirResource:
    content = json.dumps({"resourceType": "Specimen", "id": "x1", "status": status, "subject": subject})
    return resource("Specimen", "x1", content, subject=subject)


def deletion(type: str, id: str) -> FhirResource:
    return FhirResource(source="local", type=type, id=id, raw=b"", sha256="", deleted=True)


def write(store, *resources: FhirResource) -> None:
    for item in resources:
        with store.writing() as connection:
            ClinicalWriter("local").write(connection, [pack(item)])


def due(store):
    with store.reading() as connection:
        return due_sequences(connection, SequenceInput(length=4), as_of=Instant(utc_us=now_us()), model_id=1)


def bases(store, *units) -> list[str]:
    with store.reading() as connection:
        return list(load_sequences(connection, [unit.unit.id for unit in units]).values())


def found(store, name: str):
    with store.reading() as connection:
        return [(item.reference, item.patient_id is not None) for item in named(connection, [name]).get(name, [])]


# --- sequences ---------------------------------------------------------------------------------------------------


def test_a_sequence_that_came_as_a_resource_is_named_as_that_in_results(store):
    write(store, molecular())

    (unit,) = due(store)
    with store.reading() as connection:
        facts = unit_facts(connection, UnitKind.SEQUENCE, [unit.unit.id])[unit.unit.id]

    assert bases(store, unit) == ["ACGT"]
    assert (facts.inputs[0].reference, facts.source) == ("MolecularSequence/s1", "local")
    assert facts.inputs[0].identifier is not None and facts.patient_id is not None


def test_another_content_or_patient_is_the_same_sequence_and_new_to_models(store):
    write(store, molecular())
    seen = due(store)
    for newer in (molecular("GGGG"), molecular("GGGG", subject="p2")):
        write(store, newer)
        (unit,) = due(store)
        assert unit.unit == seen[-1].unit and unit.revision > seen[-1].revision
        assert unit.input_key not in {earlier.input_key for earlier in seen}
        seen.append(unit)
    assert bases(store, unit) == ["GGGG"]


@pytest.mark.parametrize("taken_back", [molecular(None), deletion("MolecularSequence", "s1")])
def test_a_sequence_that_is_taken_back_takes_its_results_along(store, taken_back):
    write(store, molecular())
    (unit,) = due(store)
    with store.writing() as connection:
        model = jobs.register_model(connection, name="m", version="1", digest="d", distribution="m 1", spec={})
        jobs.enqueue(connection, model, [unit])
        connection.execute(update(JobRow).values(state="done"))

    write(store, taken_back)

    assert due(store) == [] and bases(store, unit) == []
    with store.reading() as connection:
        assert connection.scalar(select(JobRow.superseded)) is True

    write(store, molecular("TTTT"))
    assert [item.unit for item in due(store)] == [unit.unit]


def test_a_fasta_record_is_never_taken_for_a_resources_sequence(store):
    write(store, molecular())
    (unit,) = due(store)
    same = Sequence(name="MolecularSequence/s1", bases="ACGT", sha256=sha256(b"ACGT").hexdigest())

    with store.writing() as connection:
        assert store_sequences(connection, [SequenceItem(sequence=same)]) == ["stored"]

    assert len(due(store)) == 2 and unit in due(store)


# --- names of specimens ------------------------------------------------------------------------------------------


def test_specimens_and_orders_are_found_by_any_of_their_names(store):
    write(store, specimen("A", "B"), specimen("B", subject=None, type="ServiceRequest"))

    assert found(store, "A") == [("Specimen/x1", True)]
    assert found(store, "B") == [("Specimen/x1", True), ("ServiceRequest/x1", False)]
    assert found(store, "C") == []


def test_names_change_and_go_with_their_resource(store):
    write(store, specimen("A"), specimen("B"))
    assert (found(store, "A"), found(store, "B")) == ([], [("Specimen/x1", True)])

    write(store, deletion("Specimen", "x1"))
    with store.reading() as connection:
        assert not has_names(connection)


def test_a_specimen_follows_its_patient_where_two_turn_out_to_be_one(store):
    write(store, specimen("A"))
    person = Identifier(system="urn:mrn", value="1")
    with store.writing() as connection:
        resolve_patients(connection, [Patient(identifiers=(person,))])  # a complete one, known from images
    same = Patient(identifiers=(person, fhir_identifier("local", "p1")))
    write(store, resource("Patient", "p1", "same", subject="p1", patient=same))

    with store.reading() as connection:
        (owner,) = connection.scalars(select(PatientRow.id))
        assert [item.patient_id for item in named(connection, ["A"])["A"]] == [owner]


# --- sequences of specimens --------------------------------------------------------------------------------------


def owner(store) -> str | None:
    """The id of the Patient whose the one sequence is."""
    query = select(PatientIdentifierRow.value).join(
        SequenceRow, SequenceRow.patient_id == PatientIdentifierRow.patient_id
    )
    with store.reading() as connection:
        return connection.scalar(query)


OF_TUBE = molecular(subject=None, specimen="x1")


@pytest.mark.parametrize("order", [(tube(), OF_TUBE), (OF_TUBE, tube())], ids=["specimen first", "sequence first"])
def test_a_sequence_without_a_patient_is_its_specimens_patients(store, order):
    write(store, *order)

    assert owner(store) == "p1"
    (unit,) = due(store)
    with store.reading() as connection:
        assert unit_facts(connection, UnitKind.SEQUENCE, [unit.unit.id])[unit.unit.id].patient_id is not None


def test_a_specimen_in_the_same_batch_is_asked_too(store):
    with store.writing() as connection:
        ClinicalWriter("local").write(connection, [pack(OF_TUBE), pack(tube())])

    assert owner(store) == "p1"


@pytest.mark.parametrize(
    ("later", "whose"),
    [
        (tube("p2"), "p2"),
        (tube(None), "p1"),  # a version without subject is about whom it was
        (tube(status="entered-in-error"), None),
        (deletion("Specimen", "x1"), None),
        (molecular(subject="p3"), "p3"),
        (molecular("CCCC", subject=None), None),
    ],
)
def test_a_sequence_follows_its_specimen_and_is_new_to_models(store, later, whose):
    write(store, tube(), OF_TUBE)
    before = due(store)

    write(store, later)

    assert owner(store) == whose
    if whose != "p1":
        assert [unit.revision for unit in due(store)] == [unit.revision + 1 for unit in before]


def test_what_was_said_of_the_specimens_former_patient_is_not_committed_any_more(store):
    write(store, tube(), OF_TUBE)
    units = due(store)
    with store.writing() as connection:
        model = jobs.register_model(connection, name="m", version="1", digest="d", distribution="m 1", spec={})
        jobs.enqueue(connection, model, units)

    write(store, tube("p2"))

    with store.reading() as connection:
        assert connection.scalar(select(JobRow.superseded)) is True


def test_specimens_of_another_source_are_not_asked(store):
    write(store, OF_TUBE)
    with store.writing() as connection:
        ClinicalWriter("elsewhere").write(connection, [pack(tube())])

    assert owner(store) is None
