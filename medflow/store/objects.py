"""Content-addressed files: each is stored once under the SHA-256 of its bytes, written whole or not at all.

They lie in a folder, of this machine or of a file system that several share (`FolderObjects`), or on a file system
that fsspec reaches, such as S3 (`medflow.store.remote`). The layout is the same: ``ab/cd/<sha256>``.
"""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, ClassVar
from urllib.parse import unquote, urlsplit

from medflow.config import Settings
from medflow.errors import ConfigurationError, ObjectsUnavailable


def object_store(settings: Settings) -> ObjectStore:
    """The object store that MEDFLOW_OBJECTS names; nothing is opened or reached yet."""
    place = settings.objects
    if place is None:
        return FolderObjects(settings.home / "objects")
    if place.startswith("file://"):
        place = unquote(urlsplit(place).path)
    if "://" not in place:
        return FolderObjects(Path(place), shared=True)
    from medflow.store.cache import ObjectCache
    from medflow.store.remote import RemoteObjects  # a folder needs neither fsspec nor what it brings

    cache = ObjectCache(settings.home / "cache", settings.cache_mib << 20)
    return RemoteObjects(place, cache, timeout_s=settings.http_timeout_s)


def name_of(digest: str) -> str:
    """Where the object of this SHA-256 (hex) lies under the store's root."""
    return f"{digest[:2]}/{digest[2:4]}/{digest}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Staged:
    """A file of this machine on its way into the store, and what its bytes are."""

    path: Path
    sha256: str
    size: int


class ObjectStore(ABC):
    """Bytes under their SHA-256. One may be used by many threads, and in a process that was forked from its own."""

    parallel: ClassVar[int] = 4  # puts that gain from going beside each other: a disk joins flushes that come together

    def put(self, data: bytes) -> str:
        """Store bytes; returns their SHA-256 (hex)."""
        digest = sha256(data).hexdigest()
        self.put_chunks([data], digest)
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes of an object.

        Raises
        ------
        KeyError
            It is not in the store.
        """
        with self.open(digest) as file:
            return file.read()

    @contextmanager
    def staged(self, chunks: Iterable[bytes]) -> Iterator[Staged]:
        """The bytes of ``chunks`` in a file, hashed as they are written, to be looked at before they are stored.

        `keep` stores them; at the end of the block the file is gone. Errors are those of `put_chunks`.
        """
        spool = self._spool()
        try:
            total, size = sha256(), 0
            try:
                with open(spool, "wb") as file:
                    for chunk in chunks:
                        total.update(chunk)
                        size += len(chunk)
                        file.write(chunk)
            except OSError as error:
                raise self._unusable(error) from None
            yield Staged(path=Path(spool), sha256=total.hexdigest(), size=size)
        finally:
            Path(spool).unlink(missing_ok=True)

    def fetch(self, digests: Iterable[str]) -> None:  # noqa: B027 - a folder has nothing to fetch
        """Bring objects near that are about to be read, beside each other; missing ones are passed over."""

    def close(self) -> None:  # noqa: B027 - a folder holds nothing open
        """Give connections back."""

    @abstractmethod
    def __contains__(self, digest: str) -> bool:
        """Whether the object is in the store."""

    @abstractmethod
    def path(self, digest: str) -> Path:
        """A file of this machine with the object's bytes, there for the next hour; it does not exist if they do not.

        `open` is surer and lets go sooner: use it wherever a file object will do.
        """

    @abstractmethod
    def open(self, digest: str) -> BinaryIO:
        """The object as an open file.

        Raises
        ------
        KeyError
            It is not in the store.
        ObjectsUnavailable
            The store cannot be reached now.
        """

    @abstractmethod
    def remove(self, digest: str) -> None:
        """Let go of an object that nothing names any more; nothing is done if it is not there.

        Raises
        ------
        ConfigurationError
            The store may not be written.
        ObjectsUnavailable
            The store cannot be reached now.
        """

    @abstractmethod
    def keep(self, staged: Staged) -> None:
        """Store what was staged; nothing is done if it is there. Errors are those of `put_chunks`."""

    @abstractmethod
    def _spool(self) -> str:
        """A new temporary file, near where it will stay."""

    @abstractmethod
    def _unusable(self, error: OSError) -> ConfigurationError:
        """What to tell of an error of the disk that `_spool` is on."""

    @abstractmethod
    def put_chunks(self, chunks: Iterable[bytes], digest: str) -> None:
        """Store the bytes of ``chunks``, whose SHA-256 is ``digest``; nothing is done if they are there.

        Nothing half-written is ever seen, whatever ``chunks`` raises.

        Raises
        ------
        ConfigurationError
            The store is full, or may not be written.
        ObjectsUnavailable
            The store cannot be reached now.
        """


class FolderObjects(ObjectStore):
    """Files under ``root``.

    Parameters
    ----------
    root
        The folder.
    shared
        It was made by whoever shares it, and is not there when it is not mounted: then it is not made anew, and its
        objects are out of reach, not missing.
    """

    def __init__(self, root: Path, *, shared: bool = False) -> None:
        self.root = root
        self._shared = shared

    def path(self, digest: str) -> Path:
        """Where the object of this SHA-256 (hex) lies, whether it exists or not."""
        return self.root / name_of(digest)

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).exists()

    def open(self, digest: str) -> BinaryIO:
        """The object's file."""
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError:
            if self._shared and not self.root.is_dir():
                raise ObjectsUnavailable(f"the object store {self.root} is not there: is it mounted?") from None
            raise KeyError(digest) from None
        except PermissionError:
            raise ConfigurationError(
                f"the object store {self.root} may not be read: give this process its owner's user id, or mend its "
                "permissions"
            ) from None
        except OSError as error:
            raise ObjectsUnavailable(f"the object store {self.root} cannot be read ({error.strerror})") from None

    def remove(self, digest: str) -> None:
        """Unlink the object's file."""
        try:
            self.path(digest).unlink(missing_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"the object store at {self.root} cannot be written ({error.strerror}): mend its permissions"
            ) from None

    def put_chunks(self, chunks: Iterable[bytes], digest: str) -> None:
        """Write to a temporary name, flush to disk, rename: other hosts see the whole file or none."""
        target = self.path(digest)
        if target.exists():
            return
        temporary: str | None = None
        try:
            self._check_mounted()
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".incoming-")
            with os.fdopen(handle, "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except OSError as error:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            raise self._unusable(error) from None
        except BaseException:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            raise

    def keep(self, staged: Staged) -> None:
        """Flush to disk, rename."""
        target = self.path(staged.sha256)
        if target.exists():
            return
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with staged.path.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(staged.path, target)
        except OSError as error:
            raise self._unusable(error) from None

    def _spool(self) -> str:
        self._check_mounted()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.root, prefix=".incoming-")
        except OSError as error:
            raise self._unusable(error) from None
        os.close(handle)
        return name

    def _check_mounted(self) -> None:
        if self._shared and not self.root.is_dir():
            raise ConfigurationError(f"the folder that MEDFLOW_OBJECTS names, {self.root}, is not there: mount it")

    def _unusable(self, error: OSError) -> ConfigurationError:
        return ConfigurationError(
            f"the object store at {self.root} cannot be written ({error.strerror}): "
            "free space or mend its permissions, then run the same command again; what was stored stays stored",
            errno=error.errno,
        )
