"""The `train` flow: a new version of a model from the stays in the store; a person decides whether it is served."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import State, flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed, Failed
from pydantic import Field

from medflow import steps
from medflow.errors import ConfigurationError
from medflow.flows.evaluate import Labels, Model
from medflow.flows.installation import TASK, only_transient, site
from medflow.flows.report import key_of, named
from medflow.training.asked import Asked, Sampler

Cohort = Annotated[
    str, Field(title="Cohort", description="Name of a configured cohort (MEDFLOW_COHORTS), or all.", min_length=1)
]
Output = Annotated[
    str | None, Field(title="Output", description="Which risk, where the model has several; else empty.")
]
Trials = Annotated[
    int,
    Field(title="Trials", description="Choices of hyperparameters to try; 0 fits once, with the model's own.", ge=0),
]
Proposer = Annotated[Sampler, Field(title="Sampler", description="How choices are proposed.")]
Seed = Annotated[int, Field(title="Seed", description="Of the parts, the search and the fits.", ge=0)]


@task(task_run_name="train {model} on {cohort}", retry_condition_fn=only_transient, **TASK)
def fit(
    model: str, cohort: str, labels: str | None, output: str | None, trials: int, sampler: Sampler, seed: int
) -> tuple[dict[str, Any], str]:
    """Train; returns the counts, and the card with its plots. Aggregates only."""
    from medflow.training.card import page  # with matplotlib, which only a training needs

    here = steps.refreshed(site())
    asked = Asked(
        cohort=cohort,
        labels=here.settings.label_table(labels) if labels else None,
        output=output or None,
        trials=trials,
        sampler=sampler,
        seed=seed,
    )
    found = steps.train(here, model, asked)
    return found.counts(), page(found)


@flow(
    name="train",
    flow_run_name=named("train"),
    description="Fit a model to a cohort of the store; what comes of it is served only once it is promoted.",
)
def train(
    model: Model,
    cohort: Cohort = "all",
    labels: Labels = None,
    output: Output = None,
    trials: Trials = 0,
    sampler: Proposer = "bayesian",
    seed: Seed = 0,
) -> State:
    """Fit a model to a cohort, and show the new version's card. Started again, what was interrupted goes on."""
    try:
        counts, card = fit(model, cohort, labels, output, trials, sampler, seed)
    except ConfigurationError as error:
        return Failed(message=error.message)
    version = counts["version"]
    create_markdown_artifact(key=key_of("train", model), markdown=card, description=f"{model} {version}, a candidate")
    auroc = f", AUROC {counts['auroc']:.3f} on its test part" if "auroc" in counts else ""
    failed = counts["trials"].get("failed", 0)
    said = f"{model} {version}{auroc}: to have it served, medflow models promote {model} {version}"
    if failed:
        return Completed(name="CompletedWithProblems", message=f"{failed} trials failed; {said}", data=counts)
    return Completed(message=said, data=counts)
