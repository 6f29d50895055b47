from datetime import date
from itertools import permutations

from sqlalchemy import func, insert, select

from medflow.errors import InputRejected, RejectCode
from medflow.records import Identifier, Patient, fhir_identifier
from medflow.store.patients import resolve_patients, subjects
from medflow.store.tables import EncounterRow, PatientIdentifierRow, PatientRow, SeriesRow, StudyRow

MRN = Identifier(system="urn:hospital:mrn", value="7")
OTHER_MRN = Identifier(system="urn:hospital:mrn", value="8")
FHIR = fhir_identifier("local", "a")


def claim(*identifiers, **known):
    return Patient(identifiers=identifiers, **known)


def resolve(store, *claims):
    with store.writing() as connection:
        return resolve_patients(connection, claims)


def row(store, patient_id):
    with store.reading() as connection:
        return connection.execute(select(PatientRow.__table__).where(PatientRow.id == patient_id)).mappings().one()


def count(store, table=PatientRow):
    with store.reading() as connection:
        return connection.scalar(select(func.count()).select_from(table))


def test_nobody_is_claimed_without_identifiers(store):
    assert resolve(store, claim()) == [None]
    assert count(store) == 0


def test_several_claims_of_one_batch_make_one_new_patient(store):
    first, second, third = resolve(store, claim(MRN), claim(MRN, FHIR), claim(FHIR, sex="female"))

    assert first == second == third
    assert count(store) == 1
    assert row(store, first)["sex"] == "female"


def test_identifiers_of_dicom_and_fhir_meet_in_one_patient(store):
    (from_dicom,) = resolve(store, claim(MRN, birth_date=date(1950, 1, 2)))
    (from_fhir,) = resolve(store, claim(FHIR, MRN, deceased=False))
    (by_reference,) = resolve(store, claim(FHIR, complete=False))

    assert from_dicom == from_fhir == by_reference
    assert row(store, from_dicom)["birth_date"] == date(1950, 1, 2)


def test_a_placeholder_is_merged_into_the_patient_it_turns_out_to_be(store):
    known, placeholder = resolve(store, claim(MRN), claim(FHIR, complete=False))
    with store.writing() as connection:
        study = connection.execute(insert(StudyRow).values(uid="1.2", patient_id=placeholder)).inserted_primary_key[0]
        connection.execute(insert(SeriesRow).values(uid="1.2.3", study_id=study, modality="CT"))
        connection.execute(insert(EncounterRow).values(source="local", fhir_id="e", patient_id=placeholder))
    before = row(store, known)["revision"]

    (merged,) = resolve(store, claim(FHIR, MRN))

    assert merged == known
    assert count(store) == 1
    assert count(store, PatientIdentifierRow) == 2
    assert row(store, known)["revision"] > before
    with store.reading() as connection:
        assert connection.scalars(select(StudyRow.patient_id)).all() == [known]
        assert connection.execute(select(EncounterRow.patient_id, EncounterRow.revision)).one() == (known, 1)
        assert connection.scalars(select(SeriesRow.revision)).all() == [1]


def test_a_placeholder_of_the_same_batch_is_merged_as_well(store):
    ids = resolve(store, claim(MRN), claim(FHIR, complete=False), claim(FHIR, MRN), claim(FHIR, complete=False))

    assert len(set(ids)) == 1
    assert count(store) == 1


def test_identifiers_of_two_patients_are_never_guessed(store):
    first, second = resolve(store, claim(MRN), claim(OTHER_MRN))

    (outcome,) = resolve(store, claim(MRN, OTHER_MRN))

    assert isinstance(outcome, InputRejected)
    assert outcome.code is RejectCode.AMBIGUOUS_PATIENT
    assert outcome.patient_ids == [first, second]
    assert count(store) == 2


def test_a_birth_date_that_differs_is_a_reject_without_the_dates(store):
    resolve(store, claim(MRN, birth_date=date(1950, 1, 2)))

    (outcome,) = resolve(store, claim(MRN, birth_date=date(1951, 1, 2)))

    assert isinstance(outcome, InputRejected)
    assert outcome.code is RejectCode.PATIENT_MISMATCH
    assert "195" not in str(outcome)


def test_two_fhir_patients_of_a_source_cannot_share_an_identifier(store):
    _, second = resolve(store, claim(FHIR, MRN), claim(fhir_identifier("local", "b"), MRN))
    (elsewhere,) = resolve(store, claim(fhir_identifier("elsewhere", "b"), MRN))

    assert isinstance(second, InputRejected)
    assert second.code is RejectCode.AMBIGUOUS_PATIENT
    assert isinstance(elsewhere, int)


def test_a_rejected_claim_changes_nothing(store):
    resolve(store, claim(MRN, birth_date=date(1950, 1, 2)), claim(OTHER_MRN))
    resolve(store, claim(MRN, FHIR, birth_date=date(1951, 1, 2)), claim(MRN, OTHER_MRN, FHIR))

    assert count(store, PatientIdentifierRow) == 2


def test_the_order_of_claims_does_not_matter(store):
    claims = [claim(MRN, birth_date=date(1950, 1, 2)), claim(FHIR, complete=False), claim(FHIR, MRN, sex="male")]
    for number, order in enumerate(permutations(claims)):
        renamed = [
            Patient(
                identifiers=tuple(Identifier(system=i.system, value=f"{i.value}.{number}") for i in one.identifiers),
                birth_date=one.birth_date,
                sex=one.sex,
                complete=one.complete,
            )
            for one in order
        ]
        ids = {resolve(store, one)[0] for one in renamed[:-1]} | set(resolve(store, renamed[-1]))
        final = row(store, resolve(store, renamed[0])[0])
        assert final["id"] in ids
        assert (final["birth_date"], final["sex"], final["complete"]) == (date(1950, 1, 2), "male", True)
    assert count(store) == 6


def test_a_change_of_the_record_raises_the_revision_of_its_encounters(store):
    (patient,) = resolve(store, claim(FHIR, complete=False))
    with store.writing() as connection:
        connection.execute(insert(EncounterRow).values(source="local", fhir_id="e", patient_id=patient))

    resolve(store, claim(FHIR, birth_date=date(1950, 1, 2)))
    resolve(store, claim(FHIR, birth_date=date(1950, 1, 2)))

    with store.reading() as connection:
        assert connection.scalars(select(EncounterRow.revision)).all() == [1]


def test_subjects_are_named_by_the_receiving_source_else_by_identifier(store):
    known, stranger = resolve(store, claim(FHIR, MRN), claim(fhir_identifier("elsewhere", "x"), OTHER_MRN))
    with store.reading() as connection:
        named = subjects(connection, [known, stranger], source="local")

    assert (named[known].reference, named[known].identifier) == ("Patient/a", MRN)
    assert (named[stranger].reference, named[stranger].identifier) == (None, OTHER_MRN)
