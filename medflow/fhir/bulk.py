"""FHIR Bulk Data Access as a client: an export is asked for, waited for, and its manifest read.

HL7 Bulk Data Access IG, STU 2 (http://hl7.org/fhir/uv/bulkdata), sections "Bulk Data Kick-off Request", "Delete
Request" and "Status Request". Files are fetched by `medflow.fhir.bulk_files`.

Credentials go to the server's own origin alone, whatever address it names. Of what a server writes, only codes, numbers
and times reach a message.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Lock
from types import TracebackType
from typing import Any

import httpx
import orjson

from medflow.connections import http
from medflow.connections.endpoints import HttpServer, Tls
from medflow.connections.patience import Patience, retry_after_s, tries
from medflow.errors import ConfigurationError, ServerUnavailable, SourceUnavailable
from medflow.fhir.bulk_manifest import Manifest, address, files_of, next_page, origin, transaction_us
from medflow.records import EPOCH

FHIR_JSON = "application/fhir+json"
NDJSON = "application/fhir+ndjson"
TRANSIENT = {"transient", "lock-error", "no-store", "exception", "timeout", "incomplete", "throttled"}  # issue-type
LONGEST_WAIT_S, SHORTEST_WAIT_S = 60.0, 0.05  # between polls, where the server names no wait
PAGES = 10_000  # of one manifest
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pending:
    """Not done yet. ``wait_s`` is what the server asks for, ``percent`` what it says of how far it is."""

    wait_s: float | None = None
    percent: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost:
    """There will be no manifest: the server has forgotten the export (``expired``), or could not do it."""

    reason: str
    expired: bool = False


class BulkServer:
    """One server's Bulk Data exports. Thread-safe.

    Parameters
    ----------
    server
        Its address, who we are to it, and TLS.
    timeout_s
        How long it may be silent.
    """

    def __init__(self, server: HttpServer, *, timeout_s: float, patience: Patience | None = None) -> None:
        self.server, self._timeout_s = server, timeout_s
        self.patience = patience or Patience()
        self.http = http.client(server, timeout_s=timeout_s)
        self._stranger: httpx.Client | None = None
        self._lock = Lock()

    def __enter__(self) -> BulkServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()
        if self._stranger is not None:
            self._stranger.close()

    def stranger(self) -> httpx.Client:
        """A client for other hosts: without credentials and certificate. ``ca`` may be needed for one of the house."""
        with self._lock:
            if self._stranger is None:
                theirs = HttpServer(url=self.server.url, tls=Tls(ca=self.server.tls.ca))
                self._stranger = http.client(theirs, timeout_s=self._timeout_s)
            return self._stranger

    # --- asking ----------------------------------------------------------------------------------------------

    def kick_off(self, level: str, types: Sequence[str], since_us: int | None) -> str:
        """Ask for an export; gives its status address.

        Parameters
        ----------
        level
            "system", "patient" or "Group/<id>".
        types
            Resource types; none means all.
        since_us
            Only what changed after it; None means everything.

        Raises
        ------
        ConfigurationError
            The server has no such export, wants other credentials, or does not take these types.
        ServerUnavailable
            It does not answer, or has too much to do.
        """
        place = {"system": "", "patient": "Patient/"}.get(level, f"{level}/")
        params = {"_outputFormat": NDJSON}
        if types:
            params["_type"] = ",".join(types)
        if since_us is not None:
            params["_since"] = instant(since_us)
        headers = {"Accept": FHIR_JSON, "Prefer": "respond-async"}
        url = f"{self.server.url}/{place}$export"
        for attempt in tries(self.patience):
            with attempt:
                return self._asked(self._get(url, params=params, headers=headers), level)
        raise AssertionError  # the last attempt returns or raises

    def _asked(self, response: httpx.Response, level: str) -> str:
        status, where = response.status_code, self.server.public
        told = ", ".join([f"HTTP {status}", *issue_codes(response)])
        if status in (404, 405, 501):
            raise ConfigurationError(
                f"{where} has no {level} level Bulk Data export ({told}): choose another level, or mode search"
            )
        http.check_status(response, self.server)
        if status == 403:
            raise ConfigurationError(f"{where} does not allow us a {level} level export ({told}): check auth and scope")
        if status >= 400:
            raise ConfigurationError(f"{where} refuses the export as asked ({told}): check its level, types and since")
        location = response.headers.get("Content-Location")
        if status != 202 or not location:
            raise ConfigurationError(
                f"{where} did not start a Bulk Data export ({told}, no Content-Location): choose mode search"
            )
        return address(self.server.url, location, where)

    # --- waiting ---------------------------------------------------------------------------------------------

    def wait(self, status: str, *, until: float) -> Manifest | Lost:
        """Poll until the export is done, or lost.

        Parameters
        ----------
        status
            Its status address.
        until
            When to give up, by `time.monotonic`.

        Raises
        ------
        SourceUnavailable
            It is not done by then; it goes on at the server.
        ServerUnavailable
            The server failed to answer as often as patience allows.
        ConfigurationError
            As for `kick_off`.
        """
        backing_off = self.patience.first_wait_s
        while True:
            found = self._polled(status)
            if not isinstance(found, Pending):
                return found
            wait = found.wait_s
            if wait is None:
                wait = backing_off * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
                backing_off = min(2 * backing_off, LONGEST_WAIT_S)
            self._pause(max(wait, SHORTEST_WAIT_S), found.percent, until)

    def _pause(self, wait_s: float, percent: float | None, until: float) -> None:
        if time.monotonic() + wait_s > until:
            raise SourceUnavailable(
                f"the export that {self.server.public} was asked for is not done in the time there is (export_hours): "
                "it is kept, and the next run goes on waiting for it",
                retry_after_s=wait_s,
            )
        far = "" if percent is None else f" ({percent:g} % done)"
        log.info("the export of %s is under way%s; asked again in %.0f s", self.server.public, far, wait_s)
        time.sleep(wait_s)

    def _polled(self, status: str) -> Manifest | Pending | Lost:
        for attempt in tries(self.patience):
            with attempt:
                return self.poll(status)
        raise AssertionError  # the last attempt returns or raises

    def poll(self, status: str) -> Manifest | Pending | Lost:
        """Ask once how far an export is; raises as `wait` does, and SourceUnavailable where there is no good answer."""
        response = self._get(status, headers={"Accept": "application/json"})
        wait = retry_after_s(response.headers.get("Retry-After"))
        code = response.status_code
        if code == 202:
            return Pending(wait_s=wait, percent=_percent(response.headers.get("X-Progress")))
        if code == 429:
            return Pending(wait_s=wait)
        if code == 200:
            return self._manifest(status, response)
        if code in (404, 410):
            return Lost(reason=f"HTTP {code}", expired=True)
        _, host, port = elsewhere = origin(status)
        if code in (401, 403) and elsewhere != origin(self.server.url):
            raise ConfigurationError(
                f"{self.server.public} keeps its exports at {host}:{port}, which gets no credentials of ours: have the "
                "server call itself by the base URL that it is reached by"
            )
        codes = issue_codes(response)
        if code >= 400 and code not in (401, 403, 408, 425) and codes and not TRANSIENT & set(codes):
            return Lost(reason=", ".join([f"HTTP {code}", *codes]))
        if code >= 500:
            told = ", ".join([f"HTTP {code}", *codes])
            where = self.server.public
            raise SourceUnavailable(
                f"{where} fails to say how far its export is ({told})", retry_after_s=wait, http=code
            )
        http.check_status(response, self.server)
        if code == 403:
            raise ConfigurationError(f"{self.server.public} does not let us see its export (HTTP 403): check its auth")
        return Lost(reason=f"HTTP {code}")

    def end(self, status: str) -> None:
        """Tell the server that its files may go; one that does not hear it lets them expire."""
        try:
            response = self._send("DELETE", status, headers={"Accept": FHIR_JSON})
        except (ServerUnavailable, ConfigurationError):
            response = None
        if response is None or response.status_code >= 300:
            log.info("%s was not told that an export is done with", self.server.public)

    # --- manifests -------------------------------------------------------------------------------------------

    def _manifest(self, status: str, response: httpx.Response) -> Manifest:
        page = self._page(response)
        moment, requires_token = transaction_us(page), page.get("requiresAccessToken") is not False
        files = files_of(page, status, self.server.public)
        at, seen = status, {status}
        while (following := next_page(page)) is not None:
            at = address(at, following, self.server.public)
            if at in seen or len(seen) >= PAGES:
                raise SourceUnavailable(f"the manifest of an export of {self.server.public} does not end")
            seen.add(at)
            page = self._next_page(at)
            moments = [value for value in (moment, transaction_us(page)) if value is not None]
            moment = min(moments, default=None)
            files += files_of(page, at, self.server.public)
        if moment is None:
            raise SourceUnavailable(f"the manifest of an export of {self.server.public} has no transactionTime")
        return Manifest(transaction_us=moment, requires_token=requires_token, files=tuple(files))

    def _next_page(self, url: str) -> dict[str, Any]:
        for attempt in tries(self.patience):
            with attempt:
                response = self._get(url, headers={"Accept": "application/json"})
                http.check_status(response, self.server)
                if response.status_code != 200:
                    told = f"HTTP {response.status_code}"
                    raise SourceUnavailable(f"a page of the manifest of {self.server.public} cannot be had ({told})")
                return self._page(response)
        raise AssertionError  # the last attempt returns or raises

    def _page(self, response: httpx.Response) -> dict[str, Any]:
        try:
            page = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            page = None
        if not isinstance(page, dict):
            raise SourceUnavailable(f"the manifest of an export of {self.server.public} is cut off, or no JSON object")
        return page

    # --- HTTP ------------------------------------------------------------------------------------------------

    def _get(self, url: str, **request: Any) -> httpx.Response:
        return self._send("GET", url, **request)

    def _send(self, method: str, url: str, **request: Any) -> httpx.Response:
        client = self.http if origin(url) == origin(self.server.url) else self.stranger()
        return http.send(client, self.server, method, url, **request)


def instant(moment_us: int) -> str:
    """A FHIR instant, in UTC."""
    moment: datetime = (EPOCH + timedelta(microseconds=moment_us)).astimezone(UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def issue_codes(response: httpx.Response) -> list[str]:
    """The codes of an OperationOutcome that a server answered with; none where it is no such answer."""
    try:
        return [code for _, code in outcome_issues(orjson.loads(response.content))]
    except orjson.JSONDecodeError:
        return []


def outcome_issues(outcome: Any) -> list[tuple[str, str]]:
    """``issue.severity`` and ``issue.code`` of each issue: codes, never the words beside them."""
    if not isinstance(outcome, dict) or outcome.get("resourceType") != "OperationOutcome":
        return []
    issues = outcome.get("issue")
    found = [item for item in issues if isinstance(item, dict)] if isinstance(issues, list) else []
    return [(_code(item.get("severity")), _code(item.get("code"))) for item in found]


def _code(value: Any) -> str:
    return value if isinstance(value, str) and re.fullmatch(r"[a-z\-]{1,40}", value) else "unknown"


def _percent(text: str | None) -> float | None:
    """How far an X-Progress says that it is: its words may be anything, and stay where they are."""
    found = re.search(r"(?<![\d.])(\d{1,3}(?:\.\d+)?)\s?%", text or "")
    return float(found[1]) if found and float(found[1]) <= 100 else None
