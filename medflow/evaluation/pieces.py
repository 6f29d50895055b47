"""What a report consists of, whatever it is written as: an evaluation's sections, tables and pictures, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medflow.evaluation.result import SMALLEST, Evaluation, Group, InputDrift, Metric, Stability

NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "accuracy": "Accuracy",
    "recall": "Recall (sensitivity)",
    "precision": "Precision (PPV)",
    "f1": "F1",
    "brier": "Brier score",
    "ece": "Expected calibration error",
}
COLUMNS = {**NAMES, "recall": "Recall", "precision": "Precision", "brier": "Brier", "ece": "ECE"}
DRIFT = "Drift of the inputs"
DRIFT_ALT = "The PSI that moved most of each input, a bar each; the section on drift has the figures as a table."
SOURCES = {"labels": "a table of labels", "store": "the records that came later"}
PLOTS = {
    "roc": "ROC curve",
    "precision-recall": "Precision against recall",
    "reliability": "Reliability",
    "drift": DRIFT,
}
DRIFT_HEAD = ("input", "verdict", "PSI", "by chance", "without a value", "PSI of that", "PSI of readings")
VERDICTS = {
    "shifted": "shifted",
    "some": "some drift",
    "unclear": "unclear",
    "steady": "steady",
    "too-few": "too few cases",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table with its heads; the first cell of a row names it, the others are figures."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A plot: its name in ``PLOTS``, and what it shows for those who do not see it."""

    name: str
    title: str
    alt: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of a report under its heading (None: the beginning): paragraphs, then tables, then pictures."""

    heading: str | None
    paragraphs: Sequence[str] = ()
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    remarks: Sequence[str] = ()
    pictures: Sequence[Picture] = field(default=())


def title_of(evaluation: Evaluation) -> str:
    """A report's title."""
    return f"{evaluation.model} {evaluation.version}: {evaluation.output}"


def sections(evaluation: Evaluation, pictures: Sequence[str] = ()) -> list[Section]:
    """The report's sections; ``pictures`` are the names of the plots there are."""
    metrics = [[NAMES[name], _figure(item.value), _interval(item)] for name, item in evaluation.metrics.items()]
    threshold = evaluation.threshold
    groups, hidden = _groups(evaluation)
    found = [
        Section(
            heading=None,
            paragraphs=[_introduction(evaluation)],
            notes=evaluation.notes,
            tables=[Table(caption="All cases", head=["metric", "value", "95 % interval"], rows=metrics)],
            remarks=[f"Intervals: {evaluation.draws} bootstrap draws of whole patients (seeded)."],
        ),
        Section(
            heading="Decisions" if threshold is None else f"Decisions at {threshold:g}",
            tables=[_confusion(evaluation)],
        ),
        Section(heading="By group", tables=groups, remarks=hidden),
        Section(heading="Calibration", tables=[_calibration(evaluation)]),
        *_drift(evaluation),
        _left_out(evaluation),
    ]
    shown = [Picture(name=name, title=PLOTS[name], alt=_said(evaluation, name)) for name in PLOTS if name in pictures]
    return [*found, *([Section(heading="Plots", pictures=shown)] if shown else [])]


def _drift(evaluation: Evaluation) -> list[Section]:
    if evaluation.inputs is not None:
        return [drift_section(evaluation.inputs)]
    said = evaluation.inputs_unknown
    return [] if said is None else [Section(heading=DRIFT, paragraphs=[f"Not known: {said}."])]


def drift_section(drift: InputDrift) -> Section:
    """The inputs beside the training cohort, what moved most first."""
    unusable = f" {drift.unusable} more could not be read as they were." if drift.unusable else ""
    return Section(
        heading=DRIFT,
        paragraphs=[
            f"The inputs of {drift.cases} predictions, one a patient, beside the {drift.trained_on} cases that the "
            f"model was trained on: {summary_of_drift(drift)}.{unusable} PSI is the population stability index; below "
            "0.1 is steady, above 0.25 shifted. What so few cases give by chance (once in ten thousand) is unclear.",
        ],
        tables=[
            Table(
                caption="Channels and statics",
                head=DRIFT_HEAD,
                rows=drift_rows(drift),
            )
        ],
    )


def summary_of_drift(drift: InputDrift) -> str:
    """How many inputs have which verdict, the worst first."""
    counts = Counter(item.verdict for item in drift.columns)
    return ", ".join(f"{counts[verdict]} {word}" for verdict, word in VERDICTS.items() if counts[verdict])


def drift_rows(drift: InputDrift) -> list[list[str]]:
    """One row a channel or static, what moved most first."""
    order = list(VERDICTS)
    columns = sorted(drift.columns, key=lambda item: (order.index(item.verdict), -(item.psi or 0.0)))
    return [
        [
            f"{item.name} ({item.unit})" if item.unit else item.name,
            VERDICTS[item.verdict] + ("" if item.direction is None else f", {item.direction}"),
            _psi(item.values),
            "" if item.values is None else f"{item.values.chance:.2f}",
            f"{item.missing_then:.0%} then, {item.missing_now:.0%} now",
            _psi(item.missing),
            _psi(item.readings),
        ]
        for item in columns
    ]


def _psi(found: Stability | None) -> str:
    return "" if found is None else f"{found.psi:.2f}"


def _introduction(evaluation: Evaluation) -> str:
    events = ", ".join(f"{count} {name}" for name, count in evaluation.events.items())
    threshold = ""
    if evaluation.threshold is not None and not evaluation.threshold_declared:
        threshold = f" The model declares no threshold: decisions are at {evaluation.threshold:g}."
    kind = "live predictions" if evaluation.counted == "live" else "predictions, superseded ones included"
    return (
        f"{evaluation.title}. {evaluation.cases} of {evaluation.predictions} {kind}, about "
        f"{evaluation.patients} patients, held against {SOURCES[evaluation.outcomes]} ({events}).{threshold}"
    )


def _interval(metric: Metric, digits: int = 3) -> str:
    return "" if metric.interval is None else f"{metric.interval[0]:.{digits}f} to {metric.interval[1]:.{digits}f}"


def _figure(value: float | None, digits: int = 3) -> str:
    return "not defined" if value is None else f"{value:.{digits}f}"


def _confusion(evaluation: Evaluation) -> Table:
    names = list(evaluation.events)
    rows = [[name, *map(str, counts)] for name, counts in zip(names, evaluation.confusion, strict=True)]
    return Table(caption="Outcomes and decisions", head=["outcome", *(f"said {name}" for name in names)], rows=rows)


def _groups(evaluation: Evaluation) -> tuple[list[Table], list[str]]:
    tables = []
    for dimension in dict.fromkeys(group.dimension for group in evaluation.groups):
        groups = [group for group in evaluation.groups if group.dimension == dimension]
        measured = list(groups[0].metrics)
        rows = [_group_line(group, measured) for group in groups]
        head = [dimension, "cases", *(COLUMNS[name] for name in measured)]
        tables.append(Table(caption=f"By {dimension}", head=head, rows=rows))
    if evaluation.hidden:
        return tables, [f"Not shown, with fewer than {SMALLEST} patients each: {', '.join(evaluation.hidden)}."]
    return tables, [] if tables else ["None."]


def _group_line(group: Group, measured: Sequence[str]) -> list[str]:
    cells = []
    for name in measured:
        metric = group.metrics[name]
        digits = 2 if name in ("accuracy", "recall", "precision", "f1") else 3
        interval = f" ({_interval(metric, digits)})" if metric.interval is not None else ""
        cells.append(f"{_figure(metric.value, digits)}{interval}")
    return [group.name, str(group.cases), *cells]


def _calibration(evaluation: Evaluation) -> Table:
    rows = [[str(item.cases), f"{item.mean_score:.3f}", f"{item.observed:.3f}"] for item in evaluation.calibration]
    measured = (
        ("mean confidence", "share correct")
        if evaluation.threshold is None
        else ("mean score", "share with the outcome")
    )
    return Table(caption="Cases with neighbouring scores", head=["cases", *measured], rows=rows)


def _left_out(evaluation: Evaluation) -> Section:
    rows = [[reason, str(count)] for reason, count in evaluation.left_out.items()]
    remarks = [] if rows else ["No prediction."]
    if evaluation.labels_unmatched:
        remarks.append(f"{evaluation.labels_unmatched} lines of the table name no prediction.")
    tables = [Table(caption="Why", head=["reason", "predictions"], rows=rows)] if rows else []
    return Section(heading="What was left out", tables=tables, remarks=remarks)


def _said(evaluation: Evaluation, name: str) -> str:
    """What a plot shows, in words."""
    if name == "drift":
        return DRIFT_ALT
    if name == "reliability":
        return "Observed share against mean score by bin; the section on calibration has the figures as a table."
    figure = {"roc": "auroc", "precision-recall": "auprc"}[name]
    return f"{PLOTS[name]}; {NAMES[figure]} {_figure(_metric(evaluation.metrics, figure))}."


def _metric(metrics: Mapping[str, Metric], name: str) -> float | None:
    return metrics[name].value if name in metrics else None
