"""Cases to figures: all of them, by subgroup and by class, with curves and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from medflow.evaluation import metrics, resampled
from medflow.evaluation.bootstrap import Figures, draws_for, intervals_of
from medflow.evaluation.join import Cases
from medflow.evaluation.result import SMALLEST, Curve, Curves, Evaluation, Group, Metric
from medflow.plugin import Classification, ModelSpec, Risk

DEFAULT_THRESHOLD = 0.5
POINTS = 200  # of a drawn curve
COUNTED = ("accuracy", "recall", "precision", "f1")
ONE_OUTCOME = "AUROC and AUPRC are not defined: all cases have the same outcome"
CLASS_MISSING = "the macro AUROC and AUPRC are not defined: a class has no case"
TOO_FEW_OUTCOMES = "AUROC and AUPRC have no interval: too many of the draws hold one outcome only"


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """Predictions and outcomes put together, and the account of the predictions that are no cases."""

    cases: Cases
    left_out: Mapping[str, int]
    predictions: int
    digests: tuple[str, ...]
    labels_sha256: str | None
    labels_unmatched: int
    every: bool = False


def several(output: Risk | Classification) -> bool:
    """Whether the outcome is one of several classes, and not a yes or no."""
    return isinstance(output, Classification) and output.positive is None


def measured(spec: ModelSpec, output: Risk | Classification, joined: Joined) -> Evaluation:
    """The evaluation of these cases."""
    cases, names = joined.cases, _outcome_names(output)
    declared = None if several(output) else output.threshold
    threshold = None if several(output) else (DEFAULT_THRESHOLD if declared is None else declared)
    overall = _measure(cases.truth, cases.score, cases.patients, threshold)
    groups, hidden = _groups(cases, threshold)
    if threshold is None:
        decided, confidence = cases.score.argmax(axis=1), cases.score.max(axis=1)
        happened = cases.truth == decided
    else:
        decided, confidence = (cases.score >= threshold).astype(int), cases.score
        happened = cases.truth
    return Evaluation(
        model=spec.name,
        version=spec.version,
        digests=joined.digests,
        output=output.name,
        title=spec.title,
        outcomes="store" if joined.labels_sha256 is None else "labels",
        labels_sha256=joined.labels_sha256,
        labels_unmatched=joined.labels_unmatched,
        threshold=threshold,
        threshold_declared=declared is not None,
        predictions=joined.predictions,
        cases=len(cases.truth),
        patients=len(np.unique(cases.patients)),
        events={name: int((cases.truth == place).sum()) for place, name in enumerate(names)},
        left_out=dict(sorted(joined.left_out.items())),
        metrics=overall,
        confusion=metrics.confusion(cases.truth, decided, len(names)),
        calibration=metrics.calibration(happened, confidence),
        groups=[*_classes(cases, names), *groups],
        hidden=hidden,
        notes=_notes(overall, several=threshold is None),
        draws=draws_for(len(cases.truth)),
        curves=_curves(cases, names),
        counted="every" if joined.every else "live",
    )


def _outcome_names(output: Risk | Classification) -> list[str]:
    if isinstance(output, Classification) and output.positive is None:
        return [label.name for label in output.classes]
    return ["no", "yes"]


def _measure(truth: np.ndarray, score: np.ndarray, patients: np.ndarray, threshold: float | None) -> dict[str, Metric]:
    """Every metric, at a threshold or (None) by the most probable of several classes."""
    if threshold is None:
        return _with_intervals(metrics.classes(truth, score), resampled.of_classes(truth, score), patients)
    figures = resampled.of_binary(truth, score, threshold)
    return _with_intervals(metrics.binary(truth, score, threshold), figures, patients)


def _with_intervals(values: metrics.Values, figures: Figures, patients: np.ndarray) -> dict[str, Metric]:
    known = intervals_of(figures, patients)
    return {
        name: Metric(value=value, interval=None if value is None else known.get(name)) for name, value in values.items()
    }


def _groups(cases: Cases, threshold: float | None) -> tuple[list[Group], list[str]]:
    """Every group of ten patients or more, and the names of those that have fewer."""
    shown: list[Group] = []
    hidden: list[str] = []
    for dimension, of_case in cases.groups.items():
        for name in sorted(set(of_case.tolist())):
            inside = of_case == name
            if len(np.unique(cases.patients[inside])) < SMALLEST:
                hidden.append(f"{dimension} {name}")
                continue
            found = _measure(cases.truth[inside], cases.score[inside], cases.patients[inside], threshold)
            shown.append(Group(dimension=dimension, name=name, cases=int(inside.sum()), metrics=_rounded(found)))
    return shown, hidden


def _rounded(found: Mapping[str, Metric]) -> dict[str, Metric]:
    """A subgroup's shares to two digits: beside all cases' counts, exact ones would give those of a hidden group."""
    return {name: _to_two_digits(metric) if name in COUNTED else metric for name, metric in found.items()}


def _to_two_digits(metric: Metric) -> Metric:
    interval = None if metric.interval is None else (round(metric.interval[0], 2), round(metric.interval[1], 2))
    return Metric(value=None if metric.value is None else round(metric.value, 2), interval=interval)


def _classes(cases: Cases, names: Sequence[str]) -> list[Group]:
    """Each of several classes against the rest."""
    if cases.score.ndim == 1:
        return []
    chosen = cases.score.argmax(axis=1)
    found = []
    for place, name in enumerate(names):
        truth, score = (cases.truth == place).astype(int), cases.score[:, place]
        decided = metrics.decisions(truth, (chosen == place).astype(int), average="binary", labels=[0, 1])
        values = metrics.discrimination(truth, score) | decided
        figures = resampled.of_one_class(truth, score, chosen == place)
        measured = _with_intervals(values, figures, cases.patients)
        found.append(Group(dimension="class", name=name, cases=len(truth), metrics=measured))
    return found


def _notes(overall: Mapping[str, Metric], *, several: bool) -> list[str]:
    if overall["auroc"].value is None:
        return [CLASS_MISSING if several else ONE_OUTCOME]
    return [] if overall["auroc"].interval is not None else [TOO_FEW_OUTCOMES]


def _curves(cases: Cases, names: Sequence[str]) -> Curves:
    roc: dict[str, Curve] = {}
    precision_recall: dict[str, Curve] = {}
    by_class = cases.score.ndim == 2
    for place, name in enumerate(names if by_class else [""]):
        truth, score = (cases.truth == place, cases.score[:, place]) if by_class else (cases.truth, cases.score)
        if len(np.unique(truth)) == 2:
            false_positive, true_positive, _ = roc_curve(truth, score)
            precision, recall, _ = precision_recall_curve(truth, score)
            roc[name] = _thinned(false_positive, true_positive)
            precision_recall[name] = _thinned(recall, precision)
    return Curves(roc=roc, precision_recall=precision_recall)


def _thinned(x: np.ndarray, y: np.ndarray) -> Curve:
    kept = np.unique(np.linspace(0, len(x) - 1, min(POINTS, len(x))).round().astype(int))
    return list(zip(x[kept].tolist(), y[kept].tolist(), strict=True))
