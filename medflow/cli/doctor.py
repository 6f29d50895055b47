"""`medflow doctor`: what is configured is tried, before a night depends on it."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Annotated

import typer
from rich.text import Text

from medflow.cli.output import OK, PROBLEMS, out
from medflow.cli.site import Json
from medflow.config import load_with_origins
from medflow.doctor import Finding, examine

COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


def doctor(
    names: Annotated[
        list[str] | None, typer.Argument(help="Sources and targets to try; everything otherwise.", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that each answer may take.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Try every source, target and store that is configured; say what works, what will not, and what to do."""
    loaded = load_with_origins()
    url = os.environ.get("PREFECT_API_URL")
    found = examine(
        loaded.settings,
        loaded.origins,
        names=names or (),
        prefect=(url, os.environ.get("PREFECT_API_AUTH_STRING")) if url else None,
        timeout_s=timeout,
    )
    counts = Counter(str(finding.state) for finding in found)
    if as_json:
        listed = [{"name": each.name, "state": each.state, "message": each.message} for each in found]
        typer.echo(json.dumps({**{state: counts[state] for state in COLOURS}, "findings": listed}))
    else:
        _show(found, counts)
    raise typer.Exit(PROBLEMS if counts["failed"] else OK)


def _show(found: list[Finding], counts: Counter[str]) -> None:
    width = max((len(finding.name) for finding in found), default=0)
    for finding in found:
        state = Text(f"{finding.state:<8}", style=COLOURS[finding.state])
        out.print(Text.assemble(state, f"{finding.name:<{width}}  {finding.message}"), soft_wrap=True)
    out.print(", ".join(f"{counts[state]} {state}" for state in COLOURS))
