"""An evaluation's plots, as PNG files: ROC, precision against recall, reliability, drift of the inputs."""

from __future__ import annotations

from collections.abc import Mapping

from medflow.drawing import COLOURS, FAINT, INK, figure, png
from medflow.evaluation.result import Curve, Drift, Evaluation, InputDrift, Stability

SIDE_IN = 4.2
DRAWN = 30  # inputs at most: those that moved most
SEVERITY = {"shifted": COLOURS[4], "some": COLOURS[1], "unclear": FAINT, "steady": COLOURS[0], "too-few": FAINT}
SEVERE = tuple(SEVERITY)


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
    if evaluation.inputs is not None:
        made["drift"] = drift_bars(evaluation.inputs)
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


def drift_bars(drift: InputDrift) -> bytes:
    """The PSI that speaks most of each input, of those that moved most, with what chance would give."""
    told = [(item, *_loudest(item)) for item in drift.columns if item.verdict != "too-few"]
    shown = sorted(told, key=lambda each: each[2].psi)[-DRAWN:]
    drawn = figure(1.6 * SIDE_IN, 0.22 * len(shown) + 1.2)
    axes = drawn.add_subplot()
    places = range(len(shown))
    axes.barh(places, [said.psi for _, _, said in shown], color=[SEVERITY[said.verdict] for _, _, said in shown])
    axes.plot(
        [said.chance for _, _, said in shown],
        places,
        linestyle="",
        marker="|",
        markersize=9,
        color=INK,
        label="by chance",
    )
    for limit in (0.1, 0.25):
        axes.axvline(limit, color=FAINT, linestyle="--", linewidth=1)
    axes.set_yticks(places, [f"{item.name}{what}: {said.verdict}" for item, what, said in shown], fontsize=8)
    axes.set_xlabel("PSI (0.1 some, 0.25 shifted)")
    axes.set_title("Drift of the inputs", color=INK, fontsize=11)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if shown:
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    return png(drawn)


def _loudest(item: Drift) -> tuple[str, Stability]:
    """What of an input moved most: its values (not named), whether there are any, or how many."""
    each = ((" (any)", item.missing), (" (how often)", item.readings), ("", item.values))
    told = [(what, said) for what, said in each if said is not None]
    return max(told, key=lambda both: (-SEVERE.index(both[1].verdict), both[1].psi))
