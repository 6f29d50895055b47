"""The network: an LSTM over the hours, and beside it a summary of each channel, joined in one logit.

Everything learnt from data, the means and scales of the inputs included, is in the state dict of each network, so that
a fold's network knows nothing of the patients it was not shown.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medflow_risk.features import STATIC_WIDTH, WIDTH

CLIP = 4.0  # standard deviations
SUMMARY = 6 * WIDTH


class MortalityNet(nn.Module):
    """Features of `features.series_features` and `features.static_features` -> logits (batch,)."""

    mean: Tensor
    scale: Tensor

    def __init__(self, hidden: int = 64, dropout: float = 0.3) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("scale", torch.ones(WIDTH))
        self.lstm = nn.LSTM(3 * WIDTH + STATIC_WIDTH, hidden, batch_first=True)
        self.drop_in = nn.Dropout(dropout / 2)
        self.summary = nn.Sequential(nn.Linear(SUMMARY + STATIC_WIDTH, hidden), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(3 * hidden + hidden, 1))
        self.drop_wide = nn.Dropout(dropout)

    def standardise(self, filled: Tensor) -> None:
        """Take mean and scale of each channel from the training stays: ``filled`` (n, steps, channels)."""
        known = ~torch.isnan(filled)
        count = known.sum((0, 1)).clamp(min=1)
        self.mean = torch.nan_to_num(filled).sum((0, 1)) / count
        spread = torch.nan_to_num(filled - self.mean).square().sum((0, 1)) / count
        self.scale = spread.sqrt().clamp(min=1e-3)

    def forward(self, series: Tensor, statics: Tensor) -> Tensor:
        """``series`` (batch, 3, steps, channels), ``statics`` (batch, STATIC_WIDTH)."""
        filled, measured, age = series.unbind(1)
        values = torch.nan_to_num((filled - self.mean) / self.scale).clamp(-CLIP, CLIP)
        steps = values.shape[1]
        hours = torch.cat([values, measured, age, statics[:, None].expand(-1, steps, -1)], dim=2)
        states, _ = self.lstm(self.drop_in(hours))
        read = torch.cat([states[:, -1], states.mean(1), states.amax(1)], dim=1)
        summary = self.summary(self.drop_wide(torch.cat([_summary(values, measured), statics], dim=1)))
        return self.head(torch.cat([read, summary], dim=1))[:, 0]


def _summary(values: Tensor, measured: Tensor) -> Tensor:
    """(batch, 6 * channels): last, mean, lowest, highest of what was measured, its change, and how often."""
    count = measured.sum(1)
    ever = (count > 0).float()
    mean = (values * measured).sum(1) / count.clamp(min=1)
    lowest = values.masked_fill(measured == 0, torch.inf).amin(1).nan_to_num(posinf=0.0)
    highest = values.masked_fill(measured == 0, -torch.inf).amax(1).nan_to_num(neginf=0.0)
    last = values[:, -1]
    return torch.cat([last * ever, mean, lowest, highest, last - mean, torch.log1p(count) / 2], dim=1)


class Ensemble(nn.Module):
    """The mean logit of several networks, calibrated (Platt) to a probability."""

    platt: Tensor

    def __init__(self, nets: list[MortalityNet]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.register_buffer("platt", torch.tensor([1.0, 0.0]))  # slope, intercept

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Ensemble:
        """The ensemble that a state dict describes, ready for use."""
        numbers = {int(name.split(".")[1]) for name in tensors if name.startswith("nets.")}
        ensemble = cls(
            [MortalityNet(hidden=tensors[f"nets.{number}.lstm.weight_hh_l0"].shape[1]) for number in numbers]
        )
        ensemble.load_state_dict(tensors)
        return ensemble.eval()

    def forward(self, series: Tensor, statics: Tensor) -> Tensor:
        """Probabilities (batch,); inputs as `MortalityNet.forward`."""
        logit = torch.stack([net(series, statics) for net in self.nets]).mean(0)
        return torch.sigmoid(self.platt[0] * logit + self.platt[1])
