"""Where a radiograph spoke for pneumonia: Grad-CAM of the classifier's last convolutional layer. Imports torch, MONAI.

The network ends in the mean over the layer's cells and one linear layer. Grad-CAM (Selvaraju 2017) of the log odds then
is what each cell adds to them, wherever that is above 0: values are log odds, comparable between pictures, and a
picture in which nothing speaks for pneumonia has a map of zeros. It is not stretched to 0..1 per picture, which would
show a hot spot in every normal one.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from monai.visualize.class_activation_maps import GradCAM
from torch import Tensor, nn

from medflow_monai.pictures import EDGE, centre_square

LAYER = "network.layer4"
CELL = 4  # pixels of the 28 x 28 picture from one of the layer's cells to the next; the first lies on pixel 0


class _LogOdds(nn.Module):
    """Pictures (n, 1, 28, 28) to the calibrated log odds of pneumonia (n, 1)."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self._temperature = network, temperature

    def forward(self, pictures: Tensor) -> Tensor:
        logits = self.network(pictures)
        return (logits[:, 1:] - logits[:, :1]) / self._temperature


def contributions(network: nn.Module, temperature: float, pictures: Tensor) -> np.ndarray:
    """What each cell of the last convolutional layer adds to the log odds, where above 0: float32 (n, 7, 7)."""
    with torch.inference_mode(False), torch.enable_grad():
        hooked = _LogOdds(deepcopy(network), temperature).eval()  # MONAI's hooks stay on what they are put on
        cells = GradCAM(hooked, LAYER).compute_map(pictures.clone()[:, None], class_idx=0)
    return cells[:, 0].detach().cpu().numpy().astype(np.float32)


def on_radiograph(cells: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Cells (7, 7) interpolated on a radiograph's own grid (rows, columns): float32, NaN beside what the model saw."""
    found = np.full(shape, np.nan, dtype=np.float32)
    rows, columns = centre_square(shape)
    side = rows.stop - rows.start
    weights = _cell_weights(side, len(cells))
    found[rows, columns] = weights @ cells @ weights.T
    return found


def _cell_weights(side: int, cells: int) -> np.ndarray:
    """Matrix (side, cells) of linear interpolation; the last cell holds to the edge."""
    pixels = (np.arange(side) + 0.5) * (EDGE / side) - 0.5  # where a radiograph's pixel lies among the 28
    places = np.clip(pixels / CELL, 0, cells - 1)
    distance = np.abs(places[:, None] - np.arange(cells))
    return (1 - distance).clip(0).astype(np.float32)
