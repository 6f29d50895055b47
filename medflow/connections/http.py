"""Clients of configured servers: who we are there, TLS, time limits; and what `answers` says of what comes back.

No redirect is followed: it could carry a credential elsewhere. The libraries' own log lines are kept back: they have
whole addresses, with the query that names a patient and the signature that opens a file.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import httpx

from medflow.connections.answers import OVERLOADED, check_status, send, tls_context, unanswered
from medflow.connections.auth import httpx_auth
from medflow.connections.endpoints import HttpServer
from medflow.connections.pace import PacedClient

if TYPE_CHECKING:
    from requests import Session

__all__ = ["OVERLOADED", "check_status", "client", "send", "session", "tls_context", "unanswered"]


def client(server: HttpServer, *, timeout_s: float, headers: Mapping[str, str] | None = None) -> httpx.Client:
    """A client for one server; close it. ``timeout_s`` bounds silence, and over it an answer must keep a least pace.

    Raises
    ------
    ConfigurationError
        A TLS file or a secret cannot be read.
    """
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return PacedClient(
        window_s=timeout_s,
        headers=dict(headers or {}),
        auth=httpx_auth(server, timeout_s=timeout_s),
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
