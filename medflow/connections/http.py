"""HTTP clients of configured servers: who we are there, TLS, time limits, and what an answer means for all of it.

No redirect is followed: it could carry a credential elsewhere. No URL with a query and no response text reaches a
message.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import httpx

from medflow.connections.endpoints import Basic, Bearer, HttpServer, Tls
from medflow.connections.patience import retry_after_s
from medflow.connections.secrets import reveal
from medflow.errors import ConfigurationError, ServerUnavailable

if TYPE_CHECKING:
    from requests import Session

OVERLOADED = frozenset({408, 425, 429})


def client(server: HttpServer, *, timeout_s: float, headers: Mapping[str, str] | None = None) -> httpx.Client:
    """A client for one server; close it.

    Raises
    ------
    ConfigurationError
        A TLS file or a secret cannot be read.
    """
    return httpx.Client(
        headers=dict(headers or {}),
        auth=_auth(server),
        verify=tls_context(server.tls),
        timeout=timeout_s,
        follow_redirects=False,
    )


def session(server: HttpServer, *, timeout_s: float) -> Session:
    """A session of requests for one server, for dicomweb-client; close it.

    A request without a timeout has ``timeout_s``; a redirect raises ConfigurationError.

    Raises
    ------
    ConfigurationError
        A TLS file or a secret cannot be read.
    """
    from medflow.connections import sessions  # requests is no light import

    return sessions.session(server, tls_context(server.tls), timeout_s=timeout_s)


def send(http: httpx.Client, server: HttpServer, method: str, url: str, **request: Any) -> httpx.Response:
    """One request and its answer, whatever its status; nothing is retried here.

    Raises
    ------
    ServerUnavailable
        There is no answer, or none that can be read.
    ConfigurationError
        The address is none.
    """
    try:
        return http.request(method, url, **request)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise unanswered(error, server) from None


def unanswered(error: Exception, server: HttpServer) -> ServerUnavailable | ConfigurationError:
    """What an exception of httpx means: to be raised in its place, as its own text may quote an address."""
    if isinstance(error, httpx.TimeoutException):
        return ServerUnavailable(f"{server.public} did not answer in time (MEDFLOW_HTTP_TIMEOUT_S)")
    if isinstance(error, httpx.UnsupportedProtocol):
        return ConfigurationError(f"{server.public} is not an http or https address")
    if isinstance(error, httpx.TransportError):
        return ServerUnavailable(
            f"{server.public} cannot be reached ({type(error).__name__}): check that the server runs and that the "
            "address is right, then run the same command again"
        )
    return ServerUnavailable(f"the answer of {server.public} cannot be read")


def check_status(response: httpx.Response, server: HttpServer) -> None:
    """Raise for what concerns the server as a whole and nothing that it was asked for in particular.

    Raises
    ------
    ServerUnavailable
        It is overloaded or broken (408, 425, 429, 5xx).
    ConfigurationError
        It wants (other) credentials, or redirects.
    """
    status = response.status_code
    if status in OVERLOADED or status >= 500:
        wait = retry_after_s(response.headers.get("Retry-After"))
        raise ServerUnavailable(f"{server.public} is not available now (HTTP {status})", retry_after_s=wait)
    if status == 401:
        kind = server.auth.type if server.auth is not None else "none is configured"
        raise ConfigurationError(f"{server.public} wants other credentials (HTTP 401): check its auth ({kind})")
    if 300 <= status < 400:
        raise ConfigurationError(
            f"{server.public} redirects elsewhere (HTTP {status}): give the address it redirects to"
        )


def tls_context(tls: Tls) -> ssl.SSLContext:
    """What TLS is spoken with: the system's authorities or ``ca``, and our own certificate where one is named.

    Raises
    ------
    ConfigurationError
        A file is missing or is not what it should be.
    """
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.cert is not None:
            context.load_cert_chain(tls.cert, tls.key, password=lambda: b"")  # an encrypted key fails, it does not ask
    except OSError as error:
        names = ", ".join(str(path) for path in (tls.ca, tls.cert, tls.key) if path is not None)
        raise ConfigurationError(
            f"TLS cannot be set up from {names} ({error.strerror or type(error).__name__}): "
            "they must be readable PEM files, and the key unencrypted and of this certificate"
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _auth(server: HttpServer) -> httpx.Auth | None:
    auth = server.auth
    if isinstance(auth, Basic):
        return httpx.BasicAuth(auth.user, reveal(auth.password))
    if isinstance(auth, Bearer):
        return _BearerAuth(reveal(auth.token))
    if auth is not None:
        raise ConfigurationError(f"{server.public}: nothing here speaks auth {auth.type}")
    return None


class _BearerAuth(httpx.Auth):
    def __init__(self, token: str) -> None:
        self._header = f"Bearer {token}"

    def auth_flow(self, request: httpx.Request):  # noqa: ANN201 - httpx' own type
        """Add the token."""
        request.headers["Authorization"] = self._header
        yield request
