"""How commands speak: progress and logs on stderr, tables or one JSON object on stdout, an honest exit status."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from medflow import logs
from medflow.config import load_log_settings
from medflow.errors import MedflowError
from medflow.records import Instant

OK, COULD_NOT_RUN, PROBLEMS = 0, 1, 3
PARTS = ("sources", "models", "targets", "seconds")  # the same counts again, taken apart: for --json and for Prefect
PIPE_WIDTH = 160  # of tables that go to a file or another program
out = Console(highlight=False)
if not out.is_terminal and "COLUMNS" not in os.environ:
    out.width = PIPE_WIDTH
err = Console(stderr=True, highlight=False)
log = logging.getLogger(__name__)


def set_up_logging(verbose: bool) -> None:
    """Logs of medflow on stderr: errors, and with ``verbose`` everything; or as the environment says."""
    text = RichHandler(console=err, show_path=False, show_time=verbose)
    logs.set_up_logging(load_log_settings(), text=text, level="INFO" if verbose else "ERROR")


def logging_elsewhere() -> Callable[[], None]:
    """What sets up, in a process of this command's, logs like those of this one."""
    level = logging.getLevelName(logging.getLogger("medflow").level)
    return partial(logs.set_up_logging, load_log_settings(), level=level)


def say_error(error: MedflowError) -> None:
    """Why a command could not run: a sentence, or where stderr is for machines, a line as all others there."""
    if logs.json_lines():
        log.error("%s", error.message)
    else:
        err.print(f"medflow: {error.message}", style="red", markup=False, soft_wrap=True)
    log.debug("details", exc_info=True)


def finish(counts: Mapping[str, Any], *, as_json: bool, title: str) -> NoReturn:
    """Print a command's counts and end with its exit status."""
    if as_json:
        typer.echo(json.dumps(counts))
    else:
        say(counts, title)
    raise typer.Exit(exit_status(counts))


def exit_status(counts: Mapping[str, Any]) -> int:
    """3 if anything was rejected, failed, died or is broken; else 0."""
    names = ("rejected", "failed", "dead", "broken")
    wrong = any(counts.get(name) for name in names)
    inner = any(exit_status(value) for value in counts.values() if isinstance(value, Mapping))
    return PROBLEMS if wrong or inner else OK


def say(counts: Mapping[str, Any], title: str) -> None:
    """Counts in one line, and reasons below."""
    plain = [f"{value} {name}" for name, value in counts.items() if not isinstance(value, Mapping)]
    out.print(f"[bold]{title}[/]: {', '.join(plain)}")
    for name, value in counts.items():
        if isinstance(value, Mapping) and value and name not in PARTS:
            for reason, count in sorted(value.items(), key=lambda item: (-_weight(item[1]), item[0])):
                line = f"  {name}: {reason} - {count}" if name == "broken" else f"  {count} {reason}"
                out.print(line, markup=False)


def _weight(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None:
    """A table on stdout; cells wrap, are shown as they are, and nothing is cut."""
    table = Table(*(Column(name, overflow="fold") for name in columns), title=title, title_justify="left")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))  # [pH] is a unit, no markup
    out.print(table)


def iso(at_us: int | None) -> str | None:
    """A moment to the second, in UTC; None of one that is not known."""
    if at_us is None:
        return None
    return Instant(utc_us=at_us // 1_000_000 * 1_000_000).datetime().isoformat().replace("+00:00", "Z")


@contextmanager
def progress_bar(title: str, total: int | None = None) -> Iterator[Any]:
    """A bar on stderr where that is a terminal; the value is called with how many are done now."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(title, total=total)

        def advance(count: int, *, description: str | None = None, total: int | None = None) -> None:
            if total is not None:
                bar.update(task, total=total, completed=0, description=description or title)
            elif description is not None:
                bar.update(task, description=description)
            bar.advance(task, count)

        yield advance
