"""Text of a genomic file, line by line: plain, gzip or bgzip, hashed as received in the same pass.

A line is bounded, so memory is too, whatever a file claims to be; a compressed file that ends early is noticed.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Protocol

from medflow.errors import InputRejected, RejectCode

MAX_LINE = 64 << 20
BLOCK = 2 << 20
_PIECE = 1 << 16
_GZIP = b"\x1f\x8b"
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")  # SAM specification, 4.1.2


class _Text(Protocol):
    def readline(self, size: int, /) -> bytes: ...

    def read1(self, size: int, /) -> bytes: ...


class _Hashing(io.RawIOBase):
    """A file that is hashed as it is read, once, from start to end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = sha256()
        self.size = 0
        self.end = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # noqa: ANN001 - a writable buffer
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self.digest.update(data)
        self.size += len(data)
        self.end = (self.end + data)[-len(_BGZF_END) :]
        return len(data)


class LineReader:
    """The lines of a file, or of bytes; after the last one ``sha256`` and ``size`` are those of what was received."""

    def __init__(self, source: Path | bytes) -> None:
        self._source = source
        self.sha256 = ""
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        """Lines without their ends.

        Raises
        ------
        InputRejected
            VANISHED, UNREADABLE, EMPTY, TRUNCATED, ARCHIVE_BROKEN, or TOO_LARGE for a line beyond `MAX_LINE`.
        """
        return self._translated(self._lines)

    def blocks(self) -> Generator[bytes, None, None]:
        """The same text in pieces of whole lines with their ends, each of about `BLOCK` bytes or one line.

        Raises
        ------
        InputRejected
            As reading by lines does, after the lines before the fault.
        """
        return _ahead(self._translated(self._blocks))

    def _translated(self, read: Callable[[_Text], Iterator[bytes]]) -> Generator[bytes, None, None]:
        try:
            with self._open() as file:
                hashing = _Hashing(file)
                raw = io.BufferedReader(hashing, 1 << 18)
                head = raw.peek(18)[:18]
                if not head:
                    raise InputRejected(RejectCode.EMPTY, "the file has no bytes")
                text = gzip.GzipFile(fileobj=raw, mode="rb") if head.startswith(_GZIP) else raw
                yield from read(text)
                while raw.read(1 << 18):
                    pass
                # bgzip marks the end of its files; without the mark a block may be missing, and gzip cannot tell
                if head[:4] == b"\x1f\x8b\x08\x04" and head[12:14] == b"BC" and hashing.end != _BGZF_END:
                    raise EOFError
                self.sha256, self.size = hashing.digest.hexdigest(), hashing.size
        except FileNotFoundError:
            raise InputRejected(RejectCode.VANISHED, "the file is no longer there") from None
        except EOFError:
            raise InputRejected(RejectCode.TRUNCATED, "the compressed file ends early: transfer it again") from None
        except (gzip.BadGzipFile, zlib.error):
            raise InputRejected(RejectCode.ARCHIVE_BROKEN, "the compressed file is damaged") from None
        except OSError as error:
            raise InputRejected(RejectCode.UNREADABLE, f"the file cannot be read: {error.strerror}") from None

    def _open(self) -> BinaryIO:
        return io.BytesIO(self._source) if isinstance(self._source, bytes) else self._source.open("rb")

    @staticmethod
    def _lines(text: _Text) -> Iterator[bytes]:
        while line := text.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise _too_long()
            yield line.rstrip(b"\r\n")

    @staticmethod
    def _blocks(text: _Text) -> Iterator[bytes]:
        pieces: list[bytes] = []  # of the block to be
        size, whole, fault = 0, 0, None  # ``whole`` bytes of them end with a line
        while True:
            try:
                piece = text.read1(_PIECE)
            except (EOFError, OSError, zlib.error) as error:
                piece, fault = b"", error
            end = piece.rfind(b"\n") + 1
            whole = size + end if end else whole
            size += len(piece)
            pieces.append(piece)
            if size - whole > MAX_LINE:
                fault = _too_long()
            if whole >= BLOCK or (whole and (fault or not piece)):
                block = b"".join(pieces)
                yield block[:whole]
                pieces, size, whole = [block[whole:]], size - whole, 0
            if fault is not None:
                raise fault
            if not piece:
                break
        if size:
            yield b"".join(pieces)


def _too_long() -> InputRejected:
    return InputRejected(RejectCode.TOO_LARGE, f"a line is longer than {MAX_LINE} bytes")


def _ahead(blocks: Generator[bytes, None, None]) -> Generator[bytes, None, None]:
    """The same, each one made by a thread while the one before it is used: decompressing needs no interpreter."""
    with closing(blocks):
        first = next(blocks, b"")
        if first:
            yield first
        if len(first) < BLOCK:  # a small file needs no thread
            yield from blocks
            return
        del first
        with ThreadPoolExecutor(1, thread_name_prefix="medflow-stream") as thread:
            made = thread.submit(next, blocks, b"")
            while block := made.result():
                made = thread.submit(next, blocks, b"")
                yield block
