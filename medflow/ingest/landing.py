"""Where what is fetched from an archive lies until the store has it: files under home/fetching, one folder a source.

Whoever fetches puts files in, from any thread; whoever ingests takes them out in the order they came. When too many
wait, putting one in waits as well, so that a fast archive does not fill the disk. What a killed process left is taken
first by the next one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import BinaryIO

from medflow.dicom.spool import PARTIAL, SUFFIX, Spool
from medflow.errors import ConfigurationError, SourceUnavailable

WAITING = 2048  # files that may lie there before fetching waits
WAITING_BYTES = 2 << 30
LOCK = ".lock"
UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Landed:
    """A whole file. ``uid`` is the SOP Instance UID that its file meta group states; "" where it states none."""

    path: Path
    uid: str
    size: int


class Stopped(OSError):
    """Nobody takes what is put in any more."""


class Landing(Spool):
    """The folder of one source. It can stand in for the spool of a `Receiver`, for what C-MOVE sends.

    Parameters
    ----------
    home
        The installation's folder.
    name
        What the source is called.
    min_free_bytes
        What must stay free on the disk.
    """

    def __init__(self, home: Path, name: str, *, min_free_bytes: int = 0) -> None:
        readable = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40]
        super().__init__(home / "fetching" / f"{readable}-{sha256(name.encode()).hexdigest()[:8]}")
        self.min_free_bytes = min_free_bytes
        self._changed = threading.Condition()
        self._files: deque[Landed] = deque()
        self._bytes = 0
        self._there: set[Path] = set()  # put in, and not removed yet
        self._arrived: set[str] = set()
        self._stopped = self._ended = False
        self._lock_file: int | None = None

    def prepare(self) -> None:
        """Make the folder, remove what is half-written, and have what was left there taken first.

        Raises
        ------
        ConfigurationError
            It cannot be written.
        SourceUnavailable
            Another process is fetching from the same source.
        """
        if self._lock_file is not None:
            return
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_file = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise SourceUnavailable(
                "another process is fetching from this source: let it finish, then run the same command again"
            ) from None
        except OSError as error:
            self.close()
            raise ConfigurationError(
                f"the folder {self.root} cannot be written ({error.strerror}): free space or mend its permissions, "
                "then run the same command again; it goes on where it was"
            ) from None
        for path in sorted(self.root.iterdir()):
            if path.name.startswith(PARTIAL):
                path.unlink(missing_ok=True)
            elif path.name.endswith(SUFFIX):
                if not _whole(path):  # its name outlived a crash of the machine, its bytes did not: fetched again
                    path.unlink()
                    continue
                self._there.add(path)
                found = Landed(path=path, uid=stated_uid(path), size=path.stat().st_size)
                self._files.append(found)
                self._bytes += found.size

    def close(self) -> None:
        """Let another process have the folder."""
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    # --- putting in ---

    def keep(self, parts: Sequence[bytes | memoryview]) -> str:
        """Put in a whole object made of ``parts``; gives its SHA-256. It may wait until there is room.

        Raises
        ------
        OSError
            It cannot be written, or nobody takes what is put in any more.
        """
        with self.writing() as file:
            for part in parts:
                file.write(part)
        return file.digest

    @contextmanager
    def writing(self) -> Iterator[Incoming]:
        """A file to be written piece by piece; it is put in at the end of the block, or is gone if that raises.

        Raises
        ------
        Stopped
            Nobody takes what is put in any more.
        OSError
            It cannot be written.
        """
        self._wait_for_room()
        if shutil.disk_usage(self.root).free < self.min_free_bytes:
            raise OSError(errno.ENOSPC, "the disk is nearly full")
        handle, name = tempfile.mkstemp(dir=self.root, prefix=PARTIAL)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                incoming = Incoming(file)
                yield incoming
            path = self.root / f"{incoming.digest}{SUFFIX}"
            incoming.uid = stated_uid(temporary)
            with self._changed:
                if path in self._there:  # sent twice; the first is removed once it is ingested
                    temporary.unlink()
                else:
                    os.replace(temporary, path)  # nothing is flushed to disk: what is lost here is fetched again
                    self._there.add(path)
                    self._files.append(Landed(path=path, uid=incoming.uid, size=incoming.size))
                    self._bytes += incoming.size
                self._arrived.update(filter(None, [incoming.uid]))
                self._changed.notify_all()
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def arrived(self, uids: Iterable[str]) -> set[str]:
        """Which of these SOP Instance UIDs were put in, and are not forgotten yet."""
        with self._changed:
            return self._arrived.intersection(uids)

    def _wait_for_room(self) -> None:
        with self._changed:
            while len(self._files) >= WAITING or self._bytes >= WAITING_BYTES:
                if self._stopped:
                    break
                self._changed.wait(timeout=1.0)
            if self._stopped:
                raise Stopped(errno.ESHUTDOWN, "the fetch was stopped")

    # --- taking out ---

    def take(self, most: int) -> list[Landed]:
        """The files that came first, ``most`` of them at the most."""
        with self._changed:
            return [self._files.popleft() for _ in range(min(most, len(self._files)))]

    def waiting(self, *, for_more_than: int = 0, timeout_s: float = 0.0) -> int:
        """How many files lie there, once there are more than asked for, no more will come, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._files) > for_more_than, timeout=timeout_s)
            return len(self._files)

    def end(self) -> None:
        """Say that no more will be put in."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def done(self, files: Sequence[Landed]) -> None:
        """Remove files that the store has, or has on record as rejects."""
        with self._changed:
            for file in files:
                file.path.unlink(missing_ok=True)
                self._there.discard(file.path)
            self._bytes = max(0, self._bytes - sum(file.size for file in files))
            self._changed.notify_all()

    def forget(self, uids: Iterable[str]) -> None:
        """Let go of what is known of these SOP Instance UIDs."""
        with self._changed:
            self._arrived.difference_update(uids)

    @property
    def stopped(self) -> bool:
        """Whether nothing is taken in any more: for whoever waits between two tries."""
        return self._stopped

    def stop(self) -> None:
        """Take nothing in any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


class Incoming:
    """A file that is being written, and its digest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._total = file, sha256()
        self.size, self.uid = 0, ""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append."""
        self._file.write(data)
        self._total.update(data)
        self.size += memoryview(data).nbytes

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what was written so far."""
        return self._total.hexdigest()


def _whole(path: Path) -> bool:
    """Whether a file's bytes are those that it is named by."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest() == path.stem


def stated_uid(path: Path) -> str:
    """The SOP Instance UID of a file as its meta group states it (PS3.10 7.1); "" where it states none."""
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_file_meta_info

    try:
        uid = str(read_file_meta_info(path).get("MediaStorageSOPInstanceUID", ""))
        return uid if UID.fullmatch(uid) else ""  # a sender may put any text there
    except (InvalidDicomError, OSError, ValueError, KeyError, EOFError, AttributeError):
        return ""  # whatever it is: ingest says so
