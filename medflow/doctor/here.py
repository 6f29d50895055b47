"""What of the configuration is on this machine or next to it: the file, folders, the database, objects, Prefect."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel, SecretStr

from medflow.config import Settings
from medflow.config_file import everybody_reads, exposure
from medflow.connections.answers import send
from medflow.connections.endpoints import Files, FolderTarget, HttpServer
from medflow.connections.secrets import is_reference
from medflow.doctor.finding import FAILED, OK, WARNING, Said
from medflow.errors import ConfigurationError, MedflowError
from medflow.store import Store

PROBE = "medflow doctor"


def configuration(settings: Settings, origins: Mapping[str, str]) -> Iterator[Said]:
    """The file that settings come from, and who else may read or change it."""
    file = settings.config
    if file is not None:
        exposed = exposure(file)
        yield from ((WARNING, f"{said}: it decides where results go") for said in exposed)
        literal = sorted(name for name in _literal_secrets(settings) if origins.get(name, "").startswith(str(file)))
        if literal and everybody_reads(file):
            yield (
                WARNING,
                f"every user of this machine may read {file}, and {', '.join(literal)} holds a secret there: "
                "write env:NAME or file:/path in its place, or chmod o-r",
            )
        if not exposed:
            yield OK, f"settings come from {file}; nobody but its owner, its group and root may change it"
    elif not settings.sources and not settings.targets:
        yield WARNING, "no source and no target is configured: see docs/operators/connections.md"
    relative = sorted({str(path) for path in _paths(settings) if not path.expanduser().is_absolute()})
    if relative:
        yield WARNING, f"relative to where each process happens to start: {', '.join(relative)}; write absolute paths"
    if settings.deliver_to is None and settings.targets:
        yield WARNING, "no default target: deliver and nightly want one named, unless MEDFLOW_DELIVER_TO names it"
    elif settings.deliver_to is not None:
        settings.chosen_targets(None)


def _literal_secrets(settings: Settings) -> set[str]:
    """Settings that hold a secret itself, somewhere in them."""
    return {
        name
        for name in type(settings).model_fields
        for secret in _held(getattr(settings, name), SecretStr)
        if not is_reference(secret.get_secret_value())
    }


def _paths(settings: Settings) -> list[Path]:
    return [path for name in type(settings).model_fields for path in _held(getattr(settings, name), Path)]


def _held(value: object, kind: type[Any]) -> Iterator[Any]:
    """Everything of a kind in a setting, at any depth."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _held(getattr(value, name), kind)
    elif isinstance(value, Mapping):
        for held in value.values():
            yield from _held(held, kind)
    elif isinstance(value, tuple | list):
        for held in value:
            yield from _held(held, kind)


def database(settings: Settings) -> Iterator[Said]:
    """Whether it is reached, and of this version; nothing is migrated."""
    file = settings.home.expanduser() / "medflow.db"
    if settings.embedded and not file.exists():
        said = unwritable(settings.home)
        yield (FAILED, f"the home {said}") if said else (OK, f"none yet: the first command makes {file}")
        return
    store = Store(settings)
    try:
        found, wanted = store.schema()
    finally:
        store.close()
    kind = "SQLite" if settings.embedded else "the database"
    if found == wanted:
        yield OK, f"{kind} answers and has schema {wanted}"
    elif settings.embedded and (found is None or found < wanted):
        yield OK, f"SQLite has schema {found or 'none'}: the next command brings it to {wanted}"
    else:
        have = f"has schema {found}" if found else "has no medflow schema"
        mend = "install the medflow it belongs to" if found and found > wanted else "run `medflow db upgrade`"
        yield FAILED, f"{kind} {have}, this version needs {wanted}: {mend}"


def objects(settings: Settings) -> Iterator[Said]:
    """Whether the object store takes a small object and gives it back; it is taken away again where we may."""
    if settings.objects is None and not (settings.home.expanduser() / "objects").exists():
        said = unwritable(settings.home)
        yield (FAILED, f"the home {said}") if said else (OK, "objects will lie in the home")
        return
    probe = f"{PROBE} {datetime.now(UTC):%Y-%m-%d}".encode()  # at most one a day is left where removing is not allowed
    digest = sha256(probe).hexdigest()
    store = Store(settings)
    try:
        place = settings.objects or str(settings.home / "objects")
        store.objects.put(probe)
        if store.objects.get(digest) != probe:
            yield FAILED, f"{place} gives other bytes than it was given"
            return
        try:
            store.objects.remove(digest)
        except MedflowError:
            yield (
                WARNING,
                f"{place} can be written, but nothing be removed: `medflow models remove` leaves files behind",
            )
            return
        yield OK, f"{place} can be written and read"
    finally:
        store.close()


def files(source: Files) -> Iterator[Said]:
    """Whether what a source names is there and may be read."""
    named = [*source.paths, *([source.reference] if source.reference is not None else [])]
    missing = [path for path in named if not path.expanduser().exists()]
    closed = [path for path in named if path not in missing and not _readable(path.expanduser())]
    if missing:
        yield FAILED, f"not there: {', '.join(map(str, missing))}; make or mount it, or correct paths"
    if closed:
        yield FAILED, f"this user may not read {', '.join(map(str, closed))}"
    if source.remove_received:
        for path in source.paths:
            if path not in missing and (said := unwritable(path)):
                yield FAILED, f"{path} {said}, so that nothing can be removed there (remove_received)"
    if not missing and not closed:
        yield OK, f"{source.kind}: {len(source.paths)} path(s) can be read"


def folder(target: FolderTarget) -> Iterator[Said]:
    """Whether results can be written there."""
    said = unwritable(target.path)
    yield (FAILED, f"{target.public} {said}") if said else (OK, f"{target.public} can be written")


def prefect(url: str, auth: str | None, timeout_s: float) -> Iterator[Said]:
    """Whether its API answers us."""
    server = HttpServer(url=url.rstrip("/"))
    user, _, password = (auth or "").partition(":")
    with httpx.Client(timeout=timeout_s, auth=(user, password) if auth else None) as client:
        health = send(client, server, "GET", f"{server.url}/health")
        answer = send(client, server, "GET", f"{server.url}/admin/version")
    if 401 in (health.status_code, answer.status_code):
        raise ConfigurationError(f"{server.public} wants other credentials (HTTP 401): check PREFECT_API_AUTH_STRING")
    if health.status_code != 200 or answer.status_code != 200:
        raise ConfigurationError(
            f"what answers at {server.public} is no Prefect API (HTTP {answer.status_code}): "
            "PREFECT_API_URL ends in /api"
        )
    yield OK, f"Prefect's API answers at {server.public}"


def _readable(path: Path) -> bool:
    return os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0))


def unwritable(folder: Path) -> str | None:
    """Why a folder cannot be written, or made; None if it can."""
    folder = folder.expanduser().absolute()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir():
        return f"is no folder, or lies in none: {place} is a file"
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".medflow-doctor-"):
            return None
    except OSError as error:
        what = "cannot be written" if place == folder else f"cannot be made in {place}"
        return f"{what} ({error.strerror})"
