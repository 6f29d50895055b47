"""An authorisation server of the tests' own, and servers behind it that want its tokens.

Assertions are verified by Authlib's server side: signature by the registered key, algorithm, audience, expiry, and a
jti that was not used before; SMART's five minutes besides. `protect` puts a real server behind a bearer token, a
password, or nothing but TLS with client certificates.
"""

from __future__ import annotations

import base64
import http.client
import json
import secrets
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

from authlib.oauth2.rfc6749 import InvalidClientError
from authlib.oauth2.rfc7523 import JWTBearerClientAssertion
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from tests.services.certificates import Certificates

LONGEST_ASSERTION_S = 300  # SMART App Launch, Backend Services


@dataclass(kw_only=True)
class Client:
    """A registered client: by the public keys that it signs with, or by a secret."""

    jwks: dict[str, Any] | None = None
    secret: str | None = None
    scope: str = "system/*.read"

    def check_endpoint_auth_method(self, _method: str, _endpoint: str) -> bool:
        """Whether it may show who it is in this way."""
        return self.jwks is not None


@dataclass(kw_only=True)
class Protected:
    """A server behind a proxy. ``refuse`` so many of its next requests, whatever they show."""

    url: str
    refuse: int = 0
    requests: int = 0
    seen: set[str] = field(default_factory=set)  # Authorization headers


@dataclass(kw_only=True)
class AuthorisationServer:
    """What it knows and has done. ``failing``: statuses that its next answers have instead."""

    url: str = ""
    life_s: float = 300.0
    clients: dict[str, Client] = field(default_factory=dict)
    tokens: dict[str, float] = field(default_factory=dict)  # and when each ends, monotonic
    assertions: list[dict[str, Any]] = field(default_factory=list)
    failing: deque[int] = field(default_factory=deque)
    garbage: bytes | None = None  # what it answers in place of a token
    lock: threading.Lock = field(default_factory=threading.Lock)
    used: set[str] = field(default_factory=set)

    @property
    def token_url(self) -> str:
        """Its token endpoint."""
        return f"{self.url}/token"

    def is_good(self, token: str) -> bool:
        """Whether it gave this token, and its life has not ended."""
        return self.tokens.get(token, 0.0) > time.monotonic()

    def end_all(self) -> None:
        """Have every token refused from now on."""
        self.tokens.clear()


class _Assertions(JWTBearerClientAssertion):
    """What Authlib leaves to a server."""

    def __init__(self, told: AuthorisationServer) -> None:
        super().__init__(leeway=5)
        self._told = told

    def get_audiences(self) -> list[str]:
        return [self._told.token_url]

    def validate_jti(self, claims: dict[str, Any], jti: str) -> bool:
        with self._told.lock:
            fresh = jti not in self._told.used
            self._told.used.add(jti)
        return fresh

    def resolve_client_public_key(self, client: Client) -> KeySet:
        return KeySet.import_key_set(client.jwks)  # of which the header's kid names one

    def process_assertion_claims(self, assertion: str, resolve_key: KeySet) -> dict[str, Any]:
        try:
            token = jwt.decode(assertion, resolve_key, algorithms=["RS384", "ES384"])
        except (JoseError, ValueError) as error:
            raise InvalidClientError(description="the assertion does not verify") from error
        self.verify_claims(token.claims)
        if token.claims["exp"] - time.time() > LONGEST_ASSERTION_S or not token.header.get("kid"):
            raise InvalidClientError(description="too long a life, or no kid")
        self._told.assertions.append({**token.header, **token.claims})
        return token.claims


@contextmanager
def authorisation_server(*, tls: Certificates | None = None) -> Iterator[AuthorisationServer]:
    """Start it on a free port; stops with the block."""
    told = AuthorisationServer()
    verify = _Assertions(told)

    class Handler(_Quiet):
        def do_POST(self) -> None:
            form = {key: values[0] for key, values in parse_qs(self.body().decode()).items()}
            if told.failing:
                self.answer(told.failing.popleft(), b'{"error": "invalid_client"}', {"Retry-After": "0"})
            elif told.garbage is not None:
                self.answer(200, told.garbage)
            elif self.path != "/token":
                self.answer(404, b"")
            else:
                self.grant(form)

        def grant(self, form: dict[str, str]) -> None:
            try:
                client = verify(told.clients.get, SimpleNamespace(form=form, client=None)) or self.by_secret(form)
            except InvalidClientError as error:
                return self.fail("invalid_client", error.description)
            if form.get("grant_type") != "client_credentials":
                return self.fail("unsupported_grant_type")
            if client is None:
                return self.fail("invalid_client")
            if not set(form.get("scope", "").split()) <= set(client.scope.split()):
                return self.fail("invalid_scope")
            token = secrets.token_urlsafe(24)
            told.tokens[token] = time.monotonic() + told.life_s
            granted = {"access_token": token, "token_type": "bearer", "expires_in": told.life_s, "scope": client.scope}
            self.answer(200, json.dumps(granted).encode())

        def fail(self, code: str, description: str | None = None) -> None:
            said = {"error": code, "error_description": description or "SECRET description"}
            self.answer(401 if code == "invalid_client" else 400, json.dumps(said).encode())

        def by_secret(self, form: dict[str, str]) -> Client | None:
            name, secret = form.get("client_id", ""), form.get("client_secret", "")
            kind, _, encoded = self.headers.get("Authorization", "").partition(" ")
            if kind == "Basic":
                name, _, secret = base64.b64decode(encoded).decode().partition(":")
            client = told.clients.get(name)
            return client if client is not None and client.secret is not None and client.secret == secret else None

    with _serving(Handler, tls) as url:
        told.url = url
        yield told


@contextmanager
def protect(
    upstream: str,
    told: AuthorisationServer | None = None,
    *,
    tls: Certificates | None = None,
    refuse: int = 0,
) -> Iterator[Protected]:
    """Put the server at ``upstream`` behind a token of ``told``; gives the base URL to use instead.

    With ``tls`` it speaks TLS, and only with who shows a certificate of that authority.
    """
    parts = urlsplit(upstream)
    host, port = parts.hostname or "", parts.port or 80
    state = Protected(url="", refuse=refuse)

    class Handler(_Quiet):
        def pass_on(self) -> None:
            body = self.body()
            if told is not None and self.path == f"{parts.path}/.well-known/smart-configuration":
                return self.configuration(told)
            given = self.headers.get("Authorization", "")
            with lock:
                state.requests += 1
                state.seen.add(given)
                refused = state.refuse > 0
                state.refuse -= refused
            kind, _, token = given.partition(" ")
            if refused or (told is not None and not (kind == "Bearer" and told.is_good(token))):
                return self.answer(401, b"SECRET", {"WWW-Authenticate": "Bearer"})
            upstream = http.client.HTTPConnection(host, port, timeout=30)
            kept = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
            upstream.request(self.command, self.path, body, kept)
            found = upstream.getresponse()
            content = found.read()
            self.answer(found.status, content, {n: v for n, v in found.getheaders() if n.lower() not in HOP})
            upstream.close()

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = pass_on

        def configuration(self, told: AuthorisationServer) -> None:
            said = {
                "token_endpoint": told.token_url,
                "grant_types_supported": ["client_credentials"],
                "token_endpoint_auth_methods_supported": ["private_key_jwt"],
                "token_endpoint_auth_signing_alg_values_supported": ["RS384", "ES384"],
                "capabilities": ["client-confidential-asymmetric"],
            }
            self.answer(200, json.dumps(said).encode())

    lock = threading.Lock()
    with _serving(Handler, tls) as url:
        state.url = f"{url}{parts.path}"
        yield state


HOP = frozenset({"host", "authorization", "connection", "transfer-encoding", "content-length", "keep-alive", "server"})


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_arguments: object) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        read = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            read += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return read

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_arguments: object) -> None:
        pass  # a handshake that failed, say


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler], tls: Certificates | None) -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), handler)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.server.cert, tls.server.key)
        context.load_verify_locations(tls.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
