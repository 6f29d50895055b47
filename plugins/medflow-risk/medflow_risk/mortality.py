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
    Explanation,
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
from medflow_risk.features import features

YOUNGEST = 15  # years: the youngest in the training data
OUTPUT = "in-hospital-death"

SPEC = ModelSpec(
    name="icu-mortality",
    version="1.3.0",
    title="In-hospital mortality from the first 48 hours in intensive care",
    unit=UnitKind.ENCOUNTER,
    accepts=(SERIES,),
    outputs=(
        Risk(
            name=OUTPUT,
            code=Coding(system=SNOMED, code="225338004", display="Risk assessment"),
            outcome=Coding(system=SNOMED, code="419099009", display="Dead"),
            horizon=None,
            threshold=0.334,
            calibrated=True,
        ),
    ),
    weights=(
        Weights(
            file="icu_mortality.safetensors", sha256="b232a17f3e6434f4a5b80858806a82eae511eaa6f16b5953cacf78a9936f211d"
        ),
    ),
    reference=Weights(
        file="icu_mortality.reference.json", sha256="f1b78243943de19d0f33384ccbe1f307a11a81fcea5d641622c931c68286425e"
    ),
    batch_size=256,
    memory_mib=512,
    card=ModelCard(
        intended_use="Research and evaluation of the pipeline on adults in intensive care; not a medical device.",
        training_data="PhysioNet/CinC Challenge 2012 set A: 4,000 stays, one hospital, 2001 to 2008 (ODC-By 1.0).",
        licence="Apache-2.0",
        metrics={
            "AUROC": "0.876 in 5-fold cross-validation (3,994 stays, 554 deaths)",
            "AUPRC": "0.571, likewise",
            "min(sensitivity, positive predictivity)": "0.536, likewise, at thresholds chosen on the training folds",
            "Brier score": "0.084, likewise, each fold calibrated on its training stays",
            "Expected calibration error": "0.007, likewise",
        },
        limits="One hospital, no external validation; not for children, nor for decisions to limit treatment.",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """One stay as `TimeSeries` gives it: ``values`` (hours, channels), ``statics`` (6,); or why there is no answer."""

    values: np.ndarray
    statics: np.ndarray
    out_of_scope: str | None = None


class IcuMortality(Trainable[Prepared]):
    """Five members, one of each fold of the cross-validation, averaged and calibrated.

    Each joins four networks of the course (LSTM; of a version trained at a site also GRU or transformer) with boosted
    trees over a summary.
    """

    spec: ClassVar[ModelSpec] = SPEC
    hyperparameters: ClassVar[Sequence[HyperParameter]] = (
        Choice(name="core", default="lstm", options=("lstm", "gru", "transformer")),
        Choice(name="hidden", default=40, options=(24, 40, 64)),
        Real(name="dropout", default=0.4, low=0.1, high=0.6),
        Real(name="hidden_channels", default=0.2, low=0.0, high=0.4),
        Real(name="learning_rate", default=2e-3, low=5e-4, high=8e-3, log=True),
        Integer(name="epochs", default=10, low=4, high=30),
        Integer(name="members", default=3, low=1, high=10),
        Integer(name="trees", default=200, low=25, high=400),
        Real(name="tree_rate", default=0.08, low=0.02, high=0.2, log=True),
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
        """As `Trainable.fit`; calibrated (Platt) on ``validation``, where the threshold is chosen too."""
        from medflow_risk.fitting import fit_ensemble

        (weights,) = cls.spec.weights
        return fit_ensemble(training, validation, chosen, file=weights.file, seed=seed, device=device, report=report)

    def prepare(self, case: Case) -> Prepared:
        """The stay as it is: features are made of a batch at once."""
        series = case.series
        too_young = series.statics[0] < YOUNGEST  # False for an unknown age
        return Prepared(
            values=series.values,
            statics=series.statics,
            out_of_scope=f"the model knows no patient under {YOUNGEST} years" if too_young else None,
        )

    def predict(self, batch: Sequence[Prepared]) -> list[Prediction]:
        """Probabilities of a batch in one pass."""
        import torch

        sequence, summary = (torch.from_numpy(part).to(self._device) for part in features(*_stacked(batch)))
        with torch.inference_mode():
            risks = self._ensemble(sequence, summary).double().cpu().tolist()
        return [
            Prediction(out_of_scope=item.out_of_scope) if item.out_of_scope else Prediction(values={OUTPUT: risk})
            for item, risk in zip(batch, risks, strict=True)
        ]

    def explain(self, batch: Sequence[Prepared], predictions: Sequence[Prediction]) -> list[Mapping[str, Explanation]]:
        """Integrated gradients of each risk in log-odds: see `medflow_risk.explanation`."""
        from medflow_risk.explanation import explain

        found = explain(self._ensemble, *_stacked(batch), self._device)
        return [
            {} if prediction.out_of_scope else {OUTPUT: shares}
            for prediction, shares in zip(predictions, found, strict=True)
        ]

    def close(self) -> None:
        """Let the ensemble go."""
        self._ensemble = None


def _stacked(batch: Sequence[Prepared]) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([item.values for item in batch]), np.stack([item.statics for item in batch])
