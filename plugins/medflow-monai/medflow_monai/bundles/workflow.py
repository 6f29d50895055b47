"""A bundle at work: its parts run as MONAI's evaluator would run them on a NIfTI file of the same series."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import decollate_batch, list_data_collate
from monai.engines.utils import default_prepare_batch
from monai.transforms.compose import Compose
from monai.transforms.post.dictionary import Activationsd
from monai.transforms.spatial.array import SpatialResample
from torch import Tensor

from medflow.errors import InputNotUsable, PluginBroken
from medflow.plugin import Image
from medflow_monai.bundles.building import Builder, say
from medflow_monai.bundles.declaration import PREDICTION, Plan
from medflow_monai.bundles.loading import LPS_TO_RAS, CaseReader, Loading
from medflow_monai.bundles.modules import own_modules
from medflow_monai.bundles.steps import has, steps
from medflow_monai.bundles.weights import tensors_only

GRID_TOLERANCE_MM = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Where a volume's voxels lie: its shape (x, y, z), and its affine from indices to RAS mm."""

    shape: tuple[int, ...]
    affine: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """One case on its way: what the preprocessing gave, and the postprocessing that can undo it."""

    data: dict[str, Any]
    postprocessing: Compose
    grid: Grid | None  # of a volume


class Workflow:
    """One bundle on one device.

    Parameters
    ----------
    root
        The bundle's folder, which nobody else writes to.
    plan
        What to run of it.
    device
        Where the network goes.

    Raises
    ------
    PluginBroken
        The bundle cannot be built or its weights do not fit; the message says what is wrong with which part.
    """

    def __init__(self, root: Path, plan: Plan, device: str) -> None:
        self.plan, self.device = plan, torch.device(device)
        with own_modules(root), tensors_only():
            builder = Builder(root, plan, self.device)
            self._pre = builder.preprocessing()
            self._post = builder.postprocessing()
            self._inferer = builder.inferer()
            self._prepare_batch: Any = builder.part("evaluator::prepare_batch") or default_prepare_batch
            self._amp = bool(builder.part("evaluator::amp"))
            self._amp_options: dict[str, Any] = builder.part("evaluator::amp_kwargs") or {}
            self._network = builder.network()
        _check_activation(self._post, plan)
        _copy_of(self._pre, self._post)  # fails here, and not case by case

    def prepare(self, images: Mapping[str, Image]) -> Prepared:
        """Load and preprocess a case, on the CPU, in any thread.

        Raises
        ------
        InputNotUsable
            Images that are channels of one lie on different grids.
        """
        pre, post = _copy_of(self._pre, self._post)  # transforms keep state while they work
        reader = CaseReader(images, repeat=self.plan.repeat)
        for step in steps(pre):
            if isinstance(step, Loading):
                step.reader = reader
        pre.set_random_state(seed=0)
        first = next(iter(images.values()))
        for image in images.values():
            _check_same_grid(first, image)
        data = pre({key: list(files) for key, files in self.plan.files.items()})
        if not isinstance(data, dict):
            raise PluginBroken(
                "its preprocessing makes several items of one case, and medflow runs those that make one"
            )
        return Prepared(data=data, postprocessing=post, grid=_grid(first))

    def predict(self, ready: Prepared) -> Tensor:
        """What the bundle makes of a case.

        Returns
        -------
        Tensor
            Segmentation: (channels, x, y, z) on the grid of the input. Classification: (classes,) probabilities.
        """
        batch = list_data_collate([ready.data])
        found = self._prepare_batch(batch, self.device, False)
        inputs, _, args, options = found if len(found) == 4 else (*found, (), {})
        with (
            torch.no_grad(),
            torch.autocast("cuda", enabled=self._amp and self.device.type == "cuda", **self._amp_options),
        ):
            prediction = self._inferer(inputs, self._network, *args, **options)
        output = {"image": inputs, PREDICTION: prediction}
        parts: Any = (decollate_batch(batch, detach=True), decollate_batch(output, detach=True))
        item: dict[str, Any] = {**parts[0][0], **parts[1][0]}
        return self._finish(self._postprocess(item, ready.postprocessing), ready)

    def _postprocess(self, item: dict[str, Any], post: Compose) -> Tensor:
        try:
            return _prediction(post(item))
        except torch.OutOfMemoryError:
            # channels at full resolution are many times the input, and the host has more room than the device
            torch.cuda.empty_cache()
        on_host = {key: value.cpu() if isinstance(value, Tensor) else value for key, value in item.items()}
        return _prediction(post(on_host))

    def _finish(self, found: Tensor, ready: Prepared) -> Tensor:
        if self.plan.task == "classification":
            return self._probabilities(found)
        return _onto_grid(found, ready.grid)

    def _probabilities(self, found: Tensor) -> Tensor:
        values = torch.as_tensor(found).detach().to("cpu", torch.float64).flatten()
        if not has(self._post, Activationsd):
            values = torch.softmax(values, 0) if self.plan.activation == "softmax" else torch.sigmoid(values)
        return values / values.sum() if self.plan.activation == "softmax" else values


def _prediction(item: Any) -> Tensor:
    found = item[PREDICTION]
    return found if isinstance(found, Tensor) else torch.as_tensor(np.asarray(found))


def _check_activation(post: Compose, plan: Plan) -> None:
    for step in steps(post):
        if plan.task == "classification" and isinstance(step, Activationsd):
            applied = "sigmoid" if any(step.sigmoid) else "softmax" if any(step.softmax) else "another function"
            if applied != plan.activation:
                raise PluginBroken(
                    f"its postprocessing applies {applied} where {plan.activation} was expected: add it again with "
                    f'"activation": "{applied}" in the map'
                )


def _copy_of(pre: Compose, post: Compose) -> tuple[Compose, Compose]:
    """Both together, so that an inversion in the second refers to the first."""
    try:
        return deepcopy((pre, post))
    except Exception as error:  # noqa: BLE001 - a third party's transforms
        raise PluginBroken(f"its transforms cannot be copied for each case: {say(error)}") from None


# --- geometry ----------------------------------------------------------------------------------------------------


def _grid(image: Image) -> Grid | None:
    if image.affine is None:
        return None
    return Grid(shape=image.array.shape[::-1], affine=LPS_TO_RAS @ image.affine)


def _check_same_grid(first: Image, other: Image) -> None:
    one, two = _grid(first), _grid(other)
    same = first.array.shape == other.array.shape and (one is None) == (two is None)
    if same and one is not None and two is not None:
        same = bool(np.allclose(one.affine, two.affine, atol=GRID_TOLERANCE_MM))
    if not same:
        raise InputNotUsable(
            "grids-differ", "the series that the bundle takes as channels of one image lie on different grids"
        )


def _onto_grid(found: Tensor, grid: Grid | None) -> Tensor:
    """A segmentation (channels, x, y, z) on the input's grid.

    Where the bundle left it elsewhere, it is brought there as MONAI's SaveImaged would, by nearest neighbour.
    """
    if grid is None:
        raise PluginBroken("it segments images without a geometry")
    if found.ndim == len(grid.shape):
        found = found[None]
    there = found.affine if isinstance(found, MetaTensor) else None
    same = there is None or np.allclose(there.cpu().numpy(), grid.affine, atol=GRID_TOLERANCE_MM)
    if tuple(found.shape[1:]) == grid.shape and same:
        return found
    if there is None:
        raise PluginBroken("its segmentation lies on another grid than the image, and says nothing of where")
    resample = SpatialResample(mode="nearest", padding_mode="border", dtype=np.float64)
    return torch.as_tensor(resample(found, dst_affine=torch.from_numpy(grid.affine), spatial_size=grid.shape))
