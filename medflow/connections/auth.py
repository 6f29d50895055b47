"""Who we are, on each request: for httpx here, for requests in `sessions`. An OAuth token is got when first needed."""

from __future__ import annotations

import re
from collections.abc import Generator

import httpx
from pydantic import SecretStr

from medflow.connections.endpoints import Basic, Bearer, HttpServer
from medflow.connections.secrets import reveal
from medflow.connections.tokens import Tokens, of
from medflow.errors import ConfigurationError, ServerUnavailable


def httpx_auth(server: HttpServer, *, timeout_s: float) -> httpx.Auth | None:
    """For a client of httpx; raises ConfigurationError where a secret cannot be read."""
    auth = server.auth
    if auth is None:
        return None
    if isinstance(auth, Basic):
        return httpx.BasicAuth(auth.user, reveal(auth.password))
    if isinstance(auth, Bearer):
        return _Given(given_token(auth.token))
    return _Granted(of(server, timeout_s=timeout_s), server)


def given_token(secret: SecretStr) -> str:
    """A bearer token as it can be sent.

    Raises
    ------
    ConfigurationError
        It cannot be read, or no header can hold it.
    """
    token = reveal(secret)
    if not re.fullmatch(r"[!-~]+", token):
        raise ConfigurationError("a bearer token that is configured has characters that no header takes")
    return token


def ended(server: HttpServer) -> ServerUnavailable:
    """A token that was good is no longer, and what was sent cannot be sent again from here."""
    return ServerUnavailable(f"{server.public} ended our session in the middle of a request: it is made anew")


class _Given(httpx.Auth):
    def __init__(self, token: str) -> None:
        self._header = f"Bearer {token}"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        request.headers["Authorization"] = self._header
        yield request


class _Granted(httpx.Auth):
    """A token of `Tokens`; where the server does not take it, a new one, once."""

    def __init__(self, tokens: Tokens, server: HttpServer) -> None:
        self._tokens, self._server = tokens, server

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        token = self._tokens.current()
        request.headers["Authorization"] = f"Bearer {token}"
        response = yield request
        if response.status_code != 401:
            self._tokens.accepted(token)
            return
        was_good = self._tokens.refused(token)
        if _is_whole(request):
            request.headers["Authorization"] = f"Bearer {self._tokens.current()}"
            yield request
        elif was_good:
            raise ended(self._server)


def _is_whole(request: httpx.Request) -> bool:
    """Whether its body is in memory, and can be sent again."""
    try:
        request.content  # noqa: B018 - asked for what it raises
    except httpx.RequestNotRead:
        return False
    return True
