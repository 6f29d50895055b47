"""Small real models that explain what they predict: numpy, and torch with gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from medflow.plugin import Case, Model, ModelSpec, Prediction
from tests.imaging_models import BrightTissue, Opacity

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
