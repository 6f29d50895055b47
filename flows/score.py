"""The `score` flow: run the models over what is new to them, a leased chunk a task."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from prefect import State, flow, task
from pydantic import Field

from medflow import scoring, steps
from medflow.errors import ConfigurationError, PluginBroken
from medflow.flows.installation import TASK, loaded_models, only_transient, site
from medflow.flows.report import final_state, named, report
from medflow.records import Instant
from medflow.scoring import ScoreTally

Models = Annotated[
    list[str] | None, Field(title="Models", description="Names of installed models; empty runs all of them.")
]
AsOf = Annotated[
    datetime | None,
    Field(title="As of", description="Score as if it were this moment (with a time zone); empty means now."),
]


@task(task_run_name="select {model}", retry_condition_fn=only_transient, **TASK)
def select_cases(model: str, as_of: datetime | None) -> dict[str, int]:
    """Make jobs of what is new to a model; returns how many are new, and how many wait in all."""
    here = site()
    registered = here.registry.get(model)
    selected = steps.select(here, registered, as_of=instant(as_of)).selected
    waiting, _ = scoring.waiting(here.store, registered)
    return {"selected": selected, "waiting": waiting}


@task(task_run_name="score {model}", retry_condition_fn=only_transient, **TASK)
def score_chunk(model: str) -> dict[str, Any]:
    """Lease and score one chunk; returns its counts."""
    here = site()
    tally = steps.score_chunk(here, here.registry.get(model), loaded_models())
    return {**tally.as_json(), "leased": tally.leased, "seconds": dict(tally.seconds)}


def instant(moment: datetime | None) -> Instant | None:
    """The moment as an Instant; a time without a zone is refused, not guessed."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise ConfigurationError("as_of needs a time zone, for example 2026-01-31T06:00:00+01:00")
    return Instant.of(moment)


def run_models(models: list[str] | None, as_of: datetime | None) -> dict[str, Any]:
    """Every model in turn, chunk by chunk until nothing is left; a broken one does not stop the others."""
    here = site()
    total = ScoreTally()
    by_model: dict[str, Any] = {}
    for model in here.registry.choose(models or ()):
        tally = ScoreTally(selected=select_cases(model.name, as_of)["selected"])
        try:
            while (counts := score_chunk(model.name))["leased"]:
                tally.add(_tally(counts))
        except PluginBroken as error:
            tally.broken[model.name] = error.message
        steps.note_held(here, model, tally)
        by_model[f"{model.name}@{model.spec.version}"] = tally.as_json()
        total.add(tally)
    if not models:
        total.broken.update({plugin.entry_point: plugin.error for plugin in here.registry.broken})
    seconds = {name: round(value, 2) for name, value in total.seconds.items()}
    report("score", "What was scored", {**total.as_json(), "seconds": seconds, **by_model})
    return total.as_json()


def _tally(counts: dict[str, Any]) -> ScoreTally:
    numbers = {name: counts[name] for name in ("leased", "done", "failed", "dead")}
    tally = ScoreTally(**numbers)
    tally.reasons.update(counts["reasons"])
    tally.seconds.update(counts["seconds"])
    return tally


@flow(name="score", flow_run_name=named("score"), description="Run the models over what is new to them.")
def score(models: Models = None, as_of: AsOf = None) -> State:
    """Run the models over what is new to them, and queue the results for delivery."""
    return final_state(run_models(models, as_of))
