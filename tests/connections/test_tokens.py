"""Tokens of OAuth 2.0: got from an authorisation server that verifies, shown to real servers behind it."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc.jwk import ECKey, RSAKey

from medflow.connections import http, tokens
from medflow.connections.assertion import public_key
from medflow.connections.endpoints import FhirTarget, HttpServer
from medflow.connections.patience import Patience
from medflow.connections.tokens import Tokens
from medflow.errors import ConfigurationError, ServerUnavailable
from tests.services.certificates import private_key
from tests.services.oauth import AuthorisationServer, Client, Protected, authorisation_server, protect

SECRET = "s3cret-word"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("keys")
    ec = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384")
    return {
        "RS384": private_key(folder, "rsa", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
        "ES384": private_key(folder, "ec", *ec),
        "stranger": private_key(folder, "stranger", *ec),
    }


@pytest.fixture
def oauth(monkeypatch: pytest.MonkeyPatch) -> Iterator[AuthorisationServer]:
    monkeypatch.setattr(tokens, "PATIENCE", Patience(attempts=3, first_wait_s=0.01, longest_wait_s=0.01))
    with authorisation_server() as running:
        running.clients["by-secret"] = Client(secret=SECRET)
        yield running


@pytest.fixture
def guarded(oauth: AuthorisationServer, fhir_server: str) -> Iterator[Protected]:
    """The real FHIR server, for those who show a token."""
    with protect(fhir_server, oauth) as running:
        yield running


def with_secret(oauth: AuthorisationServer, url: str, **more: str) -> HttpServer:
    auth = {"type": "client-credentials", "token_url": oauth.token_url, "client_id": "by-secret"}
    return HttpServer.model_validate({"url": url, "auth": {**auth, "client_secret": SECRET, **more}})


def with_key(key: str | Path, url: str, **more: str) -> HttpServer:
    written = f"file:{key}" if isinstance(key, Path) else key
    return HttpServer.model_validate(
        {"url": url, "auth": {"type": "smart-backend", "client_id": "me", "key": written, **more}}
    )


def register(oauth: AuthorisationServer, server: HttpServer) -> None:
    assert server.auth is not None and server.auth.type == "smart-backend"
    oauth.clients["me"] = Client(jwks={"keys": [public_key(server.auth)]})


def patients(server: HttpServer) -> int:
    with http.client(server, timeout_s=10) as client:
        return http.send(client, server, "GET", f"{server.url}/Patient").status_code


@pytest.mark.parametrize("alg", ["RS384", "ES384"])
def test_smart_backend_services_read_from_a_real_server(
    oauth: AuthorisationServer, guarded: Protected, keys: dict[str, Path], alg: str
) -> None:
    server = with_key(keys[alg], guarded.url, alg=alg)  # its token endpoint is discovered
    register(oauth, server)

    assert patients(server) == patients(server) == 200

    (assertion,) = oauth.assertions  # one token does for both
    assert (assertion["alg"], assertion["aud"], assertion["iss"], assertion["sub"]) == (
        alg,
        oauth.token_url,
        "me",
        "me",
    )
    assert assertion["exp"] - time.time() <= 300


def test_a_target_asks_for_leave_to_write_as_well(oauth: AuthorisationServer, keys: dict[str, Path]) -> None:
    server = with_key(keys["ES384"], "http://127.0.0.1:1/fhir", alg="ES384", token_url=oauth.token_url)
    register(oauth, server)

    with pytest.raises(ConfigurationError, match="invalid_scope"):
        tokens.of(FhirTarget(kind="fhir", url=server.url, auth=server.auth), timeout_s=10).current()
    oauth.clients["me"].scope += " system/*.write"
    assert tokens.of(FhirTarget(kind="fhir", url=server.url, auth=server.auth), timeout_s=10).current()


def test_a_key_may_be_a_jwk_or_one_of_a_set(oauth: AuthorisationServer, guarded: Protected) -> None:
    jwk = ECKey.generate_key("P-384", {"kid": "mine"}).as_dict(private=True)
    other = RSAKey.generate_key(2048, {"kid": "other"}).as_dict(private=True)

    for written in (jwk, {"keys": [other, jwk]}):
        server = with_key(json.dumps(written), guarded.url, alg="ES384")
        register(oauth, server)
        assert patients(server) == 200

    assert {assertion["kid"] for assertion in oauth.assertions} == {"mine"}


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
def test_a_client_may_have_a_secret_instead(oauth: AuthorisationServer, guarded: Protected, method: str) -> None:
    assert patients(with_secret(oauth, guarded.url, method=method)) == 200


def test_a_token_is_renewed_before_it_ends(oauth: AuthorisationServer, guarded: Protected) -> None:
    oauth.life_s = 0.4
    server = with_secret(oauth, guarded.url)
    with http.client(server, timeout_s=10) as client:
        statuses = []
        until = time.monotonic() + 20.0
        while len(oauth.tokens) < 3 and time.monotonic() < until:
            statuses.append(http.send(client, server, "GET", f"{server.url}/Patient").status_code)

    assert set(statuses) == {200}
    assert len(oauth.tokens) >= 3


def test_a_token_is_used_to_its_end_while_the_authorisation_server_is_away(oauth: AuthorisationServer) -> None:
    held = Tokens(with_secret(oauth, "http://127.0.0.1:1"), timeout_s=10)
    token = held.current()
    assert held._token is not None
    oauth.failing.extend([503] * 99)

    held._token = replace(held._token, renew_at=0)
    assert held.current() == token
    assert len(oauth.failing) == 96
    assert held.current() == token
    assert len(oauth.failing) == 96  # it is left alone for a while

    held._token = replace(held._token, renew_at=0, ends_at=0)
    with pytest.raises(ServerUnavailable):
        held.current()


def test_a_token_without_an_end_is_used_until_it_is_refused(oauth: AuthorisationServer) -> None:
    oauth.garbage = b'{"access_token": "first", "token_type": "Bearer"}'
    held = Tokens(with_secret(oauth, "http://127.0.0.1:1"), timeout_s=10)
    assert held.current() == "first"
    oauth.garbage = b'{"access_token": "second", "token_type": "Bearer", "expires_in": "300"}'
    assert held.current() == "first"

    held.refused("first")

    assert held.current() == "second"


def test_a_token_that_was_taken_back_is_replaced_once(oauth: AuthorisationServer, guarded: Protected) -> None:
    server = with_secret(oauth, guarded.url)
    assert patients(server) == 200

    oauth.end_all()

    assert patients(server) == 200
    guarded.refuse = 2
    assert patients(server) == 401
    with http.session(server, timeout_s=10) as session:
        guarded.refuse = 1
        assert session.post(f"{server.url}/Patient", json={"resourceType": "Patient"}).status_code == 201


def stream() -> Iterator[bytes]:
    yield b'{"resourceType":'
    yield b'"Patient"}'


def posted_by_httpx(server: HttpServer) -> int:
    with http.client(server, timeout_s=10) as client:
        patients(server)
        return client.post(f"{server.url}/Patient", content=stream()).status_code


def posted_by_requests(server: HttpServer) -> int:
    with http.session(server, timeout_s=10) as session:
        session.get(f"{server.url}/Patient")
        return session.post(f"{server.url}/Patient", data=stream()).status_code


@pytest.mark.parametrize("post", [posted_by_httpx, posted_by_requests])
def test_a_stream_that_met_the_end_of_a_token_is_worth_another_try(
    oauth: AuthorisationServer, guarded: Protected, monkeypatch: pytest.MonkeyPatch, post: Callable[[HttpServer], int]
) -> None:
    server = with_secret(oauth, guarded.url)
    monkeypatch.setattr(oauth, "is_good", lambda _token: guarded.requests < 2)

    with pytest.raises(ServerUnavailable, match="ended our session"):
        post(server)


def test_threads_share_one_token(oauth: AuthorisationServer, guarded: Protected) -> None:
    server = with_secret(oauth, guarded.url)
    held = Tokens(server, timeout_s=10)
    start = threading.Barrier(8)

    def ask(_number: int) -> str:
        start.wait()
        return held.current()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1
    assert len(oauth.tokens) == 1


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"client_secret": "wrong"}, "invalid_client"),
        ({"client_id": "unknown"}, "invalid_client"),
        ({"scope": "system/*.write"}, "invalid_scope"),
    ],
)
def test_a_refusal_names_its_code_and_no_more(
    oauth: AuthorisationServer, guarded: Protected, change: dict[str, str], code: str
) -> None:
    with pytest.raises(ConfigurationError, match=code) as caught:
        patients(with_secret(oauth, guarded.url, **change))

    assert "SECRET" not in str(caught.value) and SECRET not in str(caught.value)


def test_a_key_that_the_server_does_not_know_is_refused(
    oauth: AuthorisationServer, guarded: Protected, keys: dict[str, Path]
) -> None:
    register(oauth, with_key(keys["ES384"], guarded.url, alg="ES384", kid="k"))

    with pytest.raises(ConfigurationError, match=r"invalid_client.*public key"):
        patients(with_key(keys["stranger"], guarded.url, alg="ES384", kid="k"))


def wrong_keys(folder: Path) -> dict[str, tuple[str, Path]]:
    encrypted = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384", "-aes256", "-pass", "pass:x")
    found = {
        "another kind": (
            "RS384",
            private_key(folder, "p384", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"),
        ),
        "another curve": (
            "ES384",
            private_key(folder, "p256", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
        ),
        "too short": ("RS384", private_key(folder, "short", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024")),
        "encrypted": ("ES384", private_key(folder, "encrypted", *encrypted)),
    }
    (folder / "nonsense").write_text(f"-----BEGIN {SECRET}")
    (folder / "public").write_text(json.dumps(ECKey.generate_key("P-384").as_dict(private=False)))
    (folder / "other-use").write_text(json.dumps(ECKey.generate_key("P-384", {"alg": "ES256"}).as_dict(private=True)))
    return found | {name: ("ES384", folder / name) for name in ("nonsense", "public", "other-use")}


def test_a_key_that_does_not_fit_its_algorithm_says_so(tmp_path: Path, oauth: AuthorisationServer) -> None:
    for name, (alg, path) in wrong_keys(tmp_path).items():
        server = with_key(path, "http://127.0.0.1:1/fhir", alg=alg, token_url=oauth.token_url)
        with pytest.raises(ConfigurationError, match=f"not one that {alg} signs with") as caught:
            Tokens(server, timeout_s=10).current()
        assert SECRET not in str(caught.value) and caught.value.__cause__ is None, name


def test_an_authorisation_server_that_is_busy_is_asked_again(oauth: AuthorisationServer, guarded: Protected) -> None:
    oauth.failing.extend([503, 429])

    assert patients(with_secret(oauth, guarded.url)) == 200


@pytest.mark.parametrize("garbage", [None, b'{"access_tok'])
def test_one_that_does_not_answer_is_unavailable(
    oauth: AuthorisationServer, guarded: Protected, garbage: bytes | None
) -> None:
    oauth.garbage = garbage
    oauth.failing.extend([500] * (3 if garbage is None else 0))

    with pytest.raises(ServerUnavailable, match=oauth.url):
        patients(with_secret(oauth, guarded.url))


def test_one_that_is_away_is_unavailable(oauth: AuthorisationServer, guarded: Protected) -> None:
    with pytest.raises(ServerUnavailable, match="cannot be reached"):
        patients(with_secret(oauth, guarded.url, token_url="http://127.0.0.1:1/token"))


def test_what_gives_no_token_is_no_token_endpoint(oauth: AuthorisationServer, guarded: Protected) -> None:
    oauth.garbage = b'{"access_token": "SECRET\\n", "token_type": "bearer"}'

    with pytest.raises(ConfigurationError, match="no bearer token") as caught:
        patients(with_secret(oauth, guarded.url))

    assert "SECRET" not in str(caught.value)


def test_a_server_that_names_no_token_endpoint_wants_one_configured(fhir_server: str, keys: dict[str, Path]) -> None:
    with pytest.raises(ConfigurationError, match="set token_url"):
        patients(with_key(keys["ES384"], fhir_server, alg="ES384"))


def everything_shown(*things: object) -> str:
    return "".join(f"{thing!r}{thing}{vars(thing) if hasattr(thing, '__dict__') else ''}" for thing in things)


def test_no_secret_is_in_a_log_a_repr_or_an_error(
    oauth: AuthorisationServer, guarded: Protected, keys: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    by_secret = with_secret(oauth, guarded.url)
    pem = keys["ES384"].read_text()
    by_key = with_key(pem, guarded.url, alg="ES384")
    register(oauth, by_key)
    said: list[Any] = []
    with ExitStack() as stack:
        for server in (by_secret, by_key):
            client = stack.enter_context(http.client(server, timeout_s=10))
            session = stack.enter_context(http.session(server, timeout_s=10))
            for library in ("httpx", "httpcore"):  # which a client keeps from saying anything
                caplog.set_level(logging.DEBUG, logger=library)
            assert http.send(client, server, "GET", f"{server.url}/Patient").status_code == 200
            assert session.get(f"{server.url}/Patient").status_code == 200
            held = tokens.of(server, timeout_s=10)
            said += [server, server.auth, client, client.auth, session, session.auth, held]
        oauth.clients.clear()
        oauth.end_all()
        with pytest.raises(ConfigurationError) as caught:
            http.send(client, server, "GET", f"{server.url}/Patient")
        said += [caught.value, caught.getrepr(showlocals=False)]

    shown = everything_shown(*said) + caplog.text
    given = [header.removeprefix("Bearer ") for header in guarded.seen if header]
    assert len(given) == 2
    for secret in (SECRET, pem.splitlines()[1], *given):
        assert secret not in shown
    assert httpx.__name__ in {record.name for record in caplog.records}
