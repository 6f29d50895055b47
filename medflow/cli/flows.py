"""Running a flow from the command line: it is named by its entry point, so that Prefect loads only when needed."""

from __future__ import annotations

import os
from datetime import datetime
from importlib import import_module
from typing import Any

from medflow.errors import MedflowError, unforeseen
from medflow.logs import json_lines

NIGHTLY = "medflow.flows.nightly:nightly"


def quiet_prefect() -> None:
    """How Prefect behaves in medflow's processes, unless the environment says otherwise: quiet, and patient."""
    for name, value in {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # a busy machine takes longer than Prefect's 20 s
    }.items():
        os.environ.setdefault(name, value)
    if json_lines():  # Prefect's console, in this process and those it starts, says the same kind of line
        os.environ |= {
            "PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER": "json",
            "PREFECT_LOGGING_FORMATTERS_JSON_CLASS": "medflow.logs.JsonFormatter",
            "PREFECT_LOGGING_COLORS": "false",
        }


def load(entry_point: str) -> Any:
    """The object that an entry point of medflow.flows names."""
    module, _, name = entry_point.partition(":")
    return getattr(import_module(module), name)


def run_nightly(
    *,
    sources: list[str] | None,
    models: list[str] | None,
    as_of: datetime | None,
    target: str | None,
    explain: bool = False,
) -> dict[str, Any]:
    """Run the nightly flow in this process, with Prefect's temporary server where none is configured.

    Returns its counts, whether it ended completed or failed.

    Raises
    ------
    MedflowError
        The flow could not run.
    """
    quiet_prefect()
    flow = load(NIGHTLY)
    parameters = {"sources": sources, "models": models, "as_of": as_of, "explain": explain, "target": target}
    state = flow(**parameters, return_state=True)
    result = state.result(raise_on_failure=False)
    if isinstance(result, dict):
        return result
    if isinstance(result, MedflowError):
        raise result
    if isinstance(result, BaseException):
        raise unforeseen(result)
    raise MedflowError(f"the nightly flow ended without its counts, as {state.name}")
