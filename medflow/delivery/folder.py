"""A folder as a target: bulk-style NDJSON, one file per resource type, each resource in it exactly once.

The sizes of the files are committed in the transaction that marks their resources delivered. Whatever a file has
beyond its committed size was written by a process that died before its commit, and is cut off first.

DICOM objects go into a folder ``dicom`` beside them, a file each, named by SOP Instance UID: whole under that name or
not there, and writing one again changes nothing. They come before the resources that name them.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from medflow.delivery.target import Refusal, Sent
from medflow.errors import ConfigurationError, ObjectDamaged
from medflow.store.objects import ObjectStore
from medflow.store.outbox import DICOM, PendingResource

DICOM_FOLDER = "dicom"
TOLD_AT_ONCE = 8  # DICOM objects
COPIED_AT_ONCE = 1 << 20
MISSING_WAIT_S = 60.0


class Folder:
    """NDJSON files in a folder, and DICOM files out of the object store below it."""

    def __init__(self, path: Path, objects: ObjectStore) -> None:
        self._path, self._objects = path, objects
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
        """Write the DICOM objects, told of every few; then append all resources, told of in one part."""
        everything = [resource for envelope in envelopes for resource in envelope]
        yield from self._send_objects([item for item in everything if item.type == DICOM])
        resources = [item for item in everything if item.type != DICOM]
        if resources:
            yield from self._send_lines(resources)

    def _send_objects(self, items: Sequence[PendingResource]) -> Iterator[Sent]:
        for start in range(0, len(items), TOLD_AT_ONCE):
            sent = Sent()
            for item in items[start : start + TOLD_AT_ONCE]:
                sent = sent.joined(self._send_object(item))
            with self._explained():
                self._sync(self._path / DICOM_FOLDER)
            yield sent

    def _send_object(self, item: PendingResource) -> Sent:
        try:
            source = self._objects.open(item.body.decode())
        except KeyError:
            return Sent(refused=[Refusal(resource=item, reason="object-missing", wait_s=MISSING_WAIT_S)])
        except ObjectDamaged:
            return Sent(refused=[Refusal(resource=item, reason="object-damaged", wait_s=MISSING_WAIT_S)])
        with source, self._explained():
            self._write_whole(self._path / DICOM_FOLDER / f"{item.id}.dcm", source)
        return Sent(delivered=[item])

    def _write_whole(self, file: Path, source: BinaryIO) -> None:
        file.parent.mkdir(exist_ok=True)
        incoming = file.with_name(f".{file.name}.incoming")  # what a killed process left there is written over
        try:
            with incoming.open("wb") as stream:
                shutil.copyfileobj(source, stream, COPIED_AT_ONCE)
                stream.flush()
                os.fsync(stream.fileno())
            incoming.replace(file)
        except BaseException:
            incoming.unlink(missing_ok=True)
            raise

    def _send_lines(self, resources: Sequence[PendingResource]) -> Iterator[Sent]:
        lines: dict[str, list[bytes]] = defaultdict(list)
        for resource in resources:
            lines[f"{resource.type}.ndjson"].append(resource.body)
        if new := sorted(lines.keys() - self._sizes.keys()):
            for name in new:
                self._sizes[name] = self._unused(name)
            yield Sent(committed=dict(self._sizes))  # from here on it is known that these files are medflow's
        with self._explained():
            for name, bodies in lines.items():
                self._append(name, b"\n".join(bodies) + b"\n")
            self._sync(self._path)
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

    def _sync(self, folder: Path) -> None:
        if os.name == "posix" and folder.exists():  # a new file's name is durable only once its folder is
            handle = os.open(folder, os.O_RDONLY)
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
