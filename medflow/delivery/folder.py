"""A folder as a target: bulk-style NDJSON, one file per resource type, each resource in it exactly once.

The sizes of the files are committed in the transaction that marks their resources delivered. Whatever a file has
beyond its committed size was written by a process that died before its commit, and is cut off first.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from medflow.delivery.target import Sent
from medflow.errors import ConfigurationError
from medflow.store.outbox import PendingResource


class Folder:
    """NDJSON files in a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sizes: dict[str, int] = {}

    def open(self, committed: Mapping[str, int]) -> None:
        """Make the folder, and cut its files back to what is committed."""
        self._sizes = dict(committed)
        with self._explained():
            self._path.mkdir(parents=True, exist_ok=True)
            for name, size in self._sizes.items():
                file = self._path / name
                found = file.stat().st_size if file.exists() else 0
                if found < size:
                    raise ConfigurationError(
                        f"{file} is {'shorter than' if file.exists() else 'not where'} medflow wrote it: put it back, "
                        f"or have everything written anew with `medflow retry deliveries --to {self._path}` and "
                        "another `medflow deliver`"
                    )
                if found > size:
                    self._cut(file, size)

    def send(self, envelopes: Sequence[Sequence[PendingResource]]) -> Iterator[Sent]:
        """Append all of them; told of in one part, once they are on disk."""
        lines: dict[str, list[bytes]] = defaultdict(list)
        resources = [resource for envelope in envelopes for resource in envelope]
        for resource in resources:
            lines[f"{resource.type}.ndjson"].append(resource.body)
        if new := sorted(lines.keys() - self._sizes.keys()):
            for name in new:
                self._sizes[name] = self._unused(name)
            yield Sent(committed=dict(self._sizes))  # from here on it is known that these files are medflow's
        with self._explained():
            for name, bodies in lines.items():
                self._append(name, b"\n".join(bodies) + b"\n")
            self._sync_folder()
        yield Sent(delivered=resources, committed=dict(self._sizes))

    def close(self) -> None:
        """Nothing is held open between parts."""

    def _unused(self, name: str) -> int:
        file = self._path / name
        if file.exists() and file.stat().st_size:
            raise ConfigurationError(
                f"{file} is not of this medflow installation, and will not be touched: deliver to another folder, "
                "or move it away"
            )
        return 0

    def _append(self, name: str, data: bytes) -> None:
        file = self._path / name
        with file.open("ab") as stream:
            if stream.tell() != self._sizes[name]:
                raise ConfigurationError(f"something else writes to {file}: give medflow a folder of its own")
            try:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            except OSError:
                self._cut(file, self._sizes[name])
                raise
        self._sizes[name] += len(data)

    def _cut(self, file: Path, size: int) -> None:
        with file.open("r+b") as stream:
            stream.truncate(size)
            os.fsync(stream.fileno())

    def _sync_folder(self) -> None:
        if os.name == "posix":  # a new file's name is durable only once its folder is
            handle = os.open(self._path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigurationError(
                f"the folder {self._path} cannot be written ({error.strerror}): free space or mend its permissions, "
                "then run the same command again; nothing is lost and nothing will be there twice"
            ) from None
