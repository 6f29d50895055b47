"""Access tokens (OAuth 2.0 client credentials, RFC 6749 section 4.4): got, shared by threads, renewed in time.

A token stays in memory. Of what an authorisation server answers, only its error code reaches a message.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import httpx

from medflow.connections.answers import OVERLOADED, check_status, send, tls_context
from medflow.connections.assertion import client_assertion
from medflow.connections.endpoints import (
    ClientCredentials,
    DicomWebTarget,
    FhirTarget,
    HttpServer,
    SmartBackend,
    token_url,
)
from medflow.connections.pace import PacedClient
from medflow.connections.patience import Patience, tries
from medflow.connections.secrets import reveal
from medflow.errors import ConfigurationError, ServerUnavailable

PATIENCE = Patience(attempts=3, longest_wait_s=5.0, longest_retry_after_s=30.0)
LEEWAY_S = 30.0  # before its end a token is renewed, or a quarter of its life before where that is less
AWAY_S = 5.0  # before an authorisation server that is away is asked again, while the token there is still good
ENDLESS_S = 10 * 365 * 86400.0
SMART_CONFIGURATION = ".well-known/smart-configuration"
READ, WRITE = "system/*.read", "system/*.write"
JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ADVICE = {
    "invalid_client": "check client_id, and the secret or the key and what the server has of it (kid, public key)",
    "invalid_scope": "check scope",
    "unauthorized_client": "have the server allow this client the grant client_credentials",
    "unsupported_grant_type": "it does not offer the grant client_credentials",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Token:
    value: str = field(repr=False)
    renew_at: float  # both monotonic, and never where the server names no end
    ends_at: float


class Tokens:
    """The token of one server, for as many threads as there are; `of` gives the one of this process.

    Parameters
    ----------
    server
        Its auth is client-credentials or smart-backend, with the scope that is asked for.
    timeout_s
        Of each request to the authorisation server.
    """

    def __init__(self, server: HttpServer, *, timeout_s: float) -> None:
        self._server, self._timeout_s = server, timeout_s
        self._lock = threading.Lock()
        self._token: _Token | None = None
        self._endpoint: str | None = None
        self._accepted = False

    def __repr__(self) -> str:
        return f"Tokens({self._server.public!r})"

    def current(self) -> str:
        """A token that is good now; one thread gets a new one, others wait for it.

        Raises
        ------
        ServerUnavailable
            The authorisation server does not answer.
        ConfigurationError
            It refuses us, by its OAuth error code; or a key or secret cannot be read.
        """
        with self._lock:
            if self._token is None or time.monotonic() >= self._token.renew_at:
                self._token = self._renewed(self._token)
            return self._token.value

    def accepted(self, token: str) -> None:
        """The server took this one."""
        if self._token is not None and self._token.value == token:
            self._accepted = True

    def refused(self, token: str) -> bool:
        """The server did not take this one (HTTP 401): it is not used again. Returns whether it had been before."""
        with self._lock:
            if self._token is None or self._token.value != token:
                return True  # another thread has renewed it
            self._token = None
            return self._accepted

    def _renewed(self, token: _Token | None) -> _Token:
        """A new token; the one there is for as long as it is good and the authorisation server is away."""
        try:
            renewed = self._fetched()
        except ServerUnavailable:
            if token is None or time.monotonic() >= token.ends_at:
                raise
            return replace(token, renew_at=min(token.ends_at, time.monotonic() + AWAY_S))
        self._accepted = False
        return renewed

    def _fetched(self) -> _Token:
        for attempt in tries(PATIENCE):
            with attempt:
                return self._asked()
        raise AssertionError("the last attempt returns or raises")

    def _asked(self) -> _Token:
        auth = self._server.auth
        assert isinstance(auth, ClientCredentials | SmartBackend)  # noqa: S101 - `of` is asked for no other
        tls = tls_context(auth.tls or self._server.tls)
        wait_s = self._timeout_s
        with PacedClient(window_s=wait_s, verify=tls, timeout=wait_s, follow_redirects=False) as client:
            self._endpoint = self._endpoint or auth.token_url or discovered(client, self._server)
            asked_at = time.monotonic()
            headers, body = _token_request(auth, self._endpoint)
            endpoint = HttpServer(url=self._endpoint)
            answer = send(client, endpoint, "POST", self._endpoint, headers=headers, content=body)
        granted = _granted(answer, endpoint)
        life_s = _seconds(granted.get("expires_in"))
        renew_at = asked_at + life_s - min(LEEWAY_S, life_s / 4)
        return _Token(value=granted["access_token"], renew_at=renew_at, ends_at=asked_at + life_s)


def of(server: HttpServer, *, timeout_s: float) -> Tokens:
    """The tokens of a server in this process: whoever speaks to it as the same client shares them."""
    auth = server.auth
    if isinstance(auth, SmartBackend) and auth.scope is None:
        written = isinstance(server, FhirTarget | DicomWebTarget)
        auth = auth.model_copy(update={"scope": f"{READ} {WRITE}" if written else READ})
    identity: Any = HttpServer(url=server.url, auth=auth, tls=server.tls)  # frozen, and so hashable
    return _shared(identity, timeout_s)


@lru_cache(maxsize=128)
def _shared(server: HttpServer, timeout_s: float) -> Tokens:
    return Tokens(server, timeout_s=timeout_s)


def smart_configuration(client: httpx.Client, server: HttpServer) -> dict[str, Any]:
    """What a FHIR server says of its authorisation (SMART App Launch, Conformance).

    Raises
    ------
    ServerUnavailable
        It does not answer.
    ConfigurationError
        It has no such thing.
    """
    url = f"{server.url}/{SMART_CONFIGURATION}"
    answer = send(client, server, "GET", url, headers={"Accept": "application/json"})
    if answer.status_code in OVERLOADED or answer.status_code >= 500:
        check_status(answer, server)
    if answer.status_code != 200:
        raise ConfigurationError(
            f"{server.public} does not name its token endpoint (HTTP {answer.status_code} for {SMART_CONFIGURATION}): "
            "set token_url of its auth"
        )
    return _json(answer, server)


def discovered(client: httpx.Client, server: HttpServer) -> str:
    """The token endpoint that a FHIR server names; errors as `smart_configuration`."""
    named = smart_configuration(client, server).get("token_endpoint")
    try:
        endpoint = token_url(named) if isinstance(named, str) else ""
    except ValueError:
        endpoint = ""
    if not endpoint or (urlsplit(server.url).scheme == "https" and urlsplit(endpoint).scheme != "https"):
        raise ConfigurationError(
            f"{server.public} names no token endpoint that can be used in its {SMART_CONFIGURATION}: "
            "set token_url of its auth"
        )
    return endpoint


def _token_request(auth: ClientCredentials | SmartBackend, endpoint: str) -> tuple[dict[str, str], str]:
    """Headers and form of one request for a token."""
    from authlib.oauth2.auth import ClientAuth
    from authlib.oauth2.rfc6749.parameters import prepare_token_request

    headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
    if isinstance(auth, SmartBackend):
        shown = {"client_assertion_type": JWT_BEARER, "client_assertion": client_assertion(auth, endpoint)}
        return headers, prepare_token_request("client_credentials", scope=auth.scope, **shown)
    body = prepare_token_request("client_credentials", scope=auth.scope)
    identity = ClientAuth(auth.client_id, reveal(auth.client_secret), auth.method)
    try:
        _, headers, body = identity.prepare("POST", endpoint, headers, body)
    except UnicodeEncodeError:  # it quotes the secret
        raise ConfigurationError(f"the secret of client {auth.client_id} has characters that no header takes") from None
    return headers, body


def _granted(answer: httpx.Response, endpoint: HttpServer) -> dict[str, Any]:
    """The JSON object that a token endpoint answered, with a bearer token in it (RFC 6749 section 5)."""
    if answer.status_code in OVERLOADED or answer.status_code >= 500 or 300 <= answer.status_code < 400:
        check_status(answer, endpoint)
    if answer.status_code != 200:
        raise _refusal(answer, endpoint)
    granted = _json(answer, endpoint)
    token, kind = granted.get("access_token"), granted.get("token_type", "bearer")
    if not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token) or str(kind).lower() != "bearer":
        raise ConfigurationError(f"{endpoint.public} gave no bearer token: check that it is the token endpoint")
    return granted


def _refusal(answer: httpx.Response, endpoint: HttpServer) -> ConfigurationError | ServerUnavailable:
    try:
        code = answer.json()["error"]
    except (ValueError, TypeError, KeyError):
        code = None
    if not isinstance(code, str) or not re.fullmatch(r"[a-z_]{1,40}", code):
        code = "no OAuth error code"
    if code in ("temporarily_unavailable", "server_error"):
        return ServerUnavailable(f"{endpoint.public} gives no token now ({code})")
    advice = ADVICE.get(code, "check token_url, and how this client is registered there")
    return ConfigurationError(f"{endpoint.public} gives us no token (HTTP {answer.status_code}, {code}): {advice}")


def _json(answer: httpx.Response, server: HttpServer) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ServerUnavailable(f"the answer of {server.public} cannot be read")
    return found


def _seconds(expires_in: Any) -> float:
    """The life of a token; endless where the server does not tell (RFC 6749 section 5.1), until it refuses it."""
    try:
        return float(expires_in)  # some servers write text
    except (TypeError, ValueError):
        return ENDLESS_S
