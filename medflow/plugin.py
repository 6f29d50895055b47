"""The public plugin API: everything a third party imports to ship a model. Standard library, numpy, records, errors.

A plugin is a distribution; a model is a class. In the distribution's ``pyproject.toml``::

    [project.entry-points."medflow.models"]
    spleen-ct = "spleen_ct:SpleenCT"

The entry point names a `Model` subclass, or a callable without arguments that yields several. Importing that module
must not import torch or any other heavy package: `medflow models` reads specs, and only the process that scores
calls `Model.load`. ``medflow plugin check DISTRIBUTION`` runs the conformance kit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np

from medflow.errors import CaseError, InputNotUsable, MedflowError, PredictionInvalid
from medflow.records import Coding, Unit, UnitKind

__all__ = [
    "Case",
    "CaseError",
    "Channel",
    "ClassLabel",
    "Classification",
    "Coding",
    "Image",
    "ImagingInput",
    "InputNotUsable",
    "InputSpec",
    "LabelMask",
    "Mask",
    "Measure",
    "MedflowError",
    "Model",
    "ModelCard",
    "ModelSpec",
    "NoteInput",
    "OutputSpec",
    "Prediction",
    "PredictionInvalid",
    "Risk",
    "Segment",
    "SequenceInput",
    "SequenceWindow",
    "TimeSeries",
    "TimeSeriesInput",
    "Unit",
    "UnitKind",
    "Weights",
]

LOINC = "http://loinc.org"
SNOMED = "http://snomed.info/sct"

Ready = TypeVar("Ready")


# --- what a model accepts --------------------------------------------------------------------------------------


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
class Channel:
    """One channel of a time series.

    ``codes`` are the codes accepted; ``units`` maps each UCUM unit accepted to the factor that turns it into
    ``unit`` (a measurement in any other unit is refused, and counted). Values outside ``valid_range`` (in ``unit``)
    are refused likewise. Several values in one step are joined by ``aggregate``. Booleans arrive as 0 and 1.
    """

    name: str
    codes: tuple[Coding, ...]
    unit: str | None
    units: Mapping[str, float] = field(default_factory=dict)
    valid_range: tuple[float, float] | None = None
    aggregate: Literal["last", "mean", "min", "max", "sum", "count"] = "mean"


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeSeriesInput:
    """Coded measurements of one encounter on a regular grid of ``window / step`` steps.

    ``anchor`` "admission": the window is [Encounter.period.start, start + window) and the prediction time its end.
    ``anchor`` "prediction-time": the window is [as-of - window, as-of). Only what was available (``issued``, else
    ``effective``) at the prediction time reaches the model. ``statics`` are from: age (years), sex (0 female,
    1 male, NaN unknown), encounter-type:<system>|<code> (1 or 0). Fewer than ``min_measurements`` is refused.
    """

    kind: Literal["time-series"] = "time-series"
    name: str = "series"
    channels: tuple[Channel, ...]
    window: timedelta
    step: timedelta
    anchor: Literal["admission", "prediction-time"] = "admission"
    statics: tuple[str, ...] = ()
    min_measurements: int = 1
    unit: UnitKind = UnitKind.ENCOUNTER


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceInput:
    """A nucleotide sequence of ``length`` bases (5' to 3'); a longer one is cut to its centre.

    ``source`` "sequence" takes stored sequences (FASTA). ``alphabet`` lists the letters the model understands;
    a sequence with any other letter is out of scope for the model.
    """

    kind: Literal["sequence"] = "sequence"
    name: str = "sequence"
    length: int
    source: Literal["sequence"] = "sequence"
    alphabet: str = "ACGT"


@dataclass(frozen=True, kw_only=True, slots=True)
class NoteInput:
    """Clinical notes of an encounter by document type (FHIR DocumentReference.type)."""

    kind: Literal["note"] = "note"
    name: str = "notes"
    types: tuple[Coding, ...] = ()


InputSpec = ImagingInput | TimeSeriesInput | SequenceInput | NoteInput


# --- what a model is given -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Image:
    """A 2D image (rows, columns), a volume (z, y, x) or volumes (volumes, z, y, x), float32 after the modality LUT.

    ``affine`` (4, 4) maps homogeneous array indices (x, y, z, 1) - column, row, slice - to LPS millimetres
    (DICOM patient coordinates, PS3.3 C.7.6.2.1.1); None for a projection image without a position. NIfTI and MONAI
    count to the right and to the front instead: their RAS affine is ``diag(-1, -1, 1, 1) @ affine``.
    ``spacing_mm`` is in array order: (z, y, x), or (rows, columns). ``volumes`` says of each volume of several what
    tells it from the others, by DICOM keyword (EchoTime in ms, DiffusionBValue in s/mm2, TemporalPositionIndex ...);
    one of several values has its index (DiffusionGradientOrientation[0]).
    """

    array: np.ndarray
    spacing_mm: tuple[float, ...] | None
    affine: np.ndarray | None
    modality: str
    volumes: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class TimeSeries:
    """``values`` (steps, channels) float32, NaN where nothing was measured; ``statics`` (n,) float32, NaN unknown."""

    values: np.ndarray
    statics: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SequenceWindow:
    """The bases a model is to read, 5' to 3', upper case."""

    bases: str


CaseInput = Image | TimeSeries | SequenceWindow


@dataclass(frozen=True, kw_only=True)
class Case:
    """One unit of work as a model sees it: its inputs by the names in the spec. Nothing identifies the patient."""

    unit: Unit
    prediction_time: datetime
    inputs: Mapping[str, CaseInput]

    @property
    def image(self) -> Image:
        """The only `Image` input."""
        return self._only(Image)

    @property
    def series(self) -> TimeSeries:
        """The only `TimeSeries` input."""
        return self._only(TimeSeries)

    @property
    def sequence(self) -> SequenceWindow:
        """The only `SequenceWindow` input."""
        return self._only(SequenceWindow)

    def _only(self, kind: type) -> Any:
        found = [value for value in self.inputs.values() if isinstance(value, kind)]
        if len(found) != 1:
            names = ", ".join(sorted(self.inputs)) or "none"
            raise AttributeError(f"the case has {len(found)} inputs of type {kind.__name__}; its inputs are: {names}")
        return found[0]


# --- what a model answers --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A number with a UCUM unit; a value outside ``valid_range`` is an error, not a result."""

    kind: Literal["measure"] = "measure"
    name: str
    code: Coding
    unit: str
    valid_range: tuple[float, float]
    body_site: Coding | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassLabel:
    """One class of a `Classification`, in the order of the probabilities."""

    name: str
    code: Coding


@dataclass(frozen=True, kw_only=True, slots=True)
class Classification:
    """Class probabilities, shape (n classes,), each in 0..1 and summing to 1.

    ``positive`` names the class whose probability is the Observation's value; ``threshold`` decides POS or NEG,
    and a probability within ``indeterminate`` of it is IND. Without ``positive`` the most probable class is given.
    """

    kind: Literal["classification"] = "classification"
    name: str
    code: Coding
    classes: tuple[ClassLabel, ...]
    positive: str | None = None
    threshold: float = 0.5
    indeterminate: float = 0.0
    body_site: Coding | None = None

    def interpretation(self, probability: float) -> Literal["POS", "NEG", "IND"]:
        """How a probability of the positive class is read (HL7 v3 ObservationInterpretation); at the threshold POS."""
        distance = round(probability - self.threshold, 9)  # 0.55 is 0.05 from 0.5, and 0.05000000000000004 in binary
        if self.indeterminate > 0 and abs(distance) <= self.indeterminate:
            return "IND"
        return "POS" if distance >= 0 else "NEG"


@dataclass(frozen=True, kw_only=True, slots=True)
class Risk:
    """The probability (0..1) that ``outcome`` happens within ``horizon`` (None: before the encounter ends)."""

    kind: Literal["risk"] = "risk"
    name: str
    code: Coding
    outcome: Coding
    horizon: timedelta | None = None
    threshold: float | None = None
    calibrated: bool = False


ANATOMICAL_STRUCTURE = Coding(system=SNOMED, code="123037004", display="Anatomical Structure")


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A mask on the grid of an input image: boolean (or a `LabelMask`), or with ``fractional`` float32 0..1.

    medflow derives the volume in mL from the image's geometry and the mean intensity inside (of a fractional mask where
    it is 0.5 or more), and writes all segments of a case as one DICOM SEG. A volume outside ``valid_ml`` is an error,
    not a result. ``property_category`` and ``property_type`` are what is segmented (PS3.3 C.8.20.2; the type is
    ``body_site`` unless given). ``of`` names the input whose grid it is; the first image declared unless given. It must
    be one of volumes: a single picture (``dimensions`` 2) has none to measure.
    """

    kind: Literal["segment"] = "segment"
    name: str
    body_site: Coding
    valid_ml: tuple[float, float]
    property_category: Coding = ANATOMICAL_STRUCTURE
    property_type: Coding | None = None
    fractional: bool = False
    of: str | None = None


OutputSpec = Measure | Classification | Risk | Segment


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelMask:
    """The mask of one `Segment`, not fractional: where ``labels`` has ``value``.

    ``labels`` is uint8 or uint16, on the grid of the input image. The masks of a case share one array, which must not
    change afterwards, so that a hundred structures take no more memory than one. Values that no output names are
    outside of all of them. numpy takes it for the boolean array that it stands for, which is made anew each time.
    """

    labels: np.ndarray
    value: int

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the labels."""
        return self.labels.shape

    @property
    def dtype(self) -> np.dtype:
        """Boolean."""
        return np.dtype(np.bool_)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The boolean array."""
        if copy is False:
            raise ValueError("the mask of a label is computed: it cannot be had without a copy")
        return np.asarray(self.labels == self.value, dtype=dtype)


Mask = np.ndarray | LabelMask


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A model's answer for one case.

    ``values`` holds for every declared output, by name: a float (Measure, Risk), an array of probabilities
    (Classification) or a mask (Segment): an array, or a `LabelMask`. ``out_of_scope`` instead gives a reason (no
    patient data) why the model does not answer; it becomes a dataAbsentReason and no value.
    """

    values: Mapping[str, float | Mask] = field(default_factory=dict)
    out_of_scope: str | None = None


# --- what a model is -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """A weights file beside the model's module, and the SHA-256 (hex) it must have."""

    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What a reader of a score must know of the model. ``metrics`` says how each was measured."""

    intended_use: str
    training_data: str
    licence: str
    metrics: Mapping[str, str] = field(default_factory=dict)
    limits: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """A model's declaration: read without importing its code's heavy packages, and stored with its results.

    ``unit`` is what one job is about (a series, an encounter, a sequence ...). ``batch_size`` is the largest batch
    `Model.predict` is given; ``memory_mib`` is what the loaded model and one such batch need on the device.
    ``tolerance`` is how far scores may differ between batch sizes, runs and devices (conformance kit).
    ``batch_grows``: on an accelerator `predict` may be given 2, 4, ... 64 times ``batch_size``, while that many times
    ``memory_mib`` are free. ``mixed_precision``: on CUDA `predict` may run under autocast to a 16-bit type.
    """

    name: str
    version: str
    title: str
    unit: UnitKind
    accepts: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    card: ModelCard
    weights: tuple[Weights, ...] = ()
    batch_size: int = 1
    memory_mib: int = 512
    tolerance: float = 1e-4
    batch_grows: bool = False
    mixed_precision: bool = False

    def input(self, name: str) -> InputSpec:
        """The input declared under ``name``; KeyError otherwise."""
        return {spec.name: spec for spec in self.accepts}[name]

    def output(self, name: str) -> OutputSpec:
        """The output declared under ``name``; KeyError otherwise."""
        return {spec.name: spec for spec in self.outputs}[name]


class Model(ABC, Generic[Ready]):
    """Base class of every model. One object serves one process and device; `load` is called once before use."""

    spec: ClassVar[ModelSpec]

    @abstractmethod
    def load(self, device: str) -> None:
        """Import what is heavy and put the weights on ``device`` ("cpu", "cuda:0", "mps")."""

    @abstractmethod
    def prepare(self, case: Case) -> Ready:
        """Turn one case into what `predict` stacks. CPU only, thread-safe, no state.

        Raises `CaseError` (usually `InputNotUsable`) when this case cannot be scored; the others go on.
        """

    @abstractmethod
    def predict(self, batch: Sequence[Ready]) -> list[Prediction]:
        """Score a batch of 1 to ``spec.batch_size`` prepared cases: one `Prediction` each, in order.

        The batch may be larger where ``spec.batch_grows``. Where torch is loaded, it runs in its inference mode.
        """

    def explain(self, batch: Sequence[Ready], predictions: Sequence[Prediction]) -> list[Mapping[str, np.ndarray]]:
        """What led to each prediction, by the name of the output; nothing unless a model overrides this.

        For an image a heat map: float32 on the grid of the input image, larger where the picture spoke more for the
        answer, NaN where nothing can be said. Asked for per run, never by default; runs with gradients available.
        """
        return [{} for _ in predictions]

    def close(self) -> None:
        """Free the device."""
