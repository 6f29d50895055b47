"""`medflow select`: jobs for what is new to a model, or why each series, study or sample is one or is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from medflow import steps
from medflow.cli.output import finish, out, show_table
from medflow.cli.site import Json, Names, as_instant, here
from medflow.errors import ConfigurationError
from medflow.records import Instant
from medflow.scoring import ScoreTally
from medflow.selection import Explanation, Line
from medflow.steps import Site


def select(
    model: Names = None,
    as_of: Annotated[str | None, typer.Option(help="Select as if it were this moment, with a zone.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say why each is taken or not; change nothing.")] = False,
    series: Annotated[int | None, typer.Option(help="With --explain: only this series, by its id.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="With --explain: how many get a line; all are counted.")] = 50,
    as_json: Json = False,
) -> None:
    """Make jobs of what is new to the models, or (--explain) say why each series, study or sample is taken or not."""
    site, moment = here(), as_instant(as_of)
    if explain:
        _explain(site, model or [], moment, limit, series, as_json)
        return
    if series is not None:
        raise ConfigurationError("--series goes with --explain: a selection looks at all that is stored")
    with steps.recorded(site, "select") as run:
        chosen = site.registry.choose(model or ())
        tallies = {one.name: steps.select(site, one, as_of=moment, run_id=run.id) for one in chosen}
        made = {name: tally.selected for name, tally in tallies.items()}
        total = ScoreTally()
        for tally in tallies.values():
            total.add(tally)
        broken = {} if model else {plugin.entry_point: plugin.error for plugin in site.registry.broken}
        run.counts = {"selected": sum(made.values()), "models": made, "notes": dict(total.notes), "broken": broken}
    if not as_json:
        show_table(["model", "new cases"], list(made.items()))
    finish(run.counts, as_json=as_json, title="select")


def _explain(
    site: Site, models: list[str], moment: Instant | None, limit: int, series: int | None, as_json: bool
) -> None:
    if len(models) != 1:
        raise ConfigurationError("--explain tells of one model: name it with --model")
    told = steps.explain_selection(site, site.registry.get(models[0]), as_of=moment, limit=limit, series=series)
    if as_json:
        typer.echo(json.dumps(_as_json(told)))
        return
    for rule in told.rules:
        out.print(f"{told.model} takes {rule}", markup=False, soft_wrap=True)
    if told.lines:
        show_table([str(told.unit), "verdict", "why"], [row for line in told.lines for row in _rows(line)])
    verdicts = (
        ", ".join(f"{count} {verdict}" for verdict, count in sorted(told.verdicts.items())) or "nothing is stored"
    )
    out.print(f"in all: {verdicts}" + (f"; {told.more} of them have no line here (--limit)" if told.more else ""))
    for code, count in told.reasons.most_common():
        out.print(f"  {count} {code}")


def _rows(line: Line, indent: str = "") -> Iterator[list[str]]:
    why = "; ".join(reason.words for reason in line.reasons)
    yield [f"{indent}{line.unit}", line.verdict, why]
    for part in line.series:
        yield from _rows(part, "  ")


def _as_json(told: Explanation) -> dict[str, Any]:
    return {
        "model": told.model,
        "unit": str(told.unit),
        "rules": list(told.rules),
        "verdicts": dict(sorted(told.verdicts.items())),
        "reasons": dict(told.reasons.most_common()),
        "units": [_line_as_json(line) for line in told.lines],
        "more": told.more,
    }


def _line_as_json(line: Line) -> dict[str, Any]:
    found: dict[str, Any] = {
        "unit": str(line.unit),
        "verdict": line.verdict,
        "reasons": [{"code": reason.code, "words": reason.words} for reason in line.reasons],
        "job": line.job,
    }
    return found | ({"series": [_line_as_json(part) for part in line.series]} if line.series else {})
