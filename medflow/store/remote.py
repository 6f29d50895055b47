"""The object store on a file system that fsspec reaches: objects go up whole, and are read through a local cache."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import BinaryIO, ClassVar, TypeVar

from medflow.errors import ConfigurationError, ObjectsUnavailable
from medflow.store.cache import ObjectCache
from medflow.store.filesystem import RemoteFiles, connect
from medflow.store.objects import ObjectStore, Staged, name_of

IN_MEMORY = 16 << 20  # a larger object waits on disk, until all of it is known to be whole, before it goes up
FETCHERS = 16  # objects of one case that come at once
PAUSE_S = 5.0  # after the network failed: whoever asks meanwhile is told at once, and does not wait for it again
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

T = TypeVar("T")


class RemoteObjects(ObjectStore):
    """Objects under ``url``, for example ``s3://bucket/prefix``.

    Parameters
    ----------
    url
        Where, without credentials: those come from the file system's own environment variables and files.
    cache
        Where fetched objects lie on this machine.
    timeout_s
        How long a request may take.
    """

    parallel: ClassVar[int] = 32  # they wait for the network, not for this machine

    def __init__(self, url: str, cache: ObjectCache, *, timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self.cache = cache
        self._timeout_s = timeout_s
        self._files: dict[int, RemoteFiles] = {}  # by process: connections and their thread do not survive a fork
        self._locks: dict[int, Lock] = {}  # nor does a lock that another thread holds
        self._out: tuple[float, ObjectsUnavailable] | None = None  # until when it is taken for out of reach

    def __contains__(self, digest: str) -> bool:
        return self._using(lambda files: files.exists(name_of(digest)))

    def path(self, digest: str) -> Path:
        """The object's file in the cache; no such file if the store does not have it."""
        try:
            return self.cache.held(digest, partial(self._download, digest))
        except KeyError:
            return self.cache.path(digest)

    def open(self, digest: str) -> BinaryIO:
        """The object's file in the cache, fetched if need be."""
        return self.cache.open(digest, partial(self._download, digest))

    def fetch(self, digests: Iterable[str]) -> None:
        """Into the cache what is not there yet."""
        wanted = [digest for digest in dict.fromkeys(digests) if digest not in self.cache]
        if len(wanted) < 2:
            return  # `open` does it
        with ThreadPoolExecutor(min(FETCHERS, len(wanted)), thread_name_prefix="medflow-fetch") as pool:
            for _ in pool.map(self._fetch_one, wanted):
                pass

    def put_chunks(self, chunks: Iterable[bytes], digest: str) -> None:
        """Send the object, unless it is there."""
        if digest in self:
            return
        held: list[bytes] = []
        size = 0
        rest = iter(chunks)
        for chunk in rest:
            held.append(chunk)
            size += len(chunk)
            if size > IN_MEMORY and len(held) > 1:
                self._put_spooled(held, rest, digest)
                return
        data = held[0] if len(held) == 1 else b"".join(held)
        self._using(lambda files: files.write(name_of(digest), data))

    def keep(self, staged: Staged) -> None:
        """Send the file, unless it is there."""
        if staged.sha256 not in self:
            self._using(lambda files: files.write(name_of(staged.sha256), staged.path))

    def _spool(self) -> str:
        return self.cache.spool()

    def _unusable(self, error: OSError) -> ConfigurationError:
        return self.cache.unusable(error)

    def remove(self, digest: str) -> None:
        """Remove the object, there and from this machine's cache."""
        if digest in self:
            self._using(lambda files: files.remove(name_of(digest)))
        self.cache.path(digest).unlink(missing_ok=True)

    def close(self) -> None:
        """Close this process's connections."""
        self._files.pop(os.getpid(), None)

    def _put_spooled(self, held: list[bytes], rest: Iterable[bytes], digest: str) -> None:
        spool = self.cache.spool()
        try:
            with open(spool, "wb") as file:
                for part in (held, rest):
                    for chunk in part:
                        try:
                            file.write(chunk)
                        except OSError as error:
                            raise self.cache.unusable(error) from None
            self._using(lambda files: files.write(name_of(digest), Path(spool)))
        finally:
            os.unlink(spool)

    def _fetch_one(self, digest: str) -> None:
        with suppress(KeyError):  # whoever opens it will say so
            self.open(digest).close()

    def _download(self, digest: str, target: Path) -> None:
        try:
            self._using(lambda files: files.read_into(name_of(digest), target))
        except FileNotFoundError:
            raise KeyError(digest) from None
        except OSError as error:
            if error.errno in DISK_FULL:
                raise self.cache.unusable(error) from None
            raise

    def _using(self, step: Callable[[RemoteFiles], T]) -> T:
        """What ``step`` gives for the file system of this process."""
        process = os.getpid()
        if process not in self._files:
            with self._locks.setdefault(process, Lock()):
                if process not in self._files:
                    self._files[process] = self._noting(partial(connect, self.url, timeout_s=self._timeout_s))
        return self._noting(partial(step, self._files[process]))

    def _noting(self, step: Callable[[], T]) -> T:
        """Note when the store is out of reach, and for a while do not try: a case each would wait its full time."""
        if self._out is not None and time.monotonic() < self._out[0]:
            raise ObjectsUnavailable(self._out[1].message, **self._out[1].fields)
        try:
            return step()
        except ObjectsUnavailable as error:
            if not error.answered:
                self._out = (time.monotonic() + PAUSE_S, error)
            raise
