"""`medflow bundle`: add, list, check, remove MONAI bundles."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from medflow.cli.output import PROBLEMS, out, say_error, show_table
from medflow.cli.plugins import describe
from medflow.cli.site import Json
from medflow.config import load_settings
from medflow.errors import ConfigurationError, MedflowError, PluginBroken
from medflow.plugin import Classification, ModelSpec, OutputSpec, Segment
from medflow.steps import open_site, recorded
from medflow.store import ledger
from medflow_monai.bundles import pinned
from medflow_monai.bundles.label_map import NAME, LabelMap, read_map

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="MONAI bundles as models: add, list, check, remove.",
    rich_markup_mode=None,
)

Folder = Annotated[Path, typer.Argument(help="A bundle's folder: the one that has configs/ and models/.")]
Map = Annotated[Path | None, typer.Option("--map", help="JSON: codes of labels, and what else the bundle lacks.")]
Name = Annotated[str | None, typer.Option("--name", help="The model's name; the folder's otherwise.")]
Run = Annotated[bool, typer.Option("--trial/--no-trial", help="Run it once on a generated image.")]


@app.command()
def add(
    folder: Folder,
    labels: Map = None,
    name: Name = None,
    replace: Annotated[bool, typer.Option("--replace", help="Put it in the place of the one of that name.")] = False,
    trial: Run = True,
    as_json: Json = False,
) -> None:
    """Make a bundle a model. Its configuration is code that medflow will run: add only what you trust."""
    from medflow_monai.bundles.adding import add as add_bundle

    settings = load_settings()
    wishes = _wishes(labels, name)
    site = open_site(settings)
    into = pinned.bundles_folder(settings)
    taken = set(site.registry.models) - set(pinned.names(into))
    with recorded(site, "bundle add") as run:
        found = add_bundle(folder, into, wishes, replace_it=replace, trial=trial, taken=taken)
        _record(site, run.id, "bundle-add", found)
        run.counts = {"files": len(found.files)}
    if as_json:
        typer.echo(json.dumps(_as_json(found)))
        return
    out.print(f"[bold]added[/] {found.name} {found.spec.version}, {len(found.files)} files pinned")
    _describe(found.spec)
    out.print("Workers that run already take it up when they are started again; forms, at the next `medflow deploy`.")


@app.command("list")
def list_bundles(as_json: Json = False) -> None:
    """The bundles that were added, and whether they are still what they were."""
    folder = pinned.bundles_folder(load_settings())
    rows: list[dict[str, Any]] = [_row(folder / name) for name in pinned.names(folder)]
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "bundles": rows}))
    elif rows:
        show_table(["name", "version", "added", "by", "outputs", "state"], [_cells(row) for row in rows])
    else:
        out.print("none")
    if any(row["state"] != "ok" for row in rows):
        raise typer.Exit(PROBLEMS)


@app.command()
def check(folder: Folder, labels: Map = None, name: Name = None, trial: Run = True, as_json: Json = False) -> None:
    """Say whether a bundle would be added, what it would take and give, and what its map has to say."""
    from medflow_monai.bundles.adding import bundle_root
    from medflow_monai.bundles.adding import check as check_bundle

    source, wishes = bundle_root(folder), _wishes(labels, name)
    try:
        spec, tried = check_bundle(source, wishes, trial=trial)
    except MedflowError as error:
        if as_json:
            typer.echo(json.dumps({"ok": False, "error": error.message, "map": error.fields.get("template") or {}}))
        else:
            say_error(error)
        raise typer.Exit(PROBLEMS) from None
    if as_json:
        typer.echo(json.dumps({"ok": True, "name": spec.name, "outputs": _outputs(spec), "trial": list(tried.found)}))
        return
    out.print(f"[bold]{spec.name}[/] {spec.version} can be added")
    _describe(spec)
    if tried.found:
        out.print(f"of a generated image it gave {', '.join(tried.found)}")


@app.command()
def remove(name: Annotated[str, typer.Argument(help="The model's name.")]) -> None:
    """Take a bundle away. Its results stay, and stay what they were made by."""
    settings = load_settings()
    site = open_site(settings)
    with recorded(site, "bundle remove") as run:
        pinned.remove(pinned.bundles_folder(settings), name)
        with site.store.writing() as connection:
            ledger.record_audit(connection, run.id, "bundle-remove", name)
    out.print(f"removed {name}", markup=False)


def _wishes(path: Path | None, name: str | None) -> LabelMap:
    wishes = read_map(path)
    if name is None:
        return wishes
    if not re.fullmatch(NAME, name):
        raise ConfigurationError(f"{name!r} is no name of a model: lower-case words with dashes, for example spleen-ct")
    return wishes.model_copy(update={"name": name})


def _record(site: Any, run_id: int, action: str, found: pinned.Pinned) -> None:
    digests = {item: digest for item, (_, digest) in found.files.items()}
    with site.store.writing() as connection:
        ledger.record_audit(connection, run_id, action, found.name, version=found.spec.version, files=digests)


def _row(home: Path) -> dict[str, Any]:
    try:
        found = pinned.read_pin(home)
        row = _as_json(found)
        pinned.check_quickly(found)
        return row | {"state": "ok"}
    except PluginBroken as error:
        blank = {"name": home.name, "version": None, "added": {}, "outputs": []}
        return {**blank, "state": error.message}


def _cells(row: dict[str, Any]) -> list[Any]:
    names = ", ".join(item["name"] for item in row["outputs"])
    return [row["name"], row["version"], row["added"].get("at"), row["added"].get("by"), names, row["state"]]


def _as_json(found: pinned.Pinned) -> dict[str, Any]:
    return {
        "name": found.name,
        "version": found.spec.version,
        "added": dict(found.added),
        "files": {name: digest for name, (_, digest) in found.files.items()},
        "outputs": _outputs(found.spec),
    }


def _outputs(spec: ModelSpec) -> list[dict[str, Any]]:
    return [{"name": item.name, "kind": item.kind, "codes": _codes(item)} for item in spec.outputs]


def _codes(output: OutputSpec) -> dict[str, str]:
    if isinstance(output, Segment):
        return {output.name: (output.property_type or output.body_site).code}
    if isinstance(output, Classification):
        return {output.name: output.code.code} | {label.name: label.code.code for label in output.classes}
    return {}


def _describe(spec: ModelSpec) -> None:
    for line in describe(spec):
        out.print(f"  takes {line}", markup=False)
    for output in _outputs(spec):
        codes = ", ".join(f"{name} {code}" for name, code in output["codes"].items())
        out.print(f"  gives {output['name']} ({output['kind']}): {codes}", markup=False)
