"""What Prefect is told of servers: their names. Its pages are read by more people than the configuration is."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from medflow.config import Settings
from medflow.errors import MedflowError

UNNAMED = "the target"  # the default one, where it is given directly


def by_name(settings: Settings, told: Any, *, of: str = "sources") -> Any:
    """Text, or counts with their keys, in which each configured address is the name of what is there.

    ``of``: whose name it is where a source and a target have one address.
    """
    names = _names(settings, of)
    return _rewritten(told, names) if names else told


@contextmanager
def addresses_kept(settings: Settings, *, of: str = "sources") -> Iterator[None]:
    """Have errors say the name of a server: an error of a task is a state, a log and an event at Prefect's server."""
    try:
        yield
    except MedflowError as error:
        said = copy.copy(error)
        said.message = by_name(settings, error.message, of=of)
        said.args = (said.message,)
        raise said from None


def _rewritten(told: Any, names: dict[str, str]) -> Any:
    if isinstance(told, dict):
        return {_rewritten(key, names): _rewritten(value, names) for key, value in told.items()}
    if isinstance(told, list | tuple):
        return [_rewritten(item, names) for item in told]
    if not isinstance(told, str):
        return told
    for address, name in names.items():
        told = re.sub(rf"(?<![\w.-]){re.escape(address)}(?![\w-])", lambda _, name=name: name, told)
    return told


def _names(settings: Settings, of: str) -> dict[str, str]:
    """The name of each address, the longest address first; one that comes first in the configuration wins."""
    named = [*settings.targets.items(), *settings.sources.items()]
    named = named if of == "targets" else named[::-1]
    given = [(UNNAMED, settings.target(word)) for word in settings.default_targets if word not in settings.targets]
    found: dict[str, str] = {}
    for name, there in [*named, *given]:
        public = getattr(there, "public", None)  # files have none
        for address in filter(None, (public, *_hosts(there))):
            found.setdefault(address, name)
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def _hosts(there: object) -> Iterator[str]:
    """Shorter forms that messages have of an address: its authority, or host and port."""
    if (url := getattr(there, "url", None)) is not None:
        yield urlsplit(url).netloc
    if (url := getattr(getattr(there, "auth", None), "token_url", None)) is not None:
        yield url
        yield urlsplit(url).netloc
    if (address := getattr(there, "address", None)) is not None:
        yield address.rpartition("@")[2]
