"""The smallest useful plugin: the mean heart rate over the first day of an encounter."""

from collections.abc import Sequence
from datetime import timedelta

import numpy as np

from medflow.plugin import (
    LOINC,
    Case,
    Channel,
    Coding,
    InputNotUsable,
    Measure,
    Model,
    ModelCard,
    ModelSpec,
    Prediction,
    TimeSeriesInput,
    UnitKind,
)

HEART_RATE = Coding(system=LOINC, code="8867-4", display="Heart rate")


class MeanHeartRate(Model[np.ndarray]):
    """Averages the hours in which a heart rate was measured."""

    spec = ModelSpec(
        name="mean-heart-rate",
        version="1.0.0",
        title="Mean heart rate of the first day",
        unit=UnitKind.ENCOUNTER,
        accepts=(
            TimeSeriesInput(
                channels=(Channel(name="heart rate", codes=(HEART_RATE,), unit="/min", valid_range=(0, 300)),),
                window=timedelta(hours=24),
                step=timedelta(hours=1),
            ),
        ),
        outputs=(
            Measure(
                name="mean",
                code=Coding(system=LOINC, code="41924-2", display="Heart rate 24 hour mean"),
                unit="/min",
                valid_range=(0, 300),
            ),
        ),
        card=ModelCard(
            intended_use="To show how a plugin is written.",
            training_data="None: the model has no parameters.",
            licence="Apache-2.0",
            metrics={"none": "an average is not measured against anything"},
            limits="Hours without a measurement count for nothing.",
        ),
        batch_size=64,
        memory_mib=1,
    )

    def load(self, device: str) -> None:
        """Nothing to load."""

    def prepare(self, case: Case) -> np.ndarray:
        """The hours that were measured, shape (hours,)."""
        hours = case.series.values[:, 0]
        measured = hours[np.isfinite(hours)]
        if not len(measured):
            raise InputNotUsable("no-heart-rate", "no heart rate was measured in the first day")
        return measured

    def predict(self, batch: Sequence[np.ndarray]) -> list[Prediction]:
        """The mean of each case."""
        return [Prediction(values={"mean": float(hours.mean())}) for hours in batch]
