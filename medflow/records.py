"""The frozen records that flow through medflow, from a parsed input to a stored row and to a model's case.

They carry no behaviour beyond small derived properties, know nothing of files, SQL or FHIR JSON, and import only
the standard library. Times are timezone-aware; ``Instant`` keeps the offset a time came with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from enum import StrEnum
from hashlib import sha256
from typing import Literal

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def digest_of(*parts: object) -> str:
    """SHA-256 (hex) over the parts, unambiguous: each part is length-prefixed before it is hashed."""
    pieces = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return sha256(b"".join([piece for data in pieces for piece in (len(data).to_bytes(8, "big"), data)])).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Instant:
    """A point in time: microseconds since 1970-01-01T00:00Z, and the offset in minutes that it was written with."""

    utc_us: int
    offset_min: int = 0

    @classmethod
    def of(cls, moment: datetime) -> Instant:
        """From an aware datetime; raises ValueError for a naive one."""
        offset = moment.utcoffset()
        if offset is None:
            raise ValueError("a time without a zone cannot be placed; configure MEDFLOW_TIMEZONE")
        return cls(utc_us=(moment - EPOCH) // timedelta(microseconds=1), offset_min=int(offset.total_seconds() // 60))

    def datetime(self) -> datetime:
        """The aware datetime, in the offset it came with."""
        moment = EPOCH + timedelta(microseconds=self.utc_us)
        return moment.astimezone(timezone(timedelta(minutes=self.offset_min)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Coding:
    """FHIR Coding: a code in a code system."""

    system: str
    code: str
    display: str | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """A value with its UCUM unit code."""

    value: float
    unit: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Identifier:
    """FHIR Identifier, or a DICOM PatientID with the system its issuer maps to."""

    system: str
    value: str


def fhir_identifier(source: str, name: str) -> Identifier:
    """The identifier that stands for a resource of a source, so that references resolve like any other.

    ``name`` is the id of a Patient, or a literal reference to anything else.
    """
    return Identifier(system=f"urn:medflow:fhir:{source}", value=name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Patient:
    """Who an input says it is about.

    A FHIR Patient of a source is itself an identifier: see `fhir_identifier`.
    """

    identifiers: tuple[Identifier, ...] = ()
    birth_date: date | None = None
    sex: str | None = None  # FHIR AdministrativeGender: male | female | other | unknown
    deceased: bool | None = None
    complete: bool = True  # False: only a reference to a Patient, the record itself has not been seen here


# --- imaging: the DICOM information model (PS3.3 A.1.2) --------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """DICOM study level. ``started`` is StudyDate + StudyTime, placed by TimezoneOffsetFromUTC or configuration."""

    study_instance_uid: str
    accession_number: str | None = None
    description: str | None = None
    started: Instant | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """DICOM series level, as one object says it.

    ``image_type`` has backslashes between its values. ``contrast`` is whether a contrast agent was given, None where
    that is not known; ``slice_thickness_mm`` is SliceThickness, which says nothing of where slices lie.
    """

    series_instance_uid: str
    modality: str
    body_part: str | None = None
    description: str | None = None
    protocol_name: str | None = None
    image_type: str | None = None
    contrast: bool | None = None
    slice_thickness_mm: float | None = None
    series_number: int | None = None
    frame_of_reference_uid: str | None = None
    laterality: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """DICOM instance level. ``sha256`` and ``size`` are of the bytes as received."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    sha256: str
    size: int
    instance_number: int | None = None
    rows: int | None = None
    columns: int | None = None
    frames: int = 1
    acquired: Instant | None = None
    path: str | None = None  # set when the file stays where it is (--in-place)


@dataclass(frozen=True, kw_only=True, slots=True)
class DicomObject:
    """One DICOM file, read: the four levels it names."""

    patient: Patient
    study: Study
    series: Series
    instance: Instance


# --- records ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Encounter:
    """FHIR Encounter, as far as models ask for it. ``subject`` is the id of the Patient it refers to."""

    id: str
    subject: str | None
    status: str
    encounter_class: str | None = None
    types: tuple[Coding, ...] = ()
    start: Instant | None = None
    end: Instant | None = None
    discharge_disposition: str | None = None
    priority: tuple[Coding, ...] = ()
    admit_source: tuple[Coding, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One coded value of an Observation, or of one of its components.

    ``effective`` is when it was true of the patient; ``available`` when it was known (``issued``, else effective).
    Exactly one of ``value`` (with ``unit``; booleans are 0 or 1 with unit None) and ``value_code`` is set. ``also`` and
    ``value_also`` are the other codings of the same code and of the same answer. The ``unit`` of a value that is only
    a limit (Quantity.comparator) begins with the comparator: it is no channel's, unless that says so.
    """

    subject: str | None
    encounter: str | None
    code: Coding
    effective: Instant
    available: Instant
    status: str
    value: float | None = None
    unit: str | None = None
    value_code: Coding | None = None
    also: tuple[Coding, ...] = ()
    value_also: tuple[Coding, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CodedFact:
    """A Condition, MedicationRequest / -Administration, Procedure or similar: a code that held from a time on."""

    kind: str  # condition | medication | procedure | allergy | immunization | document
    subject: str | None
    encounter: str | None
    code: Coding
    start: Instant | None = None
    end: Instant | None = None
    recorded: Instant | None = None
    status: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FhirResource:
    """One FHIR resource as received, and the rows it gives rise to (replaced as a group when it changes)."""

    source: str
    type: str
    id: str
    raw: bytes
    sha256: str
    version: str | None = None
    last_updated: Instant | None = None
    deleted: bool = False
    subject: str | None = None  # the id of the Patient it is about
    patient: Patient | None = None  # of a Patient resource
    encounter: Encounter | None = None
    measurements: tuple[Measurement, ...] = ()
    facts: tuple[CodedFact, ...] = ()
    names: tuple[Identifier, ...] = ()  # of a Specimen or ServiceRequest; system "" where it states none
    sequence: Sequence | None = None  # of a MolecularSequence that can be read
    specimen: str | None = None  # the id of its Specimen, where a MolecularSequence names no patient


# --- genomics --------------------------------------------------------------------------------------------------

NUCLEOTIDES = "ACGTRYSWKMBDHVN"  # IUPAC's letters for DNA (NC-IUB 1984)
MAX_BASES = 100_000  # what one sequence may hold: a window or a gene, not a chromosome


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantFile:
    """A VCF, as received, and what its header and a full pass over it say.

    ``assembly`` is the header's own word for it, ``build`` the assembly that it stands for (GRCh37 or GRCh38) where the
    header's words or the lengths of its contigs say so. ``counts`` has alleles by type (snv, insertion, deletion,
    complex, symbolic, breakend, missing) and records by "passed" and "filtered". ``index`` is the SHA-256 of the CSI
    index in the object store; None of a file that is not in bgzip's format.
    """

    sha256: str
    size: int
    version: str  # fileformat, for example VCFv4.2
    samples: tuple[str, ...]
    records: int
    contigs: tuple[str, ...] = ()
    assembly: str | None = None
    build: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    index: str | None = None
    path: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequence:
    """One nucleotide sequence: letters of IUPAC's DNA alphabet in upper case, 5' to 3'."""

    name: str
    bases: str
    sha256: str
    subject: Identifier | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One allele of one VCF record. ``position`` is 1-based, as in VCF."""

    contig: str
    position: int
    ref: str
    alt: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CalledVariant(Variant):
    """An allele that a sample carries, split, trimmed and aligned to the left; contig as the reference names it.

    An insertion or deletion keeps the base before it. ``zygosity`` is None where the genotype does not tell; ``phase``
    is the phase set (PS) of a phased genotype and, after a colon, the place of the allele in it (``77:2`` of 0|1): in
    one set alleles of one place lie in cis. ``depths`` are the reads of the reference and of this allele (AD).
    """

    zygosity: Literal["heterozygous", "homozygous", "hemizygous"] | None = None
    phase: str | None = None
    depths: tuple[int, int] | None = None
    gene: str | None = None  # HGNC symbol, where the site's annotation or the file names one


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantScore:
    """A variant that a model has something to say of: ``effects`` in the order that its output declares."""

    variant: CalledVariant
    score: float
    effects: tuple[float, ...]


# --- the unit of work ------------------------------------------------------------------------------------------


class UnitKind(StrEnum):
    """What one job is about."""

    SERIES = "series"
    STUDY = "study"
    ENCOUNTER = "encounter"
    PATIENT = "patient"
    SAMPLE = "sample"
    SEQUENCE = "sequence"


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One thing to be scored: its kind and its surrogate id in the store. Safe to log."""

    kind: UnitKind
    id: int

    def __str__(self) -> str:
        return f"{self.kind}/{self.id}"


@dataclass(frozen=True, kw_only=True, slots=True)
class DueUnit:
    """A unit whose input may be new to a model.

    ``input_key`` is a SHA-256 over the exact inputs the model would be given; ``revision`` is the unit's revision that
    this was computed at; ``prediction_time`` is the moment the model speaks of.
    """

    unit: Unit
    revision: int
    input_key: str
    prediction_time: Instant


# --- results ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """How a result names its patient: a FHIR reference ("Patient/123") when one is known, else an identifier."""

    patient_id: int
    reference: str | None = None
    identifier: Identifier | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Contribution:
    """How much one channel of a time series, or one of its statics, spoke for a result.

    ``value`` is on the additive scale of the model's explanation (of a risk, log-odds): above 0 for it, below 0 against
    it, over all steps; ``steps`` has it step by step, of a channel. ``share`` is what part this is of all that spoke
    either way, 0..1. Of what was not ``measured`` it is the absence that spoke. ``basis`` is the FHIR reference of the
    last measurement that the model was given of it.

    Of a ``position`` of a sequence, ``name`` is the substitution of its base that changes the result most, as HGVS
    writes it ("31G>A", counted from 1 in the window), ``value`` that change, and ``share`` its part of the largest
    changes of all positions.
    """

    kind: Literal["channel", "static", "position"]
    name: str
    value: float
    share: float
    steps: tuple[float, ...] = ()
    measured: bool = True
    basis: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutagenesis:
    """How the score of a result changes if one base of its sequence were another.

    ``changes`` has four numbers for each base: with A, C, G, T in its place. ``of`` is the class that is explained.
    """

    of: str
    changes: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One declared output of one job, checked against its declaration, as it is stored and mapped to FHIR.

    ``value``: a Measure in its unit, a Risk as 0..1, a Classification's positive probability, a Segment's mL.
    Of a Segment also how many ``voxels`` it has, the ``mean`` intensity inside (None of an empty one) with its UCUM
    unit, and the SHA-256 of the DICOM segmentation that holds its ``mask``. ``contributions`` explain it, the largest
    first, where that was asked for; they take no part in any id. ``mutagenesis`` is what those of a sequence were
    taken from.

    Of a VariantEffect: ``variants`` are those reported, ordered by place, on the assembly ``build``; ``scores``
    is the SHA-256 of the file with the scores of all of them in the object store; ``counts`` says how many were scored,
    reported, and left out by reason; ``value`` is the largest score.
    """

    output: str
    value: float | None = None
    probabilities: tuple[float, ...] = ()
    voxels: int | None = None
    mean: float | None = None
    mean_unit: str | None = None
    mask: str | None = None
    out_of_scope: str | None = None
    contributions: tuple[Contribution, ...] = ()
    mutagenesis: Mutagenesis | None = None
    variants: tuple[VariantScore, ...] = ()
    build: str | None = None
    scores: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultObject:
    """A DICOM object that a job made: ``kind`` "segmentation" or "heat-map".

    ``sha256`` and ``size`` are of its file, which is in the object store; ``content`` is a digest of what it says,
    times of the run left out: the same content needs no sending again. ``outputs`` are those that it shows.
    """

    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str
    study_uid: str
    sha256: str
    size: int
    content: str
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class InputReference:
    """What a result was derived from, as FHIR can name it: a literal reference, an identifier, or both."""

    type: str  # FHIR resource type: ImagingStudy, Encounter, Observation, MolecularSequence ...
    reference: str | None = None
    identifier: Identifier | None = None
    display: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outgoing:
    """A FHIR resource to be sent: ``envelope`` groups what goes in one transaction ("catalog" goes first).

    Of ``type`` "DICOM" it is a DICOM object: ``id`` its SOP Instance UID, ``body`` its file's SHA-256 in hex, by which
    the object store has it.
    """

    type: str
    id: str
    body: bytes
    sha256: str
    envelope: str
