"""Multipart messages: the same parts however the bytes come, and nothing of what is broken taken for whole."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

import pytest

from medflow.dicom.multipart import Body, Broken, PartFile, boundary_of, parts

BOUNDARY = "b0undary"
FILES = [b"one", b"", b"\r\n--b0undar\r\n--" * 3, bytes(range(256)) * 9]


def message() -> bytes:
    files = [PartFile(open=lambda data=data: BytesIO(data), size=len(data)) for data in FILES]
    body = Body(files, content_type="application/dicom", boundary=BOUNDARY)
    data = body.read()
    assert len(data) == len(body)
    return data


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000, 100_000])
def test_the_parts_are_those_that_were_put_in_however_the_bytes_come(size: int) -> None:
    found = list(_read(pieces(b"a preamble\r\n" + message() + b"an epilogue", size)))

    assert found == [("application/dicom", data) for data in FILES]


def _read(blocks: Iterator[bytes]) -> Iterator[tuple[str, bytes]]:
    for part in parts(blocks, BOUNDARY.encode()):
        yield part.content_type, b"".join(part.blocks)


def test_parts_that_nobody_reads_are_passed_over() -> None:
    assert len([part.content_type for part in parts(pieces(message(), 100), BOUNDARY.encode())]) == len(FILES)


@pytest.mark.parametrize("end", [1, 30, 200, -3, -BOUNDARY.__len__()])
def test_a_message_that_ends_too_early_is_broken(end: int) -> None:
    with pytest.raises(Broken):
        list(_read(pieces(message()[:end], 50)))


def test_a_part_whose_headers_never_end_is_broken() -> None:
    with pytest.raises(Broken):
        list(_read(pieces(b"--b0undary\r\n" + b"x" * 200_000, 1000)))


def test_a_body_may_be_read_in_blocks_of_any_size() -> None:
    files = [PartFile(open=lambda: BytesIO(b"x" * 1000), size=1000)]
    body = Body(files, content_type="application/dicom", boundary=BOUNDARY)
    blocks: list[bytes] = []
    while block := body.read(33):
        blocks.append(block)

    assert sum(map(len, blocks)) == len(body)
    assert list(_read(iter(blocks))) == [("application/dicom", b"x" * 1000)]


@pytest.mark.parametrize("header", ["multipart/related", "multipart/related; boundary=", "multipart/related; type=x"])
def test_without_a_boundary_a_message_is_none(header: str) -> None:
    with pytest.raises(Broken):
        boundary_of(header)


def test_a_boundary_may_be_quoted() -> None:
    assert boundary_of('multipart/related; type="application/dicom"; boundary="a b"') == b"a b"
