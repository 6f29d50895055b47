"""What moved a risk of death, in log-odds: integrated gradients (Captum) from a stay of which nothing is known.

Sundararajan M, Taly A, Yan Q. Axiomatic attribution for deep networks. ICML 2017. The shares of a stay add up to the
difference between its log-odds and those of the empty stay, but for the error of the sum that stands for the integral.

The networks read two-hour steps and a summary; their shares are brought back to the hours and channels that they come
from. That of a value carried forward, of its age and of its being measured goes to the hour of the measurement; before
the first it stays in its step. That of a column of the summary goes to the measurement that it is (first, last, lowest,
highest), else evenly to all that it is made of, and where there is none evenly to its hours. That of a score is first
dealt to its parts by the points that each gives, that of a rate evenly.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from captum.attr import IntegratedGradients

from medflow.plugin import SeriesAttribution
from medflow_risk.features import COLUMNS, COURSE, STEP_H, Column, features
from medflow_risk.network import Ensemble, Reading
from medflow_risk.readings import NAMES, READINGS, held, with_merged
from medflow_risk.severity import blame, hourly

POINTS = 50  # of the sum that stands for the integral
AT_ONCE = 1024  # stays and points in one pass

Blamed = Mapping[str, Mapping[str, np.ndarray]]  # the share (n, hours) of each reading in what is made of several


def explain(ensemble: Ensemble, values: np.ndarray, statics: np.ndarray, device: str) -> list[SeriesAttribution]:
    """The shares of each stay; ``values`` (n, hours, channels) and ``statics`` (n, k), NaN unknown."""
    stays = _read_by(values, statics, device)
    nothing = _read_by(np.full_like(values[:1], np.nan), np.full_like(statics[:1], np.nan), device)
    each = [_integrated(member, member.read(*stays), member.read(*nothing)) for member in ensemble.each]
    course = torch.stack([shares.course.sum(1) for shares in each]).sum(0)
    columns = torch.stack([shares.scores + shares.known for shares in each]).sum(0)
    slope = float(ensemble.platt[0]) / len(each)
    now = hourly(values, held(with_merged(values)))
    blamed = {name: blame(name, now) for name in {*COURSE, *(column.trace for column in COLUMNS if column.trace)}}
    cells = _cells_of_course(_doubles(course, slope), values, blamed)
    fixed = np.zeros(statics.shape)
    for column, share in zip(COLUMNS, _doubles(columns, slope).T, strict=True):
        if column.static is not None:
            fixed[:, column.static] += share
        elif column.trace is None:
            _add_column(cells, column, column.channels, share, values)
        else:
            for reading, part in blamed[column.trace].items():
                own = part[:, column.start : column.end].mean(1)
                _add_column(cells, column, READINGS[reading], share * own, values)
    return [
        SeriesAttribution(values=own.astype(np.float32), statics=more.astype(np.float32))
        for own, more in zip(cells, fixed, strict=True)
    ]


def _read_by(values: np.ndarray, statics: np.ndarray, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    sequence, summary = features(values, statics)
    return torch.from_numpy(sequence).to(device), torch.from_numpy(summary).to(device)


def _doubles(shares: torch.Tensor, slope: float) -> np.ndarray:
    return shares.detach().cpu().double().numpy() * slope


def _integrated(member: torch.nn.Module, reading: Reading, empty: Reading) -> Reading:
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN's recurrent layers have no gradient outside of training
        return Reading(
            *IntegratedGradients(member).attribute(
                tuple(reading), baselines=tuple(empty), n_steps=POINTS, internal_batch_size=AT_ONCE
            )
        )


def _cells_of_course(shares: np.ndarray, values: np.ndarray, blamed: Blamed) -> np.ndarray:
    """Shares (n, steps, WIDTH) of the course -> (n, hours, channels)."""
    cells = np.zeros(values.shape)
    of_readings = {reading: np.zeros(shares.shape[:2]) for reading in READINGS}
    for place, name in enumerate(COURSE):
        for reading, part in blamed[name].items():
            of_readings[reading] += shares[:, :, place] * part[:, STEP_H - 1 :: STEP_H]
    for reading, share in of_readings.items():
        _add_reading(cells, _places(READINGS[reading]), share, ~np.isnan(values))
    return cells


def _add_reading(cells: np.ndarray, channels: np.ndarray, share: np.ndarray, known: np.ndarray) -> None:
    """Add the share (n, steps) of a reading carried forward to the cells where it was measured."""
    hours = np.arange(known.shape[1])
    mine = known[:, :, channels]
    last = np.maximum.accumulate(np.where(mine.any(-1), hours, -1), axis=1)[:, STEP_H - 1 :: STEP_H]
    case, step = np.nonzero(last >= 0)
    hour = last[case, step]
    channel = channels[mine.argmax(-1)[case, hour]]
    np.add.at(cells, (case, hour, channel), share[case, step])
    case, step = np.nonzero(last < 0)
    for part in range(STEP_H):
        for channel in channels:
            own = share[case, step] / (STEP_H * len(channels))
            np.add.at(cells, (case, step * STEP_H + part, channel), own)


def _add_column(
    cells: np.ndarray, column: Column, made_of: tuple[str, ...], share: np.ndarray, values: np.ndarray
) -> None:
    """Add the share (n,) of one column of the summary, or of a part of it, to the cells of its channels."""
    channels = _places(made_of)
    mine = values[:, column.start : column.end][:, :, channels]
    weight = _one(column, mine) if column.name in READINGS else ~np.isnan(mine)
    weight = weight.astype(np.float64)
    weight[weight.sum((1, 2)) == 0] = 1.0
    weight *= (share / weight.sum((1, 2)))[:, None, None]
    for place, channel in enumerate(channels):
        cells[:, column.start : column.end, channel] += weight[:, :, place]


def _one(column: Column, mine: np.ndarray) -> np.ndarray:
    """Which cells of (n, hours, channels) a column is of: the one that it is, or all that are known."""
    known = ~np.isnan(mine)
    flat = mine.reshape(len(mine), -1)
    if column.statistic == "lowest":
        at = np.where(np.isnan(flat), np.inf, flat).argmin(1)
    elif column.statistic == "highest":
        at = np.where(np.isnan(flat), -np.inf, flat).argmax(1)
    elif column.statistic == "first":
        at = (~np.isnan(flat)).argmax(1)
    elif column.statistic in ("last", "since"):
        at = flat.shape[1] - 1 - (~np.isnan(flat))[:, ::-1].argmax(1)
    else:
        return known
    only = np.zeros(flat.shape, dtype=bool)
    only[np.arange(len(flat)), at] = True
    return only.reshape(mine.shape) & known


def _places(channels: tuple[str, ...]) -> np.ndarray:
    return np.array([NAMES.index(channel) for channel in channels])
