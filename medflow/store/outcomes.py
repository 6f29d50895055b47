"""What an evaluation reads: a model's live predictions, whom they are about, and what was recorded of these since."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol

from sqlalchemy import Connection, and_, exists, func, select

from medflow.records import Coding, Identifier, UnitKind
from medflow.store.tables import (
    AuditRow,
    CodedFactRow,
    ConceptRow,
    EncounterRow,
    FhirResourceRow,
    JobRow,
    ModelRow,
    PatientIdentifierRow,
    PatientRow,
    PredictionRow,
    SequenceRow,
    SeriesRow,
    StudyRow,
)

IN_LIST = 5000


class Asked(Protocol):
    """A unit, and the moment (UTC, microseconds) from which on its outcome is asked about."""

    @property
    def unit_id(self) -> int:
        """The unit."""
        ...

    @property
    def time_us(self) -> int:
        """The moment."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """A unit at a moment (UTC, microseconds): nothing that came by then is an outcome."""

    unit_id: int
    time_us: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """One prediction: a unit, the moment the model spoke of, and what it said."""

    unit_id: int
    time_us: int
    version: str
    digest: str
    value: float | None
    probabilities: tuple[float, ...]
    out_of_scope: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """What a patient's subgroups are made of."""

    sex: str | None
    birth_date: date | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StayEnd:
    """How an encounter ended, as far as is known."""

    status: str | None
    end_us: int | None
    disposition: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionSeen:
    """A Condition with the code asked for: when it began, when it was recorded, and in which encounter."""

    patient_id: int
    encounter_id: int | None
    start_us: int | None
    recorded_us: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRecord:
    """A FHIR resource as received, and whose it is."""

    patient_id: int
    source: str
    fhir_id: str
    raw: bytes
    last_updated_us: int | None


def live_predictions(connection: Connection, model: str, output: str) -> list[Scored]:
    """The predictions of one output of a model, of any version, that no later one has superseded; by unit."""
    query = _predictions(model, output).where(~JobRow.superseded)
    return [_scored(row) for row in connection.execute(query)]


def every_prediction(connection: Connection, model: str, output: str) -> list[Scored]:
    """The predictions of one output of a model, superseded or not: of each unit, moment and version the last made.

    Not those that were taken back: nobody should have acted on them.
    """
    found: dict[tuple[int, int, str], Scored] = {}
    withdrawn = _withdrawn(connection)
    for row in connection.execute(_predictions(model, output).add_columns(JobRow.id, JobRow.finished_us)):
        if withdrawn.get(f"job {row.id}", -1) < (row.finished_us or 0):  # else it was scored again since
            found[row.unit_id, row.prediction_time_us, row.version] = _scored(row)
    return sorted(found.values(), key=lambda item: (item.unit_id, item.time_us))


def _withdrawn(connection: Connection) -> dict[str, int]:
    """When each result that was taken back was so last, by the audit's name of its job."""
    query = select(AuditRow.subject, func.max(AuditRow.at_us)).where(AuditRow.action == "withdraw")
    return {subject: at_us for subject, at_us in connection.execute(query.group_by(AuditRow.subject))}


def answered_since(connection: Connection, model: str, version: str, since_us: int) -> list[Moment]:
    """What this version of a model has answered since then (by the clock), superseded or not."""
    query = (
        select(JobRow.unit_id, JobRow.prediction_time_us)
        .join(ModelRow, ModelRow.id == JobRow.model_id)
        .where(ModelRow.name == model, ModelRow.version == version)
        .where(JobRow.state == "done", JobRow.finished_us >= since_us)
        .order_by(JobRow.id)
    )
    return [Moment(unit_id=row.unit_id, time_us=row.prediction_time_us) for row in connection.execute(query)]


def _predictions(model: str, output: str) -> Any:
    return (
        select(JobRow.unit_id, JobRow.prediction_time_us, ModelRow.version, ModelRow.digest)
        .add_columns(PredictionRow.value, PredictionRow.detail, PredictionRow.out_of_scope)
        .join(ModelRow, ModelRow.id == JobRow.model_id)
        .join(PredictionRow, PredictionRow.job_id == JobRow.id)
        .where(ModelRow.name == model, PredictionRow.output == output, JobRow.state == "done")
        .order_by(JobRow.unit_id, JobRow.id)
    )


def _scored(row: Any) -> Scored:
    return Scored(
        unit_id=row.unit_id,
        time_us=row.prediction_time_us,
        version=row.version,
        digest=row.digest,
        value=row.value,
        probabilities=tuple(row.detail.get("probabilities") or ()),
        out_of_scope=row.out_of_scope is not None,
    )


def people(connection: Connection, patient_ids: Iterable[int]) -> dict[int, Person]:
    """Sex and birth date of these patients."""
    query = select(PatientRow.id, PatientRow.sex, PatientRow.birth_date)
    return {
        row.id: Person(sex=row.sex, birth_date=row.birth_date)
        for row in _rows(connection, query, PatientRow.id, patient_ids)
    }


def stay_ends(connection: Connection, encounter_ids: Iterable[int]) -> dict[int, StayEnd]:
    """How these encounters ended."""
    query = select(EncounterRow.id, EncounterRow.status, EncounterRow.end_us, EncounterRow.discharge_disposition)
    return {
        row.id: StayEnd(status=row.status, end_us=row.end_us, disposition=row.discharge_disposition)
        for row in _rows(connection, query, EncounterRow.id, encounter_ids)
    }


def conditions(connection: Connection, patient_ids: Iterable[int], code: Coding) -> list[ConditionSeen]:
    """The Conditions of these patients that have this code, those refuted left out."""
    query = (
        select(CodedFactRow.patient_id, CodedFactRow.encounter_id, CodedFactRow.start_us, CodedFactRow.recorded_us)
        .where(_is_condition(code))
        .where(CodedFactRow.status.is_(None) | CodedFactRow.status.not_in(("refuted", "entered-in-error")))
    )
    return [
        ConditionSeen(
            patient_id=row.patient_id,
            encounter_id=row.encounter_id,
            start_us=row.start_us,
            recorded_us=row.recorded_us,
        )
        for row in _rows(connection, query, CodedFactRow.patient_id, patient_ids)
    ]


def is_recorded(connection: Connection, code: Coding) -> bool:
    """Whether anybody has a Condition of this code, if only a refuted one: where nobody has, nobody may write them."""
    return bool(connection.scalar(select(exists().where(_is_condition(code)))))


def _is_condition(code: Coding) -> Any:
    concept = select(ConceptRow.id).where(ConceptRow.system == code.system, ConceptRow.code == code.code)
    return and_(CodedFactRow.kind == "condition", CodedFactRow.concept_id.in_(concept))


def records(connection: Connection, kind: str, patient_ids: Iterable[int]) -> Iterator[StoredRecord]:
    """The resources of one type that are about these patients, as received."""
    row = FhirResourceRow
    query = select(row.patient_id, row.source, row.fhir_id, row.raw, row.last_updated_us)
    query = query.where(row.type == kind, ~row.deleted)
    for found in _rows(connection, query, row.patient_id, patient_ids):
        yield StoredRecord(**found._mapping)


def patient_identifiers(connection: Connection, patient_ids: Iterable[int]) -> dict[Identifier, int]:
    """Whose each identifier of these patients is."""
    row = PatientIdentifierRow
    query = select(row.system, row.value, row.patient_id)
    return {
        Identifier(system=found.system, value=found.value): found.patient_id
        for found in _rows(connection, query, row.patient_id, patient_ids)
    }


def unit_names(connection: Connection, kind: UnitKind, ids: Iterable[int]) -> list[tuple[str, str, int]]:
    """(source, name, id) of these units: an encounter's FHIR id, a series' or study's UID, a sequence's name."""
    if kind is UnitKind.ENCOUNTER:
        query = select(EncounterRow.source, EncounterRow.fhir_id, EncounterRow.id)
        return [tuple(row) for row in _rows(connection, query, EncounterRow.id, ids)]
    row, column = {
        UnitKind.SERIES: (SeriesRow, SeriesRow.uid),
        UnitKind.STUDY: (StudyRow, StudyRow.uid),
        UnitKind.SEQUENCE: (SequenceRow, SequenceRow.name),
    }[kind]
    query = select(column, row.id)
    return [("", name, key) for name, key in _rows(connection, query, row.id, ids)]


def _rows(connection: Connection, query: Any, column: Any, ids: Iterable[int]) -> Iterator[Any]:
    wanted: Sequence[int] = sorted(set(ids))
    for start in range(0, len(wanted), IN_LIST):
        yield from connection.execute(query.where(column.in_(wanted[start : start + IN_LIST])))
