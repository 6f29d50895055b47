"""The commands that say where things stand: to people, to an alarm, and to Prometheus."""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter
from typing import Annotated

import typer

from medflow.cli.output import OK, PROBLEMS, err, out, show_table
from medflow.cli.site import Json
from medflow.config import load_settings
from medflow.logs import json_lines
from medflow.metrics import PORT, exposition, log, start_metrics
from medflow.status import (
    MAX_AGE_HOURS,
    Problem,
    Standing,
    as_json,
    look,
    per_case_ms,
    problems,
    said_age,
    said_of,
    worker_state,
)
from medflow.store import Store
from medflow.store.standing import JOB_STATES

RUNS_SHOWN = 5


def status(
    json_: Json = False,
    check: Annotated[
        bool, typer.Option("--check", help="One line; status 3 when something needs a person: for cron and Nagios.")
    ] = False,
    max_age: Annotated[
        float, typer.Option("--max-age", min=0, help="Hours after which a source is stale and a result late.")
    ] = MAX_AGE_HOURS,
    max_dead: Annotated[
        int, typer.Option("--max-dead", min=0, help="Cases a model that cannot be scored and are no problem.")
    ] = 0,
) -> None:
    """Where things stand: sources, backlog, rates, results to be delivered, rejects, workers, the last runs."""
    settings = load_settings()
    found = look(Store(settings).open(), settings)
    wrong = problems(found, max_age_hours=max_age, max_dead=max_dead)
    if json_:
        listed = [{"code": item.code, "name": item.name, "message": item.message} for item in wrong]
        typer.echo(json.dumps({**as_json(found), "problems": listed}))
    elif check:
        typer.echo(f"PROBLEM: {'; '.join(item.message for item in wrong)}" if wrong else "OK")
    else:
        _show(found, wrong)
    raise typer.Exit(PROBLEMS if check and wrong else OK)


def metrics(
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 takes a free one.")] = PORT,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all of the machine's.")] = "127.0.0.1",
    once: Annotated[bool, typer.Option("--once", help="Print them and end: for a textfile collector.")] = False,
) -> None:
    """Serve the same as Prometheus metrics, until asked to stop (SIGTERM)."""
    settings = load_settings()
    store = Store(settings).open()
    if once:
        typer.echo(exposition(store, settings), nl=False)
        return
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    serving = start_metrics(store, settings, port, host)
    where = f"http://{f'[{serving.host}]' if ':' in serving.host else serving.host}:{serving.port}/metrics"
    if json_lines():
        log.warning("serving %s", where)
    else:
        err.print(f"serving {where}", soft_wrap=True)
    stopping.wait()
    serving.close()


# --- for people ----------------------------------------------------------------------------------------------


def _show(found: Standing, wrong: list[Problem]) -> None:
    _show_sources(found)
    rows = [
        [model.model, *(model.jobs.get(state, 0) for state in JOB_STATES), _ago(found, model.oldest_ready_us)]
        for model in found.work
    ]
    show_table(["model", *JOB_STATES, "oldest ready"], rows, title="jobs")
    if found.rates:
        rows = [
            [rate.model, rate.hour, rate.day, ", ".join(f"{stage} {ms:.1f}" for stage, ms in per_case_ms(rate).items())]
            for rate in found.rates
        ]
        show_table(["model", "last hour", "last day", "ms a case"], rows, title="scored")
    states = ("pending", "delivered", "failed", "dead", "withheld")
    rows = [
        [
            one.name if one.watched else one.line.target,
            *(one.line.states[state] for state in states),
            _ago(found, one.line.oldest_us),
            one.line.hour,
        ]
        for one in found.targets
    ]
    show_table(["target", *states, "oldest waits", "last hour"], rows, title="results")
    _show_links(found)
    show_table(["open rejects", "count"], Counter(found.rejects).most_common())
    if found.workers:
        rows = [
            [one.name, one.device, worker_state(one), _ago(found, one.seen_us), " ".join(sorted(one.models))]
            for one in found.workers
        ]
        show_table(["worker", "device", "state", "seen", "models"], rows)
    if found.runs:
        rows = [
            [run.id, run.command, run.source, run.status, f"{_ago(found, run.started_us)} ago"]
            for run in found.runs[:RUNS_SHOWN]
        ]
        show_table(["run", "command", "source", "status", "began"], rows)
    for problem in wrong:
        out.print(f"! {problem.message}", markup=False, soft_wrap=True)


def _show_sources(found: Standing) -> None:
    if not found.sources:
        return
    rows = []
    for source in found.sources:
        success, attempt = source.success, source.attempt
        brought = success.counts if success else {}
        rows.append(
            [
                source.name,
                source.kind,
                said_age(found.age_s(success.finished_us if success else None)),
                f"{_ago(found, source.read_us)} ago" if source.read_us is not None else "",
                *(brought.get(name, "") for name in ("stored", "unchanged", "rejected")),
                f"{attempt.status}, {_ago(found, attempt.started_us)} ago" if attempt else "",
            ]
        )
    columns = ["source", "kind", "ingested", "read until", "stored", "unchanged", "rejected", "last attempt"]
    show_table(columns, rows, title="sources")


def _show_links(found: Standing) -> None:
    if not found.links:
        return
    rows = [
        [
            one.line.role,
            one.name if one.watched else one.line.name,
            "answers" if one.up else "fails",
            said_age(found.age_s(one.line.ok_us)),
            _ago(found, one.line.failing_since_us),
            one.line.failures or "",
        ]
        for one in found.links
    ]
    show_table(["", "name", "", "answered", "fails since", "in a row"], rows, title="connections")
    for one in found.links:
        if not one.up and not one.watched:  # of those that are configured it is among the problems
            out.print(f"- {said_of(found, one, one.line.name)}", markup=False, soft_wrap=True)


def _ago(found: Standing, then_us: int | None) -> str:
    return "" if then_us is None else said_age(found.age_s(then_us))
