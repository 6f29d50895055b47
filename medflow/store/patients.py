"""Who an input is about: DICOM and FHIR identifiers meet in one patient, and an ambiguous match is never guessed.

A batch of claims is settled in memory against what the store knows of their identifiers, then written in bulk, so
that the cost is a handful of statements however many claims there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, text, update
from sqlalchemy.orm import aliased

from medflow.errors import InputRejected, RejectCode
from medflow.records import Identifier, Patient, Subject, fhir_identifier
from medflow.store.tables import (
    CodedFactRow,
    EncounterRow,
    FhirResourceRow,
    MeasurementRow,
    PatientIdentifierRow,
    PatientRow,
    SampleRow,
    SequenceRow,
    SeriesRow,
    StudyRow,
)

Resolution = int | None | InputRejected

CHUNK = 2000  # parameters in one IN list
FHIR_PREFIX = fhir_identifier("", "").system
POINTING = (StudyRow, EncounterRow, MeasurementRow, CodedFactRow, FhirResourceRow, SampleRow, SequenceRow)
IDENTITY_LOCK = 0x6D656466  # advisory lock of PostgreSQL: one writer at a time decides who is who


def resolve_patients(connection: Connection, claims: Sequence[Patient]) -> list[Resolution]:
    """The surrogate id of the patient that each claim is about, in order.

    A claim without identifiers is about nobody known (None). One whose identifiers nobody has makes a patient; one
    that meets exactly one patient adds to it what is missing. Where it meets several, those known only by a reference
    (placeholders) are merged into the one that is not; more than one of those is a reject. A complete record of a
    FHIR source replaces sex and deceased; any other claim only fills them in.

    Returns
    -------
    list
        For each claim an id, None, or the `InputRejected` (AMBIGUOUS_PATIENT, PATIENT_MISMATCH) that it earned. A
        rejected claim changes nothing.
    """
    register = _settle(connection, claims)
    if register.changed:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": IDENTITY_LOCK})
            register = _settle(connection, claims)  # somebody else may have written while we waited
        register.write(connection)
    return [person.final.id if isinstance(person, _Person) else person for person in register.outcomes]


def known_patients(connection: Connection, identifiers: Collection[Identifier]) -> dict[Identifier, int]:
    """Whose those of these identifiers are that somebody in the store has; nobody is made."""
    wanted = set(identifiers)
    return {
        item: person.id
        for person in (_known(connection, wanted) if wanted else [])
        for item in person.identifiers & wanted
    }


def subjects(connection: Connection, patient_ids: Iterable[int], *, source: str) -> dict[int, Subject]:
    """How results name these patients: by ``Patient/<id>`` of ``source`` if it knows them, else by an identifier."""
    wanted = sorted(set(patient_ids))
    system = fhir_identifier(source, "").system
    references: dict[int, str] = {}
    identifiers: dict[int, Identifier] = {}
    table = PatientIdentifierRow
    for chunk in _chunks(wanted):
        query = select(table.patient_id, table.system, table.value).where(table.patient_id.in_(chunk))
        for patient_id, its_system, value in connection.execute(query.order_by(table.system, table.value)):
            if its_system == system:
                references.setdefault(patient_id, f"Patient/{value}")
            elif not its_system.startswith(FHIR_PREFIX):
                identifiers.setdefault(patient_id, Identifier(system=its_system, value=value))
    return {
        patient_id: Subject(
            patient_id=patient_id, reference=references.get(patient_id), identifier=identifiers.get(patient_id)
        )
        for patient_id in wanted
    }


@dataclass(kw_only=True, slots=True, eq=False)
class _Person:
    """One patient while claims are settled. ``id`` is 0 until a new one is written."""

    id: int = 0
    birth_date: date | None = None
    sex: str | None = None
    deceased: bool | None = None
    complete: bool = False
    identifiers: set[Identifier] = field(default_factory=set)
    added: set[Identifier] = field(default_factory=set)
    changed: bool = False
    into: _Person | None = None  # merged into this one

    @property
    def final(self) -> _Person:
        person = self
        while person.into is not None:
            person = person.into
        return person

    def learn(self, claim: Patient) -> None:
        """Take over what the claim adds; the caller has made sure that nothing contradicts."""
        new = set(claim.identifiers) - self.identifiers
        self.identifiers |= new
        self.added |= new
        recorded = claim.complete and any(item.system.startswith(FHIR_PREFIX) for item in claim.identifiers)
        before = (self.birth_date, self.sex, self.deceased, self.complete)
        self.birth_date = self.birth_date or claim.birth_date
        if claim.sex is not None and (recorded or self.sex in (None, "unknown")):
            self.sex = claim.sex
        if claim.deceased is not None and (recorded or self.deceased is None):
            self.deceased = claim.deceased
        self.complete = self.complete or claim.complete
        self.changed = self.changed or before != (self.birth_date, self.sex, self.deceased, self.complete)


class _Register:
    """What is known of everybody that a batch of claims may be about, and what the batch changes."""

    def __init__(self, people: Iterable[_Person]) -> None:
        self.people = list(people)
        self.by_identifier = {item: person for person in self.people for item in person.identifiers}
        self.merged: list[_Person] = []
        self.outcomes: list[_Person | None | InputRejected] = []

    @property
    def changed(self) -> bool:
        return bool(self.merged) or any(not person.id or person.changed or person.added for person in self.people)

    def settle(self, claim: Patient) -> _Person | None | InputRejected:
        if not claim.identifiers:
            return None
        found = {id(person): person for item in claim.identifiers if (person := self._who(item)) is not None}
        people = list(found.values())
        if (error := _contradiction(people, claim)) is not None:
            return error
        if not people:
            keep = _Person()
            self.people.append(keep)
        else:
            keep = min(people, key=lambda person: (not person.complete, not person.id, person.id))
            for person in people:
                if person is not keep:
                    self._merge(person, keep)
        keep.learn(claim)
        for item in claim.identifiers:
            self.by_identifier[item] = keep
        return keep

    def _who(self, item: Identifier) -> _Person | None:
        person = self.by_identifier.get(item)
        return None if person is None else person.final

    def _merge(self, person: _Person, keep: _Person) -> None:
        person.into = keep
        keep.added |= person.added
        keep.identifiers |= person.identifiers
        keep.changed = True
        self.people.remove(person)
        if person.id:
            self.merged.append(person)

    def write(self, connection: Connection) -> None:
        new = [person for person in self.people if not person.id]
        if new:
            rows = connection.execute(
                insert(PatientRow).returning(PatientRow.id, sort_by_parameter_order=True),
                [{**_columns(person), "revision": 1} for person in new],
            )
            for person, (patient_id,) in zip(new, rows, strict=True):
                person.id = patient_id
        changed = [person for person in self.people if person.changed and person not in new]
        if changed:
            connection.execute(
                update(PatientRow)
                .where(PatientRow.id == bindparam("key"))
                .values({name: bindparam(f"new_{name}") for name in _columns(changed[0])}),
                [
                    {"key": person.id, **{f"new_{name}": value for name, value in _columns(person).items()}}
                    for person in changed
                ],
            )
        merged = {person.id: person.final.id for person in self.merged}
        if merged:
            _repoint(connection, merged)
        _bump(connection, sorted({person.id for person in changed} - set(merged.values())))
        identifiers = [
            {"system": item.system, "value": item.value, "patient_id": person.id}
            for person in self.people
            for item in sorted(person.added, key=lambda item: (item.system, item.value))
        ]
        if identifiers:
            connection.execute(insert(PatientIdentifierRow), identifiers)


def _contradiction(people: Sequence[_Person], claim: Patient) -> InputRejected | None:
    ids = [person.id for person in people if person.id]
    if sum(person.complete for person in people) > 1:
        reason = "its identifiers belong to different patients; merge them at the source, or correct the identifiers"
        return InputRejected(RejectCode.AMBIGUOUS_PATIENT, reason, patient_ids=ids)
    identifiers = set(claim.identifiers).union(*(person.identifiers for person in people))
    systems = [item.system for item in identifiers if item.system.startswith(FHIR_PREFIX)]
    if len(systems) != len(set(systems)):
        reason = "one of its identifiers is also claimed by another Patient resource of the same source"
        return InputRejected(RejectCode.AMBIGUOUS_PATIENT, reason, patient_ids=ids)
    if claim.birth_date and any(person.birth_date not in (None, claim.birth_date) for person in people):
        reason = "its birth date differs from the one known for this patient: correct it where it is wrong"
        return InputRejected(RejectCode.PATIENT_MISMATCH, reason, patient_ids=ids)
    return None


def _settle(connection: Connection, claims: Sequence[Patient]) -> _Register:
    register = _Register(_known(connection, {item for claim in claims for item in claim.identifiers}))
    register.outcomes = [register.settle(claim) for claim in claims]
    return register


def _known(connection: Connection, identifiers: Collection[Identifier]) -> list[_Person]:
    """Everybody who has one of these identifiers, with all the identifiers they have."""
    values: dict[str, list[str]] = defaultdict(list)
    for item in identifiers:
        values[item.system].append(item.value)
    table = PatientIdentifierRow
    ids: set[int] = set()
    for system, its_values in values.items():
        for chunk in _chunks(sorted(its_values)):
            ids.update(
                connection.scalars(select(table.patient_id).where(table.system == system, table.value.in_(chunk)))
            )
    people: dict[int, _Person] = {}
    for chunk in _chunks(sorted(ids)):
        for row in connection.execute(select(PatientRow.__table__).where(PatientRow.id.in_(chunk))):
            people[row.id] = _Person(
                id=row.id, birth_date=row.birth_date, sex=row.sex, deceased=row.deceased, complete=row.complete
            )
        query = select(table.patient_id, table.system, table.value).where(table.patient_id.in_(chunk))
        for patient_id, system, value in connection.execute(query):
            people[patient_id].identifiers.add(Identifier(system=system, value=value))
    return list(people.values())


def _columns(person: _Person) -> dict[str, Any]:
    return {
        "birth_date": person.birth_date,
        "sex": person.sex,
        "deceased": person.deceased,
        "complete": person.complete,
    }


def _repoint(connection: Connection, merged: dict[int, int]) -> None:
    """Give everything of each placeholder (key) to the patient it turned out to be (value)."""
    pairs = [{"gone": gone, "kept": kept} for gone, kept in merged.items()]
    for row in (*POINTING, PatientIdentifierRow):
        connection.execute(
            update(row).where(row.patient_id == bindparam("gone")).values(patient_id=bindparam("kept")), pairs
        )
    gone = aliased(PatientRow)
    theirs = select(gone.latest_us).where(gone.id == bindparam("gone")).scalar_subquery()
    later = update(PatientRow).where(PatientRow.id == bindparam("kept"), PatientRow.latest_us < theirs)
    connection.execute(later.values(latest_us=theirs), pairs)
    for chunk in _chunks(sorted(merged)):
        connection.execute(delete(PatientRow).where(PatientRow.id.in_(chunk)))
    _bump(connection, sorted(set(merged.values())), imaging=True)


def _bump(connection: Connection, patient_ids: Sequence[int], *, imaging: bool = False) -> None:
    """Raise the revision of these patients and of the units whose input they are part of."""
    for chunk in _chunks(patient_ids):
        connection.execute(update(PatientRow).where(PatientRow.id.in_(chunk)).values(revision=PatientRow.revision + 1))
        mine = [EncounterRow, SampleRow, SequenceRow] if imaging else [EncounterRow]
        for row in mine:
            connection.execute(update(row).where(row.patient_id.in_(chunk)).values(revision=row.revision + 1))
        if imaging:
            connection.execute(
                update(StudyRow).where(StudyRow.patient_id.in_(chunk)).values(revision=StudyRow.revision + 1)
            )
            studies = select(StudyRow.id).where(StudyRow.patient_id.in_(chunk))
            connection.execute(
                update(SeriesRow).where(SeriesRow.study_id.in_(studies)).values(revision=SeriesRow.revision + 1)
            )


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]
