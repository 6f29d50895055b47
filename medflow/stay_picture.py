"""A stay as a picture: its channels over the hours, and where an answer was explained, those that moved it and how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medflow.contributions import label
from medflow.drawing import COLOURS, FAINT, INK, figure
from medflow.plugin import Channel, TimeSeries, TimeSeriesInput
from medflow.records import Contribution

RAISED, LOWERED = COLOURS[4], COLOURS[0]


def draw_channels(series: TimeSeries, wanted: TimeSeriesInput) -> Any:
    """The channels that were measured, over the hours of the window."""
    measured = [place for place in range(series.values.shape[1]) if np.isfinite(series.values[:, place]).any()]
    columns = min(4, max(1, len(measured)))
    rows = max(1, -(-len(measured) // columns))
    drawn = figure(2.6 * columns + 0.6, 1.5 * rows + 0.9)
    for number, place in enumerate(measured, 1):
        _measured(drawn.add_subplot(rows, columns, number), series.values[:, place], wanted.channels[place], wanted)
    drawn.supxlabel(f"hours of the window; {len(measured)} of {len(wanted.channels)} channels measured", fontsize=8)
    return drawn


def draw_explained(
    series: TimeSeries, wanted: TimeSeriesInput, contributions: Sequence[Contribution], *, scale: str
) -> Any:
    """What moved an answer: a bar each, and the channels among them over the hours, with a bar for each step.

    ``scale`` names what the bars count in.
    """
    places = {channel.name: place for place, channel in enumerate(wanted.channels)}
    channels = [item for item in contributions if item.kind == "channel" and item.name in places]
    rows = max(2, len(channels))
    drawn = figure(9.0, 1.2 * rows + 1.2)
    grid = drawn.add_gridspec(rows, 2 if channels else 1, width_ratios=(2, 3) if channels else None)
    _bars(drawn.add_subplot(grid[:, 0]), contributions, scale)
    most = max((abs(step) for item in channels for step in item.steps), default=0.0) or 1.0
    for row, item in enumerate(channels):
        axes = drawn.add_subplot(grid[row, 1])
        place = places[item.name]
        _measured(axes, series.values[:, place], wanted.channels[place], wanted, colour=INK)
        _stepwise(axes, item, wanted, most)
    drawn.supxlabel("right: hours of the window, values as a line; bars as on the left, step by step", fontsize=8)
    return drawn


def _measured(
    axes: Any, values: np.ndarray, channel: Channel, wanted: TimeSeriesInput, *, colour: str = COLOURS[0]
) -> None:
    hours = np.arange(len(values)) * _hours_of_a_step(wanted)
    axes.plot(hours, values, color=colour, marker="o", markersize=2.5, linewidth=0.8)
    if not np.isfinite(values).any():
        axes.set_yticks([])
    axes.set_title(f"{channel.name}{f' ({channel.unit})' if channel.unit else ''}", fontsize=7, color=INK)
    axes.set_xlim(0, wanted.window.total_seconds() / 3600)
    axes.tick_params(labelsize=6, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)


def _bars(axes: Any, contributions: Sequence[Contribution], scale: str) -> None:
    """The largest above; what raised the answer to the right of nought."""
    values = [item.value for item in contributions][::-1]
    axes.barh(range(len(values)), values, color=[_colour(value) for value in values], height=0.6)
    axes.set_yticks(range(len(values)), labels=[label(item) for item in contributions][::-1], fontsize=7)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_title(f"lowered  <  {scale}  >  raised", fontsize=8, color=INK)
    axes.tick_params(labelsize=7, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)


def _stepwise(axes: Any, item: Contribution, wanted: TimeSeriesInput, most: float) -> None:
    """Bars behind the values, on a scale that all channels share."""
    width = _hours_of_a_step(wanted)
    behind = axes.twinx()
    hours = np.arange(len(item.steps)) * width
    behind.bar(hours, item.steps, width=width, color=[_colour(step) for step in item.steps], alpha=0.45)
    behind.axhline(0, color=FAINT, linewidth=0.6)
    behind.set_ylim(-1.05 * most, 1.05 * most)
    behind.set_axis_off()
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)


def _colour(value: float) -> str:
    return RAISED if value >= 0 else LOWERED


def _hours_of_a_step(wanted: TimeSeriesInput) -> float:
    return wanted.step.total_seconds() / 3600
