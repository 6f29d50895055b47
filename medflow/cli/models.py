"""`medflow models`: what is installed, which version of it answers, and which is to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from medflow import promotion, steps, trained
from medflow.cli.output import PROBLEMS, err, iso, out, show_table
from medflow.cli.plugins import describe
from medflow.cli.site import Json, here
from medflow.config import load_settings
from medflow.contexts import identity_of
from medflow.errors import ConfigurationError, StoreNotReady, TransientError
from medflow.fhir.write.catalog import card_markdown
from medflow.registry import RegisteredModel, Registry, installed
from medflow.steps import Site, open_site
from medflow.store import trained as store
from medflow.store.trained import CANDIDATE, CARD, Decision, TrainedVersion

app = typer.Typer(help="What is installed, and which versions of it answer.")
Name = Annotated[str, typer.Argument(help="A model's name.", show_default=False)]


@app.callback(invoke_without_command=True)
def models(context: typer.Context, as_json: Json = False) -> None:
    """What is installed: models, their inputs and outputs, which version of each answers, and what cannot be used."""
    if context.invoked_subcommand is not None:
        return
    registry, candidates = _served()
    if as_json:
        found = [_as_json(model, candidates) for model in registry.models.values()]
        typer.echo(json.dumps({"models": found, "broken": [asdict(plugin) for plugin in registry.broken]}))
    else:
        columns = ["name", "version", "distribution", "scores a", "input", "outputs", "digest"]
        show_table(columns, [_row(model, candidates) for model in registry.models.values()])
        if registry.broken:
            rows = [[plugin.entry_point, plugin.distribution, plugin.error] for plugin in registry.broken]
            show_table(["broken", "distribution", "error"], rows)
    if registry.broken:
        raise typer.Exit(PROBLEMS)


@app.command("versions")
def list_versions(name: Name, as_json: Json = False) -> None:
    """The versions of a model: what its plugin brings, and those trained here, with what they were measured at."""
    site = here()
    base = installed().models.get(name)
    with site.store.reading() as connection:
        known = store.versions(connection, name)
        decisions = store.decisions(connection, name)
    broken = next((plugin.error for plugin in site.registry.broken if plugin.entry_point == name), None)
    if base is None and not known:
        site.registry.get(name)  # says which models there are
    lines = [_version_json(row, decisions) for row in known]
    served = site.registry.models[name].spec.version if name in site.registry.models else None
    if as_json:
        told = {"model": name, "served": served, "installed": base.spec.version if base else None, "broken": broken}
        typer.echo(json.dumps({**told, "versions": lines}))
    else:
        columns = ["version", "state", "trained", "cases", "patients", "AUROC", "AUPRC", "ECE", "promoted", "by"]
        brought = [[base.spec.version, trained.INSTALLED, *[None] * 8]] if base else []
        show_table(columns, [*brought, *map(_version_row, lines)])
        out.print(f"{served} answers" if served else "no version answers", markup=False)
        if broken:
            out.print(f"broken: {broken}", markup=False)
    if broken:
        raise typer.Exit(PROBLEMS)


@app.command()
def card(
    name: Name,
    version: Annotated[str | None, typer.Argument(help="The one that answers by default.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """The card of a version: what it is for, what it was made of, how good it is, and what it cannot do."""
    site = here()
    row = _meant(site, name, version)
    if row is not None:
        said, text = row.version, _card_of(site, row)
    else:
        brought = installed().get(name)
        said, text = brought.spec.version, card_markdown(identity_of(brought))
    if as_json:
        typer.echo(json.dumps({"model": name, "version": said, "card": text}))
    else:
        typer.echo(text)


@app.command()
def promote(
    name: Name,
    version: Annotated[str, typer.Argument(help='One trained here, or "installed": what the plugin brings.')],
    worse: Annotated[bool, typer.Option("--worse", help="Though it was measured worse than what answers now.")] = False,
    as_json: Json = False,
) -> None:
    """Have a version answer from now on, in every process; what is stored is scored with it at the next run."""
    site = here()
    made = steps.promote(site, name, version, worse=worse)
    figures = _compared(site, name, made)
    if as_json:
        typer.echo(json.dumps({**asdict(made), "compared": [asdict(item) for item in figures]}))
        return
    if made.before == made.after:
        out.print(f"{name}: {made.after} answers, as before", markup=False)
    else:
        now = f"{made.after} from now on" if made.after else "no version from now on: its plugin is not installed"
        out.print(f"{name}: {made.before or 'no version'} answered until now, {now}", markup=False)
    for item in figures:
        out.print(f"  {item.name.upper()} {item.candidate:.3f}, before {item.served:.3f}, on the same patients")
    if made.let_go:
        out.print(f"  {made.let_go} cases waited for another version: the next `medflow score` selects them again")


@app.command()
def remove(
    name: Name,
    version: Annotated[str, typer.Argument(help="A candidate.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Let go of a candidate and its files; what has answered for patients is kept."""
    count = steps.remove_version(here(), name, version)
    if as_json:
        typer.echo(json.dumps({"model": name, "removed": version, "files": count}))
    else:
        out.print(f"{name} {version} is removed, and {count} files with it", markup=False)


# --- what there is -----------------------------------------------------------------------------------------------


def _served() -> tuple[Registry, dict[str, int] | None]:
    """The models that answer, and how many candidates each has; None where the store cannot say."""
    settings = load_settings()
    if settings.embedded and not (settings.home / "medflow.db").exists():
        return installed(), {}  # nothing was ever stored here: looking at what is installed makes no database
    try:
        site = open_site(settings)
        with site.store.reading() as connection:
            known = store.versions(connection)
    except (StoreNotReady, TransientError) as error:
        err.print(f"medflow: which versions were trained here is not known: {error.message}", markup=False)
        return installed(), None
    return site.registry, Counter(item.model for item in known if item.state == CANDIDATE)


def _as_json(model: RegisteredModel, candidates: dict[str, int] | None) -> dict[str, Any]:
    spec, brought = model.spec, installed().models.get(model.name)
    return {
        "name": model.name,
        "version": spec.version,
        "title": spec.title,
        "distribution": model.distribution,
        "unit": str(spec.unit),
        "inputs": describe(spec),
        "outputs": [f"{item.name} ({item.kind})" for item in spec.outputs],
        "digest": model.digest,
        "trained_here": None if candidates is None else model.folder is not None,
        "installed_version": brought.spec.version if brought else None,
        "candidates": None if candidates is None else candidates.get(model.name, 0),
    }


def _row(model: RegisteredModel, candidates: dict[str, int] | None) -> list[str]:
    line = _as_json(model, candidates)
    inputs, outputs = "\n".join(line["inputs"]), ", ".join(line["outputs"])
    return [line["name"], line["version"], line["distribution"], line["unit"], inputs, outputs, line["digest"][:12]]


def _version_json(row: TrainedVersion, decisions: Sequence[Decision]) -> dict[str, Any]:
    promoted = [item for item in decisions if item.action == "promote" and item.detail.get("after") == row.version]
    return {
        "version": row.version,
        "state": row.state,
        "base_version": row.base_version,
        "created": iso(row.created_us),
        "promoted": iso(row.promoted_us),
        "promoted_by": promoted[-1].actor if promoted else None,
        "figures": promotion.figures(row),
        "cohort": dict(row.cohort),
        "metrics": dict(row.metrics),
        "hyperparameters": dict(row.hyperparameters),
        "seed": row.seed,
        "files": dict(row.files),
    }


def _version_row(line: dict[str, Any]) -> list[object]:
    figures = [f"{line['figures'][name]:.3f}" if name in line["figures"] else None for name in promotion.FIGURES]
    counts = [line["cohort"].get(name) for name in ("cases", "patients")]
    decided = [line["promoted"], line["promoted_by"]]
    return [line["version"], line["state"], line["created"], *counts, *figures, *decided]


def _meant(site: Site, name: str, version: str | None) -> TrainedVersion | None:
    """The version trained here that is meant; None for what the plugin brings."""
    if version is None:
        answers = site.registry.get(name)
        version = answers.spec.version if answers.folder is not None else trained.INSTALLED
    brought = installed().models.get(name)
    if version == trained.INSTALLED or (brought is not None and version == brought.spec.version):
        return None
    with site.store.reading() as connection:
        return store.one(connection, name, version)


def _card_of(site: Site, row: TrainedVersion) -> str:
    """The card that its training wrote.

    Raises
    ------
    ConfigurationError
        It has none, or the object store has it no longer.
    """
    try:
        return site.store.objects.get(row.files[CARD]).decode()
    except KeyError:
        raise ConfigurationError(
            f"the card of {row.model} {row.version} is not in the object store: restore the objects from a backup"
        ) from None


def _compared(site: Site, name: str, made: promotion.Promotion) -> list[promotion.Figure]:
    """The figures of a version that was just promoted beside those of the one before it."""
    with site.store.reading() as connection:
        row = next((item for item in store.versions(connection, name) if item.version == made.after), None)
    return promotion.compared(row, made.before) if row is not None and made.before is not None else []
