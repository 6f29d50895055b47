"""An evaluation's plots, as PNG files: ROC, precision against recall, reliability."""

from __future__ import annotations

from collections.abc import Mapping

from medflow.drawing import COLOURS, FAINT, INK, figure, png
from medflow.evaluation.result import Curve, Evaluation

SIDE_IN = 4.2


def plots(evaluation: Evaluation) -> dict[str, bytes]:
    """Each plot that the cases allow, by name; ROC and precision-recall need cases of both outcomes."""
    share = 1 - evaluation.events["no"] / evaluation.cases if "no" in evaluation.events else None
    made = {"reliability": _reliability(evaluation)}
    if evaluation.curves.roc:
        made["roc"] = _curves(evaluation.curves.roc, "false positive rate", "recall", "ROC", chance=((0, 1), (0, 1)))
        flat = None if share is None else ((0, 1), (share, share))
        made["precision-recall"] = _curves(
            evaluation.curves.precision_recall, "recall", "precision", "Precision and recall", chance=flat
        )
    return made


def _curves(curves: Mapping[str, Curve], x: str, y: str, title: str, *, chance: tuple | None) -> bytes:
    drawn = figure(SIDE_IN, SIDE_IN)
    axes = drawn.add_subplot()
    if chance is not None:
        axes.plot(*chance, color=FAINT, linestyle="--", label="chance")
    for place, (name, points) in enumerate(curves.items()):
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.8, label=name or "all cases")
    _square(axes, x, y, title)
    axes.legend(frameon=False, fontsize=8)
    return png(drawn)


def _reliability(evaluation: Evaluation) -> bytes:
    drawn = figure(SIDE_IN, SIDE_IN)
    axes = drawn.add_subplot()
    axes.plot((0, 1), (0, 1), color=FAINT, linestyle="--")
    scores = [item.mean_score for item in evaluation.calibration]
    axes.plot(scores, [item.observed for item in evaluation.calibration], color=COLOURS[0], marker="o", linewidth=1.2)
    several = evaluation.threshold is None
    x, y = ("mean confidence", "share correct") if several else ("mean score", "share with the outcome")
    _square(axes, x, y, "Reliability")
    return png(drawn)


def _square(axes, x: str, y: str, title: str) -> None:  # noqa: ANN001 - matplotlib's Axes
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel=x, ylabel=y)
    axes.set_title(title, color=INK, fontsize=11)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
