"""An evaluation's result: aggregates only, ready to be printed, stored or drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SMALLEST = 10  # cases in a group, or in a bin, that may be shown
Curve = Sequence[tuple[float, float]]
Interval = tuple[float, float] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """Cases with neighbouring scores: how many, their mean score, and the share of them that had the outcome."""

    cases: int
    mean_score: float
    observed: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One figure; None where it is not defined. ``interval``: 95 %, where one was asked for and is defined."""

    value: float | None
    interval: Interval = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """One subgroup (``dimension`` sex, age) or one class against the rest (``dimension`` class)."""

    dimension: str
    name: str
    cases: int
    metrics: Mapping[str, Metric]


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """What plots are drawn of, by class (one curve where it is yes or no): (x, y) points."""

    roc: Mapping[str, Curve]
    precision_recall: Mapping[str, Curve]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How good a model's live predictions of one output were.

    ``outcomes`` is "labels" or "store". ``predictions`` = ``cases`` + all of ``left_out``. ``events`` counts the cases
    of each outcome. ``hidden`` names the groups of fewer than ten cases, which are not shown.
    """

    model: str
    version: str
    digests: tuple[str, ...]
    output: str
    title: str
    outcomes: str
    labels_sha256: str | None
    labels_unmatched: int
    threshold: float | None
    threshold_declared: bool
    predictions: int
    cases: int
    patients: int
    events: Mapping[str, int]
    left_out: Mapping[str, int]
    metrics: Mapping[str, Metric]
    confusion: Sequence[Sequence[int]]
    calibration: Sequence[Bin]
    groups: Sequence[Group]
    hidden: Sequence[str]
    notes: Sequence[str]
    draws: int
    curves: Curves

    def as_json(self) -> dict[str, Any]:
        """The evaluation as ``medflow evaluate --json`` prints it; curves are for plots and left out."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "curves"}
        found["digests"] = list(self.digests)
        found["events"], found["left_out"] = dict(self.events), dict(self.left_out)
        found["metrics"] = _plain(self.metrics)
        found["calibration"] = [asdict(item) for item in self.calibration]
        found["groups"] = [
            {"dimension": item.dimension, "name": item.name, "cases": item.cases, "metrics": _plain(item.metrics)}
            for item in self.groups
        ]
        found["hidden"], found["notes"] = list(self.hidden), list(self.notes)
        found["confusion"] = [list(row) for row in self.confusion]
        return found

    def counts(self) -> dict[str, Any]:
        """What a run keeps of it."""
        values = {name: metric.value for name, metric in self.metrics.items()}
        return {
            "predictions": self.predictions,
            "cases": self.cases,
            "left_out": dict(self.left_out),
            "metrics": {name: round(value, 6) for name, value in values.items() if value is not None},
        }


def _plain(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    return {
        name: {"value": metric.value}
        | ({} if metric.interval is None else {"low": metric.interval[0], "high": metric.interval[1]})
        for name, metric in metrics.items()
    }
