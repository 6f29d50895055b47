"""The parts of a multipart/related message as they come over the network (RFC 2387, RFC 2046 section 5.1).

A part may be gigabytes: it is handed on piece by piece, and never held. A message that ends before its closing
delimiter is broken, whatever it had so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from email.message import Message
from typing import BinaryIO

BLOCK = 1 << 20
HEADERS = 64 << 10  # bytes that the headers of a part may have
CRLF = b"\r\n"


class Broken(Exception):
    """The message ends too early, or is none."""


@dataclass(kw_only=True, slots=True)
class Part:
    """One part: its content type, and its bytes, to be read before the next part is asked for."""

    content_type: str
    blocks: Iterator[bytes]


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type header names; raises Broken."""
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary()
    if not boundary or len(boundary) > 200:
        raise Broken
    return boundary.encode("latin-1", "replace")


def media_type_of(content_type: str) -> str:
    """The media type of a Content-Type header, in lower case and without parameters."""
    return content_type.partition(";")[0].strip().lower()


def parts(blocks: Iterable[bytes], boundary: bytes) -> Iterator[Part]:
    """The parts of a message whose bytes come in ``blocks``.

    Raises
    ------
    Broken
        It ends before its closing delimiter, or has no delimiter at all.
    """
    stream = _Stream(blocks=iter(blocks), delimiter=CRLF + b"--" + boundary)
    stream.buffer += CRLF  # so that the first delimiter looks like the others
    stream.drain()
    while not stream.at_end():
        part = Part(content_type=stream.headers().get("content-type", ""), blocks=stream.content())
        yield part
        stream.drain()


@dataclass(kw_only=True, slots=True)
class _Stream:
    blocks: Iterator[bytes]
    delimiter: bytes
    buffer: bytearray = field(default_factory=bytearray)
    within: bool = True  # before a delimiter that was not seen yet

    def content(self) -> Iterator[bytes]:
        """What there is up to the next delimiter, which is passed over."""
        keep = len(self.delimiter) - 1
        while self.within:
            found = self.buffer.find(self.delimiter)
            if found >= 0:
                block = bytes(self.buffer[:found])
                del self.buffer[: found + len(self.delimiter)]
                self.within = False
                if block:
                    yield block
                return
            if len(self.buffer) > keep:
                block = bytes(self.buffer[:-keep])
                del self.buffer[:-keep]
                yield block
            self._more()

    def drain(self) -> None:
        """Pass over what is left up to the next delimiter."""
        for _ in self.content():
            pass

    def at_end(self) -> bool:
        """Whether the delimiter just passed was the closing one."""
        while len(self.buffer) < 2:
            self._more()
        return self.buffer[:2] == b"--"

    def headers(self) -> dict[str, str]:
        """The headers of the part that begins, by their names in lower case."""
        while (line := self.buffer.find(CRLF)) < 0:  # the rest of the delimiter's line is white space
            self._more(limit=HEADERS)
        del self.buffer[:line]
        while (end := self.buffer.find(CRLF + CRLF)) < 0:
            self._more(limit=HEADERS)
        lines = bytes(self.buffer[:end]).decode("latin-1").split("\r\n")
        del self.buffer[: end + 4]
        self.within = True
        named = (line.partition(":") for line in lines if ":" in line)
        return {name.strip().lower(): value.strip() for name, _, value in named}

    def _more(self, *, limit: int | None = None) -> None:
        if limit is not None and len(self.buffer) > limit:
            raise Broken
        for block in self.blocks:
            if block:
                self.buffer += block
                return
        raise Broken


@dataclass(frozen=True, kw_only=True, slots=True)
class PartFile:
    """A file that is to be a part of a message. ``open`` gives it from its start."""

    open: Callable[[], BinaryIO]
    size: int


class Body:
    """A multipart message of files as a readable stream of known length, for a request's body; close it."""

    def __init__(self, files: Sequence[PartFile], *, content_type: str, boundary: str) -> None:
        self._ends = f"\r\n--{boundary}--\r\n".encode()
        self._head = f"--{boundary}\r\nContent-Type: {content_type}\r\n\r\n".encode()
        self._files = iter(files)
        count = len(files)
        heads = count * len(self._head) + max(0, count - 1) * len(CRLF)
        self._length = heads + sum(file.size for file in files) + len(self._ends)
        self._pieces = self._said()
        self._left = b""
        self._open: BinaryIO | None = None

    def __len__(self) -> int:
        return self._length

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes; none at the end."""
        while not self._left and (piece := next(self._pieces, None)) is not None:
            self._left = piece
        if size < 0:
            return self._left + b"".join(self._pieces)
        block, self._left = self._left[:size], self._left[size:]
        return block

    def close(self) -> None:
        """Close the file that is being sent."""
        if self._open is not None:
            self._open.close()

    def _said(self) -> Iterator[bytes]:
        for number, file in enumerate(self._files):
            yield (CRLF if number else b"") + self._head
            self._open = file.open()
            with self._open as stream:
                while block := stream.read(BLOCK):
                    yield block
        yield self._ends
