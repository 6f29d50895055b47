"""What is offered for ingest: the files under the paths a user named, and in their archives, each accounted for."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from medflow.dicom.spool import PARTIAL
from medflow.errors import InputRejected, RejectCode
from medflow.ingest.archives import Limits, NotAnArchive, looks_like_archive, members
from medflow.ingest.index import INDEX_NAME, Indexed, IndexReader, missing, resolve
from medflow.ingest.tally import Refused


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """One thing offered: a file on disk (``path``), or an archive's member (``data``).

    ``entry``: the data are one entry of a file, offered again, and ``origin`` names that entry already. ``bases``: the
    FHIR servers that an absolute reference may name and mean the same source.
    """

    origin: str
    path: Path | None = None
    data: bytes | None = None
    entry: bool = False
    bases: frozenset[str] = frozenset()

    def entry_origin(self, number: int) -> str:
        """Where the entry of this number (from 1) comes from."""
        return self.origin if self.entry else f"{self.origin}#{number}"

    def read(self, max_bytes: int) -> bytes:
        """All of its bytes.

        Raises
        ------
        InputRejected
            It vanished, cannot be read, is empty, or is larger than ``max_bytes``.
        """
        data = self.data
        try:
            if data is None:
                assert self.path is not None  # noqa: S101 - one of the two is always set
                _check_size(self.path.stat().st_size, max_bytes)
                data = self.path.read_bytes()
        except FileNotFoundError:
            raise InputRejected(RejectCode.VANISHED, "the file is no longer there") from None
        except OSError as error:
            raise InputRejected(RejectCode.UNREADABLE, f"the file cannot be read: {error.strerror}") from None
        _check_size(len(data), max_bytes)
        if not data:
            raise InputRejected(RejectCode.EMPTY, "the file has no bytes")
        return data


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise InputRejected(RejectCode.TOO_LARGE, f"{size} bytes; MEDFLOW_MAX_INPUT_BYTES allows {max_bytes}")


def offers(
    paths: Iterable[Path | str | Offer], *, limits: Limits | None = None, index: IndexReader | None = None
) -> Iterator[Offer | Refused]:
    """Every file under ``paths``, folders walked in name order; what cannot be listed is refused, not passed over.

    Parameters
    ----------
    paths
        Files, folders and zip archives; an `Offer` among them is passed on as it is. In a folder an archive is known
        by its first bytes and its name (.zip, or no suffix); a file named by the user is opened whatever its name.
        Links to folders are followed, each folder is walked once. What `medflow receive` is writing is passed over.
    limits
        What an archive may hold; the default is meant for hospital exports.
    index
        Reads a DICOMDIR. With it, a file of that name is taken for an index: it is not offered itself, the files that
        it names are, and those it names in vain are refused.
    """
    return _Walk(limits=limits or Limits(), index=index).paths(paths)


def origin_of(path: Path) -> str:
    """A path as text that any database and terminal takes, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass(kw_only=True)
class _Walk:
    """One pass over what the user named."""

    limits: Limits
    index: IndexReader | None
    walked: set[tuple[int, int]] = field(default_factory=set)  # (device, inode) of folders

    def paths(self, paths: Iterable[Path | str | Offer]) -> Iterator[Offer | Refused]:
        for path in paths:
            if isinstance(path, Offer):
                yield path
            else:
                yield from self._guarded(Path(path), self._named)

    def _named(self, path: Path) -> Iterator[Offer | Refused]:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            yield from self._folder(path)
        elif self.index is not None and path.name.upper() == INDEX_NAME:
            yield from self._indexed(path, offer=True)
        else:
            yield from self._file(path, mode, named=True)

    def _guarded(self, path: Path, walk: Callable[[Path], Iterator[Offer | Refused]]) -> Iterator[Offer | Refused]:
        """What ``walk`` yields, and a refusal where the file system says no."""
        try:
            yield from walk(path)
        except FileNotFoundError:
            yield _refused(path, RejectCode.VANISHED, "there is no such file or folder")
        except OSError as error:
            yield _refused(path, RejectCode.UNREADABLE, f"it cannot be read: {error.strerror}")

    def _folder(self, folder: Path) -> Iterator[Offer | Refused]:
        pending = [folder]
        while pending:
            current = pending.pop()
            try:
                status = current.stat()
                if (status.st_dev, status.st_ino) in self.walked:
                    continue  # a second way, or a loop of links, into a folder whose files have been offered
                self.walked.add((status.st_dev, status.st_ino))
                entries = sorted(path for path in current.iterdir() if not path.name.startswith(PARTIAL))
            except OSError as error:
                yield _refused(current, RejectCode.UNREADABLE, f"the folder cannot be listed: {error.strerror}")
                continue
            folders: list[Path] = []
            for path in entries:
                yield from self._guarded(path, partial(self._entry, folders=folders))
            pending.extend(reversed(folders))

    def _entry(self, path: Path, folders: list[Path]) -> Iterator[Offer | Refused]:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            folders.append(path)
        elif self.index is not None and path.name.upper() == INDEX_NAME:
            yield from self._indexed(path, offer=False)  # the walk itself meets the files that it names
        else:
            yield from self._file(path, mode, named=False)

    def _file(self, path: Path, mode: int, *, named: bool) -> Iterator[Offer | Refused]:
        if not stat.S_ISREG(mode):
            yield _refused(path, RejectCode.UNREADABLE, "it is no ordinary file: a device, socket or pipe")
            return
        if looks_like_archive(path, named=named):
            try:
                yield from self._archive(path)
                return
            except NotAnArchive:
                pass  # only its first bytes are those of an archive: an office document, a program
        yield Offer(origin=origin_of(path), path=path)

    def _archive(self, path: Path) -> Iterator[Offer | Refused]:
        origin = origin_of(path)
        found: set[str] = set()
        indexes: list[tuple[str, Indexed]] = []
        for name, content in members(path, self.limits):
            where = f"{origin}!{name}" if name else origin
            if isinstance(content, InputRejected):
                yield Refused.of(where, content)
                continue
            found.add(name)
            indexed = self._read_index(name, content)
            if isinstance(indexed, InputRejected):
                yield Refused.of(where, indexed, content)
            elif indexed is not None:
                indexes.append((name, indexed))
            else:
                yield Offer(origin=where, data=content)
        for name, indexed in indexes:
            for entry, error in missing(name, indexed, found):
                yield Refused.of(f"{origin}!{name}#{entry}", error)

    def _read_index(self, name: str, content: bytes) -> Indexed | InputRejected | None:
        if self.index is None or name.rsplit("/", 1)[-1].upper() != INDEX_NAME:
            return None
        try:
            return self.index(content)
        except InputRejected as error:
            return error

    def _indexed(self, path: Path, *, offer: bool) -> Iterator[Offer | Refused]:
        """A DICOMDIR: its files when it was named itself; in a walked folder only what it names in vain."""
        assert self.index is not None  # noqa: S101 - the caller has looked
        content = b""
        try:
            content = Offer(origin="", path=path).read(self.limits.index_bytes)
            names = self.index(content)
        except InputRejected as error:
            yield Refused.of(origin_of(path), error, content or None)
            return
        if names is None:  # an ordinary object that merely has this name
            yield Offer(origin=origin_of(path), path=path)
            return
        for entry, target in resolve(path.parent, names):
            if isinstance(target, InputRejected):
                yield Refused.of(f"{origin_of(path)}#{entry}", target)
            elif offer:
                yield Offer(origin=origin_of(target), path=target)


def _refused(path: Path, code: RejectCode, reason: str) -> Refused:
    return Refused.of(origin_of(path), InputRejected(code, reason))
