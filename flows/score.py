"""The `score` flow: run the models over what is new to them, a leased chunk a task."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from prefect import State, flow, task
from pydantic import Field

from medflow import steps
from medflow.errors import ConfigurationError, MedflowError, PluginBroken
from medflow.flows.chunks import score_chunks
from medflow.flows.deliver import send
from medflow.flows.installation import TASK, only_transient, refresh, scoring_site, site
from medflow.flows.report import final_state, named, report
from medflow.records import Instant
from medflow.registry import RegisteredModel
from medflow.scoring import ScoreTally

Models = Annotated[
    list[str] | None, Field(title="Models", description="Names of installed models; empty runs all of them.")
]
AsOf = Annotated[
    datetime | None,
    Field(title="As of", description="Score as if it were this moment (with a time zone); empty means now."),
]
Explain = Annotated[
    bool,
    Field(
        title="Explain",
        description="Models that can also show what led to their answers: heat maps of the images that are scored, and "
        "which measurements moved a risk; takes longer.",
    ),
]
DeliverTo = Annotated[
    str | None,
    Field(
        title="Deliver to",
        description="Name of a configured target that gets the results at once; empty leaves them in the outbox.",
    ),
]


Selected = tuple[int, float, dict[str, int]]


@task(task_run_name="select {model}", retry_condition_fn=only_transient, **TASK)
def select_cases(model: str, as_of: datetime | None, run_id: int) -> Selected:
    """Make jobs of what is new to a model; returns how many are new, the seconds it took, and its notes."""
    here = scoring_site()
    tally = steps.select(here, here.registry.get(model), as_of=instant(as_of), run_id=run_id)
    return tally.selected, tally.seconds["select"], dict(tally.notes)


def select_all(
    models: Sequence[RegisteredModel], as_of: datetime | None, run_id: int
) -> tuple[dict[str, Selected], dict[str, MedflowError]]:
    """What is new to each model, and why it cannot be told of some, by name: a reference that is not there, say."""
    selected: dict[str, Selected] = {}
    given_up: dict[str, MedflowError] = {}
    for model in models:
        try:
            selected[model.name] = select_cases(model.name, as_of, run_id)
        except PluginBroken as error:
            given_up[model.name] = error
    return selected, given_up


def instant(moment: datetime | None) -> Instant | None:
    """The moment as an Instant; a time without a zone is refused, not guessed."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise ConfigurationError("as_of needs a time zone, for example 2026-01-31T06:00:00+01:00")
    return Instant.of(moment)


def run_models(models: list[str] | None, as_of: datetime | None, *, explain: bool = False) -> dict[str, Any]:
    """Select for every model, have all of it scored, and report; a broken model does not stop the others."""
    refresh()
    here = scoring_site()
    chosen = here.registry.choose(models or ())
    total = ScoreTally()
    if not models:
        total.broken.update({plugin.entry_point: plugin.error for plugin in here.registry.broken})
    with steps.recorded(here, "score") as run:
        selected, given_up = select_all(chosen, as_of, run.id)
        runnable = [model for model in chosen if model.name in selected]
        given_up.update(score_chunks(here, run, runnable, explain=explain))
        tallies = steps.scored(here, run)
        by_model: dict[str, Any] = {}
        for model in chosen:
            tally = tallies.get(model.name, ScoreTally())
            tally.selected, tally.seconds["select"], notes = selected.get(model.name, (0, 0.0, {}))
            tally.notes.update(notes)
            if error := given_up.get(model.name):
                tally.broken[model.name] = error.message
            steps.note_held(here, model, tally)
            by_model[f"{model.name}@{model.spec.version}"] = tally.as_json()
            total.add(tally)
        seconds = {name: round(value, 2) for name, value in total.seconds.items()}
        run.counts = {**total.as_json(), "seconds": seconds}
    report("score", "What was scored", {**total.as_json(), "seconds": seconds, **by_model})
    return {**total.as_json(), "models": by_model, "seconds": seconds}


@flow(name="score", flow_run_name=named("score"), description="Run the models over what is new to them.")
def score(models: Models = None, as_of: AsOf = None, explain: Explain = False, deliver_to: DeliverTo = None) -> State:
    """Run the models over what is new to them; the results are queued for delivery, or delivered at once."""
    if deliver_to is not None:
        site().settings.chosen_targets(deliver_to)
    counts = run_models(models, as_of, explain=explain)
    return final_state({"score": counts, "deliver": send(deliver_to)} if deliver_to is not None else counts)
