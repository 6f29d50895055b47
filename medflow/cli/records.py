"""`medflow ingest fhir`: files and folders, or a FHIR server by its address or its configured name."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer
from pydantic import ValidationError

from medflow import steps
from medflow.cli.output import finish, progress_bar
from medflow.cli.site import Json, here
from medflow.config import Settings
from medflow.connections.endpoints import AnySource, FhirSource, Files
from medflow.errors import ConfigurationError


def ingest_fhir(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="PATHS|URL|NAME",
            help="Files and folders; or one FHIR base URL, or one configured source.",
            show_default=False,
        ),
    ],
    types: Annotated[list[str] | None, typer.Option("--type", help="Only this resource type; repeatable.")] = None,
    since: Annotated[str | None, typer.Option(help="Read again what changed since then, with a zone.")] = None,
    mode: Annotated[str | None, typer.Option(help="search, export (Bulk Data) or everything.")] = None,
    level: Annotated[str | None, typer.Option(help="Of an export: system, patient or Group/ID.")] = None,
    source: Annotated[str | None, typer.Option(help="The system that its ids are unique in (MEDFLOW_SOURCE).")] = None,
    as_json: Json = False,
) -> None:
    """FHIR R4: Bundles, single resources and NDJSON, each also gzipped; or what changed on a server."""
    site = here()
    options = {"types": tuple(types) if types else None, "mode": mode, "level": level, "source": source}
    given = {name: value for name, value in options.items() if value is not None}
    start = None if since is None else _moment(since, site.settings.zone)
    if start is not None:
        given["since"] = start
    chosen, name = chosen_source(site.settings, what, given)
    if start is not None and isinstance(chosen, FhirSource):
        steps.read_again(site, name or chosen.public, start, types or ())
    with progress_bar("ingesting fhir") as advance:
        tally = steps.ingest(site, chosen, name=name, progress=advance)
    finish(tally.as_json(), as_json=as_json, title="ingest fhir")


def chosen_source(settings: Settings, what: list[str], given: dict[str, Any]) -> tuple[AnySource, str | None]:
    """The source that is meant, with the options given, and its configured name.

    A path that exists wins over a source of that name; an address that is configured is used as configured.

    Raises
    ------
    ConfigurationError
        It is none, or options of servers are given for files.
    """
    first = what[0] if len(what) == 1 else ""
    if "://" in first:
        for name, known in settings.sources.items():
            if isinstance(known, FhirSource) and known.url == first.strip().rstrip("/"):
                return _changed(known, given), name
        return _checked({"kind": "fhir-server", "url": first, **given}), None
    known = settings.sources.get(first) if not Path(first or ".").exists() else None
    if isinstance(known, FhirSource):
        return _changed(known, given), first
    if any("://" in item for item in what):
        raise ConfigurationError("one FHIR server at a time: name its base URL, and no path beside it")
    if known is not None and known.kind != "fhir":
        raise ConfigurationError(f"the source {first!r} is of kind {known.kind}, not fhir-server or fhir")
    if given:
        said = ", ".join(f"--{'type' if name == 'types' else name}" for name in given)
        raise ConfigurationError(f"{said}: for FHIR servers only; name one by its base URL or its configured name")
    if isinstance(known, Files):
        return known, first
    return steps.source_of("fhir", [Path(item) for item in what]), None


def _changed(source: FhirSource, given: dict[str, Any]) -> FhirSource:
    return _checked({**{name: getattr(source, name) for name in source.model_fields_set}, **given})


def _checked(fields: dict[str, Any]) -> FhirSource:
    try:
        return FhirSource.model_validate(fields)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "source"
        raise ConfigurationError(f"the FHIR server is not usable: {where}: {problem['msg']}") from None


def _moment(text: str, zone: ZoneInfo | None) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(
            f"--since {text!r} is no date or time, for example 2026-01-31T06:00:00+01:00"
        ) from None
    if moment.tzinfo is None and zone is None:
        raise ConfigurationError(f"--since {text!r} has no zone: write one, or set MEDFLOW_TIMEZONE")
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)
