"""What a run did, as Prefect artifacts and a final state: counts, timings and reasons, never anything of a patient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from prefect import State
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed, Failed

Counts = Mapping[str, Any]
DETAILS = ("reasons", "notes", "errors", "seconds")  # maps whose names are not counts of a run


def named(what: str) -> Callable[[], str]:
    """A flow's run names: what it does and when it began, so that a list of runs can be read."""
    return lambda: f"{what} {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def report(key: str, title: str, counts: Counts) -> None:
    """A Markdown artifact of one step's counts and reasons."""
    create_markdown_artifact(key=key, markdown=f"# {title}\n\n{table(counts)}", description=title)


def table(counts: Counts) -> str:
    """Counts as a Markdown table; nested maps (reasons) become tables of their own below."""
    plain = {name: value for name, value in counts.items() if not isinstance(value, Mapping)}
    nested = {name: value for name, value in counts.items() if isinstance(value, Mapping) and value}
    lines = ["| what | count |", "| --- | ---: |", *(f"| {name} | {value} |" for name, value in plain.items())]
    for name, values in nested.items():
        lines += ["", f"**{name}**", "", table(values)]
    return "\n".join(lines)


def final_state(counts: Counts) -> State:
    """How a run ended, said by its state.

    Completed; Completed as "CompletedWithProblems" when inputs were rejected or cases cannot be scored (a person has
    to look, running again does not help); Failed when something did not get through that should have.
    """
    failed, problems = _sum(counts, "failed", "broken", "undelivered"), _sum(counts, "rejected", "dead")
    said = summary(counts)
    if failed:
        return Failed(message=said, data=dict(counts))
    if problems:
        return Completed(name="CompletedWithProblems", message=said, data=dict(counts))
    return Completed(message=said, data=dict(counts))


def summary(counts: Counts) -> str:
    """One line: every count that is not zero."""
    return ", ".join(_said(counts)) or "nothing to do"


def _said(counts: Counts) -> list[str]:
    said: list[str] = []
    for name, value in counts.items():
        if name in DETAILS:
            continue
        if not isinstance(value, Mapping):
            said += [f"{value} {name}"] if value else []
        elif inner := _said(value):
            said.append(f"{name}: {', '.join(inner)}")
    return said


def _sum(counts: Counts, *names: str) -> int:
    total = 0
    for name, value in counts.items():
        if name in DETAILS:
            continue
        if name in names:
            total += len(value) if isinstance(value, Mapping) else int(value)
        elif isinstance(value, Mapping):
            total += _sum(value, *names)
    return total
