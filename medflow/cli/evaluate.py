"""`medflow evaluate`: predictions held against what became of the patients; `medflow drift`: their inputs alone."""

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
from medflow.evaluation.result import Evaluation, InputDrift
from medflow.store.ledger import now_us

DAY_US = 86_400_000_000
SHOWN = 12  # of the inputs that are steady only the first so many have a line
REPORT = "Write a report here: HTML with its plots inside, or Markdown (.md) with its plots beside it."


def evaluate(
    model: Annotated[str, typer.Argument(help="An installed model's name.", show_default=False)],
    labels: Annotated[
        str | None,
        typer.Option(help="A CSV file of outcomes, or a name in MEDFLOW_LABELS; otherwise the store's records."),
    ] = None,
    output: Annotated[str | None, typer.Option(help="Which output, where the model has several.")] = None,
    report: Annotated[Path | None, typer.Option(help=REPORT)] = None,
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


def drift(
    model: Annotated[str, typer.Argument(help="An installed model's name.", show_default=False)],
    days: Annotated[float, typer.Option(min=0.0, help="Look at what was scored in the last so many days.")] = 7.0,
    report: Annotated[Path | None, typer.Option(help=REPORT)] = None,
    as_json: Json = False,
) -> None:
    """Show whether a model's inputs are still like those that it was trained on; no outcomes are needed."""
    site = here()
    found = steps.input_drift(site, model, since_us=now_us() - round(days * DAY_US))
    if report is not None:
        from medflow.evaluation.report import write_drift  # with matplotlib, which only a report needs

        write_drift(model, found, report)
    if as_json:
        typer.echo(json.dumps({"model": model, "days": days} | found.as_json()))
        return
    _show_drift(found, SHOWN)
    if found.unusable:
        out.print(f"  {found.unusable} more could not be read as they were")


def _show_drift(found: InputDrift, steady: int) -> None:
    """A line for each input that is not steady, and for the first of those that are."""
    from medflow.evaluation.pieces import DRIFT_HEAD, drift_rows, summary_of_drift

    out.print(
        f"inputs: {found.cases} patients beside the {found.trained_on} of the training: {summary_of_drift(found)}",
        markup=False,
    )
    moved = sum(column.verdict not in ("steady", "too-few") for column in found.columns)
    rows = drift_rows(found)[: moved + steady]
    if rows:
        show_table(DRIFT_HEAD, rows)
    if len(rows) < len(found.columns):
        out.print(f"  {len(found.columns) - len(rows)} more are steady, or of too few cases")


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
    if found.inputs_unknown is not None:
        out.print(f"drift of the inputs: not known; {found.inputs_unknown}", markup=False, soft_wrap=True)
    if found.inputs is not None:
        _show_drift(found.inputs, 0)
    if found.labels_unmatched:
        out.print(f"  {found.labels_unmatched} lines of the table name no prediction")
