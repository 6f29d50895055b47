"""The `nightly` flow: ingest, score, deliver."""

from __future__ import annotations

from prefect import State, flow

from medflow.flows.deliver import Target, send
from medflow.flows.ingest import Sources, take_in
from medflow.flows.report import final_state, report
from medflow.flows.score import AsOf, Models, run_models


@flow(name="nightly", flow_run_name="nightly", description="Take in what is new, score it, and send the results.")
def nightly(sources: Sources = None, models: Models = None, as_of: AsOf = None, target: Target = None) -> State:
    """Take in what is new, score it, and send the results; what one step cannot do does not stop the next."""
    counts = {
        "ingest": take_in(sources),
        "score": run_models(models, as_of),
        "deliver": send(target),
    }
    report("nightly", "What the night did", counts)
    return final_state(counts)
