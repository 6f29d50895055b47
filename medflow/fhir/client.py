"""One FHIR R4 server over HTTP: resources written in transactions, batches or one by one, and the answer to each.

R4 http.html#transaction. Nothing is retried here and nothing decided: an answer is told apart by type (see
`medflow.errors`), and whoever delivers decides. No URL with a query or a credential, no response text and no resource
reaches a message; a server's own words about a resource are in `Answer.detail`, for SQL only.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal

import httpx
import orjson

from medflow.connections import http
from medflow.connections.endpoints import HttpServer
from medflow.connections.patience import retry_after_s
from medflow.errors import ConfigurationError, DeliveryRefused, ServerUnavailable
from medflow.fhir.capability import Capabilities, read_capabilities

FHIR_JSON = "application/fhir+json"
BUSY = frozenset({408, 409, 412, 423, 425, 429})  # another try may succeed; 409 and 412: a concurrent writer was first
DETAIL_CHARS = 2000
GZIP_FROM = 2000  # bytes; below, it is not worth the time
PROBLEMS = 5  # issues of an OperationOutcome that are told
ID = re.compile(r"[A-Za-z0-9\-._]{1,64}")  # R4 datatypes.html#id, and what servers besides take
ETAG = re.compile(r"[!-~][ -~]{0,199}")
CODE = re.compile(r"[a-z][a-z0-9\-]{0,39}")  # an issue-type; anything else may be words


@dataclass(frozen=True, kw_only=True, slots=True)
class Write:
    """One resource to be written, as an entry of a Bundle or by itself (R4 bundle.html, Bundle.entry.request).

    ``url`` is relative to the base URL; ``body`` is the resource's JSON. ``full_url`` is what other entries of the same
    transaction call it by.
    """

    method: Literal["PUT", "POST"]
    url: str
    body: bytes
    full_url: str | None = None
    if_match: str | None = None
    if_none_exist: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a server said to one entry.

    ``reason`` is made of codes and element paths; ``detail`` is the server's own text, which may name a patient.
    ``id`` and ``etag`` are those of what was stored, where the server tells them. ``final``: the same again would not
    succeed, whatever the status says.
    """

    status: int
    reason: str = ""
    detail: str = ""
    retry_after_s: float | None = None
    id: str | None = None
    etag: str | None = None
    final: bool = False

    @property
    def taken(self) -> bool:
        """The server has stored the resource."""
        return 200 <= self.status < 300

    @property
    def busy(self) -> bool:
        """Not taken, and the server or a concurrent writer is the cause: the same again may succeed."""
        return not self.final and (self.status in BUSY or self.status >= 500)


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A resource as a server has it, and the ETag of its version."""

    resource: dict[str, Any]
    etag: str | None


class FhirClient:
    """A FHIR R4 server. Thread-safe.

    Parameters
    ----------
    server
        Its address, who we are to it, and TLS.
    timeout_s
        How long it may be silent.
    """

    def __init__(self, server: HttpServer, *, timeout_s: float = 30.0) -> None:
        self.server, self.base_url = server, server.public
        headers = {"Accept": FHIR_JSON, "Prefer": "return=minimal"}
        self._http = http.client(server, timeout_s=timeout_s, headers=headers)
        self._gzip = False

    def __enter__(self) -> FhirClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def check(self) -> Capabilities:
        """Make sure that a FHIR R4 server answers here, and read what it can do (R4 http.html#capabilities).

        Raises
        ------
        ConfigurationError
            Something else answers, or the server wants other credentials, or it speaks another FHIR version.
        ServerUnavailable
            Nobody answers, or the server is overloaded.
        """
        response = self._send("GET", f"{self.base_url}/metadata")
        self._check_status(response)
        if response.status_code == 403:
            raise ConfigurationError(f"{self.base_url} refuses these credentials (HTTP 403): check its auth")
        statement = _json(response)
        if response.status_code != 200 or statement.get("resourceType") != "CapabilityStatement":
            raise ConfigurationError(f"what answers at {self.base_url} is no FHIR server: {WRONG_URL}")
        spoken = str(statement.get("fhirVersion", "4.0.1"))
        if not spoken.startswith("4."):
            raise ConfigurationError(f"the server at {self.base_url} speaks FHIR {spoken[:12]}; medflow writes R4")
        # what a server takes compressed it says by this header in its own answers (RFC 7694)
        self._gzip = "gzip" in response.headers.get("Accept-Encoding", "")
        return read_capabilities(statement)

    def bundle(self, kind: Literal["transaction", "batch"], writes: Sequence[Write]) -> list[Answer]:
        """Write these resources in one transaction or batch; one answer each, in order.

        Raises
        ------
        DeliveryRefused
            The Bundle as a whole was refused: ``answer`` (an `Answer`) says why.
        ConfigurationError, ServerUnavailable
            As for `check`; the latter also for an answer that is cut off or does not fit what was sent.
        """
        body = b'{"resourceType":"Bundle","type":"%b","entry":[%b]}' % (kind.encode(), b",".join(map(_entry, writes)))
        response = self._send("POST", self.base_url, **self._content(body))
        self._check_status(response)
        wait = retry_after_s(response.headers.get("Retry-After"))
        outcome = _json(response)
        if response.status_code >= 400:
            answer = _refused(response.status_code, outcome, wait)
            raise DeliveryRefused(f"the server refused a {kind} ({answer.reason})", answer=answer)
        entries = outcome.get("entry")
        if outcome.get("resourceType") != "Bundle" or not isinstance(entries, list) or len(entries) != len(writes):
            raise ServerUnavailable(f"{self.base_url} did not answer to every entry of a {kind}")
        return [_entry_answer(entry, wait) for entry in entries]

    def write(self, one: Write) -> Answer:
        """Write one resource by itself.

        Raises
        ------
        ConfigurationError, ServerUnavailable
            As for `check`.
        """
        request = self._content(one.body)
        conditions = {"If-Match": one.if_match, "If-None-Exist": one.if_none_exist}
        request["headers"] |= {name: value for name, value in conditions.items() if value}
        response = self._send(one.method, f"{self.base_url}/{one.url}", **request)
        self._check_status(response, single=True)
        outcome = _json(response)
        if response.status_code >= 400:
            return _refused(response.status_code, outcome, retry_after_s(response.headers.get("Retry-After")))
        place = response.headers.get("Location") or response.headers.get("Content-Location")
        return _believed(_stored(response.status_code, place, response.headers.get("ETag"), outcome), outcome)

    def read(self, kind: str, key: str, version: str | None = None) -> Found | None:
        """A resource as it is there now, or as it was in one version; None if the server has or gives none.

        Raises
        ------
        ConfigurationError, ServerUnavailable
            As for `check`.
        """
        place = f"{kind}/{key}" if version is None else f"{kind}/{key}/_history/{version}"
        response = self._send("GET", f"{self.base_url}/{place}")
        http.check_status(response, self.server)
        resource = _json(response) if response.status_code == 200 else {}
        if resource.get("resourceType") != kind:
            return None
        return Found(resource=resource, etag=_stored(200, None, response.headers.get("ETag"), resource).etag)

    def search(self, kind: str, parameters: Mapping[str, str]) -> list[dict[str, Any]] | None:
        """All resources that a search finds, by POST: what it asks for is in no URL. None if it was not answered whole.

        Raises
        ------
        ConfigurationError, ServerUnavailable
            As for `check`.
        """
        response = self._send("POST", f"{self.base_url}/{kind}/_search", data=dict(parameters))
        if response.status_code == 501:  # not implemented: that is an answer
            return None
        http.check_status(response, self.server)
        found = _json(response) if response.status_code == 200 else {}
        more = any(link.get("relation") == "next" for link in _dicts(found.get("link")))
        if found.get("resourceType") != "Bundle" or more:
            return None
        resources = [
            entry["resource"] for entry in _dicts(found.get("entry")) if isinstance(entry.get("resource"), dict)
        ]
        matches = [resource for resource in resources if resource.get("resourceType") == kind and resource.get("id")]
        total = found.get("total")  # more than came: the server cut its answer off without a next link
        return None if isinstance(total, int) and total > len(matches) else matches

    def _content(self, body: bytes) -> dict[str, Any]:
        headers = {"Content-Type": FHIR_JSON}
        if self._gzip and len(body) >= GZIP_FROM:
            return {"content": gzip.compress(body, 1), "headers": headers | {"Content-Encoding": "gzip"}}
        return {"content": body, "headers": headers}

    def _send(self, method: str, url: str, **request: Any) -> httpx.Response:
        return http.send(self._http, self.server, method, url, **request)

    def _check_status(self, response: httpx.Response, *, single: bool = False) -> None:
        """Raise for what concerns the server as a whole and no resource in particular."""
        http.check_status(response, self.server)
        status = response.status_code
        if status == 413:  # whatever it is that limits how much is sent at once, it need not speak FHIR
            return
        foreign = bool(response.content) and "json" not in response.headers.get("Content-Type", "")
        if (status == 405 and not single) or ((status == 200 or status >= 400) and foreign):
            raise ConfigurationError(f"what answers at {self.base_url} is no FHIR server (HTTP {status}): {WRONG_URL}")


WRONG_URL = "give the server's FHIR base URL, which often ends in /fhir or /fhir/R4"


def version_of(etag: str | None) -> str | None:
    """The versionId that an ETag stands for (R4 http.html#versioning)."""
    return etag.removeprefix("W/").strip('"') or None if etag else None


def _entry(write: Write) -> bytes:
    # bodies are JSON already: joining them spares reading and writing each one again
    request = {"method": write.method, "url": write.url}
    if write.if_match:
        request["ifMatch"] = write.if_match
    if write.if_none_exist:
        request["ifNoneExist"] = write.if_none_exist
    called = b'"fullUrl":%b,' % orjson.dumps(write.full_url) if write.full_url else b""
    return b'{%b"request":%b,"resource":%b}' % (called, orjson.dumps(request), write.body)


def _json(response: httpx.Response) -> dict[str, Any]:
    if response.status_code == 413:
        return {}
    try:
        found = orjson.loads(response.content) if response.content else {}
    except orjson.JSONDecodeError:
        raise ServerUnavailable("the server's answer is cut off, or is not JSON") from None
    return found if isinstance(found, dict) else {}


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _entry_answer(entry: Any, wait: float | None) -> Answer:
    response = entry.get("response") if isinstance(entry, dict) else None
    response = response if isinstance(response, dict) else {}
    status = str(response.get("status", ""))[:3]
    outcome = response.get("outcome")
    if not (status.isascii() and status.isdigit()):
        return Answer(status=502, reason="no status in the entry's response", retry_after_s=wait)
    resource = entry.get("resource")
    resource = resource if isinstance(resource, dict) else {}
    if outcome is None:  # some servers answer with it as the entry's resource
        outcome = resource
    if 200 <= int(status) < 300:
        return _believed(_stored(int(status), response.get("location"), response.get("etag"), resource), outcome)
    return _refused(int(status), outcome if isinstance(outcome, dict) else {}, wait)


def _stored(status: int, place: Any, etag: Any, resource: dict[str, Any]) -> Answer:
    """Where a server put a resource: told by a location, an ETag, or the resource as it is there now."""
    key = version = None
    if isinstance(place, str):
        path, _, version = place.partition("/_history/")
        key = path.rstrip("/").rpartition("/")[2] if "/" in path else None
    if resource.get("resourceType") not in (None, "OperationOutcome"):
        key = key or resource.get("id")
        meta = resource.get("meta")
        version = version or (meta.get("versionId") if isinstance(meta, dict) else None)
    if not isinstance(etag, str):
        etag = f'W/"{version}"' if version else None
    # both go into requests again: what is no id, or no header takes, is none
    known = isinstance(key, str) and ID.fullmatch(key)
    return Answer(status=status, id=key if known else None, etag=etag if etag and ETAG.fullmatch(etag) else None)


def _believed(answer: Answer, outcome: Any) -> Answer:
    """An answer of success, unless all that came with it is an error: a place or a version would prove it stored."""
    if answer.id or answer.etag or not isinstance(outcome, dict) or outcome.get("resourceType") != "OperationOutcome":
        return answer
    if not any(issue.get("severity") in ("error", "fatal") for issue in _dicts(outcome.get("issue"))):
        return answer
    refused = _refused(422, outcome, None)
    return replace(refused, reason=f"HTTP {answer.status} with an error{refused.reason.removeprefix('HTTP 422')}")


def _refused(status: int, outcome: dict[str, Any], wait: float | None) -> Answer:
    """The codes and element paths of an OperationOutcome, and apart from them what it says in words."""
    reasons, words = [f"HTTP {status}"], []
    issues = outcome.get("issue") if outcome.get("resourceType") == "OperationOutcome" else None
    for issue in issues[:PROBLEMS] if isinstance(issues, list) else []:
        if not isinstance(issue, dict):
            continue
        places = issue.get("expression")
        place = f" at {places[0]}" if isinstance(places, list) and places and _is_path(places[0]) else ""
        code = issue.get("code")
        reasons.append(f"{code if isinstance(code, str) and CODE.fullmatch(code) else 'unknown'}{place}")
        details = issue.get("details")
        text = issue.get("diagnostics") or (details.get("text") if isinstance(details, dict) else None)
        if isinstance(text, str):
            words.append(text)
    detail = "; ".join(words)[:DETAIL_CHARS].replace("\0", "")  # which PostgreSQL takes in no text
    return Answer(status=status, reason=", ".join(reasons), detail=detail, retry_after_s=wait)


def _is_path(place: Any) -> bool:
    """An element path (Observation.value), and no FHIRPath with a value in it."""
    return isinstance(place, str) and len(place) <= 120 and all(c.isalnum() or c in ".[]" for c in place)
