"""What a model adds that can be trained on a site's own store: which choices there are, and how to fit.

medflow finds the cohort, its outcomes and the splits (by patient), searches, measures and keeps the new version;
a model only fits. Like the rest of the API this imports nothing heavy.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from medflow.plugin.model import Model, Ready


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Cases of a time-series model with their outcomes, row by row.

    ``values`` (n, steps, channels) and ``statics`` (n, k) float32 as in `TimeSeries`, NaN unknown; ``outcome`` (n,)
    float32, 0 or 1; ``patients`` (n,) int64, the same number for the same patient.
    """

    values: np.ndarray
    statics: np.ndarray
    outcome: np.ndarray
    patients: np.ndarray

    def __len__(self) -> int:
        """How many cases."""
        return len(self.outcome)

    def take(self, rows: np.ndarray) -> Examples:
        """Only these rows, by index or as a mask."""
        columns = {name: getattr(self, name)[rows] for name in ("values", "statics", "outcome", "patients")}
        return replace(self, **columns)


@dataclass(frozen=True, kw_only=True, slots=True)
class Real:
    """A number from ``low`` to ``high``; ``log``: searched by its logarithm."""

    name: str
    default: float
    low: float
    high: float
    log: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Integer:
    """A whole number from ``low`` to ``high``, both included."""

    name: str
    default: int
    low: int
    high: int
    log: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One of ``options``."""

    name: str
    default: str | int | float | bool
    options: tuple[str | int | float | bool, ...]


HyperParameter = Real | Integer | Choice


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """One pass over the training cases, for the ``member``-th network of an ensemble."""

    number: int
    training_loss: float
    validation_loss: float
    auroc: float | None = None
    member: int = 0


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A fitted model: for each file in the spec's ``weights`` the tensors that `Model.load` will read, by name.

    ``threshold`` is the decision threshold chosen on the training and validation cases; None leaves the spec's.
    """

    tensors: Mapping[str, Mapping[str, np.ndarray]]
    threshold: float | None = None


class Trainable(Model[Ready]):
    """A model of one time series and one risk that `medflow train` can fit to a site's own cohort."""

    hyperparameters: ClassVar[Sequence[HyperParameter]] = ()

    @classmethod
    @abstractmethod
    def fit(
        cls,
        training: Examples,
        validation: Examples,
        chosen: Mapping[str, Any],
        *,
        seed: int,
        device: str,
        report: Callable[[Epoch], None],
    ) -> Fitted:
        """Fit to ``training``, stopping early by ``validation``, which is also what to calibrate on.

        The same cases, choices, seed and device give the same tensors. ``report`` is called once an epoch, and raises
        `TrialStopped` when a search has seen enough: let it through.
        """
