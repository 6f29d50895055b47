"""A small real model for the tests that computes with torch, and takes as much of its device as it is told to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from medflow.plugin import Case, Model, ModelSpec, Prediction
from tests.models import GcContent

MIB = 1 << 20


class Layer(Model[np.ndarray]):
    """The fraction of G and C as a product of matrices.

    ``holds_mib`` are taken on the device while it is loaded, ``case_mib`` for each case of a batch. ``calls`` has the
    size of each batch that came through, the type of its numbers, and the CUDA stream it ran on.
    """

    spec: ClassVar[ModelSpec] = replace(GcContent.spec, name="layer")
    holds_mib: ClassVar[int] = 0
    case_mib: ClassVar[int] = 0

    def __init__(self) -> None:
        self.calls: list[tuple[int, Any, Any]] = []

    def load(self, device: str) -> None:
        """Put the matrix on the device."""
        import torch

        self._device = device
        self._held = torch.zeros(self.holds_mib * MIB, dtype=torch.uint8, device=device)
        self._weights = torch.full((8, 1), 1 / 8, device=device)

    def prepare(self, case: Case) -> np.ndarray:
        """1 for G and C, 0 for A and T."""
        return np.asarray([letter in "GC" for letter in case.sequence.bases], dtype=np.float32)

    def predict(self, batch: Sequence[np.ndarray]) -> list[Prediction]:
        """One product for all."""
        import torch

        cases = torch.from_numpy(np.stack(batch)).to(self._device)
        taken = torch.zeros(len(batch) * self.case_mib * MIB, dtype=torch.uint8, device=self._device)
        found = cases @ self._weights
        stream = torch.cuda.current_stream(self._device) if cases.is_cuda else None
        self.calls.append((len(batch), found.dtype, stream))
        del taken
        return [Prediction(values={"gc": float(value)}) for value in found.float().cpu()]

    def close(self) -> None:
        """Let go of the tensors."""
        del self._held, self._weights


def layer(name: str = "layer", *, holds_mib: int = 0, case_mib: int = 0, **spec: Any) -> type[Layer]:
    """`Layer` with these figures and this declaration."""
    declared = replace(Layer.spec, name=name, **spec)
    return type(name, (Layer,), {"spec": declared, "holds_mib": holds_mib, "case_mib": case_mib})
