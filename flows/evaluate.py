"""The `evaluate` flow: hold a model's predictions against the outcomes that became known afterwards."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import State, flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed, Failed
from pydantic import Field

from medflow import steps
from medflow.errors import ConfigurationError
from medflow.evaluation.report import page
from medflow.flows.installation import TASK, only_transient, site
from medflow.flows.report import key_of, named

Model = Annotated[str, Field(title="Model", description="Name of an installed model.", min_length=1)]
Labels = Annotated[
    str | None,
    Field(
        title="Labels",
        description="Name of a configured table of outcomes (MEDFLOW_LABELS), never a path; "
        "empty takes the outcomes from the records that came later.",
    ),
]
Output = Annotated[
    str | None, Field(title="Output", description="Which output, where the model has several; else empty.")
]


@task(task_run_name="evaluate {model}", retry_condition_fn=only_transient, **TASK)
def hold_against_outcomes(model: str, labels: str | None, output: str | None) -> tuple[dict[str, Any], str]:
    """Evaluate; returns the counts and metrics, and the report with its plots. Aggregates only."""
    here = site()
    table = here.settings.label_table(labels) if labels else None
    found = steps.evaluate(here, model, output=output or None, labels=table)
    return found.counts(), page(found)


@flow(
    name="evaluate",
    flow_run_name=named("evaluate"),
    description="Hold a model's predictions against the outcomes that became known afterwards.",
)
def evaluate(model: Model, labels: Labels = None, output: Output = None) -> State:
    """Hold a model's predictions against the outcomes that became known afterwards, and report how good they were."""
    try:
        counts, text = hold_against_outcomes(model, labels, output)
    except ConfigurationError as error:
        return Failed(message=error.message)
    create_markdown_artifact(key=key_of("evaluate", model), markdown=text, description=f"How good {model} has been")
    figures = ", ".join(f"{name} {value:.3f}" for name, value in counts["metrics"].items())
    return Completed(message=f"{counts['cases']} of {counts['predictions']} cases: {figures}", data=counts)
