"""The configuration file: where it is, what it says, and who else may read or change it.

It is the file that MEDFLOW_CONFIG names, or else ``medflow.toml`` in the home. The folder that a process happens to run
in is never looked into: whoever may write there could have results sent elsewhere.
"""

from __future__ import annotations

import difflib
import os
import stat
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from medflow.errors import ConfigurationError

NAME = "medflow.toml"


def find(named: str | Path | None, home: Path) -> Path | None:
    """The file that settings come from, or None: one that is named must be there; empty means none."""
    if named is not None:
        return Path(named).expanduser() if str(named) else None
    default = home.expanduser() / NAME
    return default if default.exists() else None


def read(path: Path, known: Collection[str], *, named: bool) -> dict[str, Any]:
    """What the file sets, by name of the setting.

    Raises
    ------
    ConfigurationError
        It cannot be read, is no TOML, or has a setting that there is not; nothing of its values is quoted.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = ", which MEDFLOW_CONFIG names," if named else ""
        raise ConfigurationError(f"{path}{hint} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not text in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from None
    for name in values:
        if name == "config" or (name == "home" and not named):
            raise ConfigurationError(f"{path}: {name} cannot be set in the file that is found by it")
        if name not in known:
            near = difflib.get_close_matches(name.lower().removeprefix("medflow_"), known, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ConfigurationError(f"{path}: there is no setting {name!r}{meant}")
    return values


def exposure(path: Path) -> list[str]:
    """Who else can do what with the file: sentences, none where only its owner, root and their group can."""
    said = []
    for place in (path.resolve(), path.resolve().parent):
        found = place.stat()
        mine = {0, os.geteuid()}
        sticky = bool(found.st_mode & stat.S_ISVTX)
        if found.st_mode & stat.S_IWOTH and not sticky:
            said.append(f"everybody may write {place}: chmod o-w")
        if found.st_uid not in mine:
            said.append(f"{place} belongs to another user (uid {found.st_uid}), who may change it")
    return said


def everybody_reads(path: Path) -> bool:
    """Whether any user of the machine may read it."""
    return bool(path.stat().st_mode & stat.S_IROTH)
