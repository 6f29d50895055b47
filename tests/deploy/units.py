"""A small reader of systemd's units: sections, repeated keys, drop-ins of a common prefix, %i, ${VARIABLE}.

Just as much of the dialect as deploy/systemd uses; what it does not know it refuses.
"""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Sections = dict[str, dict[str, list[str]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One unit with its drop-ins. ``name`` has the instance, where there is one."""

    name: str
    sections: Sections

    def all(self, section: str, key: str) -> list[str]:
        """Every value of a key, in order."""
        return self.sections.get(section, {}).get(key, [])

    def last(self, section: str, key: str, default: str = "") -> str:
        """The value that counts of a key that has one."""
        return (self.all(section, key) or [default])[-1]

    def names(self, section: str, key: str) -> list[str]:
        """The units that a key such as After= lists."""
        return [name for value in self.all(section, key) for name in value.split()]

    def commands(self, key: str, environment: Mapping[str, str]) -> list[list[str]]:
        """The command lines of ExecStart= and the like, variables put in."""
        return [[_substituted(word, environment) for word in shlex.split(value)] for value in self.all("Service", key)]

    def environment(self, read: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
        """Environment= and the files that EnvironmentFile= names, which ``read`` gives by their path.

        As systemd.exec(5) has it: the files win over Environment=, and a later file over one before.
        """
        made: dict[str, str] = {}
        for value in self.all("Service", "Environment"):
            made.update(word.partition("=")[::2] for word in shlex.split(value))
        for path in self.all("Service", "EnvironmentFile"):
            if path.startswith("-") and path[1:] not in read:
                continue
            made.update(read[path.removeprefix("-")])
        return made


def read_unit(folder: Path, name: str) -> Unit:
    """A unit of a folder and its drop-ins, for example ``medflow-worker@cpu.service``."""
    instance = re.fullmatch(r"([^@]+@)(.+)(\.service)", name)
    file = f"{instance[1]}{instance[3]}" if instance else name
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in [folder / file, *sorted((folder / f"{name.partition('-')[0]}-.service.d").glob("*.conf"))]:
        if path.parent == folder or name.endswith(".service"):
            _add(path, instance[2] if instance else "", found)
    return Unit(name=name, sections={section: dict(keys) for section, keys in found.items()})


def read_environment(text: str) -> dict[str, str]:
    """An EnvironmentFile: lines NAME=VALUE, a value perhaps in quotes."""
    made = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, value = line.partition("=")
            made[name] = " ".join(shlex.split(value)) if value[:1] in "'\"" else value
    return made


def seconds(span: str) -> float:
    """A time span in seconds; the units here write plain numbers."""
    return float(span)


def _add(path: Path, instance: str, found: dict[str, dict[str, list[str]]]) -> None:
    section = ""
    for line in path.read_text().splitlines():
        if not line.strip() or line.startswith(("#", ";")):
            continue
        if line.startswith("["):
            section = line.strip("[]")
            continue
        if line.endswith("\\"):
            raise ValueError(f"{path}: continued lines are not read here")
        key, _, value = line.partition("=")
        found[section][key].append(value.replace("%i", instance))


def _substituted(word: str, environment: Mapping[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda match: environment[match[1]], word)
