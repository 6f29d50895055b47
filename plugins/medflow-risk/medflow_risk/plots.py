"""The plots of the model card, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medflow.drawing import COLOURS, FAINT, INK, figure, png
from medflow.plugin import Epoch
from medflow_risk.metrics import tenths


def learning_curve(folds: Sequence[Sequence[Epoch]]) -> bytes:
    """Loss and AUROC of the networks of the course by epoch, on training stays and out of fold: mean and range."""
    drawn = figure(7.6, 3.6)
    losses, areas = drawn.subplots(1, 2)
    epochs = [epoch for fold in folds for epoch in fold]
    _band(losses, epochs, "training_loss", COLOURS[1], "training")
    _band(losses, epochs, "validation_loss", COLOURS[0], "out of fold")
    if all(epoch.auroc is not None for epoch in epochs):
        _band(areas, epochs, "auroc", COLOURS[0], "out of fold")
    for axes, name in ((losses, "loss"), (areas, "AUROC")):
        axes.set(xlabel="epoch", ylabel=name)
        axes.legend(frameon=False, fontsize=8)
    losses.set_title("Learning curve: each network of the course alone", color=INK, fontsize=10, loc="left")
    return _saved(drawn, losses, areas)


def reliability(event: np.ndarray, probability: np.ndarray) -> bytes:
    """Share of events over mean probability, out of fold, in tenths of the stays."""
    drawn = figure(4.4, 4.2)
    axes = drawn.add_subplot()
    axes.plot((0, 1), (0, 1), color=FAINT, linestyle="--")
    axes.plot(*zip(*tenths(event, probability), strict=True), color=COLOURS[0], marker="o", linewidth=1.2)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set(xlabel="mean probability", ylabel="share that died")
    axes.set_title("Reliability, out of fold", color=INK, fontsize=10, loc="left")
    return _saved(drawn, axes)


def _band(axes, epochs: Sequence[Epoch], name: str, colour: str, label: str) -> None:  # noqa: ANN001 - matplotlib's
    numbers = sorted({epoch.number for epoch in epochs})
    found = [[getattr(epoch, name) for epoch in epochs if epoch.number == number] for number in numbers]
    axes.plot(numbers, [np.mean(one) for one in found], color=colour, linewidth=1.6, label=label)
    axes.fill_between(numbers, [min(one) for one in found], [max(one) for one in found], color=colour, alpha=0.15)


def _saved(drawn, *all_axes) -> bytes:  # noqa: ANN001, ANN002 - matplotlib's
    for axes in all_axes:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return png(drawn)
