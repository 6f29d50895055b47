"""Answers that drip are given up; those that are slow to be taken are not."""

from __future__ import annotations

import gzip
import logging
import time
from collections.abc import Iterator

import pytest
import requests

from medflow.connections import http, pace
from medflow.connections.endpoints import HttpServer
from medflow.connections.pace import TooSlow, paced
from medflow.errors import ConfigurationError, ServerUnavailable
from tests.services.fault_proxy import cut, dripping, http_proxy
from tests.services.faulty_fhir import Reply, faulty_fhir


def coming(count: int, size: int, every_s: float) -> Iterator[bytes]:
    for _ in range(count):
        time.sleep(every_s)
        yield bytes(size)


def test_chunks_that_come_too_slowly_are_given_up() -> None:
    with pytest.raises(TooSlow):
        list(paced(coming(1000, 10, 0.02), window_s=0.1))


def test_chunks_that_come_fast_enough_all_come() -> None:
    assert sum(map(len, paced(coming(20, 1024, 0.01), window_s=0.05))) == 20 * 1024


def test_time_that_the_reader_takes_does_not_count() -> None:
    for _ in paced(coming(3, 10, 0.0), window_s=0.05):
        time.sleep(0.06)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_that_drips_is_said_as_one_that_does_not_come(streamed: bool) -> None:
    with faulty_fhir() as server, http_proxy(server.url) as (proxy, url):
        server.metadata = Reply(body=b"{" + b" " * 5000 + b"}")
        named = HttpServer(url=url)
        started = time.monotonic()
        with http.client(named, timeout_s=0.3) as client, proxy.failing(dripping(500)):
            with pytest.raises(ServerUnavailable, match="did not answer in time"):
                if streamed:
                    read(client, named, f"{url}/metadata")
                else:
                    http.send(client, named, "GET", f"{url}/metadata")
        assert time.monotonic() - started < 3
        with http.client(named, timeout_s=0.3) as client:
            assert len(http.send(client, named, "GET", f"{url}/metadata").content) == 5002


def test_an_answer_to_a_session_of_requests_that_drips_is_a_timeout_and_one_that_does_not_is_whole() -> None:
    with faulty_fhir() as server, http_proxy(server.url) as (proxy, url):
        body = b"{" + b" " * 500_000 + b"}"
        server.metadata = Reply(body=body)
        with http.session(HttpServer(url=url), timeout_s=0.3) as session:
            started = time.monotonic()
            with proxy.failing(dripping(500)), pytest.raises(requests.Timeout):
                session.get(f"{url}/metadata")
            assert time.monotonic() - started < 3
            assert session.get(f"{url}/metadata").content == body
            with session.get(f"{url}/metadata", stream=True) as answer:
                assert b"".join(answer.iter_content(1 << 20)) == body
            with proxy.failing(cut()), pytest.raises(requests.exceptions.ChunkedEncodingError):
                session.get(f"{url}/metadata")


def read(client, server: HttpServer, url: str) -> None:  # noqa: ANN001 - an httpx client
    import httpx

    try:
        with client.stream("GET", url) as answer:
            for _ in answer.iter_bytes():
                pass
    except httpx.HTTPError as error:
        raise http.unanswered(error, server) from None


def test_an_answer_that_inflates_beyond_what_is_read_whole_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "MOST_BYTES", 1 << 20)
    with faulty_fhir() as server:
        server.metadata = Reply(body=gzip.compress(bytes(8 << 20)), headers={"Content-Encoding": "gzip"})
        named = HttpServer(url=server.url)
        with http.client(named, timeout_s=5) as client:
            with pytest.raises(ConfigurationError, match="at once: ask it for less"):
                http.send(client, named, "GET", f"{server.url}/metadata")


def test_no_address_with_its_query_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with faulty_fhir() as server, caplog.at_level(logging.DEBUG):
        named = HttpServer(url=server.url)
        with http.client(named, timeout_s=5) as client:
            http.send(client, named, "GET", f"{server.url}/metadata?identifier=4711")
    assert "4711" not in caplog.text and "metadata" not in caplog.text
