"""The network of the early-warning score: a GRU over the last hours, and beside it a linear reading of a summary.

Everything learnt from data, the means and scales of the inputs included, is in the state dict of each network, so that
a fold's network knows nothing of the patients it was not shown.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medflow_risk.warning_features import READ, STATIC_WIDTH

CLIP = 4.0  # standard deviations
RECENT = 6  # hours
LOW_MMHG = (60.0, 65.0, 70.0, 75.0)  # below which hours of arterial pressure are counted
SUMMARY = 9 * READ + 2 * len(LOW_MMHG) + STATIC_WIDTH


class WarningNet(nn.Module):
    """Features of `warning_features.series_features` and `.static_features` -> logits (batch,).

    The logit is the sum of the GRU's and of that of a logistic regression on the summary, which `warning_train` fits
    apart: the one reads how the last hours went, the other hardly overfits.
    """

    mean: Tensor
    scale: Tensor
    wide_weight: Tensor
    wide_bias: Tensor

    def __init__(self, hidden: int = 24, dropout: float = 0.4) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(READ))
        self.register_buffer("scale", torch.ones(READ))
        self.register_buffer("wide_weight", torch.zeros(SUMMARY))
        self.register_buffer("wide_bias", torch.zeros(()))
        self.gru = nn.GRU(3 * READ + STATIC_WIDTH, hidden, batch_first=True)
        self.drop_in = nn.Dropout(dropout / 2)
        self.summary = nn.Sequential(nn.Dropout(dropout), nn.Linear(SUMMARY, hidden), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(3 * hidden, 1))

    def standardise(self, filled: Tensor) -> None:
        """Take mean and scale of each channel from the training stays: ``filled`` (n, steps, READ)."""
        known = ~torch.isnan(filled)
        count = known.sum((0, 1)).clamp(min=1)
        self.mean = torch.nan_to_num(filled).sum((0, 1)) / count
        spread = torch.nan_to_num(filled - self.mean).square().sum((0, 1)) / count
        self.scale = spread.sqrt().clamp(min=1e-3)

    def summarise(self, series: Tensor, statics: Tensor) -> Tensor:
        """What the whole window comes to: (batch, SUMMARY)."""
        return self._read(series, statics)[1]

    def deep(self, series: Tensor, statics: Tensor) -> Tensor:
        """The GRU's logits alone, as it is trained."""
        return self._deep(*self._read(series, statics))

    def forward(self, series: Tensor, statics: Tensor) -> Tensor:
        """``series`` (batch, 3, steps, READ), ``statics`` (batch, STATIC_WIDTH)."""
        hours, summary = self._read(series, statics)
        return self._deep(hours, summary) + summary @ self.wide_weight + self.wide_bias

    def _deep(self, hours: Tensor, summary: Tensor) -> Tensor:
        states, _ = self.gru(self.drop_in(hours))
        return self.head(torch.cat([states[:, -1], states.mean(1), self.summary(summary)], dim=1))[:, 0]

    def _read(self, series: Tensor, statics: Tensor) -> tuple[Tensor, Tensor]:
        """What the GRU reads, (batch, steps, 3 * READ + STATIC_WIDTH), and the summary."""
        filled, measured, since = series.unbind(1)
        values = torch.nan_to_num((filled - self.mean) / self.scale).clamp(-CLIP, CLIP)
        hours = torch.cat([values, measured, since, statics[:, None].expand(-1, values.shape[1], -1)], dim=2)
        low = _low_hours(filled[..., -1], measured[..., -1])
        return hours, torch.cat([_summary(values, measured, since), low, statics], dim=1)


def _low_hours(pressure: Tensor, measured: Tensor) -> Tensor:
    """Of the hours measured in the window, and in its last RECENT, the share below each of LOW_MMHG; smooth at it."""
    below = [torch.sigmoid(limit - torch.nan_to_num(pressure, nan=1e3)) * measured for limit in LOW_MMHG]
    parts = [
        share.sum(1) / known.sum(1).clamp(min=1)
        for share in below
        for share, known in ((share, measured), (share[:, -RECENT:], measured[:, -RECENT:]))
    ]
    return torch.stack(parts, dim=1)


def _summary(values: Tensor, measured: Tensor, since: Tensor) -> Tensor:
    """Of each channel its last, mean, lowest, highest and recent value, change, spread, count and age."""
    count = measured.sum(1)
    some = count.clamp(min=1)
    mean = (values * measured).sum(1) / some
    variance = ((values - mean[:, None]).square() * measured).sum(1).div(some)
    spread = variance.clamp(min=1e-12).sqrt()  # the root of 0 has no gradient
    lowest = values.masked_fill(measured == 0, torch.inf).amin(1).nan_to_num(posinf=0.0)
    highest = values.masked_fill(measured == 0, -torch.inf).amax(1).nan_to_num(neginf=0.0)
    last, recent = values[:, -1], values[:, -RECENT:].mean(1)
    parts = [last, mean, lowest, highest, recent, last - mean, spread, torch.log1p(count) / 2, since[:, -1]]
    return torch.cat(parts, dim=1)


class WarningEnsemble(nn.Module):
    """The mean logit of several networks, calibrated (Platt) to a probability."""

    platt: Tensor

    def __init__(self, nets: list[WarningNet]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.register_buffer("platt", torch.tensor([1.0, 0.0]))  # slope, intercept

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> WarningEnsemble:
        """The ensemble that a state dict describes, ready for use."""
        count = len({name.split(".")[1] for name in tensors if name.startswith("nets.")})
        widths = [tensors[f"nets.{number}.gru.weight_hh_l0"].shape[1] for number in range(count)]
        ensemble = cls([WarningNet(hidden=width) for width in widths])
        ensemble.load_state_dict(tensors)
        return ensemble.eval()

    def usual(self) -> Tensor:
        """The mean of each channel over the networks (channels,): what stands for one that is not known."""
        means = [net.mean for net in self.nets if isinstance(net, WarningNet)]
        return torch.stack(means).mean(0)

    def logits(self, series: Tensor, statics: Tensor) -> Tensor:
        """Calibrated log-odds (batch,); inputs as `WarningNet.forward`."""
        mean = torch.stack([net(series, statics) for net in self.nets]).mean(0)
        return self.platt[0] * mean + self.platt[1]

    def forward(self, series: Tensor, statics: Tensor) -> Tensor:
        """Probabilities (batch,)."""
        return torch.sigmoid(self.logits(series, statics))
