"""Objects of a remote store on this machine's disk, as many as fit: each fetched once, those used longest ago let go.

Several processes may share one cache. A file appears under its name whole and checked, and whoever has it open keeps
reading it when another process removes it. A file's modification time is when it was last used; one in the future
holds it until then.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import BinaryIO

from medflow.errors import ConfigurationError, ObjectDamaged

HOLD_S = 3600  # how long a file whose path was given away stays
LEFT_BEHIND_S = 3600  # a file that nobody wrote to for so long is of a process that was killed
ROOM = 0.9  # of the limit is left after letting go, so that it is not done at each fetch
UNSEEN = 16  # one such part of the limit may come in before the folder is counted again: others add to it too
PARTIAL = ".incoming-"

Fill = Callable[[Path], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    used: float
    size: int
    path: str


class ObjectCache:
    """Files under ``root``, of ``limit`` bytes together."""

    def __init__(self, root: Path, limit: int) -> None:
        self.root = root
        self.limit = limit
        self._unseen = limit  # the first fetch of a process counts what others left

    def path(self, digest: str) -> Path:
        """Where the object lies if it is here."""
        return self.root / digest[:2] / digest

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).exists()

    def open(self, digest: str, fill: Fill, *, hold_s: float = 0) -> BinaryIO:
        """The object as an open file; ``fill`` writes it to the path it is given when it is not here.

        Raises
        ------
        ObjectDamaged
            What ``fill`` wrote has another SHA-256, twice.
        ConfigurationError
            The cache cannot be written.
        """
        try:
            file = self.path(digest).open("rb")
        except FileNotFoundError:
            file = self._fetched(digest, fill)
        except OSError as error:
            raise self.unusable(error) from None
        _touch(file, hold_s)
        return file

    def held(self, digest: str, fill: Fill) -> Path:
        """The object's path, where it stays for the next hour."""
        path = self.path(digest)
        while True:
            self.open(digest, fill, hold_s=HOLD_S).close()
            if path.exists():  # another process may have let go of it just before it was held
                return path

    def spool(self) -> str:
        """A new temporary file's path, on the same disk; whoever asks removes it."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.root, prefix=PARTIAL)
        except OSError as error:
            raise self.unusable(error) from None
        os.close(handle)
        return name

    def unusable(self, error: OSError) -> ConfigurationError:
        """What to tell of an error of the cache's own disk."""
        return ConfigurationError(
            f"the cache at {self.root} cannot be used ({error.strerror}): mend its permissions, free space, or lower "
            "MEDFLOW_CACHE_MIB",
            errno=error.errno,
        )

    def _fetched(self, digest: str, fill: Fill) -> BinaryIO:
        try:
            return self._filled(digest, fill)
        except ObjectDamaged:
            return self._filled(digest, fill)  # it may have been the way here that damaged it

    def _filled(self, digest: str, fill: Fill) -> BinaryIO:
        temporary = self.spool()
        try:
            fill(Path(temporary))
            file = open(temporary, "rb")  # noqa: SIM115 - the caller closes it
            try:
                found = file_digest(file, "sha256").hexdigest()
                if found != digest:
                    raise ObjectDamaged(
                        f"the object {digest} is damaged, its bytes have another SHA-256: delete it from the object "
                        "store and ingest its source again",
                        sha256=digest,
                    )
                self._keep(file, temporary, digest)
            except BaseException:
                file.close()
                raise
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        file.seek(0)
        return file

    def _keep(self, file: BinaryIO, temporary: str, digest: str) -> None:
        target = self.path(digest)
        try:
            os.fsync(file.fileno())  # a name that outlives a power cut must not lead to bytes that did not
            target.parent.mkdir(exist_ok=True)
            os.replace(temporary, target)
        except OSError as error:
            raise self.unusable(error) from None
        self._count(os.fstat(file.fileno()).st_size, target)

    # --- letting go ----------------------------------------------------------------------------------------------

    def _count(self, size: int, fetched: Path) -> None:
        self._unseen += size  # without a lock, which a fork might take along: a lost sum only means counting later
        if self._unseen * UNSEEN >= self.limit:
            self._unseen = 0
            self._let_go(fetched)

    def _let_go(self, fetched: Path) -> None:
        """Remove what was used longest ago until the limit is kept; one process at a time does."""
        with (self.root / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries = sorted(self._entries(), key=lambda entry: entry.used)
            total = sum(entry.size for entry in entries)
            if total <= self.limit:
                return
            now = time.time()
            for entry in entries:
                if total <= self.limit * ROOM:
                    break
                if entry.path == str(fetched) or entry.used > now:
                    continue
                with suppress(FileNotFoundError):
                    os.unlink(entry.path)
                total -= entry.size

    def _entries(self) -> list[_Entry]:
        """The objects that are here; what a killed process left is removed on the way."""
        found: list[_Entry] = []
        for folder in [self.root, *(path for path in self.root.iterdir() if path.is_dir())]:
            for item in os.scandir(folder):
                with suppress(FileNotFoundError):
                    status = item.stat(follow_symlinks=False)
                    if item.name.startswith(PARTIAL):
                        if status.st_mtime < time.time() - LEFT_BEHIND_S:
                            os.unlink(item.path)
                    elif len(item.name) == 64:
                        found.append(_Entry(used=status.st_mtime, size=status.st_size, path=item.path))
        return found


def _touch(file: BinaryIO, hold_s: float) -> None:
    """Say that a file is used now, or until ``hold_s`` from now; a longer hold by another stays."""
    until = time.time() + hold_s
    with suppress(OSError):  # a cache that another user filled: it is read all the same
        if os.fstat(file.fileno()).st_mtime < until:
            os.utime(file.fileno(), (until, until))
