"""The commands that stay: a worker that scores, a server that runs flows."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from medflow.cli.flows import load, quiet_prefect
from medflow.cli.site import Names
from medflow.config import load_log_settings
from medflow.logs import set_up_logging


def worker(
    device: Annotated[str | None, typer.Option(help="cpu, cuda:0, mps ...; MEDFLOW_DEVICE otherwise.")] = None,
    model: Names = None,
    name: Annotated[str | None, typer.Option(help="What this worker is called; host and device otherwise.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve metrics for Prometheus as well, at this port.")
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="Address of --metrics-port.")] = "127.0.0.1",
) -> None:
    """Score chunks for flows on one device, its models kept loaded, until asked to stop (SIGTERM).

    Models that are named are loaded at once, and only they are served; otherwise all that are installed.
    """
    quiet_prefect()
    if device is not None:
        os.environ["MEDFLOW_DEVICE"] = device  # what the settings are read from
    set_up_logging(load_log_settings(), level="INFO")
    metrics = (metrics_host, metrics_port) if metrics_port is not None else None
    load("medflow.flows.worker:serve")(model or (), name=name, metrics=metrics)


def serve(
    pool: Annotated[str, typer.Option(help="The work pool whose flow runs to run.")] = "medflow",
    limit: Annotated[int | None, typer.Option(min=1, help="Flow runs at once; no limit otherwise.")] = None,
    name: Annotated[str | None, typer.Option(help="What this server is called.")] = None,
) -> None:
    """Run scheduled and triggered flow runs until asked to stop (SIGTERM); each in a process that starts warm."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")  # a run's page shows its log
    quiet_prefect()
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", "0.3")  # how soon a run that was triggered begins
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")  # how a run whose machine is gone is known
    set_up_logging(load_log_settings(), level="INFO")
    load("medflow.flows.serve:serve")(pool, limit=limit, name=name)
