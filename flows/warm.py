"""What a flow run's process needs, imported before there is one: the flows, and the plugins' declarations."""

from medflow.flows import deliver, ingest, nightly, score
from medflow.registry import installed

FLOWS = (ingest, score, deliver, nightly)
MODELS = installed()
