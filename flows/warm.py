"""What a flow run's process needs, imported before there is one: the deployed flows, and the plugins' declarations."""

from medflow.flows import deployed
from medflow.registry import installed

FLOWS = deployed
MODELS = installed()
