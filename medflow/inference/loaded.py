"""A model on its device: what a runner asks of it, and the size of batch that it turned out to take."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from medflow.errors import PluginBroken, place_of
from medflow.inference.lane import Lane
from medflow.plugin import Explanation, Model, ModelSpec, Prediction

log = logging.getLogger(__name__)


class LoadedModel:
    """One model that has been loaded.

    ``planned_batch`` decides which cases share a batch and stays as it is, so that batches depend on places alone.
    ``batch_size`` is what the device took: it starts there and is halved, for good, when memory runs out. So is
    ``explained_size``, of the cases that are explained at once, which gradients make larger.

    Parameters
    ----------
    model
        Already loaded on the lane's device.
    lane
        The way into that device.
    planned_batch
        Cases in a batch; the spec's batch size when None.
    """

    def __init__(self, model: Model, lane: Lane, *, planned_batch: int | None = None) -> None:
        self.spec: ModelSpec = model.spec
        self.lane = lane
        self.planned_batch = planned_batch or model.spec.batch_size
        self.batch_size = self.planned_batch
        self.explained_size = self.planned_batch
        self._model: Model | None = model
        self._shrinking = threading.Lock()

    @property
    def model(self) -> Model:
        """The model itself, to prepare cases with."""
        if self._model is None:
            raise RuntimeError(f"{self.spec.name} was unloaded while it was in use")
        return self._model

    def predict(self, batch: Sequence[Any]) -> list[Prediction]:
        """Score one batch of prepared cases, in the device's lane: the caller has entered `Lane.predicting`.

        Raises
        ------
        PluginBroken
            The model gave another number of predictions.
        """
        predictions = self.model.predict(batch)
        if len(predictions) != len(batch):
            raise PluginBroken(f"{self.spec.name} gave {len(predictions)} predictions for a batch of {len(batch)}")
        return predictions

    @property
    def explains(self) -> bool:
        """Whether the model can explain its predictions."""
        return type(self.model).explain is not Model.explain

    def explain(self, batch: Sequence[Any], predictions: Sequence[Prediction]) -> Sequence[Mapping[str, Explanation]]:
        """What led to each prediction, in the device's lane: the caller has entered `Lane.explaining`.

        Raises
        ------
        PluginBroken
            The model gave another number of explanations.
        """
        found = self.model.explain(batch, predictions)
        if len(found) != len(batch):
            raise PluginBroken(f"{self.spec.name} gave {len(found)} explanations for a batch of {len(batch)}")
        return found

    def shrink(self, failed: int) -> None:
        """Remember that a batch of ``failed`` cases was too much for the device."""
        with self._shrinking:
            self.batch_size = max(1, min(self.batch_size, failed // 2))
        log.warning(
            "out of device memory at a batch of %d of %s; going on with %d", failed, self.spec.name, self.batch_size
        )

    def explain_fewer(self, failed: int) -> None:
        """Remember that ``failed`` cases at once were too many to explain; predicting goes on as before."""
        with self._shrinking:
            self.explained_size = max(1, min(self.explained_size, failed // 2))
        log.warning(
            "out of device memory explaining %d cases of %s; going on with %d",
            failed,
            self.spec.name,
            self.explained_size,
        )

    def close(self) -> None:
        """Unload the model: nothing here keeps it, whatever its own ``close`` does."""
        model, self._model = self._model, None
        if model is None:
            return
        try:
            model.close()
        except Exception as error:  # noqa: BLE001 - a plugin's code; the model is dropped all the same
            log.warning("%s did not close: %s at %s", self.spec.name, type(error).__name__, place_of(error))
