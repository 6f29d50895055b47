"""The folder of bundles that were added, and what each was when it was: every file by its SHA-256.

    BUNDLES/spleen-ct-segmentation/
        pin.json       the digests, the declaration as it was shown, the plan of the run, the user's map, who and when
        bundle/        the bundle as it was given, read-only

A bundle's configuration is code. So what runs is never read from that folder twice: `private_copy` copies each file to
a folder of this process alone and compares the very bytes that it copied with the pin. Listing is cheap: it reads small
files (all that is executed, as a rule) and looks at the sizes of large ones.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from medflow.config import Settings
from medflow.errors import ConfigurationError, PluginBroken
from medflow.plugin import ModelSpec
from medflow.registry import dump_spec, load_spec
from medflow_monai.bundles.declaration import Plan

PIN, CONTENT = "pin.json", "bundle"
FORMAT = 1
SMALL = 1 << 20  # bytes up to which a file is read whenever bundles are listed
_CHUNK = 1 << 20
_LEFT_OUT_FOLDERS = {"__pycache__", ".git", ".cache", ".ipynb_checkpoints"}
_PLAN = TypeAdapter(Plan)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pinned:
    """An added bundle. ``files`` has the size and SHA-256 of each file by its path in the bundle."""

    home: Path
    files: Mapping[str, tuple[int, str]]
    spec: ModelSpec
    plan: Plan
    added: Mapping[str, str]
    map: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The model's name, which is the folder's as well."""
        return self.spec.name

    @property
    def content(self) -> Path:
        """The folder with the bundle itself."""
        return self.home / CONTENT


def bundles_folder(settings: Settings) -> Path:
    """Where added bundles lie."""
    return settings.bundles or settings.home / "bundles"


def names(folder: Path) -> list[str]:
    """The added bundles' names, whether they can be used or not."""
    try:
        entries = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigurationError(f"the bundles folder {folder} cannot be read: {error.strerror}") from None
    return [name for name in entries if not name.startswith(".") and (folder / name).is_dir()]


def stamp(folder: Path) -> Hashable:
    """A value that changes when a bundle is added, replaced or removed."""
    found = []
    for name in names(folder):
        try:
            found.append((name, (folder / name / PIN).stat().st_mtime_ns))
        except OSError:
            found.append((name, None))
    return str(folder), tuple(found)


def read_pin(home: Path) -> Pinned:
    """What was noted of the bundle in this folder when it was added.

    Raises
    ------
    PluginBroken
        There is no pin, or it is of another version of medflow or altered.
    """
    again = f"remove it (medflow bundle remove {home.name}) and add it again"
    try:
        data = json.loads((home / PIN).read_bytes())
        if data["format"] != FORMAT:
            raise PluginBroken(f"it was added by another version of medflow-monai: {again}")
        spec = load_spec(data["spec"])
        pinned = Pinned(
            home=home,
            files={name: (int(item["size"]), str(item["sha256"])) for name, item in data["files"].items()},
            spec=spec,
            plan=_PLAN.validate_python(data["plan"]),
            added=data["added"],
            map=data["map"],
        )
    except OSError as error:
        raise PluginBroken(f"its {PIN} cannot be read ({error.strerror}): {again}") from None
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
        raise PluginBroken(f"its {PIN} is damaged: {again}") from None
    except ConfigurationError as error:
        raise PluginBroken(f"{error.message}: {again}") from None
    declared = {item.file: item.sha256 for item in spec.weights}
    expected = {name: digest for name, (_, digest) in pinned.files.items()} | {"(plan)": pinned.plan.digest()}
    if declared != expected or spec.name != home.name:
        raise PluginBroken(f"its {PIN} contradicts itself: {again}")
    return pinned


def check_quickly(pinned: Pinned) -> None:
    """Raise PluginBroken, naming the file, if one is missing, has another size, or is small and has other bytes."""
    for name, (size, digest) in pinned.files.items():
        path = pinned.content / name
        try:
            found = path.stat()
            same = found.st_size == size and (size > SMALL or sha256(path.read_bytes()).hexdigest() == digest)
        except OSError:
            raise PluginBroken(f"{name} is missing, or cannot be read: {_ways_out(pinned)}") from None
        if not same:
            raise PluginBroken(f"{name} is not the file that was added: {_ways_out(pinned)}")


def private_copy(pinned: Pinned, target: Path) -> None:
    """Copy the bundle to ``target``, and refuse it if one byte of what was copied is not what was added.

    Raises
    ------
    PluginBroken
        Naming the file.
    """
    for name, (size, digest) in pinned.files.items():
        try:
            copied = copy_hashed(pinned.content / name, target / name, durable=False)
        except OSError as error:
            raise PluginBroken(
                f"{name} of {pinned.name} cannot be copied ({error.strerror}): {_ways_out(pinned)}"
            ) from None
        if copied != (size, digest):
            raise PluginBroken(f"{name} of {pinned.name} is not the file that was added: {_ways_out(pinned)}")


def verify(pinned: Pinned) -> None:
    """Raise PluginBroken, naming the file, unless every byte is what was added."""
    for name, expected in pinned.files.items():
        try:
            same = _hash(pinned.content / name) == expected
        except OSError:
            same = False
        if not same:
            raise PluginBroken(f"{name} of {pinned.name} is not the file that was added: {_ways_out(pinned)}")


def _ways_out(pinned: Pinned) -> str:
    return f"if the change is meant, add the bundle again (medflow bundle add FOLDER --name {pinned.name} --replace)"


def copy_hashed(source: Path, target: Path, *, durable: bool = True) -> tuple[int, str]:
    """Copy a file, ``durable`` so that it outlives the machine's fall; the size and SHA-256 of what was copied."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = sha256(), 0
    with source.open("rb") as file, target.open("wb") as copy:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            copy.write(chunk)
        if durable:
            copy.flush()
            os.fsync(copy.fileno())
    return size, digest.hexdigest()


def _hash(path: Path) -> tuple[int, str]:
    digest, size = sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def files_of(folder: Path) -> Iterator[str]:
    """The files of a bundle by their paths in it; caches and version control are no part of one."""
    for place, folders, found in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT_FOLDERS)
        for name in sorted(found):
            path = Path(place) / name
            if path.is_file() and not name.endswith(".pyc"):  # a link to a file, as download caches make, is followed
                yield path.relative_to(folder).as_posix()


class Draft:
    """A bundle on its way into the folder: copied under a name that nobody reads, renamed when all is well."""

    def __init__(self, folder: Path, source: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.home = Path(tempfile.mkdtemp(prefix=".adding-", dir=folder))
        except OSError as error:
            raise ConfigurationError(
                f"the bundles folder {folder} cannot be written ({error.strerror}): set MEDFLOW_BUNDLES to one that can"
            ) from None
        self.content = self.home / CONTENT
        self.content.mkdir()
        try:
            self.files = {name: copy_hashed(source / name, self.content / name) for name in files_of(source)}
        except OSError as error:
            self.discard()
            raise ConfigurationError(f"{source} cannot be copied: {error.strerror}") from None

    def keep(self, spec: ModelSpec, plan: Plan, *, added: Mapping[str, str], wishes: Mapping[str, Any]) -> Pinned:
        """Write the pin; nothing is in use yet."""
        pin = {
            "format": FORMAT,
            "added": dict(added),
            "files": {name: {"size": size, "sha256": digest} for name, (size, digest) in self.files.items()},
            "spec": dump_spec(spec),
            "plan": asdict(plan),
            "map": dict(wishes),
        }
        with (self.home / PIN).open("w", encoding="utf-8") as file:
            json.dump(pin, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        return Pinned(home=self.home, files=self.files, spec=spec, plan=plan, added=added, map=wishes)

    def publish(self, name: str, *, replace: bool) -> Path:
        """Give the bundle its name.

        Raises
        ------
        ConfigurationError
            There is one of that name, and it is not to be replaced.
        """
        target = self._folder / name
        if target.exists() and not replace:
            raise ConfigurationError(
                f"a bundle {name} was added already: --replace puts this one in its place, --name gives it another name"
            )
        for path in (self.home / PIN, *(self.content / file for file in self.files)):
            path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)  # workers read it as other users; nobody writes
        for place, _, _ in os.walk(self.home):
            os.chmod(place, 0o755)  # noqa: S103 - as above
        old = Path(tempfile.mkdtemp(prefix=".removed-", dir=self._folder))
        if target.exists():
            target.rename(old / name)
        try:
            self.home.rename(target)
        except OSError as error:  # somebody was faster
            raise ConfigurationError(f"the bundle {name} cannot be put in its place: {error.strerror}") from None
        shutil.rmtree(old, ignore_errors=True)
        return target

    def discard(self) -> None:
        """Remove what was not published."""
        shutil.rmtree(self.home, ignore_errors=True)


def remove(folder: Path, name: str) -> None:
    """Take a bundle out of the folder.

    Raises
    ------
    ConfigurationError
        None of that name was added; the message lists those that were.
    """
    if name not in names(folder):
        raise ConfigurationError(f"no bundle {name!r} was added; there are: {', '.join(names(folder)) or 'none'}")
    old = Path(tempfile.mkdtemp(prefix=".removed-", dir=folder))
    (folder / name).rename(old / name)  # gone at once for whoever lists, then file by file
    shutil.rmtree(old, ignore_errors=True)
