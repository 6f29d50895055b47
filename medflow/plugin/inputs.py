"""What a model accepts: its inputs, declared by code, unit and geometry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from medflow.records import Coding, UnitKind


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagingInput:
    """One DICOM series, as a 2D image, a volume, or several volumes.

    What a series must be like, each an empty tuple or None where anything fits:

    - ``modality``: DICOM (0008,0060), one of these; ``sop_classes``: UIDs.
    - ``body_parts``: matched case-insensitively against BodyPartExamined, when the series has one.
    - ``descriptions``: regular expressions, one of which must be found in SeriesDescription or ProtocolName whatever
      the case; ``excluded_descriptions``: none of which may be.
    - ``contrast``: whether a contrast agent is named (ContrastBolusAgent or its sequence). A series of which that is
      not known fits neither True nor False.
    - ``slice_thickness_mm``: least and largest SliceThickness, both included; of an enhanced object its thinnest
      frame's. A series without fits no range. Where slices lie is measured, never read from it.

    Localizers (ImageType) and objects that are no images fit nothing; secondary captures fit dimensions 2, or where
    ``sop_classes`` names them.

    ``dimensions`` 2 gives an array (rows, columns), 3 gives (z, y, x), 4 gives (volumes, z, y, x), with ``min_slices``
    in each volume at least. A series of several volumes (times, echoes, b-values, phases) fits 3 only if ``take`` says
    which of them, in their order of acquisition. Intensities are after the modality LUT (rescale); MONOCHROME1 is
    inverted, but not in CT and PET, which measure. Slices that a tilted gantry shifted sideways are brought onto a
    straight grid.

    A model whose unit is a series is given every series that fits. A model whose unit is a study names its inputs, and
    each takes one series of the study that fits: ``prefer`` "newest", the last acquired, or "best", the one with the
    thinnest slices, then the most, then the newest. Ties go to the higher SeriesNumber, then to the UID that sorts
    last. Inputs choose independently: a series that fits two may serve both. A study is due when every input has a
    series, or those do that are not ``optional``: such a one may be missing from the case. The prediction time is the
    latest acquisition among the series chosen; when a preferred one comes in later, the study is scored again, and the
    earlier result superseded. ``medflow models`` shows the rule, ``medflow select --model NAME --explain`` what it
    makes of each series in the store.
    """

    kind: Literal["imaging"] = "imaging"
    name: str = "image"
    modality: tuple[str, ...]
    dimensions: Literal[2, 3, 4] = 3
    sop_classes: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    excluded_descriptions: tuple[str, ...] = ()
    contrast: bool | None = None
    slice_thickness_mm: tuple[float, float] | None = None
    min_slices: int = 1
    take: Literal["only", "first", "last"] = "only"
    prefer: Literal["every", "newest", "best"] = "every"
    optional: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class CodedValue:
    """The number that a coded answer (FHIR valueCodeableConcept) stands for."""

    code: Coding
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Channel:
    """One channel of a time series.

    ``codes`` are the codes accepted, LOINC or local, of an Observation or of one of its components (the systolic value
    of a blood pressure panel). A value in any UCUM unit of the same dimension is converted to ``unit``; between mass
    and amount of substance only with ``molar_mass_g_mol``. ``units`` says what UCUM does not know: the factor that
    turns a local or arbitrary unit into ``unit``; it goes before UCUM. A measurement in any other unit is refused, and
    counted. Booleans arrive as 0 and 1, integers as they are, both without a unit; ``values`` says what coded answers
    stand for. Values outside ``valid_range`` (in ``unit``) are refused likewise. Several values in one step are joined
    by ``aggregate``. A case without any value of a ``required`` channel is refused.
    """

    name: str
    codes: tuple[Coding, ...]
    unit: str | None
    units: Mapping[str, float] = field(default_factory=dict)
    molar_mass_g_mol: float | None = None
    values: tuple[CodedValue, ...] = ()
    valid_range: tuple[float, float] | None = None
    aggregate: Literal["last", "mean", "min", "max", "sum", "count"] = "mean"
    required: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeSeriesInput:
    """Coded measurements of one encounter on a regular grid of ``window / step`` steps.

    ``anchor`` "admission": the window is [Encounter.period.start, start + window) and the prediction time its end.
    ``anchor`` "prediction-time": the window is [as-of - window, as-of). Only what was available (``issued``, else
    ``effective``) at the prediction time reaches the model: a correction issued later changes no earlier score.

    ``statics`` are each one of:

    - ``age`` (years at admission), ``sex`` (0 female, 1 male, NaN otherwise);
    - ``encounter-type:<system>|<code>``, ``encounter-class:<code>``, ``encounter-priority:<system>|<code>``,
      ``admit-source:<system>|<code>``: 1 or 0, NaN where the Encounter says nothing of it;
    - a `Channel`: its last value known at the prediction time, however old (a height); NaN where there is none.

    ``statuses`` are those of FHIR Observation.status that count; entered-in-error and cancelled never do. A case is
    refused, with the reason, that has fewer than ``min_measurements`` values in the window, values of fewer than
    ``min_channels`` channels, or in fewer than ``min_steps`` steps.
    """

    kind: Literal["time-series"] = "time-series"
    name: str = "series"
    channels: tuple[Channel, ...]
    window: timedelta
    step: timedelta
    anchor: Literal["admission", "prediction-time"] = "admission"
    statics: tuple[str | Channel, ...] = ()
    statuses: tuple[str, ...] = ("preliminary", "final", "amended", "corrected")
    min_measurements: int = 1
    min_channels: int = 0
    min_steps: int = 0
    unit: UnitKind = UnitKind.ENCOUNTER


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceInput:
    """Windows of ``length`` bases, 5' to 3': of stored sequences, or around the variants of a sample.

    ``source`` "sequence" takes stored sequences (FASTA, MolecularSequence), one `SequenceWindow` a case; a longer one
    is cut to its centre. ``alphabet`` lists the letters the model understands; a sequence with any other is out of
    scope for the model.

    ``source`` "variants" takes the called variants of one sample of a VCF file, all of them one case
    (`VariantWindows`), on the site's reference of ``assembly`` (GRCh37 or GRCh38). Alleles are split, trimmed and
    aligned to the left; the first base of the allele stands at index ``length // 2`` of its window, and what the
    allele takes from the right flank, or leaves it, is made up for at the right end. Beyond the ends of a contig
    stands N. Of a model whose ``strand`` is "both" the answer may not depend on the strand that it is given
    (``medflow plugin check`` sees to that). Variants that FILTER refused are left out unless ``passing_only`` is
    False, and so are those with QUAL below ``min_quality`` and alleles longer than ``max_allele`` bases; each is
    counted with its reason.
    """

    kind: Literal["sequence"] = "sequence"
    name: str = "sequence"
    length: int
    source: Literal["sequence", "variants"] = "sequence"
    alphabet: str = "ACGT"
    assembly: Literal["GRCh37", "GRCh38"] | None = None
    strand: Literal["forward", "both"] = "forward"
    passing_only: bool = True
    min_quality: float | None = None
    max_allele: int = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class NoteInput:
    """Clinical notes of an encounter by document type (FHIR DocumentReference.type)."""

    kind: Literal["note"] = "note"
    name: str = "notes"
    types: tuple[Coding, ...] = ()


InputSpec = ImagingInput | TimeSeriesInput | SequenceInput | NoteInput
