"""An added bundle as a model. Nothing heavy is imported before `load`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from medflow.errors import InputNotUsable, PluginBroken, PredictionInvalid
from medflow.plugin import Case, Image, LabelMask, Mask, Model, Prediction
from medflow_monai.bundles.pinned import Pinned, private_copy, verify

if TYPE_CHECKING:
    from medflow_monai.bundles.workflow import Prepared, Workflow


Answer = dict[str, float | Mask]


class BundleModel(Model["Prepared"]):
    """What every added bundle's model is; `bundle_model` makes the class of one."""

    pinned: ClassVar[Pinned]

    @classmethod
    def verify_weights(cls) -> None:
        """Raise PluginBroken unless every byte is what was added."""
        verify(cls.pinned)

    def load(self, device: str) -> None:
        """Check every byte of the bundle and build it on ``device``."""
        self._copy = TemporaryDirectory(prefix="medflow-bundle-")
        try:
            private_copy(self.pinned, Path(self._copy.name))
            from medflow_monai.bundles.workflow import Workflow

            self._workflow: Workflow = Workflow(Path(self._copy.name), self.pinned.plan, device)
        except PluginBroken as error:
            self._copy.cleanup()
            raise PluginBroken(f"bundle {self.pinned.name}: {error.message}") from None
        except BaseException:
            self._copy.cleanup()
            raise

    def prepare(self, case: Case) -> Prepared:
        """The bundle's preprocessing of the case's images."""
        images = {name: image for name, image in case.inputs.items() if isinstance(image, Image)}
        for image in images.values():
            if self.pinned.plan.dimensions == 3 and image.affine is None:
                raise InputNotUsable("no-geometry", "the series says nothing of its position and orientation")
            if not np.isfinite(image.array).all():
                raise InputNotUsable("image-not-finite", "the image has voxels that are no numbers")
        return self._workflow.prepare(images)

    def predict(self, batch: Sequence[Prepared]) -> list[Prediction]:
        """Masks on the grid of each input, or probabilities."""
        answer = self._masks if self.pinned.plan.task == "segmentation" else self._probabilities
        return [Prediction(values=answer(self._workflow.predict(item).cpu().numpy())) for item in batch]

    def close(self) -> None:
        """Let the network and the private copy go."""
        del self._workflow
        self._copy.cleanup()

    def _masks(self, found: np.ndarray) -> Answer:
        """Masks (z, y, x) of a segmentation (channels, x, y, z): one channel of label values, or one a label."""
        channels = self.pinned.plan.channels
        if len(found) == len(channels):
            return self._masks_of_channels(found, channels)
        if len(found) != 1:
            raise PredictionInvalid(
                "bundle-channels", f"the bundle gave {len(found)} channels, and its metadata names {len(channels)}"
            )
        labels = _label_map(found[0].T, {*channels, 0})
        return {name: LabelMask(labels=labels, value=value) for value, name in channels.items() if name is not None}

    def _masks_of_channels(self, found: np.ndarray, channels: Mapping[int, str | None]) -> Answer:
        masks: Answer = {}
        for channel, name in zip(found, channels.values(), strict=True):
            if not ((channel == 0) | (channel == 1)).all():
                raise PredictionInvalid(
                    "bundle-not-discrete", "the bundle gave probabilities where its postprocessing should have decided"
                )
            if name is not None:
                masks[name] = channel.T == 1
        return masks

    def _probabilities(self, found: np.ndarray) -> Answer:
        channels = list(self.pinned.plan.channels.values())
        if found.shape != (len(channels),):
            raise PredictionInvalid(
                "bundle-channels",
                f"the bundle gave {found.size} numbers, and its metadata names {len(channels)} classes",
            )
        if self.pinned.plan.activation == "softmax":
            return {self.spec.outputs[0].name: found}
        named = zip(channels, found, strict=True)
        return {name: np.asarray([1 - value, value]) for name, value in named if name is not None}


def _label_map(found: np.ndarray, known: set[int]) -> np.ndarray:
    """Label values as uint8, or uint16 where there are that many; slice by slice, for `bincount` needs copies."""
    labels = np.empty(found.shape, np.uint8 if max(known) < 256 else np.uint16)
    for target, plane in zip(labels, found, strict=True):
        with np.errstate(invalid="ignore"):  # what is no such number is found below
            target[...] = plane
        if not (target == plane).all() or not set(np.flatnonzero(np.bincount(target.ravel()))) <= known:
            raise PredictionInvalid("bundle-labels", "the bundle gave label values that its metadata does not name")
    return labels


def bundle_model(pinned: Pinned) -> type[BundleModel]:
    """The model of one added bundle."""
    members = {"spec": pinned.spec, "pinned": pinned, "__module__": __name__, "__doc__": pinned.spec.title}
    return type("BundleModel_" + pinned.name.replace("-", "_"), (BundleModel,), members)
