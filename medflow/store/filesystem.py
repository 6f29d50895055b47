"""What the object store asks of an fsspec file system, and that file system's errors in medflow's terms.

A message names the store's URL, which holds no credentials, and the kind of the error: never its text, which may
quote a key or a signed request.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec

from medflow.errors import ConfigurationError, MedflowError, ObjectsUnavailable

LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # of this machine's disk: the caller knows which


def connect(url: str, *, timeout_s: float) -> RemoteFiles:
    """The file system of a URL, reached once so that a wrong configuration is told at the start.

    Raises
    ------
    ConfigurationError
        No such file system, its package is not installed, or it refuses: the message says what to do.
    ObjectsUnavailable
        It does not answer.
    """
    protocol = url.partition("://")[0]
    try:
        system = fsspec.get_filesystem_class(protocol)
        if protocol in ("s3", "s3a"):
            from medflow.store.s3 import S3Files  # botocore and s3fs are an extra

            files: RemoteFiles = S3Files(url, system, timeout_s=timeout_s)
        else:
            files = RemoteFiles(url, system)
    except ImportError as error:
        package = "medflow[s3]" if protocol in ("s3", "s3a") else error.name or "its fsspec package"
        raise ConfigurationError(f"MEDFLOW_OBJECTS is on {protocol}://, which needs: pip install '{package}'") from None
    except ValueError:
        raise ConfigurationError(
            f"MEDFLOW_OBJECTS: no file system is called {protocol}://; name a folder, or a URL such as "
            "s3://bucket/prefix"
        ) from None
    files.check()
    return files


class RemoteFiles:
    """Files under one URL, written whole.

    Options of the file system itself come from fsspec's configuration: ``FSSPEC_<PROTOCOL>_<OPTION>``, or its files.
    """

    def __init__(self, url: str, system: type[fsspec.AbstractFileSystem]) -> None:
        self.url = url
        with self.translated():
            self.system: Any = system(skip_instance_cache=True, use_listings_cache=False, **self.options(system))
            self.root = str(self.system._strip_protocol(url)).rstrip("/")

    def options(self, system: type[fsspec.AbstractFileSystem]) -> dict[str, Any]:
        """What the file system is made with, besides what is configured for it."""
        return {}

    def check(self) -> None:
        """Reach the file system once; the default does nothing, as not all of them can list."""

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        with self.translated():
            return bool(self.system.isfile(self.at(name)))

    def write(self, name: str, source: bytes | Path) -> None:
        """Write a file; it is seen under its name when all of it is there, and not before."""
        with self.translated():
            try:
                self.place(self.at(name), source)
            except FileNotFoundError as error:
                raise self.explained(error) or self.refused("NotFound", "correct MEDFLOW_OBJECTS") from None

    def place(self, target: str, source: bytes | Path) -> None:
        """Send under a temporary name, then move: a rename, or an object store's copy, is seen at once."""
        temporary = f"{self.root}/.incoming-{uuid4().hex}"
        self.system.makedirs(target.rpartition("/")[0], exist_ok=True)
        try:
            self.upload(temporary, source)
            self.system.mv(temporary, target)
        except BaseException:
            if self.system.exists(temporary):
                self.system.rm_file(temporary)
            raise

    def upload(self, path: str, source: bytes | Path) -> None:
        """Send bytes or a local file."""
        if isinstance(source, bytes):
            self.system.pipe_file(path, source)
        else:
            self.system.put_file(str(source), path)

    def read_into(self, name: str, target: Path) -> None:
        """Fetch a file into a local one.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        OSError
            The local disk is full.
        """
        with self.translated():
            self.system.get_file(self.at(name), str(target))

    def remove(self, name: str) -> None:
        """Remove a file."""
        with self.translated():
            self.system.rm_file(self.at(name))

    def at(self, name: str) -> str:
        """The file system's own path of a name."""
        return f"{self.root}/{name}"

    @contextmanager
    def translated(self) -> Iterator[None]:
        """The file system's errors in medflow's terms; a missing file and a full local disk stay what they are."""
        try:
            yield
        except MedflowError:
            raise
        except Exception as error:  # noqa: BLE001 - each file system has its own
            told = self.explained(error)
            if told is None:
                raise
            raise told from None

    def explained(self, error: Exception) -> MedflowError | None:
        """The error for whoever runs medflow; None for those that the caller deals with."""
        if isinstance(error, FileNotFoundError) or (isinstance(error, OSError) and error.errno in LOCAL):
            return None
        if isinstance(error, PermissionError):
            return self.refused(type(error).__name__)
        return self.unavailable(type(error).__name__)

    def refused(self, why: str, way_out: str = "check its credentials and permissions") -> ConfigurationError:
        """It answers, and says no."""
        return ConfigurationError(f"the object store {self.url} refused ({why}): {way_out}", why=why)

    def unavailable(self, why: str, *, answered: bool = False) -> ObjectsUnavailable:
        """It does not answer, or says that it has too much to do."""
        what = "is busy" if answered else "could not be reached"
        return ObjectsUnavailable(f"the object store {self.url} {what} ({why})", why=why, answered=answered)
