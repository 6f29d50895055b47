"""DICOMDIR as far as files go: which files a media directory names, and which of them may be taken.

PS3.10 8.2 and 8.6: a file ID has up to eight components, relative to the folder of the file named DICOMDIR. Media
are often copied to disks that change the case of names, or that keep the ";1" of ISO 9660.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from medflow.errors import InputRejected, RejectCode

INDEX_NAME = "DICOMDIR"
FileId = tuple[str, ...]
Indexed = list[FileId] | None  # None: not a media directory, whatever its name
IndexReader = Callable[[bytes], Indexed]


def resolve(folder: Path, names: list[FileId]) -> Iterator[tuple[str, Path | InputRejected]]:
    """For each file ID its text and the file it means, or why that is not taken; each file once."""
    root = folder.resolve()
    listings: dict[Path, dict[str, Path]] = {}
    for file_id in dict.fromkeys(names):
        entry = "/".join(file_id)
        if _leaves(file_id):
            yield entry, _outside()
            continue
        found: Path | None = folder
        for part in file_id:
            found = _child(found, part, listings) if found is not None else None
        if found is None or not found.is_file():
            yield entry, _missing()
        elif not found.resolve().is_relative_to(root):
            yield entry, _outside()
        else:
            yield entry, found


def missing(name: str, indexed: list[FileId] | None, found: Collection[str]) -> Iterator[tuple[str, InputRejected]]:
    """What a DICOMDIR inside an archive names in vain; ``found`` are the archive's members."""
    folder = name.rpartition("/")[0]
    there = {_folded(member) for member in found}
    for file_id in dict.fromkeys(indexed or ()):
        entry = "/".join(file_id)
        if _leaves(file_id):
            yield entry, _outside()
        elif _folded(f"{folder}/{entry}" if folder else entry) not in there:
            yield entry, _missing()


def _child(folder: Path, part: str, listings: dict[Path, dict[str, Path]]) -> Path | None:
    exact = folder / part
    if exact.exists():
        return exact
    if folder not in listings:
        try:
            listings[folder] = {_folded(path.name): path for path in folder.iterdir()}
        except OSError:
            listings[folder] = {}
    return listings[folder].get(_folded(part))


def _folded(name: str) -> str:
    return name.upper().removesuffix(";1").rstrip(".")


def _leaves(file_id: FileId) -> bool:
    """Whether a file ID could point anywhere but below its folder."""
    return not file_id or any(part in ("", ".", "..") or set(part) & set("/\\:\x00") for part in file_id)


def _outside() -> InputRejected:
    return InputRejected(RejectCode.ARCHIVE_PATH, "the DICOMDIR names a file outside its own folder")


def _missing() -> InputRejected:
    return InputRejected(RejectCode.DICOMDIR_MISSING_FILE, "the DICOMDIR names a file that is not there")
