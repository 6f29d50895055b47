"""`medflow config`: the settings that are in effect, and where each came from; no secret among them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from pydantic import BaseModel, SecretStr

from medflow.cli.output import out, show_table
from medflow.cli.site import Json
from medflow.config import Settings, load_with_origins
from medflow.connections.endpoints import SmartBackend
from medflow.connections.secrets import is_reference
from medflow.errors import ConfigurationError

HIDDEN = "(not shown)"


def config(
    as_json: Json = False,
    public_key: Annotated[
        str | None,
        typer.Option(help="Print the public key (JWK set) of this source or target, to register with its server."),
    ] = None,
) -> None:
    """The settings in effect, and where each came from: a variable, the file, or nowhere (the default)."""
    loaded = load_with_origins()
    if public_key is not None:
        typer.echo(json.dumps({"keys": [_public_key(loaded.settings, public_key)]}))
        return
    settings = {name: _shown(name, getattr(loaded.settings, name)) for name in Settings.model_fields}
    if as_json:
        told = {name: {"value": value, "from": loaded.origins.get(name)} for name, value in settings.items()}
        typer.echo(json.dumps({"settings": told}))
        return
    file = loaded.settings.config
    out.print(f"file: {file}" if file is not None else "no configuration file", markup=False)
    rows = [
        [name, _text(value), (loaded.origins.get(setting) or "").removesuffix(f": {setting}")]
        for setting, held in settings.items()
        for name, value in _lines(setting, held)
    ]
    show_table(["setting", "value", "from"], rows)


def _public_key(settings: Settings, name: str) -> dict[str, Any]:
    from medflow.connections.assertion import public_key  # and with it what signs

    found = settings.sources.get(name) or settings.targets.get(name)
    auth = getattr(found, "auth", None)
    if not isinstance(auth, SmartBackend):
        raise ConfigurationError(f"no source or target with auth of type smart-backend is called {name!r}")
    return public_key(auth)


def _lines(setting: str, value: object) -> list[tuple[str, object]]:
    """A map has a line for each of its names."""
    if isinstance(value, Mapping) and value:
        return [(f"{setting}.{name}", held) for name, held in value.items()]
    return [(setting, value)]


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _shown(name: str, value: object) -> object:
    """A value as JSON; of a secret its reference, of a model what differs from its defaults."""
    if isinstance(value, SecretStr):
        return _shown_secret(name, value.get_secret_value())
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        differing = ((key, field, getattr(value, key)) for key, field in fields.items())
        return {
            key: _shown(key, held) if field.repr else HIDDEN
            for key, field, held in differing
            if field.is_required() or held != field.get_default(call_default_factory=True)
        }
    if isinstance(value, Mapping):
        return {key: _shown(key, held) for key, held in value.items()}
    if isinstance(value, tuple | list):
        return [_shown(name, held) for held in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)  # type: ignore[attr-defined]  # dates


def _shown_secret(name: str, written: str) -> str:
    if is_reference(written):
        return written
    if name != "database_url":
        return HIDDEN
    try:
        parts = urlsplit(written)
        user = f"{parts.username}@" if parts.username else ""
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{user}{parts.hostname or ''}{port}{parts.path}"
    except ValueError:
        return HIDDEN
