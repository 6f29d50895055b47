"""One FHIR R4 server over HTTP: transactions of PUTs, and what the server said to every entry of them.

R4 http.html#transaction. Nothing is retried here and nothing decided: an answer is told apart by type (see
`medflow.errors`), and whoever delivers decides. No URL with a query or a credential, no response text and no resource
reaches a message; a server's own words about a resource are in `Answer.detail`, for SQL only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx
import orjson

from medflow.connections import http
from medflow.connections.endpoints import HttpServer
from medflow.connections.patience import retry_after_s
from medflow.errors import ConfigurationError, DeliveryRefused, ServerUnavailable

FHIR_JSON = "application/fhir+json"
BUSY = frozenset({408, 409, 412, 423, 425, 429})  # another try may succeed; 409 and 412: a concurrent writer was first
DETAIL_CHARS = 500
PROBLEMS = 5  # issues of an OperationOutcome that are told


@dataclass(frozen=True, kw_only=True, slots=True)
class Put:
    """One resource to be put where its id says: ``body`` is its JSON."""

    type: str
    id: str
    body: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a server said to one entry.

    ``reason`` is made of codes and element paths; ``detail`` is the server's own text, which may name a patient.
    """

    status: int
    reason: str = ""
    detail: str = ""
    retry_after_s: float | None = None

    @property
    def taken(self) -> bool:
        """The server has stored the resource."""
        return 200 <= self.status < 300

    @property
    def busy(self) -> bool:
        """Not taken, and the server or a concurrent writer is the cause: the same again may succeed."""
        return self.status in BUSY or self.status >= 500


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

    def __enter__(self) -> FhirClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def check(self) -> None:
        """Make sure that a FHIR R4 server answers here (its CapabilityStatement, R4 http.html#capabilities).

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

    def transact(self, puts: Sequence[Put]) -> list[Answer]:
        """Put these resources in one transaction; one answer each, in order. Repeating it does no harm.

        Raises
        ------
        DeliveryRefused
            The transaction as a whole was refused: ``answer`` (an `Answer`) says why.
        ConfigurationError, ServerUnavailable
            As for `check`; the latter also for an answer that is cut off or does not fit the transaction.
        """
        body = self._bundle(puts)
        response = self._send("POST", self.base_url, content=body, headers={"Content-Type": FHIR_JSON})
        self._check_status(response)
        outcome = _json(response)
        if response.status_code >= 400:
            answer = _answer(response.status_code, outcome, retry_after_s(response.headers.get("Retry-After")))
            raise DeliveryRefused(f"the server refused a transaction ({answer.reason})", answer=answer)
        entries = outcome.get("entry")
        if outcome.get("resourceType") != "Bundle" or not isinstance(entries, list) or len(entries) != len(puts):
            raise ServerUnavailable(f"{self.base_url} did not answer to every entry of a transaction")
        wait = retry_after_s(response.headers.get("Retry-After"))
        return [_entry_answer(entry, wait) for entry in entries]

    def _bundle(self, puts: Sequence[Put]) -> bytes:
        # bodies are JSON already: joining them spares reading and writing each one again
        entries = [
            b'{"fullUrl":%b,"request":{"method":"PUT","url":%b},"resource":%b}'
            % (orjson.dumps(f"{self.base_url}/{put.type}/{put.id}"), orjson.dumps(f"{put.type}/{put.id}"), put.body)
            for put in puts
        ]
        return b'{"resourceType":"Bundle","type":"transaction","entry":[%b]}' % b",".join(entries)

    def _send(self, method: str, url: str, **request: Any) -> httpx.Response:
        return http.send(self._http, self.server, method, url, **request)

    def _check_status(self, response: httpx.Response) -> None:
        """Raise for what concerns the server as a whole and no resource in particular."""
        http.check_status(response, self.server)
        status = response.status_code
        json = "json" in response.headers.get("Content-Type", "")
        if status == 405 or (status >= 400 and not json) or (status == 200 and not json):
            raise ConfigurationError(f"what answers at {self.base_url} is no FHIR server (HTTP {status}): {WRONG_URL}")


WRONG_URL = "give the server's FHIR base URL, which often ends in /fhir or /fhir/R4"


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        found = orjson.loads(response.content) if response.content else {}
    except orjson.JSONDecodeError:
        raise ServerUnavailable("the server's answer is cut off, or is not JSON") from None
    return found if isinstance(found, dict) else {}


def _entry_answer(entry: Any, wait: float | None) -> Answer:
    response = entry.get("response") if isinstance(entry, dict) else None
    response = response if isinstance(response, dict) else {}
    status = str(response.get("status", ""))[:3]
    outcome = response.get("outcome")
    if not (status.isascii() and status.isdigit()):
        return Answer(status=502, reason="no status in the entry's response", retry_after_s=wait)
    if outcome is None:  # some servers answer with it as the entry's resource
        outcome = entry.get("resource")
    if 200 <= int(status) < 300:
        return Answer(status=int(status))
    return _answer(int(status), outcome if isinstance(outcome, dict) else {}, wait)


def _answer(status: int, outcome: dict[str, Any], wait: float | None) -> Answer:
    """The codes and element paths of an OperationOutcome, and apart from them what it says in words."""
    reasons, words = [f"HTTP {status}"], []
    issues = outcome.get("issue") if outcome.get("resourceType") == "OperationOutcome" else None
    for issue in issues[:PROBLEMS] if isinstance(issues, list) else []:
        if not isinstance(issue, dict):
            continue
        places = issue.get("expression")
        place = f" at {places[0]}" if isinstance(places, list) and places and _is_path(places[0]) else ""
        code = issue.get("code")
        reasons.append(f"{code if isinstance(code, str) and len(code) <= 40 else 'unknown'}{place}")
        details = issue.get("details")
        text = issue.get("diagnostics") or (details.get("text") if isinstance(details, dict) else None)
        if isinstance(text, str):
            words.append(text)
    detail = "; ".join(words)[:DETAIL_CHARS]
    return Answer(status=status, reason=", ".join(reasons), detail=detail, retry_after_s=wait)


def _is_path(place: Any) -> bool:
    """An element path (Observation.value), and no FHIRPath with a value in it."""
    return isinstance(place, str) and len(place) <= 120 and all(c.isalnum() or c in ".[]" for c in place)
