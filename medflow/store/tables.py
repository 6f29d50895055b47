"""The tables, as SQLAlchemy 2 typed declarations. Nothing outside medflow.store imports them.

Times are whole microseconds since 1970-01-01T00:00Z in a ``*_us`` column (with ``*_offset``, in minutes, where a time
came with a zone of its own): exact, comparable in SQL on every engine, and cheap to turn into arrays.
"""

from __future__ import annotations

from datetime import date
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    UniqueConstraint,
    false,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite autoincrements only INTEGER PRIMARY KEY


class Base(DeclarativeBase):
    """Names constraints, so that migrations can find them on every engine."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {int: BigInteger, bytes: LargeBinary, dict[str, Any]: JSON, list[Any]: JSON}


def _key() -> Mapped[int]:
    return mapped_column(Id, primary_key=True, autoincrement=True)


def _to(column: str, *, index: bool = False, ondelete: str | None = None) -> Any:
    return mapped_column(Id, ForeignKey(column, ondelete=ondelete), index=index)


# --- who ---------------------------------------------------------------------------------------------------------


class PatientRow(Base):
    __tablename__ = "patient"
    id: Mapped[int] = _key()
    birth_date: Mapped[date | None]
    sex: Mapped[str | None]
    deceased: Mapped[bool | None]
    complete: Mapped[bool] = mapped_column(default=True)  # False: known only by a reference to it
    revision: Mapped[int] = mapped_column(default=0)
    # no measurement of theirs that is stored became known, or was corrected, later than this; it may be too late
    latest_us: Mapped[int] = mapped_column(default=0, server_default="0")


class PatientIdentifierRow(Base):
    __tablename__ = "patient_identifier"
    system: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(primary_key=True)
    patient_id: Mapped[int] = _to("patient.id", index=True)


# --- imaging -----------------------------------------------------------------------------------------------------


class StudyRow(Base):
    __tablename__ = "study"
    id: Mapped[int] = _key()
    uid: Mapped[str] = mapped_column(unique=True)
    patient_id: Mapped[int | None] = _to("patient.id", index=True)
    accession_number: Mapped[str | None]
    description: Mapped[str | None]
    started_us: Mapped[int | None]
    started_offset: Mapped[int | None]
    revision: Mapped[int] = mapped_column(default=0, server_default="0")  # grows with every change to its series


class SeriesRow(Base):
    __tablename__ = "series"
    id: Mapped[int] = _key()
    uid: Mapped[str] = mapped_column(unique=True)
    study_id: Mapped[int] = _to("study.id", index=True)
    modality: Mapped[str] = mapped_column(index=True)
    body_part: Mapped[str | None]
    description: Mapped[str | None]
    protocol_name: Mapped[str | None]
    image_type: Mapped[str | None]  # ImageType of its first instance, with backslashes between the values
    contrast: Mapped[bool | None]  # whether a ContrastBolusAgent is named; None: taken in before this was kept
    slice_thickness_mm: Mapped[float | None]  # SliceThickness
    series_number: Mapped[int | None]
    frame_of_reference_uid: Mapped[str | None]
    laterality: Mapped[str | None]
    instances: Mapped[int] = mapped_column(default=0)
    frames: Mapped[int] = mapped_column(default=0)  # of all its instances together: the slices a volume could have
    sop_class_uid: Mapped[str | None]  # None: mixed
    content: Mapped[str | None]  # sha256 over the sorted sha256 of its instances: the input_key's ground
    acquired_us: Mapped[int | None]  # earliest acquisition of its instances, else the study's start
    acquired_offset: Mapped[int | None]
    received_us: Mapped[int] = mapped_column(default=0)  # first instance: stands in for an unknown acquisition time
    revision: Mapped[int] = mapped_column(default=0)


class InstanceRow(Base):
    __tablename__ = "instance"
    id: Mapped[int] = _key()
    uid: Mapped[str] = mapped_column(unique=True)
    series_id: Mapped[int] = _to("series.id", index=True)
    sop_class_uid: Mapped[str]
    transfer_syntax_uid: Mapped[str]
    sha256: Mapped[str] = mapped_column(index=True)
    size: Mapped[int]
    instance_number: Mapped[int | None]
    rows: Mapped[int | None]
    columns: Mapped[int | None]
    frames: Mapped[int] = mapped_column(default=1)
    acquired_us: Mapped[int | None]
    acquired_offset: Mapped[int | None]
    path: Mapped[str | None]  # set when the file was taken in place


# --- records -----------------------------------------------------------------------------------------------------


class ConceptRow(Base):
    """A code in a system, interned: millions of measurements share a few hundred."""

    __tablename__ = "concept"
    id: Mapped[int] = _key()
    system: Mapped[str]
    code: Mapped[str]
    display: Mapped[str | None]
    __table_args__ = (UniqueConstraint("system", "code"),)


class FhirResourceRow(Base):
    __tablename__ = "fhir_resource"
    id: Mapped[int] = _key()
    source: Mapped[str]
    type: Mapped[str]
    fhir_id: Mapped[str]
    version: Mapped[str | None]
    last_updated_us: Mapped[int | None]
    sha256: Mapped[str]
    raw: Mapped[bytes]
    deleted: Mapped[bool] = mapped_column(default=False)
    patient_id: Mapped[int | None] = _to("patient.id", index=True)
    __table_args__ = (UniqueConstraint("source", "type", "fhir_id"),)


class EncounterRow(Base):
    __tablename__ = "encounter"
    id: Mapped[int] = _key()
    source: Mapped[str]
    fhir_id: Mapped[str]
    patient_id: Mapped[int | None] = _to("patient.id", index=True)
    status: Mapped[str | None]  # None: known only by a reference to it
    encounter_class: Mapped[str | None]
    types: Mapped[list[Any]] = mapped_column(default=list)  # "system|code"
    start_us: Mapped[int | None] = mapped_column(index=True)
    start_offset: Mapped[int | None]
    end_us: Mapped[int | None]
    discharge_disposition: Mapped[str | None]
    priority: Mapped[str | None]  # Encounter.priority, "system|code", a line for each coding
    admit_source: Mapped[str | None]  # Encounter.hospitalization.admitSource, likewise
    revision: Mapped[int] = mapped_column(default=0)  # grows whenever a row that belongs to it changes
    __table_args__ = (UniqueConstraint("source", "fhir_id"),)


class MeasurementRow(Base):
    """One coded value; of an earlier version of its resource, if ``ordinal`` is below zero.

    A patient's lie together in the order of time, so that a stay's are read in one go. ``mark_1`` and ``mark_2`` are
    40-bit halves of a hash of the row: their sums over a window identify its content whatever the order, and are
    computed in SQL.
    """

    __tablename__ = "measurement"
    resource_id: Mapped[int] = mapped_column(Id, ForeignKey("fhir_resource.id", ondelete="CASCADE"))
    ordinal: Mapped[int]
    patient_id: Mapped[int] = mapped_column(Id)
    encounter_id: Mapped[int | None] = mapped_column(Id)
    concept_id: Mapped[int] = mapped_column(Id)
    effective_us: Mapped[int]
    effective_offset: Mapped[int]
    available_us: Mapped[int]
    until_us: Mapped[int | None]  # known no longer from then on: a correction took its place; None holds still
    status: Mapped[str]
    value: Mapped[float | None]
    unit: Mapped[str | None]
    value_concept_id: Mapped[int | None] = mapped_column(Id)
    mark_1: Mapped[int]
    mark_2: Mapped[int]
    __table_args__ = (
        PrimaryKeyConstraint("patient_id", "effective_us", "resource_id", "ordinal"),
        UniqueConstraint("resource_id", "ordinal"),
        {"sqlite_with_rowid": False},
    )


class CodedFactRow(Base):
    """Condition, medication, procedure ...: a code that held from a time on."""

    __tablename__ = "coded_fact"
    resource_id: Mapped[int] = mapped_column(
        Id, ForeignKey("fhir_resource.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    ordinal: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str]
    patient_id: Mapped[int | None] = mapped_column(Id, index=True)
    encounter_id: Mapped[int | None] = mapped_column(Id)
    concept_id: Mapped[int] = mapped_column(Id)
    start_us: Mapped[int | None]
    end_us: Mapped[int | None]
    recorded_us: Mapped[int | None]
    status: Mapped[str | None]


# --- genomics ----------------------------------------------------------------------------------------------------


class VariantFileRow(Base):
    __tablename__ = "variant_file"
    id: Mapped[int] = _key()
    sha256: Mapped[str] = mapped_column(unique=True)
    size: Mapped[int]
    version: Mapped[str]
    records: Mapped[int]
    contigs: Mapped[list[Any]]
    assembly: Mapped[str | None]
    build: Mapped[str | None]  # GRCh37 | GRCh38
    counts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    index: Mapped[str | None]  # sha256 of the CSI index in the object store
    path: Mapped[str | None]
    received_us: Mapped[int] = mapped_column(default=0)  # 0: before that was kept
    withdrawn_us: Mapped[int | None]


class SampleRow(Base):
    __tablename__ = "sample"
    id: Mapped[int] = _key()
    variant_file_id: Mapped[int] = _to("variant_file.id", index=True)
    name: Mapped[str]
    patient_id: Mapped[int | None] = _to("patient.id", index=True)
    specimen: Mapped[str | None]  # FHIR reference of the Specimen that it was made of, as its source names it
    specimen_source: Mapped[str | None]
    revision: Mapped[int] = mapped_column(default=0)
    __table_args__ = (UniqueConstraint("variant_file_id", "name"),)


class SpecimenNameRow(Base):
    """A name that a Specimen or ServiceRequest has: what a VCF's sample may be called. Its resource says whose."""

    __tablename__ = "specimen_name"
    resource_id: Mapped[int] = mapped_column(
        Id, ForeignKey("fhir_resource.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    ordinal: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[str] = mapped_column(index=True)
    system: Mapped[str | None]


class SequenceRow(Base):
    """A sequence, once per name, content (``sha256`` of its bases) and patient; `store_sequences` sees to that, not a
    constraint: patients whose sequences are alike may turn out to be one.
    """

    __tablename__ = "sequence"
    id: Mapped[int] = _key()
    name: Mapped[str]
    sha256: Mapped[str]
    length: Mapped[int]
    bases: Mapped[str]
    patient_id: Mapped[int | None] = _to("patient.id", index=True)
    resource_id: Mapped[int | None] = mapped_column(
        Id, ForeignKey("fhir_resource.id", ondelete="CASCADE"), index=True
    )  # the MolecularSequence that it came in
    specimen: Mapped[str | None] = mapped_column(index=True)  # FHIR id of the Specimen that says whose it is
    revision: Mapped[int] = mapped_column(default=0)
    received_us: Mapped[int]
    __table_args__ = (Index("ix_sequence_content", "sha256", "name"),)


# --- work --------------------------------------------------------------------------------------------------------


class TrainedModelRow(Base):
    """A version of a model that was trained here: what it was made of, how good it was, whether it is served.

    At most one version of a model is ``promoted``; without one the version is served that its plugin brings.
    """

    __tablename__ = "trained_model"
    id: Mapped[int] = _key()
    model: Mapped[str]
    version: Mapped[str]
    base_version: Mapped[str]  # of the plugin's model that was trained
    base_digest: Mapped[str]
    spec: Mapped[dict[str, Any]]  # as served: version, weights, card, threshold, reference
    files: Mapped[dict[str, Any]]  # name -> sha256 in the object store: weights, reference, card, plots
    hyperparameters: Mapped[dict[str, Any]]
    seed: Mapped[int]
    cohort: Mapped[dict[str, Any]]  # as it was asked for, with its counts and a digest; surrogate ids only
    metrics: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(default="candidate")  # candidate | promoted | retired
    run_id: Mapped[int | None] = _to("run.id")
    created_us: Mapped[int]
    promoted_us: Mapped[int | None]
    __table_args__ = (UniqueConstraint("model", "version"),)


class ModelRow(Base):
    __tablename__ = "model"
    id: Mapped[int] = _key()
    name: Mapped[str]
    version: Mapped[str]
    digest: Mapped[str]
    distribution: Mapped[str]
    spec: Mapped[dict[str, Any]]
    registered_us: Mapped[int]
    __table_args__ = (UniqueConstraint("name", "digest"),)


class JobRow(Base):
    __tablename__ = "job"
    id: Mapped[int] = _key()
    model_id: Mapped[int] = _to("model.id")
    unit_kind: Mapped[str]
    unit_id: Mapped[int] = mapped_column(Id)
    unit_revision: Mapped[int]
    input_key: Mapped[str]
    prediction_time_us: Mapped[int]
    prediction_time_offset: Mapped[int] = mapped_column(default=0)
    state: Mapped[str] = mapped_column(default="ready")  # ready | leased | done | failed | dead
    attempts: Mapped[int] = mapped_column(default=0)
    not_before_us: Mapped[int] = mapped_column(default=0)
    lease_owner: Mapped[str | None]
    lease_until_us: Mapped[int | None]
    error_code: Mapped[str | None]
    error: Mapped[str | None]
    created_us: Mapped[int]
    finished_us: Mapped[int | None]
    superseded: Mapped[bool] = mapped_column(default=False)  # a later job of the same unit and model name took over
    __table_args__ = (
        UniqueConstraint("model_id", "unit_kind", "unit_id", "input_key"),
        Index("ix_job_queue", "model_id", "state", "not_before_us"),
        Index("ix_job_standing", "state", "superseded", "model_id", "created_us"),
        Index("ix_job_finished", "model_id", "finished_us"),
    )


class ChunkRow(Base):
    """A chunk of a model's jobs: who asked for it, who scores it, what became of it.

    asked --> running --> done; or ``lost``: whoever asked or scored has gone. ``lease_until_us`` is held by the asking
    run until somebody takes the chunk, and by that process from then on.
    """

    __tablename__ = "chunk"
    id: Mapped[int] = _key()
    run_id: Mapped[int | None] = _to("run.id", index=True)
    model_id: Mapped[int] = _to("model.id")
    state: Mapped[str]  # asked | running | done | lost
    owner: Mapped[str | None]  # the process that scores it
    worker: Mapped[str | None]  # its name, where it is a worker
    lease_until_us: Mapped[int | None]
    asked_us: Mapped[int]
    started_us: Mapped[int | None]
    finished_us: Mapped[int | None]
    leased: Mapped[int] = mapped_column(default=0)
    done: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    dead: Mapped[int] = mapped_column(default=0)
    reasons: Mapped[dict[str, Any]] = mapped_column(default=dict)
    notes: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")  # what is no failure
    seconds: Mapped[dict[str, Any]] = mapped_column(default=dict)  # by stage
    error: Mapped[str | None]  # why the model could not be run at all
    explain: Mapped[bool] = mapped_column(default=False, server_default=false())  # heat maps are wanted as well
    __table_args__ = (
        Index("ix_chunk_queue", "model_id", "state", "id"),
        Index("ix_chunk_finished", "finished_us"),
    )


class WorkerRow(Base):
    """A worker that announced itself: what it serves, on what, and when it was last heard of."""

    __tablename__ = "worker"
    name: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    device: Mapped[str]
    models: Mapped[dict[str, Any]] = mapped_column(default=dict)  # name -> digest of what it serves
    loaded: Mapped[list[Any]] = mapped_column(default=list)  # names of the models that are on the device now
    started_us: Mapped[int]
    seen_us: Mapped[int]
    state: Mapped[str] = mapped_column(default="serving")  # serving | draining | gone


class PredictionRow(Base):
    __tablename__ = "prediction"
    job_id: Mapped[int] = mapped_column(
        Id, ForeignKey("job.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    output: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float | None]
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)  # probabilities, voxels, mean intensity, contributions
    mask: Mapped[str | None]  # sha256 of the DICOM segmentation in the object store
    out_of_scope: Mapped[str | None]


class ResultObjectRow(Base):
    """A DICOM object that a job made: the segmentation of its masks, or a heat map."""

    __tablename__ = "result_object"
    id: Mapped[int] = _key()
    job_id: Mapped[int] = mapped_column(Id, ForeignKey("job.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str]  # segmentation | heat-map
    sop_class_uid: Mapped[str]
    sop_instance_uid: Mapped[str] = mapped_column(unique=True)
    series_uid: Mapped[str]
    study_uid: Mapped[str]
    sha256: Mapped[str]  # in the object store
    size: Mapped[int]
    outputs: Mapped[list[Any]]  # names of the outputs that it shows
    created_us: Mapped[int]


class OutboxRow(Base):
    """A result resource to be sent: written in the same transaction as its prediction; a change raises ``version``.

    Of type "DICOM" it is a DICOM object: ``fhir_id`` its SOP Instance UID, ``body`` the SHA-256 (hex) of its file.
    """

    __tablename__ = "outbox"
    id: Mapped[int] = _key()
    type: Mapped[str]
    fhir_id: Mapped[str]
    version: Mapped[int] = mapped_column(default=1)
    envelope: Mapped[str]  # "catalog" for devices and model cards, which go first; else "patient/<id>" or "unit/.."
    job_id: Mapped[int | None] = _to("job.id", index=True)
    body: Mapped[bytes]
    sha256: Mapped[str]
    created_us: Mapped[int]  # when this version was made
    __table_args__ = (UniqueConstraint("type", "fhir_id"), Index("ix_outbox_envelope", "envelope"))


class DeliveryRow(Base):
    """What one target is to be sent, or has been sent, of the outbox.

    A target's rows are made when a delivery to it begins, for whatever the outbox then has beyond `TargetRow.enrolled`;
    so finding what is pending costs what is new, and a target used once costs nothing afterwards.
    """

    __tablename__ = "delivery"
    outbox_id: Mapped[int] = mapped_column(
        Id, ForeignKey("outbox.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    target: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int]  # of the outbox row, to be sent or sent
    state: Mapped[str]  # pending | delivered | failed | dead
    attempts: Mapped[int] = mapped_column(default=0)
    not_before_us: Mapped[int] = mapped_column(default=0)
    last_error: Mapped[str | None]
    delivered_us: Mapped[int | None]
    server_id: Mapped[str | None]  # of a server that refuses ids of clients: the one it gave
    etag: Mapped[str | None]  # of the version that the server has of it, for If-Match
    __table_args__ = (Index("ix_delivery_standing", "target", "state", "delivered_us"),)


class TargetRow(Base):
    """One delivery target, who is writing to it now, and how far its files are committed."""

    __tablename__ = "target"
    name: Mapped[str] = mapped_column(primary_key=True)  # folder path, base URL or AET@host:port; no credentials
    kind: Mapped[str] = mapped_column(default="folder", server_default="folder")  # folder | fhir | dicomweb | pacs
    enrolled: Mapped[int] = mapped_column(default=0)  # outbox rows up to this id have a delivery row
    committed: Mapped[dict[str, Any]] = mapped_column(default=dict)  # file name -> committed size in bytes
    lease_owner: Mapped[str | None]
    lease_until_us: Mapped[int | None]


class ConnectionRow(Base):
    """How a server that inputs come from, or results go to, answered last."""

    __tablename__ = "connection"
    role: Mapped[str] = mapped_column(primary_key=True)  # source | target
    name: Mapped[str] = mapped_column(primary_key=True)
    ok_us: Mapped[int | None]
    failing_since_us: Mapped[int | None]
    failed_us: Mapped[int | None]
    failures: Mapped[int] = mapped_column(default=0)  # in a row
    error: Mapped[str | None]


class WatermarkRow(Base):
    """How far a source has been read: everything before ``until_us`` is stored, or on record as a reject."""

    __tablename__ = "watermark"
    source: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)  # a FHIR resource type, "studies", "export"
    until_us: Mapped[int | None]
    state: Mapped[dict[str, Any]] = mapped_column(default=dict)
    updated_us: Mapped[int]


# --- the ledger --------------------------------------------------------------------------------------------------


class RejectRow(Base):
    __tablename__ = "reject"
    id: Mapped[int] = _key()
    kind: Mapped[str]  # dicom | fhir | vcf | fasta
    source: Mapped[str]
    origin: Mapped[str]  # the path or address it came from, with the entry inside it
    sha256: Mapped[str] = mapped_column(default="")  # of what was refused, when any bytes could be read
    code: Mapped[str]
    reason: Mapped[str]
    payload: Mapped[bool] = mapped_column(default=False)  # whether its bytes are kept in the object store
    state: Mapped[str] = mapped_column(default="open")  # open | resolved | withdrawn
    seen: Mapped[int] = mapped_column(default=1)
    first_us: Mapped[int]
    last_us: Mapped[int]
    run_id: Mapped[int | None] = _to("run.id")
    __table_args__ = (
        UniqueConstraint("kind", "origin", "code", "sha256"),
        Index("ix_reject_standing", "state", "code"),
    )


class RunRow(Base):
    __tablename__ = "run"
    id: Mapped[int] = _key()
    command: Mapped[str]
    source: Mapped[str | None]  # the configured source that was ingested
    actor: Mapped[str]
    owner: Mapped[str | None]  # its process
    started_us: Mapped[int]
    finished_us: Mapped[int | None]
    status: Mapped[str] = mapped_column(default="running")  # running | completed | failed
    versions: Mapped[dict[str, Any]]
    counts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    __table_args__ = (Index("ix_run_source", "source", "id"), Index("ix_run_command", "command", "id"))


class AuditRow(Base):
    __tablename__ = "audit"
    id: Mapped[int] = _key()
    at_us: Mapped[int]
    run_id: Mapped[int | None] = _to("run.id", index=True)
    action: Mapped[str]  # deliver | replay | supersede | promote | migrate ...
    subject: Mapped[str]  # surrogate ids only
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)
