"""Pneumonia on a chest radiograph: a small MONAI ResNet over 28 x 28 pixels, trained on PneumoniaMNIST."""

from __future__ import annotations

from collections.abc import Sequence
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
THRESHOLD = 0.24  # train_xray.best_threshold, on the part of the training split held out of training
WEIGHTS = Weights(file="xray.safetensors", sha256="c0a1be8a2c2cf24893bdd990f5003ada3e1bc1e20f3636045998d71c1bca4ac4")

CARD = ModelCard(
    intended_use="Research, and showing that medflow's path for radiographs holds. Not a medical device: no clinical "
    "decision may rest on it.",
    training_data="PneumoniaMNIST (MedMNIST v2; Yang 2023, after Kermany 2018): frontal chest radiographs of children "
    "of 1 to 5 years from one hospital in Guangzhou, at 28 x 28 pixels; 3,872 for training (386 normal), of which a "
    "fifth was held out for calibration and threshold; 10 that are also in the validation split were left out.",
    licence="Apache-2.0 (code and weights); training data CC BY 4.0",
    metrics={
        "validation AUC": "0.997 (PneumoniaMNIST validation split, 389 pneumonia and 135 normal)",
        "validation sensitivity at the threshold": "0.992",
        "validation specificity at the threshold": "0.956",
        "validation Brier score": "0.018",
    },
    limits="Children of one hospital only; adults, other hospitals and other equipment were never tested, and a drop "
    "is to be expected. At 28 x 28 pixels small or faint opacities are gone. One radiograph a person may have been "
    "split over training and validation: the data set names no patients. Probabilities are calibrated to a prevalence "
    "of one half. Only pneumonia and normal were seen: any other disease gets one of these two answers. The check for "
    "foreign pictures catches what is far from a chest, not a subtle change of technique.",
)


def network() -> Module:
    """The untrained network: (n, 1, 28, 28) to logits (n, 2) in the order of `CLASSES`."""
    from monai.networks.nets.resnet import ResNet

    return ResNet(
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


class PneumoniaXray(Model[np.ndarray]):
    """Classifies a frontal chest radiograph as pneumonia or normal, or says that it is no such picture."""

    spec = ModelSpec(
        name="pneumonia-xray",
        version="0.1.0",
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
                indeterminate=0.05,
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

    def prepare(self, case: Case) -> np.ndarray:
        """The picture as (28, 28) float32 in 0..1."""
        return small_picture(case.image.array)

    def predict(self, batch: Sequence[np.ndarray]) -> list[Prediction]:
        """Calibrated probabilities, or out of scope where a picture is unlike every chest seen in training."""
        import torch

        pictures = torch.from_numpy(np.stack(batch)).to(self._device)
        with torch.inference_mode():
            probabilities = calibrated(self._network(pictures[:, None]), self._calibration).cpu().numpy()
            foreign = unlike_training(pictures, self._scope).cpu().tolist()
        return [
            Prediction(out_of_scope="the picture is unlike the chest radiographs that the model was trained on")
            if outside
            else Prediction(values={"pneumonia": row})
            for row, outside in zip(probabilities, foreign, strict=True)
        ]

    def close(self) -> None:
        """Let the network go."""
        del self._network


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
