"""What a server's answer, or the lack of one, means for all of it; and TLS.

No URL with a query and no response text reaches a message.
"""

from __future__ import annotations

import re
import ssl
from typing import Any

import httpx

from medflow.connections.endpoints import HttpServer, Tls
from medflow.connections.pace import MOST_BYTES, TooLarge
from medflow.connections.patience import retry_after_s
from medflow.errors import ConfigurationError, ServerUnavailable

OVERLOADED = frozenset({408, 425, 429})


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
    if isinstance(error, TooLarge):
        return ConfigurationError(
            f"{server.public} answers with more than {MOST_BYTES >> 20} MiB at once: ask it for less (`count`)"
        )
    if isinstance(error, httpx.UnsupportedProtocol):
        return ConfigurationError(f"{server.public} is not an http or https address")
    if isinstance(error, httpx.TransportError):
        if (about_tls := tls_problem(error, server)) is not None:
            return about_tls
        return ServerUnavailable(
            f"{server.public} cannot be reached ({type(error).__name__}): check that the server runs and that the "
            "address is right, then run the same command again"
        )
    return ServerUnavailable(f"the answer of {server.public} cannot be read")


def tls_problem(error: BaseException, server: HttpServer) -> ConfigurationError | None:
    """What is wrong between our certificates and the server's, where that is why there is no answer."""
    seen: list[object] = [error]
    for inner in seen:  # an error of httpx has its cause as a cause, one of requests has it among its arguments
        if isinstance(inner, ssl.SSLCertVerificationError):
            return ConfigurationError(
                f"the TLS certificate of {server.public} is not trusted ({inner.verify_message}): "
                "give its authority as tls.ca, and the host by the name that its certificate has"
            )
        if isinstance(inner, ssl.SSLError) and re.search("ALERT.*(CERT|UNKNOWN_CA)", inner.reason or ""):
            return ConfigurationError(
                f"{server.public} does not take our TLS certificate ({inner.reason}): check tls.cert and tls.key"
            )
        if isinstance(inner, BaseException):
            more = (inner.__cause__, inner.__context__, getattr(inner, "reason", None), *inner.args)
            seen += [item for item in more if isinstance(item, BaseException) and item not in seen]
    return None


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
