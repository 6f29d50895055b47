"""Small real models for the tests: numpy only, each with one way of behaving."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from medflow.errors import InputNotUsable
from medflow.plugin import (
    Case,
    Coding,
    Measure,
    Model,
    ModelCard,
    ModelSpec,
    Prediction,
    SequenceInput,
    SequenceWindow,
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
