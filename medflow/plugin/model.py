"""What a model is: its declaration, and the class that a plugin writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from medflow.plugin.cases import Case
from medflow.plugin.inputs import InputSpec
from medflow.plugin.outputs import Explanation, OutputSpec, Prediction
from medflow.records import UnitKind

Ready = TypeVar("Ready")


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
    reference: Weights | None = None

    def input(self, name: str) -> InputSpec:
        """The input declared under ``name``; KeyError otherwise."""
        return {spec.name: spec for spec in self.accepts}[name]

    def output(self, name: str) -> OutputSpec:
        """The output declared under ``name``; KeyError otherwise."""
        return {spec.name: spec for spec in self.outputs}[name]


class Model(ABC, Generic[Ready]):
    """Base class of every model. One object serves one process and device; `load` is called once before use.

    Of a version that was trained at a site ``spec`` and ``folder`` are set on the object: read ``self.spec``, and hand
    ``self.folder`` to whatever reads the weights. None: the files lie in the model's own package.
    """

    spec: ClassVar[ModelSpec]
    folder: Path | None = None

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

    def explain(self, batch: Sequence[Ready], predictions: Sequence[Prediction]) -> Sequence[Mapping[str, Explanation]]:
        """What led to each prediction, by the name of the output; nothing unless a model overrides this.

        For an image a heat map: float32 on the grid of the input image, larger where the picture spoke more for the
        answer, NaN where nothing can be said. For a time series a `SeriesAttribution`, for a sequence a
        `SequenceAttribution`, for the variants of a sample nothing. Asked for per run, never by default; runs with
        gradients available.
        """
        return [{} for _ in predictions]

    def close(self) -> None:
        """Free the device."""
