"""What a flow run's process needs, imported before there is one: the deployed flows, the plugins' declarations, and
libraries that are otherwise imported at first use.
"""

from importlib import import_module

from medflow.flows import deployed
from medflow.registry import installed

LIBRARIES = (
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "prefect.engine",
    "prefect.task_engine",
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
)

FLOWS = deployed
MODELS = installed()
for library in LIBRARIES:
    import_module(library)
