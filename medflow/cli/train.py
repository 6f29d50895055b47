"""`medflow train`: a new version of a model, from the stays in the store."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from medflow import steps
from medflow.cli.evaluate import label_table
from medflow.cli.output import exit_status, out, progress_bar, show_table
from medflow.cli.site import Json, here
from medflow.training.asked import Asked, Sampler
from medflow.training.result import Trained, figures


def train(
    model: Annotated[str, typer.Argument(help="An installed model's name.", show_default=False)],
    cohort: Annotated[str, typer.Option(help="A name in MEDFLOW_COHORTS, or all.")],
    labels: Annotated[
        str | None,
        typer.Option(help="A CSV file of outcomes, or a name in MEDFLOW_LABELS; otherwise the store's records."),
    ] = None,
    output: Annotated[str | None, typer.Option(help="Which risk, where the model has several.")] = None,
    trials: Annotated[
        int, typer.Option(help="Choices of hyperparameters to try, the model's own first; 0 or 1: only that.")
    ] = 0,
    sampler: Annotated[Sampler, typer.Option(help="How choices are proposed.")] = "bayesian",
    seed: Annotated[int, typer.Option(help="Of the parts, the search and the fits.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps; MEDFLOW_DEVICE otherwise.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit a model to a cohort of the store; what comes of it is served only once it is promoted."""
    site = here()
    asked = Asked(
        cohort=cohort,
        labels=label_table(site.settings, labels),
        output=output,
        trials=trials,
        sampler=sampler,
        seed=seed,
        device=device,
    )
    with progress_bar("training") as advance:

        def tick(said: str, count: int, total: int | None) -> None:
            advance(count, description=said, total=total)

        found = steps.train(site, model, asked, progress=tick)
    if as_json:
        typer.echo(json.dumps(found.as_json()))
    else:
        _show(found)
    raise typer.Exit(exit_status({"trials": found.trials()}))


def _show(found: Trained) -> None:
    spec, parts = found.spec, found.cohort.parts
    told = ", ".join(f"{part.patients} {name} ({part.events} events)" for name, part in parts.items())
    out.print(f"{spec.name} {spec.version}, {found.output.name}: patients {told}")
    for reason, count in sorted(found.cohort.left_out.items()):
        out.print(f"  left out: {count} {reason}", markup=False)
    if found.cohort.labels_unmatched:
        out.print(f"  {found.cohort.labels_unmatched} lines of the table name no stay of the cohort")
    shown = [figures(item) for item in (found.test, *([found.served.evaluation] if found.served else []))]
    rows = []
    for name in [*found.test.metrics, "event_1"]:
        label = "min(recall, precision)" if name == "event_1" else name
        rows.append([label, *(_figure(item[name]) for item in shown)])
    served = [f"served now ({found.served.evaluation.version})"] if found.served else []
    show_table([f"on {found.test.cases} test cases", spec.version, *served], rows)
    if found.unserved:
        out.print(f"not compared with the version served: {found.unserved}", markup=False)
    if found.served:
        out.print("if the version served was trained on some of these test patients, it is not as good as it looks")
    ended = ", ".join(f"{count} {name}" for name, count in found.trials().items() if isinstance(count, int))
    out.print(f"trials: {ended}; kept: trial {found.found.best.number + 1}")
    out.print(f"a candidate; to have it served: medflow models promote {spec.name} {spec.version}", markup=False)


def _figure(metric: dict[str, float | None]) -> str:
    value, low, high = metric["value"], metric.get("low"), metric.get("high")
    if value is None:
        return ""
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"
