"""What moved a risk, in log-odds: integrated gradients from a stay of which nothing is known (Captum).

Sundararajan M, Taly A, Yan Q. Axiomatic attribution for deep networks. ICML 2017. The shares of a case add up to the
difference between its log-odds and those of the empty stay, but for the error of the sum that stands for the integral.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from medflow.plugin import SeriesAttribution

STEPS = 32  # of the integral
AT_ONCE = 1024  # cases and steps of the integral in one pass

Logits = Callable[[Tensor, Tensor], Tensor]


def attribute(
    logits: Logits, series: Tensor, statics: Tensor, usual: Tensor, groups: Sequence[Sequence[int]]
) -> list[SeriesAttribution]:
    """One `SeriesAttribution` for each case.

    Parameters
    ----------
    logits
        Series and statics to log-odds (batch,).
    series
        (batch, 3, steps, channels): values filled forward (NaN before the first), measured (0 or 1), time since.
    statics
        (batch, features), 0 where unknown.
    usual
        (channels,): the value that the networks read for one they do not know.
    groups
        For each static input the features that stand for it.
    """

    def answer(given: Tensor, fixed: Tensor) -> Tensor:
        filled = torch.where(unknown.repeat(len(given) // len(unknown), 1, 1), torch.nan, given[:, 0])
        return logits(torch.cat([filled[:, None], given[:, 1:]], dim=1), fixed)

    known = series.clone()
    known[:, 0] = torch.where(torch.isnan(series[:, 0]), usual, series[:, 0])
    nothing = torch.zeros_like(series)
    nothing[:, 0], nothing[:, 2] = usual, 1.0
    shares, fixed_shares = [], []
    size = max(1, AT_ONCE // STEPS)
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN's recurrent layers have no gradient outside of training
        for part in range(0, len(series), size):
            rows = slice(part, part + size)
            unknown = torch.isnan(series[rows, 0])
            integral = IntegratedGradients(answer, multiply_by_inputs=True)
            found = integral.attribute(
                (known[rows], statics[rows]),
                baselines=(nothing[rows], torch.zeros_like(statics[rows])),
                n_steps=STEPS,
            )
            shares.append(found[0].detach().cpu().double().numpy())
            fixed_shares.append(found[1].detach().cpu().double().numpy())
    cells = _where_measured(np.concatenate(shares), series[:, 1].cpu().numpy() > 0)
    fixed = np.concatenate(fixed_shares)
    per_static = np.stack([fixed[:, list(group)].sum(1) for group in groups], axis=1)
    return [
        SeriesAttribution(values=values.astype(np.float32), statics=own.astype(np.float32))
        for values, own in zip(cells, per_static, strict=True)
    ]


def _where_measured(shares: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Shares (batch, 3, steps, channels) -> (batch, steps, channels).

    That of a value carried forward belongs to the step in which it was measured; those of its age and of its not being
    measured stay where they are.
    """
    steps = np.arange(measured.shape[1])[None, :, None]
    last = np.maximum.accumulate(np.where(measured, steps, -1), axis=1)
    total = shares[:, 1:].sum(1)
    case, step, channel = np.nonzero(last >= 0)
    np.add.at(total, (case, last[case, step, channel], channel), shares[:, 0][case, step, channel])
    return total
