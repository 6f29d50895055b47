"""The network: an LSTM over the hours, and beside it a summary of the whole window, joined in one logit.

Everything learnt from data, the means and scales of the inputs included, is in the state dict of each network, so that
a fold's network knows nothing of the patients it was not shown.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medflow_risk.features import STATIC_WIDTH, WIDTH

CLIP = 4.0  # standard deviations
PLAIN = 6 * WIDTH + STATIC_WIDTH  # what the networks read of the summary
SUMMARY = PLAIN + 3 * WIDTH + 1  # what the ridge regression reads
SHARE = 0.5  # of the ridge regression in the logit


class MortalityNet(nn.Module):
    """Features of `features.series_features` and `features.static_features` -> logits (batch,).

    The logit is the LSTM's and ``SHARE`` of that of a ridge regression on the summary, which `train` fits apart: the
    one reads how a stay went, the other hardly overfits.
    """

    mean: Tensor
    scale: Tensor
    wide_weight: Tensor
    wide_bias: Tensor

    def __init__(self, hidden: int = 64, dropout: float = 0.3) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("scale", torch.ones(WIDTH))
        self.register_buffer("wide_weight", torch.zeros(SUMMARY))
        self.register_buffer("wide_bias", torch.zeros(()))
        self.lstm = nn.LSTM(3 * WIDTH + STATIC_WIDTH, hidden, batch_first=True)
        self.drop_in = nn.Dropout(dropout / 2)
        self.drop_summary = nn.Dropout(dropout)
        self.summary = nn.Sequential(nn.Linear(PLAIN, hidden), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(4 * hidden, 1))

    def standardise(self, filled: Tensor) -> None:
        """Take mean and scale of each channel from the training stays: ``filled`` (n, steps, channels)."""
        known = ~torch.isnan(filled)
        count = known.sum((0, 1)).clamp(min=1)
        self.mean = torch.nan_to_num(filled).sum((0, 1)) / count
        spread = torch.nan_to_num(filled - self.mean).square().sum((0, 1)) / count
        self.scale = spread.sqrt().clamp(min=1e-3)

    def summarise(self, series: Tensor, statics: Tensor) -> Tensor:
        """What the whole window comes to: (batch, SUMMARY)."""
        return self._read(series, statics)[1]

    def deep(self, series: Tensor, statics: Tensor) -> Tensor:
        """The LSTM's logits alone, as it is trained."""
        hours, summary = self._read(series, statics)
        return self._deep(hours, summary)

    def forward(self, series: Tensor, statics: Tensor) -> Tensor:
        """``series`` (batch, 3, steps, channels), ``statics`` (batch, STATIC_WIDTH)."""
        hours, summary = self._read(series, statics)
        return self._deep(hours, summary) + SHARE * (summary @ self.wide_weight + self.wide_bias)

    def _deep(self, hours: Tensor, summary: Tensor) -> Tensor:
        states, _ = self.lstm(self.drop_in(hours))
        read = [states[:, -1], states.mean(1), states.amax(1), self.summary(self.drop_summary(summary[:, :PLAIN]))]
        return self.head(torch.cat(read, dim=1))[:, 0]

    def _read(self, series: Tensor, statics: Tensor) -> tuple[Tensor, Tensor]:
        """What the LSTM reads, (batch, steps, 3 * channels + statics), and the summary."""
        filled, measured, age = series.unbind(1)
        values = torch.nan_to_num((filled - self.mean) / self.scale).clamp(-CLIP, CLIP)
        hours = torch.cat([values, measured, age, statics[:, None].expand(-1, values.shape[1], -1)], dim=2)
        return hours, _summary(values, measured, statics)


def _summary(values: Tensor, measured: Tensor, statics: Tensor) -> Tensor:
    """Of each channel the last, mean, lowest and highest value, its change and how often it was measured; the statics.

    After these PLAIN columns: each channel's spread, and what is far from usual on either side, age included.
    """
    count = measured.sum(1)
    mean = (values * measured).sum(1) / count.clamp(min=1)
    spread = ((values - mean[:, None]).square() * measured).sum(1).div(count.clamp(min=1)).sqrt()
    lowest = values.masked_fill(measured == 0, torch.inf).amin(1).nan_to_num(posinf=0.0)
    highest = values.masked_fill(measured == 0, -torch.inf).amax(1).nan_to_num(neginf=0.0)
    last = values[:, -1]
    plain = [last, mean, lowest, highest, last - mean, torch.log1p(count) / 2, statics]
    return torch.cat([*plain, spread, last.square(), mean.square(), statics[:, :1].square()], dim=1)


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
