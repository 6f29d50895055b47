"""`medflow evaluate`: a model's predictions held against what became of the patients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medflow import steps
from medflow.cli.output import out, show_table
from medflow.cli.site import Json, here
from medflow.config import LabelTable, Settings
from medflow.errors import ConfigurationError
from medflow.evaluation.result import Evaluation


def evaluate(
    model: Annotated[str, typer.Argument(help="An installed model's name.", show_default=False)],
    labels: Annotated[
        str | None,
        typer.Option(help="A CSV file of outcomes, or a name in MEDFLOW_LABELS; otherwise the store's records."),
    ] = None,
    output: Annotated[str | None, typer.Option(help="Which output, where the model has several.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a Markdown report here, its plots beside it.")] = None,
    as_json: Json = False,
) -> None:
    """Hold a model's predictions against the outcomes that became known afterwards."""
    site = here()
    found = steps.evaluate(site, model, output=output, labels=label_table(site.settings, labels))
    if report is not None:
        from medflow.evaluation.report import write_report  # with matplotlib, which only a report needs

        write_report(found, report)
    if as_json:
        typer.echo(json.dumps(found.as_json()))
    else:
        _show(found)


def label_table(settings: Settings, given: str | None) -> LabelTable | None:
    """The label table of a configured name, or at a path.

    Raises
    ------
    ConfigurationError
        It is neither.
    """
    if given is None or given in settings.labels:
        return None if given is None else settings.label_table(given)
    if not Path(given).is_file():
        known = ", ".join(sorted(settings.labels)) or "none"
        raise ConfigurationError(f"--labels is neither a file nor a name in MEDFLOW_LABELS, which has: {known}")
    return LabelTable(path=Path(given))


def _show(found: Evaluation) -> None:
    events = ", ".join(f"{count} {name}" for name, count in found.events.items())
    out.print(f"{found.model} {found.version}, {found.output}: {found.cases} of {found.predictions} cases ({events})")
    rows = []
    for name, metric in found.metrics.items():
        low, high = metric.interval or (None, None)
        rows.append([name, *("" if value is None else f"{value:.3f}" for value in (metric.value, low, high))])
    show_table(["metric", "value", "95 % from", "to"], rows)
    for note in found.notes:
        out.print(note, markup=False)
    for reason, count in found.left_out.items():
        out.print(f"  left out: {count} {reason}", markup=False)
    if found.labels_unmatched:
        out.print(f"  {found.labels_unmatched} lines of the table name no prediction")
