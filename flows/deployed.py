"""The flows as deployments run them: tried again when the infrastructure failed, and ended when they take too long.

`medflow nightly` on the command line runs the plain ones: whoever waits at a terminal, or a cron job of the system's
own, decides for themselves whether to try again.
"""

from __future__ import annotations

import inspect
from functools import wraps
from typing import Any, get_type_hints

from prefect import Flow, State, get_client
from prefect import flow as as_flow
from prefect.client.schemas.objects import FlowRunPolicy
from prefect.runtime import flow_run

from medflow import __version__
from medflow.errors import TransientError
from medflow.flows.deliver import deliver as deliver_flow
from medflow.flows.evaluate import evaluate as evaluate_flow
from medflow.flows.ingest import ingest as ingest_flow
from medflow.flows.nightly import nightly as nightly_flow
from medflow.flows.score import score as score_flow
from medflow.flows.train import train as train_flow

HOUR_S = 3600


class RunFailed(TransientError):
    """A run in which something did not get through that should have; its counts are the message."""


def deployed(plain: Flow[..., State], *, retries: int, retry_delay_s: int, timeout_s: int) -> Flow[..., State]:
    """The flow with retries and a time limit for each try. Each goes on where the one before stopped.

    A failed state that is returned is raised instead: Prefect waits and tries again in the same process only for
    exceptions. What another try cannot change (a wrong configuration) gets none.
    """

    @wraps(plain.fn)
    def run(*arguments: Any, **parameters: Any) -> State:
        try:
            state = plain.fn(*arguments, **parameters)
        except TransientError:
            raise
        except Exception:
            _try_no_more()
            raise
        if retries and state.is_failed():
            raise RunFailed(state.message or "the run failed")
        return state

    # Prefect reads hints where a function was defined, which here is not where their names are
    hints = get_type_hints(plain.fn, include_extras=True)
    signature = inspect.signature(plain.fn)
    named = [item.replace(annotation=hints[item.name]) for item in signature.parameters.values()]
    run.__signature__ = signature.replace(parameters=named)  # pyright: ignore[reportAttributeAccessIssue]
    return as_flow(
        name=plain.name,
        version=__version__,
        description=plain.description,
        flow_run_name=plain.flow_run_name,
        retries=retries,
        retry_delay_seconds=retry_delay_s,
        timeout_seconds=timeout_s,
    )(run)


def _try_no_more() -> None:
    if not flow_run.id:
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, empirical_policy=FlowRunPolicy(retries=0))


# A target or database that is away at night is often back after a while; a person at the pages will not wait so long.
# Twenty hours: whatever hangs is gone before the next night begins.
nightly = deployed(nightly_flow, retries=2, retry_delay_s=900, timeout_s=20 * HOUR_S)
ingest = deployed(ingest_flow, retries=1, retry_delay_s=60, timeout_s=20 * HOUR_S)
score = deployed(score_flow, retries=1, retry_delay_s=60, timeout_s=20 * HOUR_S)
deliver = deployed(deliver_flow, retries=1, retry_delay_s=60, timeout_s=6 * HOUR_S)
evaluate = deployed(evaluate_flow, retries=0, retry_delay_s=0, timeout_s=6 * HOUR_S)
train = deployed(train_flow, retries=0, retry_delay_s=0, timeout_s=20 * HOUR_S)
