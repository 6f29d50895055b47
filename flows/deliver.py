"""The `deliver` flow: send the results that a target has not been sent yet."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import State, flow, task
from pydantic import Field

from medflow import steps
from medflow.flows.addresses import addresses_kept, by_name
from medflow.flows.installation import TASK, site
from medflow.flows.report import final_state, named, report

Target = Annotated[
    str | None,
    Field(title="Target", description="Name of a configured target (MEDFLOW_TARGETS); empty takes the default ones."),
]


@task(task_run_name="deliver", **{**TASK, "retries": 0})  # it has retries of its own, and the next run goes on with it
def deliver_results(target: str | None) -> dict[str, Any]:
    """Send what is pending; returns the counts."""
    here = site()
    with addresses_kept(here.settings, of="targets"):
        counts = steps.deliver(here, target).as_json()
    return by_name(here.settings, counts, of="targets")


def send(target: str | None) -> dict[str, Any]:
    """Deliver, and report what was sent."""
    counts = deliver_results(target)
    report("deliver", "What was delivered", counts)
    return counts


@flow(
    name="deliver", flow_run_name=named("deliver"), description="Send the results that a target has not been sent yet."
)
def deliver(target: Target = None) -> State:
    """Send the results that a target has not been sent yet; running it twice sends nothing twice."""
    return final_state(send(target))
