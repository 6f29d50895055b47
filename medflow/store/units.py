"""What results need to know of the unit they are about: its patient, and how FHIR can name its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from medflow.records import Identifier, InputReference, Instant, UnitKind
from medflow.store.tables import (
    EncounterRow,
    FhirResourceRow,
    SampleRow,
    SequenceRow,
    SeriesRow,
    StudyRow,
    VariantFileRow,
)

IN_LIST = 5000


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitFacts:
    """One unit, named for a result. ``effective`` is None where the prediction time is the time to state.

    ``source`` is the system that ``encounter``, and what ``inputs`` refer to literally, are resources of.
    """

    patient_id: int | None
    inputs: tuple[InputReference, ...]
    encounter: str | None = None  # a FHIR reference
    source: str | None = None
    effective: Instant | None = None


def unit_facts(connection: Connection, kind: UnitKind, ids: Sequence[int]) -> dict[int, UnitFacts]:
    """The facts of these units, by id."""
    read = {
        UnitKind.SERIES: _series,
        UnitKind.STUDY: _studies,
        UnitKind.ENCOUNTER: _encounters,
        UnitKind.SAMPLE: _samples,
        UnitKind.SEQUENCE: _sequences,
    }[kind]
    facts: dict[int, UnitFacts] = {}
    for start in range(0, len(ids), IN_LIST):
        facts.update(read(connection, ids[start : start + IN_LIST]))
    return facts


def _series(connection: Connection, ids: Sequence[int]) -> dict[int, UnitFacts]:
    query = (
        select(SeriesRow.id, SeriesRow.uid, SeriesRow.acquired_us, SeriesRow.acquired_offset)
        .add_columns(StudyRow.uid.label("study_uid"), StudyRow.patient_id)
        .join(StudyRow, StudyRow.id == SeriesRow.study_id)
        .where(SeriesRow.id.in_(ids))
    )
    facts = {}
    for row in connection.execute(query):
        study = _study_reference(row.study_uid, display=f"series urn:oid:{row.uid}")
        acquired = None
        if row.acquired_us is not None:
            acquired = Instant(utc_us=row.acquired_us, offset_min=row.acquired_offset or 0)
        facts[row.id] = UnitFacts(patient_id=row.patient_id, inputs=(study,), effective=acquired)
    return facts


def _studies(connection: Connection, ids: Sequence[int]) -> dict[int, UnitFacts]:
    """Without the series chosen, which depend on the model; results of a study state the prediction time."""
    query = select(StudyRow.id, StudyRow.uid, StudyRow.patient_id).where(StudyRow.id.in_(ids))
    return {
        row.id: UnitFacts(patient_id=row.patient_id, inputs=(_study_reference(row.uid),))
        for row in connection.execute(query)
    }


def _study_reference(uid: str, *, display: str | None = None) -> InputReference:
    identifier = Identifier(system="urn:dicom:uid", value=f"urn:oid:{uid}")
    return InputReference(type="ImagingStudy", identifier=identifier, display=display)


def _encounters(connection: Connection, ids: Sequence[int]) -> dict[int, UnitFacts]:
    query = select(EncounterRow.id, EncounterRow.source, EncounterRow.fhir_id, EncounterRow.patient_id)
    query = query.where(EncounterRow.id.in_(ids))
    facts = {}
    for row in connection.execute(query):
        reference = f"Encounter/{row.fhir_id}"
        inputs = (InputReference(type="Encounter", reference=reference),)
        facts[row.id] = UnitFacts(patient_id=row.patient_id, inputs=inputs, encounter=reference, source=row.source)
    return facts


def _samples(connection: Connection, ids: Sequence[int]) -> dict[int, UnitFacts]:
    query = (
        select(SampleRow.id, SampleRow.name, SampleRow.patient_id, SampleRow.specimen, SampleRow.specimen_source)
        .add_columns(VariantFileRow.sha256)
        .join(VariantFileRow, VariantFileRow.id == SampleRow.variant_file_id)
        .where(SampleRow.id.in_(ids))
    )
    facts = {}
    for row in connection.execute(query):
        # a file may hold several samples of one patient, or of nobody: which it is makes another result
        sample = f"sample {row.name}"
        inputs = [InputReference(type="DocumentReference", identifier=_content(row.sha256), display=sample)]
        if row.specimen:
            inputs.append(InputReference(type="Specimen", reference=row.specimen))
        facts[row.id] = UnitFacts(patient_id=row.patient_id, inputs=tuple(inputs), source=row.specimen_source)
    return facts


def _content(sha256: str) -> Identifier:
    """How FHIR names what is known by its bytes."""
    return Identifier(system="urn:ietf:rfc:3986", value=f"urn:sha256:{sha256}")


def _sequences(connection: Connection, ids: Sequence[int]) -> dict[int, UnitFacts]:
    query = (
        select(SequenceRow.id, SequenceRow.sha256, SequenceRow.patient_id)
        .add_columns(FhirResourceRow.fhir_id, FhirResourceRow.source)
        .outerjoin(FhirResourceRow, FhirResourceRow.id == SequenceRow.resource_id)
        .where(SequenceRow.id.in_(ids))
    )
    facts = {}
    for row in connection.execute(query):
        resource = f"MolecularSequence/{row.fhir_id}" if row.fhir_id is not None else None
        inputs = (InputReference(type="MolecularSequence", reference=resource, identifier=_content(row.sha256)),)
        facts[row.id] = UnitFacts(patient_id=row.patient_id, inputs=inputs, source=row.source)
    return facts
