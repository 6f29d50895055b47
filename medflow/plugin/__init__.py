"""The public plugin API: everything a third party imports to ship a model. Standard library, numpy, records, errors.

A plugin is a distribution; a model is a class. In the distribution's ``pyproject.toml``::

    [project.entry-points."medflow.models"]
    spleen-ct = "spleen_ct:SpleenCT"

The entry point names a `Model` subclass, or a callable without arguments that yields several. Importing that module
must not import torch or any other heavy package: `medflow models` reads specs, and only the process that scores
calls `Model.load`. ``medflow plugin check DISTRIBUTION`` runs the conformance kit.
"""

from __future__ import annotations

from medflow.errors import CaseError, InputNotUsable, MedflowError, PredictionInvalid, TrialStopped
from medflow.plugin.cases import Case, CaseInput, Image, SequenceWindow, TimeSeries, VariantWindows
from medflow.plugin.inputs import (
    Channel,
    CodedValue,
    ImagingInput,
    InputSpec,
    NoteInput,
    SequenceInput,
    TimeSeriesInput,
)
from medflow.plugin.model import Model, ModelCard, ModelSpec, Weights
from medflow.plugin.outputs import (
    ANATOMICAL_STRUCTURE,
    SNOMED,
    Classification,
    ClassLabel,
    Explanation,
    LabelMask,
    Mask,
    Measure,
    OutputSpec,
    Prediction,
    Risk,
    Segment,
    SequenceAttribution,
    SeriesAttribution,
    VariantEffect,
)
from medflow.plugin.training import Choice, Epoch, Examples, Fitted, HyperParameter, Integer, Real, Trainable
from medflow.records import Coding, Unit, UnitKind

LOINC = "http://loinc.org"

__all__ = [
    "ANATOMICAL_STRUCTURE",
    "Case",
    "CaseError",
    "CaseInput",
    "Channel",
    "Choice",
    "ClassLabel",
    "Classification",
    "CodedValue",
    "Coding",
    "Epoch",
    "Examples",
    "Explanation",
    "Fitted",
    "HyperParameter",
    "Image",
    "ImagingInput",
    "InputNotUsable",
    "InputSpec",
    "Integer",
    "LOINC",
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
    "Real",
    "Risk",
    "SNOMED",
    "Segment",
    "SequenceAttribution",
    "SequenceInput",
    "SequenceWindow",
    "SeriesAttribution",
    "TimeSeries",
    "TimeSeriesInput",
    "Trainable",
    "TrialStopped",
    "Unit",
    "UnitKind",
    "VariantEffect",
    "VariantWindows",
    "Weights",
]
