"""Small real models for the tests: numpy only, each with one way of behaving."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

import numpy as np

from medflow.errors import InputNotUsable
from medflow.plugin import (
    Case,
    Channel,
    Coding,
    Explanation,
    Measure,
    Model,
    ModelCard,
    ModelSpec,
    Prediction,
    SequenceInput,
    SequenceWindow,
    SeriesAttribution,
    TimeSeries,
    TimeSeriesInput,
    UnitKind,
)
from medflow.records import Unit
from medflow.registry import RegisteredModel

GC = Coding(system="urn:test", code="gc-content", display="GC content")
CARD = ModelCard(
    intended_use="tests", training_data="none", licence="Apache-2.0", metrics={"none": "none"}, limits="tests only"
)


class GcContent(Model[str]):
    """The fraction of G and C in a sequence; refuses one that starts with N."""

    spec: ClassVar[ModelSpec] = ModelSpec(
        name="gc-content",
        version="1.0.0",
        title="GC content",
        unit=UnitKind.SEQUENCE,
        accepts=(SequenceInput(length=8),),
        outputs=(Measure(name="gc", code=GC, unit="1", valid_range=(0.0, 1.0)),),
        card=CARD,
        batch_size=4,
    )

    def load(self, device: str) -> None:
        """Nothing to load."""

    def prepare(self, case: Case) -> str:
        """The bases."""
        bases = case.sequence.bases
        if bases.startswith("N"):
            raise InputNotUsable("unknown-base", "the sequence starts with N")
        return bases

    def predict(self, batch: Sequence[str]) -> list[Prediction]:
        """The fraction of each."""
        return [Prediction(values={"gc": sum(letter in "GC" for letter in bases) / len(bases)}) for bases in batch]


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


class SmallDevice(GcContent):
    """Runs out of device memory with more than ``room`` cases at once."""

    room = 2

    def predict(self, batch: Sequence[str]) -> list[Prediction]:
        """Fails on a batch that is too large."""
        if len(batch) > self.room:
            raise OutOfMemoryError("out of memory")
        return super().predict(batch)


class Choosy(GcContent):
    """Its predict fails on any batch that holds TTTTTTTT."""

    def predict(self, batch: Sequence[str]) -> list[Prediction]:
        """Fails with a text that quotes its input, as careless code does."""
        if "TTTTTTTT" in batch:
            raise ValueError(f"cannot score {batch}")
        return super().predict(batch)


class Fragile(Model[float]):
    """The value of a stay of one measurement: refuses what is below 0, fails at 13, and ends its process at 666."""

    spec: ClassVar[ModelSpec] = ModelSpec(
        name="fragile",
        version="1.0.0",
        title="One value",
        unit=UnitKind.ENCOUNTER,
        accepts=(
            TimeSeriesInput(
                channels=(Channel(name="value", codes=(GC,), unit="1"),),
                window=timedelta(hours=1),
                step=timedelta(hours=1),
            ),
        ),
        outputs=(Measure(name="mean", code=GC, unit="1", valid_range=(0.0, 100.0)),),
        card=CARD,
        batch_size=4,
    )

    def load(self, device: str) -> None:
        """Nothing to load."""

    def prepare(self, case: Case) -> float:
        """The value."""
        value = float(case.series.values[0, 0])
        if value < 0:
            raise InputNotUsable("negative", "the value is below 0")
        return value

    def predict(self, batch: Sequence[float]) -> list[Prediction]:
        """Each value."""
        if 666.0 in batch:
            os.kill(os.getpid(), signal.SIGKILL)
        if 13.0 in batch:
            raise ValueError(f"cannot score {batch}")
        return [Prediction(values={"mean": value}) for value in batch]

    def explain(self, batch: Sequence[float], predictions: Sequence[Prediction]) -> Sequence[Mapping[str, Explanation]]:
        """The value itself."""
        values = [np.full((1, 1), value, dtype=np.float32) for value in batch]
        return [{"mean": SeriesAttribution(values=one, statics=np.empty(0, dtype=np.float32))} for one in values]


class Unloadable(Fragile):
    """Cannot be loaded."""

    def load(self, device: str) -> None:
        """Fails."""
        raise ValueError("no such weights")


def renamed(model: type[Model], name: str) -> type[Model]:
    """The same model under another name."""
    return type(name, (model,), {"spec": replace(model.spec, name=name), "__module__": model.__module__})


def registered(model: type[Model], *, digest: str = "d1") -> RegisteredModel:
    """The model as an installed distribution's entry point would give it."""
    return RegisteredModel(
        spec=model.spec, distribution="tests 1", entry_point=model.spec.name, digest=digest, factory=model
    )


def sequences(path: Path, count: int) -> Path:
    """A FASTA file of so many sequences, of patients of their own."""
    letters = random.Random(1)
    lines = (
        f">s{number} patient=urn:test|{number}\n{''.join(letters.choices('ACGT', k=12))}" for number in range(count)
    )
    path.write_text("\n".join(lines) + "\n")
    return path


def sequence_case(number: int, bases: str) -> Case:
    """A case of one sequence."""
    unit = Unit(kind=UnitKind.SEQUENCE, id=number)
    return Case(
        unit=unit, prediction_time=datetime(2026, 1, 1, tzinfo=UTC), inputs={"sequence": SequenceWindow(bases=bases)}
    )


def stay_case(number: int, value: float) -> Case:
    """A case of a stay with one measurement."""
    series = TimeSeries(values=np.full((1, 1), value, dtype=np.float32), statics=np.empty(0, dtype=np.float32))
    unit = Unit(kind=UnitKind.ENCOUNTER, id=number)
    return Case(unit=unit, prediction_time=datetime(2026, 1, 1, tzinfo=UTC), inputs={"series": series})
