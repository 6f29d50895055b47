"""Clients of both kinds, httpx's and requests', against servers that want to know who asks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import requests
from dicomweb_client.web import DICOMwebClient

from medflow.connections import http
from medflow.connections.answers import tls_problem, unanswered
from medflow.connections.endpoints import HttpServer
from medflow.errors import ConfigurationError
from tests.services.certificates import Certificates, certificates
from tests.services.oauth import authorisation_server, protect
from tests.services.orthanc import PASSWORD, Orthanc
from tests.services.orthanc import orthanc as run_orthanc

Get = Callable[[HttpServer], int]


def by_httpx(server: HttpServer) -> int:
    with http.client(server, timeout_s=5) as client:
        return client.get(server.url).status_code


def by_requests(server: HttpServer) -> int:
    with http.session(server, timeout_s=5) as session:
        return session.get(server.url).status_code


BOTH = pytest.mark.parametrize("get", [by_httpx, by_requests])


def server_of(url: str, **more: object) -> HttpServer:
    return HttpServer.model_validate({"url": url, **more})


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An Orthanc that wants a password."""
    with run_orthanc(tmp_path_factory.mktemp("locked"), password=True) as server:
        yield server


def studies(server: HttpServer) -> list[dict]:
    with http.session(server, timeout_s=5) as session:
        return DICOMwebClient(server.url, session=session).search_for_studies()


def test_dicomweb_with_a_password(locked: Orthanc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACS_PASSWORD", PASSWORD)
    auth = {"type": "basic", "user": "medflow", "password": "env:PACS_PASSWORD"}

    assert studies(server_of(locked.dicomweb, auth=auth)) == []
    with pytest.raises(requests.HTTPError, match="401"):
        studies(server_of(locked.dicomweb))


def test_dicomweb_with_a_token(orthanc: Orthanc, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("given-by-hand\n")
    with authorisation_server() as oauth, protect(orthanc.dicomweb, oauth) as guarded:
        oauth.tokens["given-by-hand"] = float("inf")

        assert studies(server_of(guarded.url, auth={"type": "bearer", "token": f"file:{tmp_path / 'token'}"})) == []
        with pytest.raises(requests.HTTPError, match="401"):
            studies(server_of(guarded.url, auth={"type": "bearer", "token": "another"}))


@BOTH
def test_both_sides_of_tls_show_a_certificate(get: Get, orthanc: Orthanc, signed: Certificates) -> None:
    ours = {"ca": signed.ca, "cert": signed.client.cert, "key": signed.client.key}
    strangers = {"ca": signed.ca, "cert": signed.stranger.cert, "key": signed.stranger.key}
    with protect(orthanc.url + "/system", tls=signed) as guarded:
        assert get(server_of(guarded.url, tls=ours)) == 200
        for theirs in ({"ca": signed.ca}, strangers):
            with pytest.raises((httpx.TransportError, requests.RequestException)):
                get(server_of(guarded.url, tls=theirs))


@pytest.mark.parametrize("shown", ["no certificate", "a stranger's"])
def test_a_server_that_does_not_take_our_certificate_is_quoted_on_it(signed: Certificates, shown: str) -> None:
    stranger = {} if shown == "no certificate" else {"cert": signed.stranger.cert, "key": signed.stranger.key}
    with protect("http://127.0.0.1:1", tls=signed) as guarded:
        server = server_of(guarded.url, tls={"ca": signed.ca, **stranger})
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port)) as plain, pytest.raises(OSError) as caught:
            with http.tls_context(server.tls).wrap_socket(plain, server_hostname=address.hostname) as secured:
                secured.recv(1)  # with a request under way, what the server says of us may be lost

    said = tls_problem(caught.value, server)
    assert said is not None and "does not take our TLS certificate" in said.message


@BOTH
def test_a_server_whose_authority_is_not_ours_is_not_spoken_to(
    get: Get, orthanc: Orthanc, signed: Certificates
) -> None:
    with protect(orthanc.url, tls=signed) as guarded:
        for tls in ({}, {"ca": signed.stranger.cert}):
            with pytest.raises((httpx.TransportError, requests.RequestException)) as caught:
                get(server_of(guarded.url, tls=tls))
            said = tls_problem(caught.value, server_of(guarded.url))
            assert said is not None and "is not trusted" in said.message and "tls.ca" in said.message


def test_what_httpx_says_of_tls_is_a_matter_of_configuration(orthanc: Orthanc, signed: Certificates) -> None:
    with protect(orthanc.url, tls=signed) as guarded, http.client(server_of(guarded.url), timeout_s=5) as client:
        with pytest.raises(ConfigurationError, match="is not trusted"):
            http.send(client, server_of(guarded.url), "GET", guarded.url)
    assert not isinstance(unanswered(httpx.ConnectError("refused"), server_of("http://x")), ConfigurationError)


@pytest.mark.parametrize("wrong", ["missing", "no certificate"])
def test_tls_files_that_are_none_are_named(tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "ca.pem"
    if wrong != "missing":
        file.write_text(wrong)

    with pytest.raises(ConfigurationError, match=r"ca\.pem"):
        http.client(server_of("https://x", tls={"ca": file}), timeout_s=5)


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "ümlaut"])
@pytest.mark.parametrize("make", [http.client, http.session])
def test_a_token_that_no_header_takes_is_not_quoted(make: Callable, token: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make(server_of("https://x", auth={"type": "bearer", "token": token}), timeout_s=5)

    assert token not in str(caught.value)


@pytest.fixture
def odd() -> Iterator[str]:
    """A server that redirects from /there, hangs at /hung, and says who asked everywhere else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/hung":
                done.wait(10)
            self.send_response(302 if self.path == "/there" else 200)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write((self.headers.get("Authorization") or "nobody").encode())

        def log_message(self, *_arguments: object) -> None:
            pass

    done = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    done.set()
    server.shutdown()
    server.server_close()


def test_no_redirect_is_followed(odd: str) -> None:
    server = server_of(f"{odd}/there", auth={"type": "bearer", "token": "t"})
    with http.client(server, timeout_s=5) as client, pytest.raises(ConfigurationError, match="redirects elsewhere"):
        http.check_status(http.send(client, server, "GET", server.url), server)
    with pytest.raises(ConfigurationError, match="redirects elsewhere"):
        by_requests(server)


def test_a_server_that_hangs_is_waited_for_so_long_and_no_longer(odd: str) -> None:
    server = server_of(f"{odd}/hung")
    with http.session(server, timeout_s=0.1) as session, pytest.raises(requests.Timeout):
        session.get(server.url)


def test_who_has_no_credentials_shows_none(odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))

    with http.session(server_of(odd), timeout_s=5) as session:
        assert session.get(odd).text == "nobody"
