"""A small real model that can be fitted, and stays enough to fit it to: those with a fast heart die more often."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from safetensors.numpy import load

from medflow.inference.weights import read_weights
from medflow.plugin import (
    Choice,
    Epoch,
    Examples,
    Fitted,
    HyperParameter,
    Integer,
    Model,
    ModelSpec,
    Prediction,
    Real,
    Risk,
    TimeSeriesInput,
    Trainable,
    Weights,
)
from medflow.registry import RegisteredModel, Registry, model_digest
from tests.stays import HeartRisk, Stay

WEIGHTS = "heart.safetensors"


class HeartFit(Trainable[float]):
    """A logistic regression on the mean heart rate; as its plugin brings it, it knows nothing.

    MEDFLOW_TESTS_FITS names a file that gets a line for each epoch, MEDFLOW_TESTS_EPOCH_S makes each last as long.
    """

    spec: ClassVar[ModelSpec] = replace(
        HeartRisk.spec,
        name="heart-fit",
        version="1.2.0",
        weights=(Weights(file=WEIGHTS, sha256="0" * 64),),
        card=replace(HeartRisk.spec.card, limits="hearts only"),
    )
    hyperparameters: ClassVar[Sequence[HyperParameter]] = (
        Real(name="rate", default=0.5, low=0.05, high=2.0, log=True),
        Integer(name="epochs", default=6, low=4, high=8),
        Choice(name="start", default="zero", options=("zero", "drawn")),
    )

    def load(self, device: str) -> None:
        """Slope and intercept."""
        self._weights = np.array([0.0, -1.0])
        if self.folder is not None:
            self._weights = load(read_weights("tests", self.spec.weights[0], self.folder))["weights"]

    def prepare(self, case: Any) -> float:
        """The mean heart rate, around 0."""
        return _standard(case.series.values[None])[0]

    def predict(self, batch: Sequence[float]) -> list[Prediction]:
        """Of each."""
        return [Prediction(values={"death": float(_chance(self._weights, np.array([rate]))[0])}) for rate in batch]

    @classmethod
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
        """Gradient descent."""
        rng = np.random.default_rng(seed)
        weights = np.zeros(2) if chosen["start"] == "zero" else rng.normal(size=2)
        x, y = _standard(training.values), training.outcome
        print("what a model prints is not for stdout")
        for number in range(1, chosen["epochs"] + 1):
            noted = os.environ.get("MEDFLOW_TESTS_FITS")
            if noted:
                with Path(noted).open("a") as file:
                    file.write(f"{seed} {number}\n")
            time.sleep(float(os.environ.get("MEDFLOW_TESTS_EPOCH_S", "0")))
            error = _chance(weights, x) - y
            weights = weights - chosen["rate"] * np.array([(error * x).mean(), error.mean()])
            loss = _loss(_chance(weights, _standard(validation.values)), validation.outcome)
            report(Epoch(number=number, training_loss=_loss(_chance(weights, x), y), validation_loss=loss))
        return Fitted(tensors={WEIGHTS: {"weights": weights}}, threshold=0.4)


def _standard(values: np.ndarray) -> np.ndarray:
    return (np.nanmean(values[:, :, 0], axis=1) - 100) / 30


def _chance(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-(weights[0] * x + weights[1])))


def _loss(chance: np.ndarray, outcome: np.ndarray) -> float:
    return float(-np.mean(np.log(np.where(outcome == 1, chance, 1 - chance))))


def stays(count: int = 240) -> list[Stay]:
    """Of every fifth patient there are two stays."""
    return [
        Stay(
            number=number,
            patient=number - 1 if number % 5 == 1 else number,
            rate=55 + (number * 37) % 90,
            disposition="exp" if (number * 37) % 90 + (number * 53) % 40 > 65 else "home",
            sex="male" if number % 10 < 5 else "female",
            born=f"{1936 + (number // 5) % 60}-03-01",
        )
        for number in range(count)
    ]


def registered(model: type[Model[Any]], **spec: Any) -> RegisteredModel:
    """A model as its plugin brings it."""
    declared = replace(model.spec, **spec)
    made = type(model.__name__, (model,), {"spec": declared, "__module__": model.__module__})
    return RegisteredModel(
        spec=declared,
        distribution="tests 1",
        entry_point=declared.name,
        digest=model_digest(made, declared),
        factory=made,
    )


def registry(*models: RegisteredModel) -> Registry:
    """These models, installed."""
    return Registry(models={model.name: model for model in models}, broken=())


def series_of(model: type[Model[Any]]) -> TimeSeriesInput:
    """The model's input."""
    (series,) = model.spec.accepts
    assert isinstance(series, TimeSeriesInput)
    return series


def risk_of(model: type[Model[Any]]) -> Risk:
    """The model's output."""
    (output,) = model.spec.outputs
    assert isinstance(output, Risk)
    return output
