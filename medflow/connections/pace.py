"""A least pace of answers, and a largest size of those that are read whole.

A server that drips is as good as one that hangs, and no time limit between bytes tells it.

Time limits of HTTP libraries bound the silence between two reads, not the whole: one byte before each limit would hold
a run for days. A limit on the whole would forbid large files. A compressed answer of a few megabytes may be one of
gigabytes, which would take all memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import httpx

LEAST_BYTES_PER_S = 1024
MOST_BYTES = 1 << 30  # of an answer that is read whole, as it is when it is no longer compressed


class TooSlow(Exception):
    """An answer comes at less than `LEAST_BYTES_PER_S`."""


class TooLarge(httpx.HTTPError):
    """An answer that is read whole has more than `MOST_BYTES`."""


def paced(chunks: Iterable[bytes], window_s: float) -> Iterator[bytes]:
    """The chunks, as long as they come fast enough over every ``window_s`` seconds that were spent waiting for them.

    Time that whoever takes them needs for itself does not count.

    Raises
    ------
    TooSlow
        They do not.
    """
    source = iter(chunks)
    waited, came = 0.0, 0
    while True:
        started = time.monotonic()
        chunk = next(source, None)
        if chunk is None:
            return
        waited += time.monotonic() - started
        came += len(chunk)
        if waited >= window_s:
            if came < LEAST_BYTES_PER_S * waited:
                raise TooSlow
            waited, came = 0.0, 0
        yield chunk


class PacedClient(httpx.Client):
    """A client whose answers keep the pace; one that does not raises httpx.ReadTimeout, as silence does.

    One that is not streamed and is too large raises `TooLarge`.
    """

    def __init__(self, *, window_s: float, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]  # httpx' own
        self._window_s = window_s

    def send(self, request: httpx.Request, *, stream: bool = False, **options: object) -> httpx.Response:
        """Send a request; ``stream`` leaves the body to be read by whoever asked."""
        response = super().send(request, stream=True, **options)  # type: ignore[arg-type]  # httpx' own
        if isinstance(response.stream, httpx.SyncByteStream) and not response.is_closed:
            response.stream = _Stream(response.stream, request, self._window_s)
        if not stream:
            response.iter_bytes = partial(_bounded, response.iter_bytes)  # which `read` takes them from
            try:
                response.read()
            finally:
                response.close()
        return response


def _bounded(decoded: Callable[[int | None], Iterator[bytes]], chunk_size: int | None = None) -> Iterator[bytes]:
    came = 0
    for chunk in decoded(chunk_size):
        came += len(chunk)
        if came > MOST_BYTES:
            raise TooLarge("the answer is too large")
        yield chunk


class _Stream(httpx.SyncByteStream):
    def __init__(self, inner: httpx.SyncByteStream, request: httpx.Request, window_s: float) -> None:
        self._inner, self._request, self._window_s = inner, request, window_s

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from paced(self._inner, self._window_s)
        except TooSlow:
            raise httpx.ReadTimeout("the answer drips", request=self._request) from None

    def close(self) -> None:
        self._inner.close()
