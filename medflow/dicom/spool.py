"""The folder that received objects lie in until they are ingested: each whole, durable, and named by its SHA-256.

What `keep` has returned for survives the process and the machine: the bytes are flushed before the name exists, and the
name is flushed before the sender is told. Many threads keep at once; those that wait for the same flush of a folder
share it.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

PARTIAL = ".incoming-"  # what a file is called while it is written; ingest passes over it
SUFFIX = ".dcm"
ABANDONED_S = 3600  # a partial file is written within seconds: an older one was left by a killed process


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
        self._folders: dict[Path, _Folder] = {}
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

    def keep(self, parts: Sequence[bytes | memoryview]) -> str:
        """Keep one object made of ``parts``, if it is not there yet; it is durable on return. Gives its SHA-256.

        Raises
        ------
        OSError
            It could not be written whole, or (ENOSPC) the disk is too full to try. Nothing half-written remains.
        """
        total = sha256()
        for part in parts:
            total.update(part)
        digest = total.hexdigest()
        folder = self._today()
        target = folder.path / f"{digest}{SUFFIX}"
        if not target.exists():
            size = sum(memoryview(part).nbytes for part in parts)
            if shutil.disk_usage(folder.path).free - size < self.min_free_bytes:
                raise OSError(errno.ENOSPC, "the disk of the received files is nearly full")
            _write(target, parts)
        folder.flush()
        return digest

    def _today(self) -> _Folder:
        path = self.root / datetime.now(UTC).date().isoformat()
        with self._lock:
            folder = self._folders.get(path)
            if folder is None or not path.is_dir():
                path.mkdir(parents=True, exist_ok=True)
                for parent in (self.root, self.root.parent):
                    _flush(parent)
                folder = _Folder(path)
                self._folders = {path: folder}  # yesterday's is done with
            return folder


class _Folder:
    """A folder whose entries can be made durable, one flush for all that wait."""

    def __init__(self, path: Path) -> None:
        self.path = path
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


def _write(target: Path, parts: Sequence[bytes | memoryview]) -> None:
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o640)  # the group may be another service's, that ingests
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
