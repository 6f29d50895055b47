"""The `ingest` flow: take in what the configured sources offer."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import State, flow, task
from pydantic import Field

from medflow import steps
from medflow.connections.endpoints import Files
from medflow.errors import ConfigurationError, ServerUnavailable
from medflow.flows.addresses import addresses_kept, by_name
from medflow.flows.installation import TASK, only_transient, site
from medflow.flows.report import final_state, named, report
from medflow.ingest.tally import Tally

Sources = Annotated[
    list[str] | None,
    Field(title="Sources", description="Names of configured sources (MEDFLOW_SOURCES); empty takes all of them."),
]


@task(task_run_name="ingest {source}", retry_condition_fn=only_transient, **TASK)
def ingest_source(source: str) -> dict[str, Any]:
    """Take in one source; returns its counts."""
    here = site()
    with addresses_kept(here.settings):
        counts = steps.ingest(here, here.settings.chosen_sources([source])[source], name=source).as_json()
    return by_name(here.settings, counts)


def take_in(sources: list[str] | None) -> dict[str, Any]:
    """Every source in turn, and their counts together; a server that does not answer keeps no other source waiting."""
    total = Tally()
    by_source: dict[str, Any] = {}
    errors: dict[str, int] = {}
    for name, source in site().settings.chosen_sources(sources or None).items():
        try:
            by_source[name] = ingest_source(name)
        except ServerUnavailable:
            errors[f"{name} did not answer, see `medflow status`"] = 1
        except ConfigurationError:
            if isinstance(source, Files):
                raise
            errors[f"{name} does not answer as it is configured, see `medflow status`"] = 1
    refused = {
        f"{name} does not give {part}: {why}": 1
        for name, counts in by_source.items()
        for part, why in counts.get("broken", {}).items()
    }
    for counts in by_source.values():
        total.add(Tally(**{name: counts[name] for name in ("offered", "stored", "unchanged", "rejected")}))
        total.reasons.update(counts["reasons"])
        total.notes.update(counts["notes"])
    if not by_source and not errors:
        total.notes["no-source-configured"] = 1
    counts = {**total.as_json(), "sources": by_source}
    if errors or refused:
        counts |= {"failed": len(errors), "refused": len(refused), "errors": {**errors, **refused}}
    report("ingest", "What was taken in", counts)
    return counts


@flow(name="ingest", flow_run_name=named("ingest"), description="Take in what the configured sources offer.")
def ingest(sources: Sources = None) -> State:
    """Take in what the configured sources offer; every input ends stored, unchanged or rejected with a reason."""
    return final_state(take_in(sources))
