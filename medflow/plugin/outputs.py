"""What a model answers: its outputs as declared, and the prediction for one case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import numpy as np

from medflow.records import Coding

SNOMED = "http://snomed.info/sct"
BASES = "ACGT"  # the order of the substitutions of a `SequenceAttribution`


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


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantEffect:
    """How much each variant of a sample changes what the model predicts, in each of several ways.

    The value of a prediction is an array (variants, effects) of floats in ``valid_range``, in the order of
    `VariantWindows` and of ``effects``; a row of NaN is a variant outside of the model's scope. A variant's score is
    the largest absolute value of its row. Scores are kept of all; a variant is reported as an Observation where its
    score is ``report_from`` or more.
    """

    kind: Literal["variant-effect"] = "variant-effect"
    name: str
    code: Coding
    effects: tuple[ClassLabel, ...]
    report_from: float
    valid_range: tuple[float, float] = (-1.0, 1.0)
    body_site: None = None


OutputSpec = Measure | Classification | Risk | Segment | VariantEffect


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
    (Classification), effects by variant (VariantEffect) or a mask (Segment): an array, or a `LabelMask`.
    ``out_of_scope`` instead gives a reason (no
    patient data) why the model does not answer; it becomes a dataAbsentReason and no value.
    """

    values: Mapping[str, float | Mask] = field(default_factory=dict)
    out_of_scope: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SeriesAttribution:
    """How much each value of a time series spoke for an output: above 0 for it, below 0 against it.

    ``values`` (steps, channels) and ``statics`` (n,), float32, finite, on one additive scale (of a risk, log-odds).
    Where nothing was measured the share is of its absence.
    """

    values: np.ndarray
    statics: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SequenceAttribution:
    """In-silico mutagenesis of a `SequenceWindow`: what becomes of an output if one base were another.

    ``values`` (bases, 4) float32, finite: the change of the output's score (of a classification, the log-odds of the
    class that is explained) when the base at that place is A, C, G or T instead; 0 for the base that is there.
    ``of`` names what is explained: the class.
    """

    values: np.ndarray
    of: str


Explanation = np.ndarray | SeriesAttribution | SequenceAttribution
