"""Sessions of requests, which dicomweb-client speaks through: the same identity, TLS and time limits as `http` gives.

Apart from it because requests is imported here only.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from functools import partial
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase, HTTPBasicAuth

from medflow.connections.auth import ended, given_token
from medflow.connections.endpoints import Basic, Bearer, HttpServer
from medflow.connections.pace import TooSlow, paced
from medflow.connections.secrets import reveal
from medflow.connections.tokens import Tokens, of
from medflow.errors import ConfigurationError

CONNECTIONS = 16  # to one server, kept open
BLOCK = 128 << 10  # bytes read at once, at most


def session(server: HttpServer, context: ssl.SSLContext, *, timeout_s: float) -> requests.Session:
    """A session that knows who we are to ``server``; a redirect raises ConfigurationError."""
    made = _Session(server.public)
    made.auth = _auth(server, timeout_s)
    adapter = _Adapter(context, timeout_s)
    made.mount("https://", adapter)
    made.mount("http://", adapter)
    return made


class _Session(requests.Session):
    """Follows no redirect: it could carry a credential, or what is asked about a patient, elsewhere."""

    def __init__(self, shown: str) -> None:
        super().__init__()
        self._shown = shown

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        if 300 <= resp.status_code < 400 and "Location" in resp.headers:
            resp.close()
            raise ConfigurationError(
                f"{self._shown} redirects elsewhere (HTTP {resp.status_code}): give the address it redirects to"
            )
        return None


class _Adapter(HTTPAdapter):
    def __init__(self, context: ssl.SSLContext, timeout_s: float) -> None:
        self._context, self._timeout_s = context, timeout_s
        super().__init__(pool_connections=2, pool_maxsize=CONNECTIONS)

    def init_poolmanager(self, *args: Any, **named: Any) -> None:
        super().init_poolmanager(*args, **named, ssl_context=self._context)

    def proxy_manager_for(self, proxy: str, **named: Any) -> Any:
        return super().proxy_manager_for(proxy, **named, ssl_context=self._context)

    def cert_verify(self, conn: Any, *_args: Any, **_named: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"  # by our context alone: the usual would add certifi's authorities to it

    def send(self, request: requests.PreparedRequest, *args: Any, **named: Any) -> requests.Response:
        if named.get("timeout") is None:
            named["timeout"] = self._timeout_s
        response = super().send(request, *args, **named)
        response.raw.stream = partial(_paced, response.raw, self._timeout_s)
        return response


def _paced(raw: Any, window_s: float, amt: int = BLOCK, decode_content: bool | None = None) -> Iterator[bytes]:
    """A response's body as requests asks for it, but handed on as it comes: urllib3 would wait for whole blocks."""
    size = min(amt, BLOCK)
    try:
        yield from paced(iter(partial(raw.read1, size, decode_content=decode_content), b""), window_s)
    except TooSlow:
        raise requests.ReadTimeout("the answer drips") from None


def _auth(server: HttpServer, timeout_s: float) -> AuthBase:
    auth = server.auth
    if auth is None:
        return _Anonymous()
    if isinstance(auth, Basic):
        return HTTPBasicAuth(auth.user.encode(), reveal(auth.password).encode())  # latin-1 otherwise
    if isinstance(auth, Bearer):
        return _Given(given_token(auth.token))
    return _Granted(of(server, timeout_s=timeout_s), server)


class _Anonymous(AuthBase):
    """None at all: without it requests would look into ~/.netrc."""

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        return r


class _Given(AuthBase):
    def __init__(self, token: str) -> None:
        self._header = f"Bearer {token}"

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        r.headers["Authorization"] = self._header
        return r


class _Granted(AuthBase):
    """A token of `Tokens`; where the server does not take it, a new one, once."""

    def __init__(self, tokens: Tokens, server: HttpServer) -> None:
        self._tokens, self._server = tokens, server

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        token = self._tokens.current()
        r.headers["Authorization"] = f"Bearer {token}"
        r.register_hook("response", partial(self._answered, token))
        return r

    def _answered(self, token: str, response: requests.Response, **sending: Any) -> requests.Response:
        if response.status_code != 401:
            self._tokens.accepted(token)
            return response
        was_good = self._tokens.refused(token)
        if not isinstance(response.request.body, str | bytes | None):  # a stream, which is used up
            if was_good:
                response.close()
                raise ended(self._server)
            return response
        response.content  # noqa: B018 - read to its end, the connection is free again
        response.close()
        again = response.request.copy()
        again.headers["Authorization"] = f"Bearer {self._tokens.current()}"
        return response.connection.send(again, **sending)  # pyright: ignore[reportAttributeAccessIssue] - set by requests
