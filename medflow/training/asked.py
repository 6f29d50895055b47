"""What somebody asks of a training: known before scikit-learn and Optuna are imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medflow.config import LabelTable
from medflow.errors import ConfigurationError

Sampler = Literal["random", "bayesian"]
SAMPLERS: tuple[Sampler, ...] = ("random", "bayesian")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What to train on and how; names as in the configuration. ``trials`` 0 fits once, with the defaults."""

    cohort: str = "all"
    labels: LabelTable | None = None
    output: str | None = None
    trials: int = 0
    sampler: Sampler = "bayesian"
    seed: int = 0
    device: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How to search: ``trials`` in all, the first with the model's defaults."""

    trials: int
    sampler: Sampler
    seed: int
    device: str


def check_asked(asked: Asked) -> None:
    """Raise ConfigurationError for what no training can be."""
    if asked.trials < 0:
        raise ConfigurationError("the number of trials is 0 (once, with the defaults) or more")
    if asked.seed < 0:
        raise ConfigurationError("the seed is 0 or more")
    if asked.sampler not in SAMPLERS:
        raise ConfigurationError(f"the sampler {asked.sampler!r} is none of {', '.join(SAMPLERS)}")
