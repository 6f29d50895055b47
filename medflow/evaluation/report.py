"""An evaluation as Markdown: what was held against what, how good it was, for whom, and what was left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medflow.drawing import data_uri
from medflow.errors import ConfigurationError
from medflow.evaluation.plots import plots
from medflow.evaluation.result import SMALLEST, Evaluation, Group, Metric

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
SOURCES = {"labels": "a table of labels", "store": "the records that came later"}
PLOTS = {"roc": "ROC curve", "precision-recall": "Precision against recall", "reliability": "Reliability"}


def write_report(evaluation: Evaluation, path: Path) -> list[Path]:
    """Write the report to ``path``, its plots beside it; returns every file written.

    Raises
    ------
    ConfigurationError
        The folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures: dict[str, Path] = {}
        for name, png in plots(evaluation).items():
            pictures[name] = path.with_name(f"{path.stem}-{name}.png")
            pictures[name].write_bytes(png)
        path.write_text(markdown(evaluation, {name: picture.name for name, picture in pictures.items()}), "utf-8")
    except OSError as error:
        raise ConfigurationError(f"the report cannot be written to {path} ({error.strerror})") from None
    return [path, *pictures.values()]


def page(evaluation: Evaluation) -> str:
    """The report with its plots inside, as one text."""
    return markdown(evaluation, {name: data_uri(picture) for name, picture in plots(evaluation).items()})


def markdown(evaluation: Evaluation, pictures: Mapping[str, str]) -> str:
    """The report; ``pictures`` says where each plot is."""
    parts = [
        f"# {evaluation.model} {evaluation.version}: {evaluation.output}",
        _introduction(evaluation),
        *(f"> {note}." for note in evaluation.notes),
        _table(["metric", "value", "95 % interval"], [_line(*item) for item in evaluation.metrics.items()]),
        f"Intervals: {evaluation.draws} bootstrap draws of whole patients (seeded).",
        f"## {'Decisions' if evaluation.threshold is None else f'Decisions at {evaluation.threshold:g}'}",
        _confusion(evaluation),
        "## By group",
        _groups(evaluation),
        "## Calibration",
        _calibration(evaluation),
        "## What was left out",
        _left_out(evaluation),
    ]
    shown = [f"![{PLOTS[name]}]({pictures[name]})" for name in PLOTS if name in pictures]
    return "\n\n".join([*parts, *(["## Plots", *shown] if shown else [])]) + "\n"


def _introduction(evaluation: Evaluation) -> str:
    events = ", ".join(f"{count} {name}" for name, count in evaluation.events.items())
    threshold = ""
    if evaluation.threshold is not None and not evaluation.threshold_declared:
        threshold = f" The model declares no threshold: decisions are at {evaluation.threshold:g}."
    return (
        f"{evaluation.title}. {evaluation.cases} of {evaluation.predictions} live predictions, about "
        f"{evaluation.patients} patients, held against {SOURCES[evaluation.outcomes]} ({events}).{threshold}"
    )


def _line(name: str, metric: Metric) -> list[str]:
    return [NAMES[name], _figure(metric.value), _interval(metric)]


def _interval(metric: Metric) -> str:
    return "" if metric.interval is None else f"{metric.interval[0]:.3f} to {metric.interval[1]:.3f}"


def _figure(value: float | None, digits: int = 3) -> str:
    return "not defined" if value is None else f"{value:.{digits}f}"


def _confusion(evaluation: Evaluation) -> str:
    names = list(evaluation.events)
    rows = [[name, *map(str, counts)] for name, counts in zip(names, evaluation.confusion, strict=True)]
    return _table(["outcome", *(f"said {name}" for name in names)], rows)


def _groups(evaluation: Evaluation) -> str:
    parts = []
    for dimension in dict.fromkeys(group.dimension for group in evaluation.groups):
        groups = [group for group in evaluation.groups if group.dimension == dimension]
        measured = list(groups[0].metrics)
        rows = [_group_line(group, measured) for group in groups]
        parts.append(_table([dimension, "cases", *(COLUMNS[name] for name in measured)], rows))
    if evaluation.hidden:
        parts.append(f"Not shown, with fewer than {SMALLEST} cases each: {', '.join(evaluation.hidden)}.")
    return "\n\n".join(parts) or "None."


def _group_line(group: Group, measured: Sequence[str]) -> list[str]:
    cells = []
    for name in measured:
        metric = group.metrics[name]
        interval = f" ({_interval(metric)})" if metric.interval is not None else ""
        digits = 2 if name in ("accuracy", "recall", "precision", "f1") else 3
        cells.append(f"{_figure(metric.value, digits)}{interval}")
    return [group.name, str(group.cases), *cells]


def _calibration(evaluation: Evaluation) -> str:
    rows = [[str(item.cases), f"{item.mean_score:.3f}", f"{item.observed:.3f}"] for item in evaluation.calibration]
    measured = (
        ("mean confidence", "share correct")
        if evaluation.threshold is None
        else ("mean score", "share with the outcome")
    )
    return _table(["cases", *measured], rows)


def _left_out(evaluation: Evaluation) -> str:
    rows = [[reason, str(count)] for reason, count in evaluation.left_out.items()]
    parts = [_table(["reason", "predictions"], rows) if rows else "No prediction."]
    if evaluation.labels_unmatched:
        parts.append(f"{evaluation.labels_unmatched} lines of the table name no prediction.")
    return "\n\n".join(parts)


def _table(columns: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = list(columns)
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
