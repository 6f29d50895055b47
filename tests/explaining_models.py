"""Small real models that explain what they predict: numpy, and torch with gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar

import numpy as np

from medflow.plugin import (
    LOINC,
    SNOMED,
    Case,
    Channel,
    Classification,
    ClassLabel,
    Coding,
    Explanation,
    Model,
    ModelSpec,
    Prediction,
    Risk,
    SequenceAttribution,
    SequenceInput,
    SeriesAttribution,
    TimeSeries,
    TimeSeriesInput,
    UnitKind,
)
from tests.imaging_models import BrightTissue, Opacity
from tests.models import CARD

AIR_HU = -500.0


class ExplainedTissue(BrightTissue):
    """Marks what is bright, and shows how far each voxel is from the threshold; nothing is said of air."""

    spec: ClassVar[ModelSpec] = replace(BrightTissue.spec, name="explained-tissue", batch_size=2)

    def explain(self, batch: Sequence[np.ndarray], predictions: Sequence[Prediction]) -> list[Mapping[str, np.ndarray]]:
        """HU above the threshold, NaN in air."""
        distances = [volume - np.float32(self.threshold_hu) for volume in batch]
        return [
            {"bright": np.where(volume > AIR_HU, distance, np.float32(np.nan))}
            for volume, distance in zip(batch, distances, strict=True)
        ]


class Gradient(Model[np.ndarray]):
    """How bright a radiograph is towards its middle, by torch; explained by the gradient times the picture.

    ``modes`` has what torch's inference mode and autograd were at each prediction and explanation.
    """

    spec: ClassVar[ModelSpec] = replace(Opacity.spec, name="gradient", batch_size=4)

    def __init__(self) -> None:
        self.modes: list[tuple[str, bool, bool]] = []

    def load(self, device: str) -> None:
        """Nothing but torch."""
        import torch

        self._torch, self._device = torch, device

    def prepare(self, case: Case) -> np.ndarray:
        """The picture, from 0 to 1."""
        array = case.image.array
        return (array - array.min()) / max(float(np.ptp(array)), 1.0)

    def predict(self, batch: Sequence[np.ndarray]) -> list[Prediction]:
        """Both probabilities of each."""
        self._note("predict")
        found = [float(self._opaque(self._tensor(picture))) for picture in batch]
        return [Prediction(values={"opacity": np.array([1.0 - opaque, opaque])}) for opaque in found]

    def explain(self, batch: Sequence[np.ndarray], predictions: Sequence[Prediction]) -> list[Mapping[str, np.ndarray]]:
        """What each pixel added."""
        self._note("explain")
        found = []
        for picture in batch:
            pixels = self._tensor(picture).requires_grad_()
            self._opaque(pixels).backward()
            found.append({"opacity": (pixels.grad * pixels).detach().cpu().numpy()})
        return found

    def _tensor(self, picture: np.ndarray) -> Any:
        return self._torch.from_numpy(picture.astype(np.float32)).to(self._device)

    def _opaque(self, pixels: Any) -> Any:
        rows, columns = pixels.shape
        down = self._torch.hann_window(rows, periodic=False, device=self._device)
        across = self._torch.hann_window(columns, periodic=False, device=self._device)
        weights = down[:, None] * across[None, :]
        return (pixels * weights).sum() / weights.sum()

    def _note(self, what: str) -> None:
        torch = self._torch
        self.modes.append((what, torch.is_inference_mode_enabled(), torch.is_grad_enabled()))


class LinearStay(Model[TimeSeries]):
    """Odds that add up over a stay's values, so that what each added is known exactly; an absence adds something too.

    ``explained`` counts the calls of `explain`, of all its objects.
    """

    usual: ClassVar[tuple[float, ...]] = (80.0, 15.0, 20.0, 1.0)
    weights: ClassVar[tuple[float, ...]] = (0.04, -0.4, 0.03, 0.5)
    absence: ClassVar[tuple[float, ...]] = (0.0, 0.0, 0.0, -0.6)
    explained: ClassVar[int] = 0
    spec: ClassVar[ModelSpec] = ModelSpec(
        name="linear-stay",
        version="1.0.0",
        title="Odds that add up",
        unit=UnitKind.ENCOUNTER,
        accepts=(
            TimeSeriesInput(
                channels=(
                    Channel(name="heart rate", codes=(Coding(system=LOINC, code="8867-4"),), unit="/min"),
                    Channel(name="coma score", codes=(Coding(system=LOINC, code="9269-2"),), unit="{score}"),
                    Channel(name="urea", codes=(Coding(system=LOINC, code="3094-0"),), unit="mg/dL"),
                    Channel(name="lactate", codes=(Coding(system=LOINC, code="2524-7"),), unit="mmol/L"),
                ),
                window=timedelta(hours=48),
                step=timedelta(hours=2),
                statics=("age", Channel(name="height", codes=(Coding(system=LOINC, code="8302-2"),), unit="cm")),
            ),
        ),
        outputs=(
            Risk(
                name="death",
                code=Coding(system=SNOMED, code="225338004"),
                outcome=Coding(system=SNOMED, code="419099009"),
                threshold=0.5,
            ),
        ),
        card=CARD,
        batch_size=2,
    )

    def load(self, device: str) -> None:
        """Nothing to load."""

    def prepare(self, case: Case) -> TimeSeries:
        """The series itself."""
        return case.series

    def predict(self, batch: Sequence[TimeSeries]) -> list[Prediction]:
        """The odds as a probability."""
        odds = [found.values.sum() + found.statics.sum() for found in map(self._added, batch)]
        return [Prediction(values={"death": float(1 / (1 + np.exp(-value)))}) for value in odds]

    def explain(
        self, batch: Sequence[TimeSeries], predictions: Sequence[Prediction]
    ) -> list[Mapping[str, SeriesAttribution]]:
        """What each value added."""
        type(self).explained += len(batch)
        return [{"death": self._added(series)} for series in batch]

    def _added(self, series: TimeSeries) -> SeriesAttribution:
        measured = np.isfinite(series.values)
        each = np.where(measured, (series.values - self.usual) * self.weights, 0.0) / np.maximum(
            measured.sum(axis=0), 1
        )
        each += np.where(measured.any(axis=0), 0.0, np.array(self.absence) / len(each))
        statics = np.nan_to_num((series.statics - (60.0, 170.0)) * (0.02, 0.01))
        return SeriesAttribution(values=each.astype(np.float32), statics=statics.astype(np.float32))


class LinearSite(Model[str]):
    """The odds of a splice-like motif that add up over eight bases, so that each substitution's change is known."""

    motif: ClassVar[str] = "CAGGTAAG"
    gains: ClassVar[tuple[float, ...]] = (0.25, 0.5, 1.0, 3.0, 2.0, 0.75, 0.5, 0.125)
    spec: ClassVar[ModelSpec] = ModelSpec(
        name="linear-site",
        version="1.0.0",
        title="Odds of a motif that add up",
        unit=UnitKind.SEQUENCE,
        accepts=(SequenceInput(length=8),),
        outputs=(
            Classification(
                name="site",
                code=Coding(system="http://www.sequenceontology.org", code="SO:0000162"),
                classes=(
                    ClassLabel(name="donor", code=Coding(system="http://www.sequenceontology.org", code="SO:0000163")),
                    ClassLabel(name="none", code=Coding(system=SNOMED, code="260415000")),
                ),
            ),
        ),
        card=CARD,
        batch_size=4,
    )

    def load(self, device: str) -> None:
        """Nothing to load."""

    def prepare(self, case: Case) -> str:
        """The bases."""
        return case.sequence.bases

    def predict(self, batch: Sequence[str]) -> list[Prediction]:
        """The odds as probabilities of both classes."""
        chances = [1 / (1 + np.exp(-self.odds(bases))) for bases in batch]
        return [Prediction(values={"site": np.array([chance, 1 - chance])}) for chance in chances]

    def explain(self, batch: Sequence[str], predictions: Sequence[Prediction]) -> list[Mapping[str, Explanation]]:
        """Each substitution in turn, for the class that is the more probable."""
        found: list[Mapping[str, Explanation]] = []
        for bases in batch:
            odds = self.odds(bases)
            way = 1.0 if odds >= 0 else -1.0
            values = [
                [way * (self.odds(bases[:place] + base + bases[place + 1 :]) - odds) for base in "ACGT"]
                for place in range(len(bases))
            ]
            of = "donor" if way > 0 else "none"
            found.append({"site": SequenceAttribution(values=np.array(values, np.float32), of=of)})
        return found

    @classmethod
    def odds(cls, bases: str) -> float:
        """Log-odds of a donor."""
        both = zip(bases, cls.motif, cls.gains, strict=True)
        return sum(gain if base == wanted else 0.0 for base, wanted, gain in both) - 4.0
