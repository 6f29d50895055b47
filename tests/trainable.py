"""A model that can be trained: the share of G and C, times a factor that a version trained here has in its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from safetensors.numpy import load, save

from medflow.inference.weights import read_weights
from medflow.plugin import ModelCard, ModelSpec, Prediction, Weights
from medflow.registry import RegisteredModel, dump_spec, model_digest
from medflow.store import Store, trained
from tests.models import GcContent

WEIGHTS = "factor.safetensors"


class Leaning(GcContent):
    """As its plugin brings it, the factor is 1."""

    spec: ClassVar[ModelSpec] = replace(GcContent.spec, name="leaning", version="1.1.0")

    def load(self, device: str) -> None:
        """The factor."""
        self._factor = 1.0
        if self.spec.weights:
            tensors = load(read_weights("tests", self.spec.weights[0], self.folder))
            self._factor = float(tensors["factor"][0])

    def predict(self, batch: Sequence[str]) -> list[Prediction]:
        """Of each."""
        shares = (prediction.values["gc"] for prediction in super().predict(batch))
        return [Prediction(values={"gc": float(share) * self._factor}) for share in shares]  # type: ignore[arg-type]


def leaning(**spec: Any) -> RegisteredModel:
    """The model as its plugin brings it."""
    declared = replace(Leaning.spec, **spec)
    made = type("Leaning", (Leaning,), {"spec": declared, "__module__": Leaning.__module__})
    return RegisteredModel(
        spec=declared,
        distribution="tests 1",
        entry_point=declared.name,
        digest=model_digest(made, declared),
        factory=made,
    )


def train(store: Store, factor: float = 0.5, *, metrics: dict[str, Any] | None = None, **spec: Any) -> str:
    """Keep a candidate of this factor, as a training would; returns its version."""
    digest = store.objects.put(save({"factor": np.array([factor], dtype=np.float32)}))
    card = store.objects.put(b"# Leaning\n\nFitted to 12 sequences.\n")
    with store.writing() as connection:
        version = trained.next_version(connection, "leaning", "1.1.0")
        weights = (Weights(file=WEIGHTS, sha256=digest),)
        about = ModelCard(intended_use="tests", training_data="12 sequences", licence="Apache-2.0")
        declared = replace(Leaning.spec, version=version, weights=weights, card=about)
        trained.add(
            connection,
            model="leaning",
            version=version,
            base_version="1.1.0",
            base_digest="d",
            spec={**dump_spec(declared), **spec},
            files={WEIGHTS: digest, trained.CARD: card},
            hyperparameters={"factor": factor},
            seed=7,
            cohort={"cases": 12, "patients": 9},
            metrics=metrics or {"test": {"auroc": 0.8, "auprc": 0.5, "ece": 0.03}},
        )
    return version
