"""The plots of a night, as PNG files: how fast, beside other nights, and how scores are spread."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo

import numpy as np

from medflow.drawing import COLOURS, FAINT, INK, figure, png
from medflow.flows.drift import Drift
from medflow.flows.timings import SECOND_US
from medflow.store.history import ChunkLine, RunLine

STEPS = 60  # of the time that is plotted
MAX_MODELS = len(COLOURS) - 1  # drawn one by one; the others together
MAX_OUTPUTS = 6


def throughput(chunks: Sequence[ChunkLine], started_us: int) -> bytes | None:
    """Cases per second of each model, from when the night began; None when nothing was scored."""
    ended = [chunk for chunk in chunks if chunk.cases]
    if not ended:
        return None
    last_us = max(max(chunk.finished_us for chunk in ended), started_us + 1)
    edges = np.linspace(0.0, (last_us - started_us) / SECOND_US, STEPS + 1)
    unit, name = (60.0, "minutes") if edges[-1] > 300 else (1.0, "seconds")
    drawn = figure(9, 3.2)
    axes = drawn.add_subplot()
    for colour, (model, rates) in zip(COLOURS, _rates(ended, started_us, edges).items(), strict=False):
        axes.stairs(np.where(rates > 0, rates, np.nan), edges / unit, color=colour, label=model, linewidth=2)
    axes.set(xlabel=f"{name} since the night began", ylabel="cases per second", title="Throughput by model")
    axes.set_yscale("log")  # models differ by orders of magnitude
    axes.set_xlim(0, edges[-1] / unit)
    _plain(axes)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return png(drawn)


def _rates(chunks: Sequence[ChunkLine], started_us: int, edges: np.ndarray) -> dict[str, np.ndarray]:
    """A chunk's cases are spread evenly over the time that it took."""
    busiest = sorted({chunk.model for chunk in chunks}, key=lambda name: (-_cases(chunks, name), name))
    names = {name: name if place < MAX_MODELS else "others" for place, name in enumerate(busiest)}
    rates = {name: np.zeros(len(edges) - 1) for name in names.values()}
    width = edges[1] - edges[0]
    for chunk in chunks:
        start = (chunk.started_us - started_us) / SECOND_US
        end = max((chunk.finished_us - started_us) / SECOND_US, start + 1e-6)
        inside = np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], start), 0.0, None)
        rates[names[chunk.model]] += chunk.cases * inside / (end - start) / width
    return rates


def _cases(chunks: Sequence[ChunkLine], model: str) -> int:
    return sum(chunk.cases for chunk in chunks if chunk.model == model)


def nights(runs: Sequence[RunLine], zone: tzinfo = UTC) -> bytes | None:
    """Scored, not scored and duration of these nights; None when there is none. A night without an end is marked."""
    if not runs:
        return None
    places = np.arange(len(runs))
    counts = [run.counts.get("score", {}) for run in runs]
    scored = [int(item.get("done", 0)) for item in counts]
    wrong = [int(item.get("failed", 0)) + int(item.get("dead", 0)) for item in counts]
    minutes = [(run.finished_us - run.started_us) / SECOND_US / 60 if run.finished_us else 0.0 for run in runs]
    drawn = figure(9, 4.2)
    above, below = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    above.bar(places, scored, color=COLOURS[0], label="scored")
    above.bar(places, wrong, bottom=scored, color=COLOURS[4], label="failed or dead")
    above.set(ylabel="cases", title=f"The last {len(runs)} nights" if len(runs) > 1 else "This night")
    above.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    below.bar(places, minutes, color="#7f8792")
    below.set(ylabel="minutes")
    for place, run in zip(places, runs, strict=True):
        if run.finished_us is None:
            below.annotate("no end", (float(place), 0.0), ha="center", va="bottom", rotation=90, fontsize=7, color=INK)
    every = max(1, len(runs) // 10)
    dates = [datetime.fromtimestamp(run.started_us / SECOND_US, zone).strftime("%d %b") for run in runs]
    below.set_xticks(places[::every], dates[::every])
    below.set_xlim(-0.7, max(len(runs), 8) - 0.3)
    for axes in (above, below):
        _plain(axes)
    return png(drawn)


def spread(drifts: Sequence[Drift]) -> bytes | None:
    """One model's outputs: tonight's share of cases by bin, over the band of the nights before; None if none is shown.

    An output with too few cases is not among them.
    """
    shown = [drift for drift in drifts if drift.shown][:MAX_OUTPUTS]
    if not shown:
        return None
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    drawn = figure(max(5.0, 3.4 * columns), 2.9 * rows + 0.3)
    drawn.suptitle(shown[0].model, color=INK)
    for place, drift in enumerate(shown, 1):
        _one_spread(drawn.add_subplot(rows, columns, place), drift)
    return png(drawn)


def _one_spread(axes, drift: Drift) -> None:  # noqa: ANN001 - matplotlib's Axes, which is not imported here
    edges = np.array(drift.edges)
    if drift.earlier:
        many = np.array(drift.earlier)
        label = f"{len(many)} earlier night{'s' if len(many) > 1 else ''}"
        low, high = many.min(axis=0), many.max(axis=0)
        axes.stairs(high, edges, baseline=low, fill=True, color=FAINT, label=label)
        axes.stairs(np.median(many, axis=0), edges, color="#8b939e", linewidth=1)
    axes.stairs(drift.tonight, edges, color=COLOURS[4] if drift.shifted else COLOURS[0], linewidth=1.6, label="tonight")
    axes.set_title(f"{drift.output}: {drift.cases} cases{', shifted' if drift.shifted else ''}", fontsize=9)
    axes.set_xlabel(drift.unit, fontsize=8)
    axes.set_ylabel("share of cases", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=7)
    _plain(axes)


def _plain(axes) -> None:  # noqa: ANN001
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(axis="y", color="#eceef1")
    axes.set_axisbelow(True)
