"""The `nightly` flow: ingest, score, deliver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import State, flow

from medflow.errors import ConfigurationError, MedflowError, TransientError
from medflow.flows.deliver import Target, send
from medflow.flows.ingest import Sources, take_in
from medflow.flows.installation import refresh, scoring_site
from medflow.flows.report import final_state, named, report_night
from medflow.flows.score import AsOf, Explain, Models, run_models
from medflow.steps import recorded
from medflow.store.history import NIGHTLY
from medflow.store.ledger import now_us


@flow(
    name="nightly", flow_run_name=named("nightly"), description="Take in what is new, score it, and send the results."
)
def nightly(
    sources: Sources = None,
    models: Models = None,
    as_of: AsOf = None,
    explain: Explain = False,
    target: Target = None,
) -> State:
    """Take in what is new, score it, and send the results; infrastructure that fails one step does not stop the next.

    What is seen to be configured wrongly before it begins stops it there.
    """
    here = refresh()
    here.settings.chosen_targets(target)
    here.settings.chosen_sources(sources or None)
    scoring_site().registry.choose(models or ())
    started_us = now_us()
    with recorded(here, NIGHTLY) as run:
        counts = {
            "ingest": tried(lambda: take_in(sources)),
            "score": tried(lambda: run_models(models, as_of, explain=explain)),
            "deliver": tried(lambda: send(target), also=ConfigurationError),  # a server that changed its mind about us
        }
        run.counts = counts
    report_night(here, counts, started_us)
    return final_state(counts)


def tried(step: Callable[[], dict[str, Any]], *, also: type[MedflowError] = TransientError) -> dict[str, Any]:
    """The step's counts; of one that fails for such a reason, that it did, so that the night has its account."""
    try:
        return step()
    except (TransientError, also) as error:
        return {"failed": 1, "errors": {error.message: 1}}
