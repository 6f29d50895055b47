"""What is offered for ingest: the files under the paths a user named, each one accounted for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medflow.errors import InputRejected, RejectCode
from medflow.ingest.tally import Refused


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """One thing offered: a file on disk (``path``), or an archive's member (``data``)."""

    origin: str
    path: Path | None = None
    data: bytes | None = None

    def read(self, max_bytes: int) -> bytes:
        """All of its bytes.

        Raises
        ------
        InputRejected
            It vanished, cannot be read, is empty, or is larger than ``max_bytes``.
        """
        if self.data is not None:
            return self.data
        assert self.path is not None  # noqa: S101 - one of the two is always set
        try:
            size = self.path.stat().st_size
            if size > max_bytes:
                raise InputRejected(RejectCode.TOO_LARGE, f"{size} bytes; MEDFLOW_MAX_INPUT_BYTES allows {max_bytes}")
            data = self.path.read_bytes()
        except FileNotFoundError:
            raise InputRejected(RejectCode.VANISHED, "the file is no longer there") from None
        except OSError as error:
            raise InputRejected(RejectCode.UNREADABLE, f"the file cannot be read: {error.strerror}") from None
        if not data:
            raise InputRejected(RejectCode.EMPTY, "the file has no bytes")
        return data


def offers(paths: Iterable[Path | str]) -> Iterator[Offer | Refused]:
    """Every file under ``paths``, folders walked in name order; what cannot be listed is refused, not passed over."""
    for path in map(Path, paths):
        if path.is_dir():
            yield from _folder(path)
        elif path.exists():
            yield Offer(origin=str(path), path=path)
        else:
            yield Refused.of(str(path), InputRejected(RejectCode.VANISHED, "there is no such file or folder"))


def _folder(folder: Path) -> Iterator[Offer | Refused]:
    errors: list[OSError] = []
    for root, folders, names in os.walk(folder, onerror=errors.append):
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            if path.is_file() or path.is_symlink():
                yield Offer(origin=str(path), path=path)
    for error in errors:
        reason = f"the folder cannot be listed: {error.strerror}"
        yield Refused.of(str(error.filename), InputRejected(RejectCode.UNREADABLE, reason))
