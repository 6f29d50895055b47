"""A training's plots, as PNG files: how the chosen trial learnt, and how the version does on the test part."""

from __future__ import annotations

from collections.abc import Sequence

from medflow.drawing import COLOURS, FAINT, INK, figure, png
from medflow.evaluation.plots import plots as plots_of_evaluation
from medflow.plugin import Epoch
from medflow.training.result import Trained

WIDTH_IN, HEIGHT_IN = 5.6, 3.8
LEARNING = "learning-curve"


def plots(trained: Trained) -> dict[str, bytes]:
    """Each plot that there is something to draw for, by name."""
    made = dict(plots_of_evaluation(trained.test))
    if trained.epochs:
        made[LEARNING] = learning_curve(trained.epochs)
    return made


def learning_curve(epochs: Sequence[Epoch]) -> bytes:
    """Training and validation loss by epoch, a pair of lines for each network of an ensemble."""
    drawn = figure(WIDTH_IN, HEIGHT_IN)
    axes = drawn.add_subplot()
    for member in sorted({epoch.member for epoch in epochs}):
        mine = [epoch for epoch in epochs if epoch.member == member]
        numbers = [epoch.number for epoch in mine]
        named = member == min(epoch.member for epoch in epochs)
        for losses, colour, name in (
            ([epoch.training_loss for epoch in mine], FAINT, "training"),
            ([epoch.validation_loss for epoch in mine], COLOURS[0], "validation"),
        ):
            axes.plot(numbers, losses, color=colour, linewidth=1.4, label=name if named else None)
    axes.set(xlabel="epoch", ylabel="loss")
    axes.set_title("Learning curve", color=INK, fontsize=11)
    axes.legend(frameon=False, fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return png(drawn)
