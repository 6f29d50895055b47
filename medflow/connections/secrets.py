"""Secrets by reference: where one lies is written in the configuration, what it is never leaves `reveal`.

    env:NAME       an environment variable
    file:/a/path   a file, as Docker, Kubernetes and systemd mount them; white space at its end is no part of it
    prefect:NAME   a Prefect Secret block

Anything else is the secret itself. Other schemes are entry points of the group ``medflow.secrets``: a function that
is called with what stands after the colon. Prefect's is one, so that Prefect loads only where a block is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from pydantic import SecretStr

from medflow.errors import ConfigurationError, MedflowError, PluginBroken

GROUP = "medflow.secrets"
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


_OURS: dict[str, Lookup] = {"env": _environment, "file": _file}


@cache
def _installed() -> dict[str, EntryPoint]:
    return {found.name: found for found in entry_points(group=GROUP)}


def is_reference(written: str) -> bool:
    """Whether this says where a secret lies, and so is none itself."""
    scheme, colon, name = written.partition(":")
    return bool(colon and name) and (scheme in _OURS or scheme in _installed())


def reveal(secret: SecretStr) -> str:
    """The secret itself: for the call that needs it, and for nothing that is kept or shown.

    Raises
    ------
    ConfigurationError
        What it refers to is not there, or is empty; the message names the reference.
    ServerUnavailable
        What keeps it does not answer.
    """
    written = secret.get_secret_value()
    if not is_reference(written):
        return written
    scheme, _, name = written.partition(":")
    value = (_OURS.get(scheme) or _loaded(scheme))(name)
    if not value:
        raise ConfigurationError(f"the secret that {written} refers to is empty")
    return value


@cache
def _loaded(scheme: str) -> Lookup:
    entry = _installed()[scheme]
    try:
        lookup = entry.load()
    except Exception as error:  # noqa: BLE001 - whatever a plugin's import raises
        raise PluginBroken(
            f"secrets written {scheme}:NAME cannot be read: {entry.value} does not import ({type(error).__name__})"
        ) from error

    def checked(name: str) -> str:
        try:
            return lookup(name)
        except MedflowError:
            raise
        except Exception as error:  # noqa: BLE001 - its words may quote the secret
            raise ConfigurationError(f"the secret {scheme}:{name} cannot be read ({type(error).__name__})") from None

    return checked
