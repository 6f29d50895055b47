"""The options that commands share, and the installation they name."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from medflow.config import load_settings
from medflow.errors import ConfigurationError
from medflow.records import Instant
from medflow.steps import Site, open_site


def _use_home(home: Path | None) -> Path | None:
    if home is not None:
        os.environ["MEDFLOW_HOME"] = str(home.absolute())  # flows and their processes read the environment
    return home


Home = Annotated[
    Path | None, typer.Option("--home", help="Folder of database and objects (MEDFLOW_HOME).", callback=_use_home)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Names = Annotated[list[str] | None, typer.Option("--model", help="A model's name; repeatable; all by default.")]


def here(*, ahead: bool = False) -> Site:
    """The installation that options and environment describe; ``ahead`` as `open_site` takes it."""
    return open_site(load_settings(), ahead=ahead)


def as_instant(text: str | None) -> Instant | None:
    """A moment written in ISO 8601 with a zone.

    Raises
    ------
    ConfigurationError
        It is not a time, or has no zone.
    """
    if text is None:
        return None
    try:
        return Instant.of(datetime.fromisoformat(text))
    except ValueError:
        raise ConfigurationError(
            f"--as-of {text!r} is not a time with a zone, for example 2026-01-31T06:00:00+01:00"
        ) from None
