"""Servers that speak HTTP: credentials and clocks of all of them, and what a DICOMweb server has."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator
from datetime import UTC
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx

from medflow.connections import http, tokens
from medflow.connections.endpoints import ClientCredentials, DicomWebSource, DicomWebTarget, HttpServer, SmartBackend
from medflow.doctor.finding import FAILED, OK, WARNING, Said

SKEW_S = 30.0  # a clock that is further off is told of
NO_STUDY = "2.25.0"  # a UID that nobody has


def credentials(server: HttpServer, timeout_s: float) -> Iterator[Said]:
    """Whether a token is obtained, and what is shown to whom."""
    auth = server.auth
    if isinstance(auth, SmartBackend) and auth.token_url is None:
        with httpx.Client(verify=http.tls_context(server.tls), timeout=timeout_s) as client:
            offered = tokens.smart_configuration(client, server).get("token_endpoint_auth_signing_alg_values_supported")
        if isinstance(offered, list) and auth.alg not in offered:
            yield WARNING, f"its smart-configuration does not list {auth.alg}: choose another alg, and a key for it"
    if isinstance(auth, ClientCredentials | SmartBackend):
        tokens.of(server, timeout_s=timeout_s).current()
        yield OK, "the authorisation server gives us a token"
    places = [server.url, getattr(auth, "token_url", None) or server.url]
    if auth is not None and any(_in_the_clear(place) for place in places):
        yield WARNING, "credentials go over http, readable by whoever is on the way: use https"


def clock(answer: httpx.Response) -> Iterator[Said]:
    """How far the server's clock is from ours (RFC 9110, Date)."""
    try:
        theirs = parsedate_to_datetime(answer.headers["Date"])
    except (KeyError, ValueError):
        return
    theirs = theirs if theirs.tzinfo else theirs.replace(tzinfo=UTC)
    ahead = theirs.timestamp() - time.time()
    if abs(ahead) > SKEW_S:
        way = "ahead of" if ahead > 0 else "behind"
        yield (
            WARNING,
            f"its clock is {abs(ahead):.0f} s {way} ours: tokens and certificates may be refused; "
            "have both follow a time server (timedatectl)",
        )


def dicomweb(server: DicomWebSource | DicomWebTarget, timeout_s: float) -> Iterator[Said]:
    """Whether QIDO-RS, WADO-RS and STOW-RS answer us, each where it is used."""
    yield from credentials(server, timeout_s)
    if isinstance(server, DicomWebTarget):
        yield from _stow(server, timeout_s)
        return
    from medflow.dicom.web import DicomWeb  # dicomweb-client is no light import

    web = DicomWeb(server, timeout_s=timeout_s, qido_prefix=server.qido_prefix, wado_prefix=server.wado_prefix)
    try:
        web.check()
    finally:
        web.close()
    yield OK, "it can be searched (QIDO-RS)"
    yield from _wado(server, timeout_s)


def _wado(server: DicomWebSource, timeout_s: float) -> Iterator[Said]:
    """A study that there is not is asked for: that it is not found is what should be said."""
    url = "/".join(filter(None, [server.url, (server.wado_prefix or "").strip("/"), f"studies/{NO_STUDY}"]))
    with http.client(server, timeout_s=timeout_s) as client:
        answer = http.send(
            client, server, "GET", url, headers={"Accept": 'multipart/related; type="application/dicom"'}
        )
    http.check_status(answer, server)
    yield from clock(answer)
    if answer.status_code == 403:
        yield FAILED, "we may search it, and not retrieve (HTTP 403): have that allowed there"
    elif answer.status_code in (405, 406):
        yield FAILED, f"it gives no studies (WADO-RS, HTTP {answer.status_code}): check wado_prefix"
    else:
        unsure = "; whether wado_prefix is right shows with the first one" if server.wado_prefix else ""
        yield OK, f"studies can be asked for (WADO-RS){unsure}"


def _stow(server: DicomWebTarget, timeout_s: float) -> Iterator[Said]:
    """A request without any object is sent: that it is no good one is what should be said."""
    url = "/".join(filter(None, [server.url, (server.stow_prefix or "").strip("/"), "studies"]))
    headers = {
        "Accept": "application/dicom+json",
        "Content-Type": 'multipart/related; type="application/dicom"; boundary=doctor',
    }
    with http.client(server, timeout_s=timeout_s) as client:
        answer = http.send(client, server, "POST", url, headers=headers, content=b"--doctor--\r\n")
    if answer.status_code < 500:  # some call what has no object an error of their own
        http.check_status(answer, server)
    yield from clock(answer)
    if answer.status_code == 403:
        yield FAILED, "we may not store there (HTTP 403): have that allowed"
    elif answer.status_code in (404, 405) or "fhir" in answer.headers.get("Content-Type", ""):
        yield (
            FAILED,
            f"nothing takes objects at {server.public} (STOW-RS, HTTP {answer.status_code}): check its address and "
            "stow_prefix",
        )
    elif answer.status_code in (502, 503, 504):
        http.check_status(answer, server)
    else:
        yield OK, "objects can be sent (STOW-RS); whether these classes are taken shows with the first"


def _in_the_clear(url: str) -> bool:
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    return parts.scheme == "http" and not here
