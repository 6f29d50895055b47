"""The folder that received objects lie in until they are ingested: each whole, durable, and named by its SHA-256.

What `keep` has returned for survives the process and the machine: the bytes are flushed before the name exists, and the
name is flushed before the sender is told. Many threads and processes keep at once: the file system's journal writes
what several files wait for in one go, and threads that wait for the same flush of a folder share it.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from itertools import count
from pathlib import Path

PARTIAL = ".incoming-"  # what a file is called while it is written; ingest passes over it
SUFFIX = ".dcm"
NAME = re.compile(r"[0-9a-f]{64}" + re.escape(SUFFIX))
ABANDONED_S = 3600  # a partial file is written within seconds: an older one was left by a killed process
DAY_S = 86400
NEARLY_FULL = "the disk of the received files is nearly full"

_numbers = count()  # of partial files, in this process


class Spool:
    """Files under ``root/<yyyy-mm-dd>/<sha256>.dcm``.

    Parameters
    ----------
    root
        Made where it is missing.
    min_free_bytes
        What must stay free on the disk.
    """

    def __init__(self, root: Path, *, min_free_bytes: int = 0) -> None:
        self.root = root.absolute()
        self.min_free_bytes = min_free_bytes
        self._folder: _Folder | None = None
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Make the folder and today's in it, and remove what killed processes left half-written.

        Raises
        ------
        OSError
            It cannot be made or written.
        """
        probe, name = tempfile.mkstemp(dir=self._today().path, prefix=PARTIAL)
        os.close(probe)
        os.unlink(name)
        for path in self.root.glob(f"*/{PARTIAL}*"):
            try:
                if time.time() - path.stat().st_mtime > ABANDONED_S:
                    path.unlink()
            except FileNotFoundError:
                pass  # another receiver has this folder too, and was quicker

    def keep(self, parts: Sequence[bytes | bytearray | memoryview]) -> str:
        """Keep one object made of ``parts``, if it is not there yet; it is durable on return. Gives its SHA-256.

        Raises
        ------
        OSError
            It could not be written whole, or (ENOSPC) the disk is too full to try. Nothing half-written remains.
        """
        total = sha256()
        for part in parts:
            total.update(part)
        folder = self._today()
        target = f"{folder.name}/{total.hexdigest()}{SUFFIX}"
        if not os.path.exists(target):
            with self.begin(sum(memoryview(part).nbytes for part in parts)) as incoming:
                for part in parts:
                    incoming.append(part)
                incoming.name_as(target)
        folder.flush()
        return total.hexdigest()

    def begin(self, size: int = 0) -> Incoming:
        """An object to be written piece by piece; ``size`` bytes of it are known of.

        Raises
        ------
        OSError
            The disk is too full (ENOSPC), or cannot be written.
        """
        return Incoming(self._today(), self.min_free_bytes, size)

    def finish(self, incoming: Incoming) -> None:
        """Keep what was written piece by piece; it is durable on return."""
        digest = incoming.digest.hexdigest()
        incoming.name_as(f"{incoming.folder.name}/{digest}{SUFFIX}")
        incoming.folder.flush()

    def files(self) -> Iterator[os.DirEntry[str]]:
        """The objects that are kept, oldest day first."""
        try:
            days = sorted(entry.path for entry in os.scandir(self.root) if entry.is_dir())
        except FileNotFoundError:
            return
        for day in days:
            try:
                with os.scandir(day) as entries:
                    yield from (entry for entry in entries if NAME.fullmatch(entry.name))
            except FileNotFoundError:
                continue  # removed, which anybody may do with an empty one

    def flush(self) -> None:
        """Return when every object that has a name is durable, whichever process gave it that."""
        for entry in list(os.scandir(self.root)):
            if entry.is_dir():
                _flush(Path(entry.path))

    def _today(self) -> _Folder:
        day = int(time.time()) // DAY_S
        folder = self._folder
        if folder is not None and folder.day == day and os.path.isdir(folder.name):
            return folder
        with self._lock:
            folder = self._folder
            if folder is None or folder.day != day or not os.path.isdir(folder.name):
                path = self.root / datetime.fromtimestamp(day * DAY_S, UTC).date().isoformat()
                path.mkdir(parents=True, exist_ok=True)
                for parent in (self.root, self.root.parent):
                    _flush(parent)
                folder = self._folder = _Folder(path, day)
            return folder


class Incoming:
    """An object that is being written, under a name that nobody looks at; gone at the end unless it was named."""

    def __init__(self, folder: _Folder, min_free_bytes: int, size: int) -> None:
        self.folder = folder
        self.digest = sha256()
        self._min_free_bytes = min_free_bytes
        self._path = f"{folder.name}/{PARTIAL}{os.getpid()}-{next(_numbers)}-{time.monotonic_ns():x}"
        self._check_space(size)
        self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        os.fchmod(self._handle, 0o640)  # the group may be another service's, that ingests
        self._named = False

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Write a piece, all of it; raises OSError."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._handle, view) :]

    def hash_and_append(self, data: memoryview) -> None:
        """Write a piece of an object whose SHA-256 is not known before; raises OSError."""
        self._check_space(len(data))
        self.digest.update(data)
        self.append(data)

    def name_as(self, target: str) -> None:
        """Flush the bytes, then give them their name; the name itself is not flushed yet."""
        os.fsync(self._handle)
        os.replace(self._path, target)
        self._named = True
        self.close()

    def close(self) -> None:
        """Let go of it; what has no name is removed."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
            if not self._named:
                Path(self._path).unlink(missing_ok=True)

    def _check_space(self, size: int) -> None:
        if self._min_free_bytes:
            disk = os.statvfs(self.folder.name)
            if disk.f_bavail * disk.f_frsize - size < self._min_free_bytes:
                raise OSError(errno.ENOSPC, NEARLY_FULL)


class _Folder:
    """A day's folder, whose entries can be made durable, one flush for all that wait."""

    def __init__(self, path: Path, day: int) -> None:
        self.path = path
        self.name = str(path)
        self.day = day
        self._turn = threading.Lock()
        self._begun = 0
        self._done = 0

    def flush(self) -> None:
        """Return when every name that was there before this call is on disk."""
        wanted = self._begun + 1  # the flush under way may have begun before the caller's name was there
        with self._turn:
            if self._done >= wanted:
                return
            self._begun += 1
            _flush(self.path)
            self._done = self._begun


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
