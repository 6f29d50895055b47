"""Sustained hypotension in the next 24 hours, from the last 24: an early-warning score for whoever is there tonight.

Reading this module imports no torch; `EarlyWarning.load` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from medflow.errors import InputNotUsable
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
    SeriesAttribution,
    Trainable,
    UnitKind,
    Weights,
)
from medflow_risk.warning_features import (
    HORIZON,
    INVASIVE,
    LOW_MMHG,
    NON_INVASIVE,
    SERIES,
    WIDTH,
    arterial_pressure,
    series_features,
    static_features,
    sustained_low,
)

YOUNGEST = 15  # years: the youngest in the training data
OUTPUT = "sustained-hypotension"
STATIC_GROUPS = ((0, 1), (2, 3), (4,), (5,), (6,), (7,))  # the features of `static_features` that stand for each static

SPEC = ModelSpec(
    name="early-warning",
    version="1.0.0",
    title="Sustained hypotension within 24 hours, of patients in intensive care",
    unit=UnitKind.ENCOUNTER,
    accepts=(SERIES,),
    outputs=(
        Risk(
            name=OUTPUT,
            code=Coding(system=SNOMED, code="225338004", display="Risk assessment"),
            outcome=Coding(system=SNOMED, code="45007003", display="Low blood pressure"),
            horizon=HORIZON,
            threshold=0.15,
            calibrated=True,
        ),
    ),
    weights=(
        Weights(
            file="early_warning.safetensors", sha256="3943c981107a13b74adbe5c8b7679fa9b10e30b7bc506f7a1b41e3a05871ad60"
        ),
    ),
    reference=Weights(
        file="early_warning.reference.json", sha256="2e82965b270b732baa653d760d67ac3f450b978b581cd7e1112087807320bca5"
    ),
    batch_size=128,
    memory_mib=256,
    card=ModelCard(
        intended_use="Research and evaluation of the pipeline on adults in intensive care; not a medical device.",
        training_data="PhysioNet/CinC Challenge 2012 set A: 4,000 stays, one hospital, 2001 to 2008 (ODC-By 1.0).",
        licence="Apache-2.0",
        metrics={
            "AUROC": "0.780 in 5-fold cross-validation by stay (9,987 looks at 3,459 stays, 1,061 events)",
            "AUPRC": "0.300, likewise; the event followed 10.6 % of the looks",
            "Brier score": "0.084, likewise, each fold calibrated on the others",
            "calibration error (ECE)": "0.006, likewise, over tenths",
            "at the threshold": "sensitivity 0.60, positive predictive value 0.26, 24.9 alerts per 100 stay-days",
            "beside it, logistic regression on last values": "AUROC 0.764, AUPRC 0.289, on the same folds",
        },
        limits="One hospital, no external validation, the second day of intensive care only; not for children.",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Features of one window: ``series`` (3, steps, channels), ``statics`` (8,); or why the model has no answer."""

    series: np.ndarray
    statics: np.ndarray
    out_of_scope: str | None = None


def by_channel(shares: SeriesAttribution, measured: np.ndarray) -> SeriesAttribution:
    """The shares of the features (steps, READ) as those of the declared channels (steps, WIDTH).

    That of the arterial pressure belongs to the channel it was taken from; ``measured`` (steps, READ) says which.
    """
    values, pressure = shares.values[:, :WIDTH].copy(), shares.values[:, WIDTH]
    cuff = (measured[:, INVASIVE] == 0) & (measured[:, NON_INVASIVE] > 0)
    values[:, INVASIVE] += np.where(cuff, 0, pressure)
    values[:, NON_INVASIVE] += np.where(cuff, pressure, 0)
    return SeriesAttribution(values=values, statics=shares.statics)


class EarlyWarning(Trainable[Prepared]):
    """Ten small GRUs, two from each fold of the cross-validation, averaged and calibrated."""

    spec: ClassVar[ModelSpec] = SPEC
    hyperparameters: ClassVar[Sequence[HyperParameter]] = (
        Choice(name="hidden", default=24, options=(16, 24, 48)),
        Real(name="dropout", default=0.4, low=0.0, high=0.6),
        Real(name="learning_rate", default=3e-3, low=3e-4, high=1e-2, log=True),
        Integer(name="epochs", default=8, low=4, high=30),
        Integer(name="members", default=3, low=1, high=10),
    )
    _ensemble: Any = None
    _device: str = "cpu"

    def load(self, device: str) -> None:
        """Read the weights and put the ensemble on ``device``."""
        from medflow.inference.weights import load_weights
        from medflow_risk.warning_network import WarningEnsemble

        (weights,) = self.spec.weights
        self._ensemble = WarningEnsemble.of(load_weights("medflow_risk", weights, self.folder)).to(device)
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
        """As `Trainable.fit`; calibrated (Platt) on ``validation``. Windows out of the model's scope teach nothing."""
        from medflow_risk.warning_train import fit_ensemble

        return fit_ensemble(training, validation, chosen, seed=seed, device=device, report=report)

    def prepare(self, case: Case) -> Prepared:
        """Features of one window.

        Raises
        ------
        InputNotUsable
            no-arterial-pressure: whether the patient is hypotensive already cannot be known.
        """
        series = case.series
        pressure = arterial_pressure(series.values)
        if np.isnan(pressure).all():
            raise InputNotUsable("no-arterial-pressure", "the window holds no mean arterial pressure")
        reason = None
        if series.statics[0] < YOUNGEST:  # False for an unknown age
            reason = f"the model knows no patient under {YOUNGEST} years"
        elif sustained_low(pressure).any():
            reason = f"mean arterial pressure below {LOW_MMHG:.0f} mm[Hg] for two hours has come already"
        return Prepared(
            series=series_features(series.values), statics=static_features(series.statics), out_of_scope=reason
        )

    def predict(self, batch: Sequence[Prepared]) -> list[Prediction]:
        """Probabilities of a batch in one pass."""
        risks = self._ensemble(*self._tensors(batch)).double().cpu().tolist()
        return [
            Prediction(out_of_scope=item.out_of_scope) if item.out_of_scope else Prediction(values={OUTPUT: risk})
            for item, risk in zip(batch, risks, strict=True)
        ]

    def explain(
        self, batch: Sequence[Prepared], predictions: Sequence[Prediction]
    ) -> Sequence[Mapping[str, Explanation]]:
        """Integrated gradients of the log-odds, from a window in which nothing is known."""
        from medflow_risk.attribution import attribute

        usual = self._ensemble.usual()
        found = attribute(self._ensemble.logits, *self._tensors(batch), usual, STATIC_GROUPS)
        shares = [by_channel(one, item.series[1]) for one, item in zip(found, batch, strict=True)]
        return [{OUTPUT: one} for one in shares]

    def _tensors(self, batch: Sequence[Prepared]) -> tuple[Any, Any]:
        import torch

        series = torch.from_numpy(np.stack([item.series for item in batch])).to(self._device)
        statics = torch.from_numpy(np.stack([item.statics for item in batch])).to(self._device)
        return series, statics

    def close(self) -> None:
        """Let the ensemble go."""
        self._ensemble = None
