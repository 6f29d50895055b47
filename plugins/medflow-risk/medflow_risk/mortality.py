"""In-hospital mortality from the first 48 hours in intensive care: the declaration, and the model at work.

Reading this module imports no torch; `IcuMortality.load` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from medflow.plugin import (
    SNOMED,
    Case,
    Choice,
    Coding,
    Epoch,
    Examples,
    Fitted,
    HyperParameter,
    Integer,
    ModelCard,
    ModelSpec,
    Prediction,
    Real,
    Risk,
    Trainable,
    UnitKind,
    Weights,
)
from medflow_risk.channels import SERIES
from medflow_risk.features import series_features, static_features

YOUNGEST = 15  # years: the youngest in the training data

SPEC = ModelSpec(
    name="icu-mortality",
    version="1.0.0",
    title="In-hospital mortality from the first 48 hours in intensive care",
    unit=UnitKind.ENCOUNTER,
    accepts=(SERIES,),
    outputs=(
        Risk(
            name="in-hospital-death",
            code=Coding(system=SNOMED, code="225338004", display="Risk assessment"),
            outcome=Coding(system=SNOMED, code="419099009", display="Dead"),
            horizon=None,
            calibrated=True,
        ),
    ),
    weights=(
        Weights(
            file="icu_mortality.safetensors", sha256="7d29186e1579559fe799e50c21543a46914b9fc26179214b29469ac554b01f58"
        ),
    ),
    batch_size=128,
    memory_mib=512,
    card=ModelCard(
        intended_use="Research and evaluation of the pipeline on adults in intensive care; not a medical device.",
        training_data="PhysioNet/CinC Challenge 2012 set A: 4,000 stays, one hospital, 2001 to 2008 (ODC-By 1.0).",
        licence="Apache-2.0",
        metrics={
            "AUROC": "0.862 in 5-fold cross-validation (3,994 stays, 554 deaths)",
            "AUPRC": "0.524, likewise",
            "min(sensitivity, positive predictivity)": "0.502, likewise",
            "Brier score": "0.089, likewise, each fold calibrated on the others",
        },
        limits="One hospital, no external validation; not for children, nor for decisions to limit treatment.",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Features of one stay: ``series`` (3, steps, channels), ``statics`` (8,); or why the model has no answer."""

    series: np.ndarray
    statics: np.ndarray
    out_of_scope: str | None = None


class IcuMortality(Trainable[Prepared]):
    """Fifteen LSTMs, three from each fold of the cross-validation, averaged and calibrated."""

    spec: ClassVar[ModelSpec] = SPEC
    hyperparameters: ClassVar[Sequence[HyperParameter]] = (
        Choice(name="hidden", default=64, options=(32, 64, 96)),
        Real(name="dropout", default=0.3, low=0.0, high=0.6),
        Real(name="learning_rate", default=2e-3, low=3e-4, high=1e-2, log=True),
        Integer(name="epochs", default=10, low=4, high=30),
        Integer(name="members", default=3, low=1, high=10),
    )
    _ensemble: Any = None
    _device: str = "cpu"

    def load(self, device: str) -> None:
        """Read the weights and put the ensemble on ``device``."""
        from medflow.inference.weights import load_weights
        from medflow_risk.network import Ensemble

        (weights,) = self.spec.weights
        self._ensemble = Ensemble.of(load_weights("medflow_risk", weights, self.folder)).to(device)
        self._device = device

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
        """As `Trainable.fit`; calibrated (Platt) on ``validation``."""
        from medflow_risk.train import fit_ensemble

        return fit_ensemble(training, validation, chosen, seed=seed, device=device, report=report)

    def prepare(self, case: Case) -> Prepared:
        """Features of one stay."""
        series = case.series
        too_young = series.statics[0] < YOUNGEST  # False for an unknown age
        return Prepared(
            series=series_features(series.values),
            statics=static_features(series.statics),
            out_of_scope=f"the model knows no patient under {YOUNGEST} years" if too_young else None,
        )

    def predict(self, batch: Sequence[Prepared]) -> list[Prediction]:
        """Probabilities of a batch in one pass."""
        import torch

        series = torch.from_numpy(np.stack([item.series for item in batch])).to(self._device)
        statics = torch.from_numpy(np.stack([item.statics for item in batch])).to(self._device)
        with torch.inference_mode():
            risks = self._ensemble(series, statics).double().cpu().tolist()
        return [
            Prediction(out_of_scope=item.out_of_scope)
            if item.out_of_scope
            else Prediction(values={"in-hospital-death": risk})
            for item, risk in zip(batch, risks, strict=True)
        ]

    def close(self) -> None:
        """Let the ensemble go."""
        self._ensemble = None
