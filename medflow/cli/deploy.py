"""`medflow deploy`: the deployments, their schedule and their forms, at a Prefect server."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from medflow.cli.flows import load, quiet_prefect
from medflow.cli.output import out, show_table
from medflow.cli.site import Json
from medflow.config import load_settings
from medflow.registry import installed


def deploy(
    pool: Annotated[str | None, typer.Option(help="The work pool that runs go to; medflow otherwise.")] = None,
    pool_type: Annotated[
        str, typer.Option(help="medflow (run by `medflow serve`), process, docker, kubernetes or kubernetes-gpu.")
    ] = "medflow",
    cron: Annotated[str | None, typer.Option(help='When nights begin; "0 2 * * *" otherwise.')] = None,
    timezone: Annotated[str | None, typer.Option(help="Time zone of --cron; MEDFLOW_TIMEZONE, else UTC.")] = None,
    notify: Annotated[
        str | None, typer.Option(help="TYPE/NAME of a Prefect notification block that is told of runs that failed.")
    ] = None,
    silent_after: Annotated[
        float, typer.Option(min=60, help="Seconds without a heartbeat after which a run counts as crashed.")
    ] = 300,
    as_json: Json = False,
) -> None:
    """Register flows, schedule and run forms at the Prefect server that PREFECT_API_URL names; again after changes.

    The forms offer the models installed here and the sources and targets configured here, so do it again when those
    change. Doing it twice changes nothing.
    """
    quiet_prefect()
    options = load("medflow.flows.deployments:Options")(
        pool=pool, pool_type=pool_type, cron=cron, timezone=timezone, notify=notify, silent_s=silent_after
    )
    done: dict[str, Any] = load("medflow.flows.deployments:deploy")(load_settings(), installed(), options)
    if as_json:
        typer.echo(json.dumps(done))
        return
    show_table(
        ["what", "name", "", "schedule"],
        [
            ["work pool", done["work_pool"]["name"], done["work_pool"]["status"], None],
            *(["deployment", item["name"], item["status"], item.get("schedule")] for item in done["deployments"]),
            *(["automation", item["name"], item["status"], None] for item in done["automations"]),
        ],
    )
    if done["work_pool"]["type"] == "medflow":
        out.print(f"To run them: medflow serve --pool {done['work_pool']['name']}")
