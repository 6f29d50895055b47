"""An evaluation's result: aggregates only, ready to be printed, stored or drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

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


Verdict = Literal["steady", "some", "shifted", "unclear", "too-few"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stability:
    """One population stability index (PSI), what chance alone would seldom exceed, and how to read both."""

    psi: float
    chance: float
    verdict: Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """One channel or static, now beside the training cohort.

    ``values`` is of the mean over the window (or the static) in the cases that have one, ``missing`` of whether there
    is any, ``readings`` of in how many steps there is one; each None where there are fewer than ten such cases now or
    then. ``verdict`` is the worst of the three. ``direction``: where the values went, if they moved. ``missing_now``
    and ``missing_then`` are shares, 0 or 1 where fewer than ten cases stand on one side.
    """

    name: str
    kind: Literal["channel", "static"]
    unit: str | None
    verdict: Verdict
    missing_now: float
    missing_then: float
    values: Stability | None
    missing: Stability | None
    readings: Stability | None
    direction: Literal["higher", "lower"] | None = None

    @property
    def psi(self) -> float | None:
        """Of the values."""
        return None if self.values is None else self.values.psi


@dataclass(frozen=True, kw_only=True, slots=True)
class InputDrift:
    """The inputs of ``cases`` predictions, one a patient, beside those of the ``trained_on`` cases of the training.

    ``asked`` predictions were made; ``unusable`` of the cases chosen have no input any more that the model would take.
    """

    trained_on: int
    asked: int
    cases: int
    unusable: int
    verdict: Verdict
    columns: Sequence[Drift]

    def as_json(self) -> dict[str, Any]:
        """As ``medflow drift --json`` prints it."""
        return asdict(self) | {"columns": [asdict(item) for item in self.columns]}


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How good a model's predictions of one output were.

    ``counted`` is "live" (those that no later one has superseded) or "every". ``inputs_unknown`` says why the drift of
    a time-series model's inputs is not told.

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
    counted: Literal["live", "every"] = "live"
    inputs: InputDrift | None = None
    inputs_unknown: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The evaluation as ``medflow evaluate --json`` prints it; curves are for plots and left out."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("curves", "inputs")}
        found["input_drift"] = None if self.inputs is None else self.inputs.as_json()
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
