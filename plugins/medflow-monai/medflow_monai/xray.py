"""Pneumonia on a chest radiograph: a small MONAI ResNet over 28 x 28 pixels, trained on PneumoniaMNIST."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medflow.inference.weights import load_weights
from medflow.plugin import (
    SNOMED,
    Case,
    Classification,
    ClassLabel,
    Coding,
    ImagingInput,
    Model,
    ModelCard,
    ModelSpec,
    Prediction,
    UnitKind,
    Weights,
)
from medflow_monai.pictures import small_picture

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

PNEUMONIA = Coding(system=SNOMED, code="233604007", display="Pneumonia")
NORMAL = Coding(system=SNOMED, code="827032003", display="Normal lung")
CHEST = Coding(system=SNOMED, code="51185008", display="Thoracic structure")
CLASSES = ("normal", "pneumonia")
THRESHOLD = 0.38  # train_xray.best_threshold, on the calibration part of the training split
INDETERMINATE = 0.05  # a probability this near to the threshold is neither positive nor negative
PREVALENCE = 0.5  # of pneumonia: what the probabilities are calibrated to
WEIGHTS = Weights(file="xray.safetensors", sha256="cdc17c77ebaad99252a3f63efe9a57a56399a763974debaa90f67ce4c6811dad")

CARD = ModelCard(
    intended_use="Research, and showing that medflow's path for radiographs holds. Not a medical device: no clinical "
    "decision may rest on it.",
    training_data="PneumoniaMNIST (MedMNIST v2; Yang 2023, after Kermany 2018): frontal chest radiographs of children "
    "of 1 to 5 years from one hospital in Guangzhou, at 28 x 28 pixels. Of the training split, without repeats and "
    "without what is also in the validation split: 2,507 to train on (252 normal, drawn as often as pneumonia), 578 "
    "for calibration and threshold, 772 held out.",
    licence="Apache-2.0 (code and weights); training data CC BY 4.0",
    metrics={
        "held-out AUC": "0.995 (95 % interval 0.991 to 0.998; 772 pictures, 78 normal, no part in any decision)",
        "held-out sensitivity at the threshold": "0.974 (0.959 to 0.984)",
        "held-out specificity at the threshold": "0.962 (0.893 to 0.987)",
        "held-out calibration error": "0.024 at a prevalence of one half, 0.004 at the part's own of 0.90 (10 bins of "
        "equal count); Brier score 0.029 and 0.016",
        "validation AUC": "0.996 (0.992 to 0.999; PneumoniaMNIST validation split, 389 pneumonia and 135 normal)",
        "validation calibration error": "0.016 at a prevalence of one half, 0.007 at the split's own of 0.74",
    },
    limits="Children of one hospital only; adults, other hospitals and other equipment were never tested, and a drop "
    "is to be expected. At 28 x 28 pixels small or faint opacities are gone. Radiographs of one child may be in "
    "several parts: the data set names no patients. Probabilities hold at a prevalence of one half: elsewhere "
    "the odds are to be multiplied by the odds of the prevalence. Only pneumonia and normal were seen: any other "
    "disease gets one of these two answers. The check for foreign pictures catches what is far from a chest, not a "
    "subtle change of technique. A heat map says what the network added up, in cells of a seventh of the picture, and "
    "is no finding.",
)


def network() -> Module:
    """The untrained network: (n, 1, 28, 28) to logits (n, 2) in the order of `CLASSES`."""
    from monai.networks.nets.resnet import ResNet
    from torch.nn import Conv2d

    net = ResNet(
        block="basic",
        layers=[1, 1, 1, 1],
        block_inplanes=[16, 32, 64, 128],
        spatial_dims=2,
        n_input_channels=1,
        conv1_t_size=3,
        conv1_t_stride=1,
        no_max_pool=True,
        num_classes=len(CLASSES),
    )
    for name in ("conv1", "downsample.0"):  # the last stage keeps its 7 x 7 cells: 4 x 4 would say too little of where
        convolution = net.get_submodule(f"layer4.0.{name}")
        assert isinstance(convolution, Conv2d)  # noqa: S101 - MONAI's own block
        convolution.stride = (1, 1)
    return net


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A radiograph as the network is given it, (28, 28) float32 in 0..1, and its own shape (rows, columns)."""

    picture: np.ndarray
    shape: tuple[int, int]


class PneumoniaXray(Model[Prepared]):
    """Classifies a frontal chest radiograph as pneumonia or normal, or says that it is no such picture."""

    spec = ModelSpec(
        name="pneumonia-xray",
        version="0.2.0",
        title="Pneumonia on a chest radiograph (28 x 28, paediatric, demonstration)",
        unit=UnitKind.SERIES,
        accepts=(ImagingInput(modality=("CR", "DX"), dimensions=2, body_parts=("CHEST", "THORAX", "LUNG")),),
        outputs=(
            Classification(
                name="pneumonia",
                code=PNEUMONIA,
                classes=(
                    ClassLabel(name="normal", code=NORMAL),
                    ClassLabel(name="pneumonia", code=PNEUMONIA),
                ),
                positive="pneumonia",
                threshold=THRESHOLD,
                indeterminate=INDETERMINATE,
                body_site=CHEST,
            ),
        ),
        card=CARD,
        weights=(WEIGHTS,),
        batch_size=64,
        memory_mib=512,
    )

    def load(self, device: str) -> None:
        """Build the network and put its weights on ``device``."""
        import torch

        tensors = load_weights(__package__ or "medflow_monai", WEIGHTS)
        self._device = torch.device(device)
        self._scope = {name: tensors.pop(f"scope.{name}").to(self._device) for name in ("mean", "basis", "limits")}
        self._calibration = tensors.pop("calibration").to(self._device)
        net = network()
        net.load_state_dict(tensors)
        self._network = net.eval().to(self._device)

    def prepare(self, case: Case) -> Prepared:
        """The picture that the network is given, and where it comes from."""
        rows, columns = case.image.array.shape
        return Prepared(picture=small_picture(case.image.array), shape=(rows, columns))

    def predict(self, batch: Sequence[Prepared]) -> list[Prediction]:
        """Calibrated probabilities, or out of scope where a picture is unlike every chest seen in training."""
        import torch

        pictures = self._stacked(batch)
        with torch.inference_mode():
            probabilities = calibrated(self._network(pictures[:, None]), self._calibration).cpu().numpy()
            foreign = unlike_training(pictures, self._scope).cpu().tolist()
        return [
            Prediction(out_of_scope="the picture is unlike the chest radiographs that the model was trained on")
            if outside
            else Prediction(values={"pneumonia": row})
            for row, outside in zip(probabilities, foreign, strict=True)
        ]

    def explain(self, batch: Sequence[Prepared], predictions: Sequence[Prediction]) -> list[Mapping[str, np.ndarray]]:
        """Where each radiograph spoke for pneumonia, in log odds, on its own grid (rows, columns): see `heat_map`.

        Of a picture that was called normal as well, where the map may be 0 throughout. NaN outside the centre square.
        """
        from medflow_monai.heat_map import contributions, on_radiograph

        cells = contributions(self._network, float(self._calibration[0]), self._stacked(batch))
        return [
            {} if prediction.out_of_scope else {"pneumonia": on_radiograph(found, item.shape)}
            for item, prediction, found in zip(batch, predictions, cells, strict=True)
        ]

    def close(self) -> None:
        """Let the network go."""
        del self._network

    def _stacked(self, batch: Sequence[Prepared]) -> Tensor:
        import torch

        return torch.from_numpy(np.stack([item.picture for item in batch])).to(self._device)


def calibrated(logits: Tensor, calibration: Tensor) -> Tensor:
    """Probabilities (n, 2) of logits (n, 2), with ``calibration`` (2,): a temperature and an offset."""
    import torch

    positive = torch.sigmoid((logits[:, 1] - logits[:, 0]) / calibration[0] + calibration[1])
    return torch.stack([1 - positive, positive], dim=1)


def unlike_training(pictures: Tensor, scope: dict[str, Tensor]) -> Tensor:
    """Whether each picture (n, 28, 28) lies outside what the training pictures span: booleans (n,).

    ``scope`` holds their mean (784,), principal axes scaled to unit variance (k, 784), and three limits: the largest
    distance within those axes, the largest remainder beside them, and the least contrast (standard deviation).
    """
    inside, beside = scope_distances(pictures, scope["mean"], scope["basis"])
    farthest, largest, faintest = scope["limits"]
    return (inside > farthest) | (beside > largest) | (pictures.flatten(1).std(dim=1) < faintest)


def scope_distances(pictures: Tensor, mean: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Distance within the principal axes (in standard deviations) and root mean square remainder beside them."""
    from torch.linalg import vector_norm

    off = pictures.flatten(1) - mean
    scale = vector_norm(basis, dim=1)  # an axis divided by its standard deviation has that length
    within = off @ basis.T
    remainder = off - (within / scale**2) @ basis
    return vector_norm(within, dim=1), vector_norm(remainder, dim=1) / mean.numel() ** 0.5
