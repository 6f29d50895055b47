"""What somebody asks of a training, and of which models: known before scikit-learn and Optuna are imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from medflow.config import LabelTable
from medflow.errors import ConfigurationError
from medflow.plugin import Trainable
from medflow.registry import RegisteredModel, Registry

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


def trainable(installed: Registry, name: str) -> type[Trainable[Any]]:
    """The class of a model that can be trained.

    Raises
    ------
    ConfigurationError
        It cannot; the message names those that can.
    """
    found = _class_of(installed.get(name))
    if found is not None:
        return found
    able = ", ".join(item.name for item in installed.choose() if is_trainable(item)) or "none"
    raise ConfigurationError(
        f"{name} cannot be trained: it has no way to be fitted; installed models that have: {able}"
    )


def is_trainable(model: RegisteredModel) -> bool:
    """Whether `medflow train` can fit this model."""
    return _class_of(model) is not None


def _class_of(model: RegisteredModel) -> type[Trainable[Any]] | None:
    try:
        kind = model.factory if isinstance(model.factory, type) else type(model.factory())
    except Exception:  # noqa: BLE001 - a plugin's code; what cannot be made cannot be trained
        return None
    return kind if issubclass(kind, Trainable) else None
