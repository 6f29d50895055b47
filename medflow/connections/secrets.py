"""Secrets by reference: where one lies is written in the configuration, what it is never leaves `reveal`.

    env:NAME       an environment variable
    file:/a/path   a file, as Docker, Kubernetes and systemd mount them; white space at its end is no part of it
    prefect:NAME   a Prefect Secret block

Anything else is the secret itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pydantic import SecretStr

from medflow.errors import ConfigurationError

Lookup = Callable[[str], str]


def _environment(name: str) -> str:
    try:
        return os.environ[name]
    except KeyError:
        raise ConfigurationError(f"the environment variable {name}, which is to hold a secret, is not set") from None


def _file(name: str) -> str:
    try:
        return Path(name).expanduser().read_text().rstrip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigurationError(f"the file {name}, which is to hold a secret, cannot be read: {reason}") from None


_lookups: dict[str, Lookup] = {"env": _environment, "file": _file}


def register(scheme: str, lookup: Lookup) -> None:
    """Have references ``scheme:NAME`` resolved by ``lookup(NAME)``, which raises ConfigurationError."""
    _lookups[scheme] = lookup


def reveal(secret: SecretStr) -> str:
    """The secret itself: for the call that needs it, and for nothing that is kept or shown.

    Raises
    ------
    ConfigurationError
        What it refers to is not there, or is empty; the message names the reference.
    """
    written = secret.get_secret_value()
    scheme, found, name = written.partition(":")
    if not found or scheme not in (*_lookups, "prefect"):
        return written
    if scheme not in _lookups:
        raise ConfigurationError(f"the secret {written} can be read by flows only: Prefect keeps it")
    value = _lookups[scheme](name)
    if not value:
        raise ConfigurationError(f"the secret that {written} refers to is empty")
    return value
