"""Commands for plugin authors: whether a model keeps the contract, and a start for a new one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from medflow import variant_rule
from medflow.channel_rule import rule_of
from medflow.cli.output import PROBLEMS, out
from medflow.cli.scaffold import write_plugin
from medflow.cli.scaffold_models import Start
from medflow.cli.site import Json
from medflow.errors import UnknownModel
from medflow.plugin import ImagingInput, InputSpec, ModelSpec, SequenceInput, TimeSeriesInput
from medflow.registry import installed
from medflow.series_rule import rules_of
from medflow.testing import check_model

app = typer.Typer(no_args_is_help=True, help="For plugin authors.")


def describe(spec: ModelSpec) -> list[str]:
    """Each declared input in a line; of images the whole rule by which series are chosen."""
    return rules_of(spec) + [_describe(item) for item in spec.accepts if not isinstance(item, ImagingInput)]


def _describe(spec: InputSpec) -> str:
    if isinstance(spec, TimeSeriesInput):
        return rule_of(spec)
    if isinstance(spec, SequenceInput):
        return variant_rule.rule_of(spec)
    return spec.kind


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The distribution's name, for example spleen-ct.")],
    folder: Annotated[Path, typer.Option("--in", help="The folder to write it in.")] = Path(),
    start: Annotated[Start, typer.Option("--input", help="What its model reads.")] = Start.TIME_SERIES,
) -> None:
    """Write a plugin distribution to start from: it installs and keeps the contract as it is."""
    for path in write_plugin(folder, name, start):
        out.print(path, markup=False)


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A distribution (medflow-risk) or a model (icu-mortality).")],
    device: Annotated[str, typer.Option(help="Where to run it.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Run the conformance kit on an installed distribution's models."""
    registry = installed()
    found = [model for model in registry.models.values() if name in (model.name, model.distribution.partition(" ")[0])]
    broken = [plugin for plugin in registry.broken if name in (plugin.entry_point, plugin.distribution.split(" ")[0])]
    if not found and not broken:
        names = sorted({model.distribution.partition(" ")[0] for model in registry.models.values()})
        raise UnknownModel(f"no model or distribution is called {name!r}; installed: {', '.join(names) or 'none'}")
    checks = {model.name: check_model(model.factory, device=device) for model in found}  # type: ignore[arg-type]  # a Model subclass, or a factory that carries its spec
    passed = not broken and all(item.passed for items in checks.values() for item in items)
    if as_json:
        reports = {model: [asdict(item) for item in items] for model, items in checks.items()}
        typer.echo(json.dumps({"passed": passed, "models": reports, "broken": [asdict(item) for item in broken]}))
    else:
        for plugin in broken:
            out.print(f"[red]broken[/] {escape(f'{plugin.entry_point}: {plugin.error}')}")
        for model, items in checks.items():
            out.print(f"[bold]{model}[/]")
            for item in items:
                verdict = "[green]kept[/]  " if item.passed else "[red]BROKEN[/]"
                out.print(f"  {verdict} {escape(f'{item.name} {item.detail}'.rstrip())}")
    raise typer.Exit(0 if passed else PROBLEMS)
