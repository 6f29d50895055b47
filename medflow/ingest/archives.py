"""Zip archives from anywhere: one member after the other, in memory, never written out by the name it claims.

What an archive says of itself is checked before anything is inflated (counts, sizes, ratios, overlaps), and no member
yields more bytes than it declared.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path

from medflow.errors import InputRejected, RejectCode

MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
DAMAGED = (zipfile.BadZipFile, zlib.error, LZMAError, EOFError, struct.error, ValueError, IndexError, KeyError)
END_RECORD = 22 + 65535  # bytes from the end within which the end of central directory lies (APPNOTE 4.3.16)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one archive may hold, in bytes and members. ``ratio`` holds for what is larger than ``ratio_from``."""

    members: int = 200_000
    member_bytes: int = 2 << 30
    total_bytes: int = 128 << 30
    ratio: int = 200
    ratio_from: int = 256 << 20
    directory_bytes: int = 64 << 20
    index_bytes: int = 256 << 20


class NotAnArchive(Exception):
    """It begins like a zip archive, but is another kind of document in zip's clothes."""


def looks_like_archive(path: Path, *, named: bool) -> bool:
    """Whether to open a file as a zip archive; raises OSError if it cannot be read.

    ``named`` is for a file that the user named, which is opened whatever its suffix.
    """
    if path.suffix.lower() == ".zip":
        return True
    if not named and path.suffix:
        return False
    with path.open("rb") as file:
        return file.read(4) in MAGIC


def members(path: Path, limits: Limits) -> Iterator[tuple[str, bytes | InputRejected]]:
    """Name and bytes of each file in an archive, in the archive's order; its folders are passed over.

    A member that is not taken comes with its `InputRejected`; an archive that is not taken as a whole gives one pair
    with an empty name.

    Raises
    ------
    NotAnArchive
        It is an office document or a program that merely uses zip's format.
    """
    try:
        with path.open("rb") as file:
            _check_directory(file.read, file.seek, limits)
            with zipfile.ZipFile(file) as archive:
                infos = [info for info in archive.infolist() if not info.is_dir()]
                if path.suffix.lower() != ".zip" and {"[Content_Types].xml", "META-INF/MANIFEST.MF", "mimetype"} & set(
                    archive.namelist()
                ):
                    raise NotAnArchive
                _check(infos, path.stat().st_size, limits)
                for info in infos:
                    yield _shown(info.orig_filename), _content(archive, info, limits)
    except InputRejected as error:
        yield "", error
    except DAMAGED + (NotImplementedError,):
        yield "", InputRejected(RejectCode.ARCHIVE_BROKEN, "it is no zip archive, or a damaged or incomplete one")


def _check_directory(read, seek, limits: Limits) -> None:  # noqa: ANN001 - of an open file
    """Refuse a central directory that would fill memory before its first member is seen."""
    size = seek(0, 2)
    seek(max(0, size - END_RECORD))
    tail = read()
    end = tail.rfind(b"PK\x05\x06")
    wide = tail.rfind(b"PK\x06\x06")
    declared = 0
    if 0 <= end <= len(tail) - 22:
        (declared,) = struct.unpack_from("<L", tail, end + 12)
    if declared == 0xFFFFFFFF and 0 <= wide <= len(tail) - 56:
        (declared,) = struct.unpack_from("<Q", tail, wide + 40)
    seek(0)
    if min(declared, size) > limits.directory_bytes:
        raise InputRejected(RejectCode.ARCHIVE_BOMB, f"its directory takes {declared} bytes: too many members")


def _check(infos: list[zipfile.ZipInfo], size: int, limits: Limits) -> None:
    """Refuse an archive as a whole, on what it declares."""
    if not infos:
        raise InputRejected(RejectCode.EMPTY, "the archive has no files")
    if len(infos) > limits.members:
        raise InputRejected(RejectCode.ARCHIVE_BOMB, f"{len(infos)} members; {limits.members} are allowed")
    total = sum(info.file_size for info in infos)
    if total > limits.total_bytes:
        raise InputRejected(RejectCode.ARCHIVE_BOMB, f"{total} bytes unpacked; {limits.total_bytes} are allowed")
    if total > limits.ratio_from and total > limits.ratio * size:
        reason = f"it would grow to {total // max(size, 1)} times its size; {limits.ratio} times are allowed"
        raise InputRejected(RejectCode.ARCHIVE_BOMB, reason)
    if sum(info.compress_size for info in infos) > size:
        raise InputRejected(RejectCode.ARCHIVE_BOMB, "its members overlap")


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limits: Limits) -> bytes | InputRejected:
    """One member's bytes, or why they are not taken."""
    if _leaves(info.orig_filename):
        return InputRejected(RejectCode.ARCHIVE_PATH, "the member's name points outside the archive")
    if stat.S_ISLNK(info.external_attr >> 16):
        return InputRejected(RejectCode.ARCHIVE_PATH, "the member is a link to another file")
    if info.flag_bits & 0x1:
        return InputRejected(RejectCode.ARCHIVE_ENCRYPTED, "the member is encrypted: unpack it with its password first")
    if info.file_size > limits.member_bytes:
        reason = f"the member has {info.file_size} bytes unpacked; {limits.member_bytes} are allowed"
        return InputRejected(RejectCode.ARCHIVE_BOMB, reason)
    if info.file_size > limits.ratio_from and info.file_size > limits.ratio * max(info.compress_size, 1):
        reason = f"the member would grow to more than {limits.ratio} times its size"
        return InputRejected(RejectCode.ARCHIVE_BOMB, reason)
    try:
        with archive.open(info) as file:
            data = file.read(info.file_size + 1)
    except NotImplementedError:
        return InputRejected(RejectCode.ARCHIVE_BROKEN, "the member is compressed by a method that is not supported")
    except (*DAMAGED, RuntimeError):
        return InputRejected(RejectCode.ARCHIVE_BROKEN, "the member is damaged: its checksum or its coding is wrong")
    except OSError as error:
        return InputRejected(RejectCode.ARCHIVE_BROKEN, f"the member cannot be read ({error.strerror or 'damaged'})")
    if data[:4] in MAGIC:
        return InputRejected(RejectCode.UNSUPPORTED_TYPE, "an archive inside an archive is not opened: unpack it first")
    return data


def _leaves(name: str) -> bool:
    """Whether a member's name is absolute, has a drive, or climbs out of its folder."""
    parts = name.replace("\\", "/").split("/")
    return name[:1] in ("/", "\\") or ".." in parts or ":" in parts[0][:2] or "\x00" in name


def _shown(name: str) -> str:
    """A member's name as text that any database takes."""
    clean = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    return clean.encode("utf-8", "backslashreplace").decode()
