"""The models to serve: what the plugins bring, or in its place the version trained here that was promoted.

A promoted version that cannot be served as it was measured is broken, and so is its model: other weights than those
somebody decided on never answer in silence. Its files come from the object store into a folder under MEDFLOW_HOME, are
checked against their SHA-256 each time they are loaded, and are read as data (`medflow.inference.weights`).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import file_digest, sha256
from pathlib import Path, PurePosixPath
from threading import Lock

from medflow.config import Settings
from medflow.errors import ConfigurationError, MedflowError, ObjectDamaged, ObjectsUnavailable, PluginBroken
from medflow.inference.weights import read_weights
from medflow.plugin import Model, ModelSpec, Weights
from medflow.records import digest_of
from medflow.registry import BrokenPlugin, RegisteredModel, Registry, check_spec, dump_spec, load_spec
from medflow.store import ObjectStore, Store
from medflow.store import trained as versions
from medflow.store.trained import TrainedVersion

log = logging.getLogger(__name__)
FOLDER = "models"  # under MEDFLOW_HOME; made again when it is gone
INSTALLED = "installed"  # what the plugin brings, where a version is named
BLOCK = 1 << 20

_reading = Lock()
_last: tuple[tuple[object, ...], Registry, Registry] | None = None  # what it was asked with, and gave


def served(store: Store, settings: Settings, installed: Registry) -> Registry:
    """The installed models, with what was promoted in the place of what their plugins bring.

    Asked again, it costs one small query until something is promoted.
    """
    global _last
    with store.reading() as connection:
        stamp = versions.stamp(connection)
    if not stamp:
        return installed
    key = (settings.home, settings.url, settings.objects, stamp)
    with _reading:
        if _last is not None and _last[0] == key and _last[1] is installed:
            return _last[2]
        with store.reading() as connection:
            promoted = versions.promoted(connection)
        found = with_promoted(store, settings, installed, promoted)
        whole = not {item.model for item in promoted} - found.models.keys()
        _last = (key, installed, found) if whole else None  # what is broken may be mended meanwhile
        return found


def with_promoted(
    store: Store, settings: Settings, installed: Registry, promoted: Sequence[TrainedVersion]
) -> Registry:
    """The registry in which these versions stand for their models; one that cannot be served is named as broken."""
    models, broken = dict(installed.models), list(installed.broken)
    for row in promoted:
        base = models.pop(row.model, None)
        if base is None and any(plugin.entry_point == row.model for plugin in broken):
            continue  # its plugin is named already, with what is wrong with it
        try:
            models[row.model] = as_registered(store, settings, base, row)
        except MedflowError as error:
            where = base.distribution if base else "a plugin that is not installed"
            broken.append(BrokenPlugin(distribution=where, entry_point=row.model, error=error.message))
    return Registry(models=dict(sorted(models.items())), broken=tuple(broken))


def as_registered(
    store: Store, settings: Settings, base: RegisteredModel | None, row: TrainedVersion
) -> RegisteredModel:
    """A version trained here as a model that can be served; ``base`` is what its plugin brings now.

    Raises
    ------
    PluginBroken
        It cannot be served as it was measured; the message says what to do.
    """
    spec = _readable(base, row)
    assert base is not None  # noqa: S101 - said by the line before
    name, distribution = f"{row.model} {row.version}", f"{base.distribution}, trained here"
    # by the plugin's digest as this process imported it: files on disk may be of a newer one by now
    digest = digest_of(base.digest, json.dumps(dump_spec(spec), sort_keys=True))
    folder = settings.home / FOLDER / digest
    files = (*spec.weights, *([spec.reference] if spec.reference else []))
    factory = TrainedFactory(
        base=base.factory,
        spec=spec,
        folder=folder,
        files=files,
        objects=store.objects,
        name=name,
    )
    factory.check()
    return replace(base, spec=spec, distribution=distribution, digest=digest, factory=factory, folder=folder)


def _readable(base: RegisteredModel | None, row: TrainedVersion) -> ModelSpec:
    """The spec of a version, if what is installed can serve it."""
    name = f"{row.model} {row.version}"
    if base is None:
        raise PluginBroken(
            f"the plugin that {name} was trained from, which brings {row.model} {row.base_version}, is not installed: "
            f"install it, or {_back(row.model)}"
        )
    if base.spec.version != row.base_version:
        raise PluginBroken(
            f"{name} was trained from version {row.base_version}, and {base.spec.version} is installed now: train "
            f"again (`medflow train {row.model}`) and promote that, or {_back(row.model)}"
        )
    try:
        spec = load_spec(row.spec)
        check_spec(spec)
    except MedflowError as error:
        raise PluginBroken(
            f"{name} cannot be served by this version of medflow ({error.message}): train again "
            f"(`medflow train {row.model}`) and promote that, or {_back(row.model)}"
        ) from None
    if (spec.name, spec.version) != (row.model, row.version):
        raise PluginBroken(f"{name} has the declaration of {spec.name} {spec.version}: {_back(row.model)}")
    return spec


def _back(model: str) -> str:
    return f"serve what the plugin brings with `medflow models promote {model} {INSTALLED}`"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedFactory:
    """Makes the plugin's model with the spec and the files of a version trained here."""

    base: Callable[[], Model]
    spec: ModelSpec
    folder: Path
    files: Sequence[Weights]
    objects: ObjectStore
    name: str

    def __call__(self) -> Model:
        """A new object of the plugin's class, not loaded yet; its files are in ``folder``, as they were measured."""
        self.bring()
        made = self.base()
        made.spec = self.spec  # pyright: ignore[reportAttributeAccessIssue]  # the class has its own: see Model
        made.folder = self.folder
        return made

    def check(self) -> None:
        """See that the files are here or in the object store, without reading them; PluginBroken otherwise."""
        for item in self.files:
            path = self._path(item)
            try:
                if not path.is_file() and item.sha256 not in self.objects:
                    raise self._gone(item)
            except ObjectsUnavailable as error:  # whoever loads the model finds out, and may try again
                log.warning("whether the files of %s are there is not known now: %s", self.name, error.message)

    def bring(self) -> None:
        """Have every file in the folder, with the SHA-256 of its spec: what is missing or damaged is fetched again.

        Raises
        ------
        PluginBroken
            The object store has it no longer, or has other bytes.
        ObjectsUnavailable
            The object store cannot be reached now.
        ConfigurationError
            The folder cannot be written.
        """
        for item in self.files:
            path = self._path(item)
            if _sha256(path) != item.sha256:
                self._fetch(item, path)

    def _fetch(self, item: Weights, path: Path) -> None:
        temporary: str | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".incoming-")
            total = sha256()
            with os.fdopen(handle, "wb") as target, self.objects.open(item.sha256) as source:
                while block := source.read(BLOCK):
                    total.update(block)
                    target.write(block)
                target.flush()
                os.fsync(target.fileno())
            if total.hexdigest() != item.sha256:
                raise self._gone(item)
            os.replace(temporary, path)  # other processes see the whole file or none
            temporary = None
        except (KeyError, ObjectDamaged):
            raise self._gone(item) from None
        except OSError as error:
            raise ConfigurationError(
                f"the folder of {self.name}, {self.folder}, cannot be written ({error.strerror}): free space or mend "
                "its permissions, then run the same command again"
            ) from None
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)

    def _path(self, item: Weights) -> Path:
        inside = PurePosixPath(item.file)
        if inside.is_absolute() or ".." in inside.parts:
            raise PluginBroken(f"{self.name} names a file outside its own folder: {_back(self.spec.name)}")
        return self.folder / inside

    def _gone(self, item: Weights) -> PluginBroken:
        return PluginBroken(
            f"{item.file} of {self.name} is missing from the object store, or damaged there: restore the objects from "
            f"a backup, train again (`medflow train {self.spec.name}`) and promote that, or {_back(self.spec.name)}"
        )


def reference_bytes(model: RegisteredModel) -> bytes | None:
    """What the model says its training inputs were like, as its file has it; None where it says nothing.

    Raises
    ------
    PluginBroken
        The file is missing, or is not the one that the spec names.
    """
    wanted = model.spec.reference
    if wanted is None:
        return None
    if isinstance(model.factory, TrainedFactory):
        model.factory.bring()
        return read_weights(model.name, wanted, model.folder)
    module = sys.modules[model.factory.__module__]
    return read_weights(module.__package__ or module.__name__, wanted)


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
