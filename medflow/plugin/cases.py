"""What a model is given: one unit of work with its inputs, and nothing that identifies the patient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from medflow.records import Unit


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


@dataclass(frozen=True, kw_only=True)
class VariantWindows:
    """The variants of one sample, each as the window of its reference allele and that of its alternate allele.

    ``ref`` and ``alt`` (variants, length) uint8 hold ASCII codes of upper-case bases, 5' to 3' of the forward strand,
    N where nothing is known. The first base of an allele stands at index ``at`` of its window; ``ref_length`` and
    ``alt_length`` (variants,) int32 say how many bases it has. An insertion or deletion keeps the base before it in
    both alleles, as in VCF.
    """

    ref: np.ndarray
    alt: np.ndarray
    at: int
    ref_length: np.ndarray
    alt_length: np.ndarray

    def __len__(self) -> int:
        return len(self.ref)


CaseInput = Image | TimeSeries | SequenceWindow | VariantWindows


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

    @property
    def variants(self) -> VariantWindows:
        """The only `VariantWindows` input."""
        return self._only(VariantWindows)

    def _only(self, kind: type) -> Any:
        found = [value for value in self.inputs.values() if isinstance(value, kind)]
        if len(found) != 1:
            names = ", ".join(sorted(self.inputs)) or "none"
            raise AttributeError(f"the case has {len(found)} inputs of type {kind.__name__}; its inputs are: {names}")
        return found[0]
