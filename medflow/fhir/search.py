"""One FHIR R4 server that is asked: its capabilities, and Bundles page by page (R4 http.html#paging, search.html).

A next link leads to the same server or nowhere: no request, and no credential, goes to a host that the configuration
does not name. Times are the server's own, from its Date header, so that our clock plays no part in what is asked for.
No URL with a query and no response text reaches a message.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit

import httpx
import orjson

from medflow.connections import http
from medflow.connections.endpoints import HttpServer
from medflow.connections.patience import Patience, tries
from medflow.errors import ConfigurationError, MedflowError, ServerUnavailable, SourceUnavailable
from medflow.fhir.r4 import moment_of
from medflow.records import Instant

FHIR_JSON = "application/fhir+json"
PORTS = {"http": 80, "https": 443}
EXPIRED = frozenset({400, 404, 410})  # what servers answer to a link to a page that they no longer have
BARREN = 1000  # pages with nothing on them, in a row: some servers filter what they show, none so much
RESTARTS = 3  # of one reading whose links expired
WRONG_URL = "give the server's FHIR base URL, which often ends in /fhir or /fhir/R4"
Params = Sequence[tuple[str, str]]
Item = TypeVar("Item")


class SearchRefused(MedflowError):
    """The server answers, but not to this; ``status`` is HTTP's. Others may well be answered."""


class LinkExpired(MedflowError):
    """The server no longer has the page that a next link leads to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """One Bundle: its bytes as received and parsed, where the next one is, and what the server says it was asked.

    ``self_url`` is its link "self", with the parameters that were used, if it gives one; ``warnings`` are counted codes
    of the OperationOutcomes in it ("warning:not-supported").
    """

    raw: bytes = field(repr=False)
    bundle: Mapping[str, Any] = field(repr=False)
    next_url: str | None = field(default=None, repr=False)
    self_url: str | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Its entries, without the OperationOutcomes that the server put among them."""
        return [entry for entry in _entries(self.bundle) if not is_outcome(entry)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What a CapabilityStatement says: interactions by type (None: it lists no types), and the server's own address."""

    interactions: Mapping[str, frozenset[str]] | None = None
    url: str | None = None

    def offers(self, kind: str, interaction: str) -> bool | None:
        """Whether it has this interaction with a type; None where it does not say."""
        if self.interactions is None:
            return None
        found = self.interactions.get(kind)
        return found is not None and (not found or interaction in found)


class RecordServer:
    """A FHIR server that is read. Close it; requests are made by one thread at a time.

    Parameters
    ----------
    server
        Its address, who we are to it, and TLS.
    timeout_s
        How long it may be silent.
    also
        Other base URLs that it calls itself by: links to them are followed at its address.
    patience
        How often a request is tried.
    """

    def __init__(
        self, server: HttpServer, *, timeout_s: float, also: Sequence[str] = (), patience: Patience | None = None
    ) -> None:
        self.server, self.base_url, self._also = server, server.url, tuple(also)
        self._patience = patience or Patience()
        self._stopped = False
        self._now_us: int | None = None
        self._barren = 0  # pages in a row
        headers = {"Accept": FHIR_JSON, "Prefer": "handling=strict"}
        self._http = http.client(server, timeout_s=timeout_s, headers=headers)

    def __enter__(self) -> RecordServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self._http.close()

    @property
    def now_us(self) -> int | None:
        """The server's time when it answered last; None where it never said."""
        return self._now_us

    def capabilities(self) -> Capabilities:
        """What it can do (R4 http.html#capabilities).

        Raises
        ------
        ConfigurationError
            Something else answers, or it wants other credentials, or it speaks another FHIR version.
        SourceUnavailable
            Nobody answers, or it is overloaded.
        """
        status, _, found = self._get(f"{self.base_url}/metadata")
        if status == 403:
            raise ConfigurationError(f"{self.base_url} refuses these credentials (HTTP 403): check its auth")
        if status != 200 or found.get("resourceType") != "CapabilityStatement":
            raise ConfigurationError(f"what answers at {self.base_url} is no FHIR server: {WRONG_URL}")
        spoken = str(found.get("fhirVersion", "4.0.1"))
        if not spoken.startswith("4."):
            raise ConfigurationError(f"the server at {self.base_url} speaks FHIR {spoken[:12]}; medflow reads R4")
        return _capabilities(found)

    def page(self, url: str, params: Params = ()) -> Page:
        """One Bundle; ``params`` are of a new request, and a next link has its own.

        Raises
        ------
        SearchRefused, LinkExpired
            It does not answer to this (any more).
        ConfigurationError
            It wants other credentials, or sends on to another server.
        SourceUnavailable
            It does not answer, however often it is asked.
        """
        status, raw, bundle = self._get(url, params)
        if status in EXPIRED and not params:
            raise LinkExpired("the server no longer has the next page", status=status)
        if status >= 400:
            raise SearchRefused(f"HTTP {status}", status=status)
        if bundle.get("resourceType") != "Bundle":
            raise SearchRefused("what it answers is no Bundle", status=status)
        return Page(
            raw=raw,
            bundle=bundle,
            next_url=self._trusted(_link(bundle, "next"), url),
            self_url=_link(bundle, "self"),
            warnings=tuple(_warnings(bundle)),
        )

    def has(self, path: str) -> bool:
        """Whether it answers to a resource's address with that resource; raises as `page` where it does not answer."""
        status, _, found = self._get(f"{self.base_url}/{path}")
        return status == 200 and found.get("resourceType") == path.partition("/")[0]

    def pages(self, url: str, params: Params) -> Iterator[Page]:
        """A request's pages to the last; from the first again where links expire.

        Raises
        ------
        SearchRefused, ConfigurationError, SourceUnavailable
            As for `page`; the last also where links lead round in a circle, or expire again and again.
        """
        for _ in range(RESTARTS + 1):
            seen: set[str] = set()
            try:
                page = self.page(url, params)
                yield page
                while page.next_url is not None:
                    page = self.follow(page.next_url, seen)
                    yield page
                return
            except LinkExpired:
                continue
        raise self.forgetful()

    def follow(self, link: str, seen: set[str]) -> Page:
        """The page that a next link leads to; ``seen`` are those that led here, and this one is added."""
        if link in seen:
            raise SourceUnavailable(f"the next links of {self.base_url} lead round in a circle")
        seen.add(link)
        page = self.page(link)
        self._barren = 0 if page.entries else self._barren + 1
        if self._barren >= BARREN:
            raise SourceUnavailable(f"the next links of {self.base_url} lead on and on, to pages with nothing on them")
        return page

    def forgetful(self) -> SourceUnavailable:
        """What to raise where links expire again and again."""
        return SourceUnavailable(
            f"{self.base_url} forgets its pages before they are read: choose a larger `count`, so that there are fewer"
        )

    def stop(self) -> None:
        """Try nothing again: who asked no longer waits."""
        self._stopped = True

    def _get(self, url: str, params: Params = ()) -> tuple[int, bytes, dict[str, Any]]:
        """Status, bytes and JSON object of an answer that means something for this request alone."""
        try:
            for attempt in tries(self._patience, stopping=lambda: self._stopped):
                with attempt:
                    return self._get_once(url, params)
        except ServerUnavailable as error:
            raise SourceUnavailable(error.message, retry_after_s=error.retry_after_s) from None
        raise AssertionError("unreachable: there is at least one attempt")

    def _get_once(self, url: str, params: Params) -> tuple[int, bytes, dict[str, Any]]:
        asked: dict[str, Any] = {"params": list(params)} if params else {}
        response = http.send(self._http, self.server, "GET", url, **asked)
        if response.status_code != 501:  # not implemented: that is an answer
            http.check_status(response, self.server)
        found = self._json(response)
        self._note_time(response, found)
        return response.status_code, response.content, found

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code >= 400:
            return {}
        if "json" not in response.headers.get("Content-Type", ""):
            raise ConfigurationError(f"what answers at {self.base_url} is no FHIR server: {WRONG_URL}")
        try:
            found = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            raise ServerUnavailable(f"an answer of {self.base_url} is cut off, or is not JSON") from None
        return found if isinstance(found, dict) else {}

    def _note_time(self, response: httpx.Response, found: dict[str, Any]) -> None:
        told = _http_date(response.headers.get("Date"))
        if told is None:
            told = instant_us(_dict(found.get("meta")).get("lastUpdated"))
        if told is not None:
            self._now_us = told

    def _trusted(self, link: str | None, asked: str) -> str | None:
        """A next link at the server's own address, or none at all.

        Raises
        ------
        ConfigurationError
            It leads to another host.
        """
        if link is None:
            return None
        # R4 has relative references mean the base; a bare query and a path from the root mean what RFC 3986 says
        absolute = urljoin(asked if link[:1] in "?/" else f"{self.base_url}/", link)
        for other in self._also:
            if absolute == other or absolute.startswith((f"{other}/", f"{other}?")):
                absolute = self.base_url + absolute[len(other) :]
        there, here = urlsplit(absolute), urlsplit(self.base_url)
        if not _same_host(there, here):
            raise ConfigurationError(
                f"{self.base_url} says that its next page is at another address, {there.hostname}, which is sent "
                "nothing: if that is the same server, add the base URL that it uses there to `also` of the source"
            )
        return urlunsplit((here.scheme, here.netloc, there.path, there.query, ""))


def ahead(items: Iterator[Item], stop: Callable[[], None] = lambda: None) -> Generator[Item, None, None]:
    """Each item while a thread makes the next one; ``stop`` is called where nobody wants it any more."""
    end = object()
    pool = ThreadPoolExecutor(1, "page")
    try:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item  # type: ignore[misc]  # it is not the end
    except BaseException:  # an interrupt among them: nothing is tried again while the thread is waited for
        stop()
        raise
    finally:
        pool.shutdown()


def is_outcome(entry: Mapping[str, Any]) -> bool:
    """Whether an entry is no result: what the server has to say about the search."""
    mode = _dict(entry.get("search")).get("mode")
    return mode == "outcome" or _dict(entry.get("resource")).get("resourceType") == "OperationOutcome"


def is_match(entry: Mapping[str, Any]) -> bool:
    """Whether an entry is what was searched for, and not included with it."""
    return _dict(entry.get("search")).get("mode", "match") == "match"


def updated_us(entry: Mapping[str, Any]) -> int | None:
    """When an entry's resource was last updated, as its server has it."""
    return instant_us(_dict(_dict(entry.get("resource")).get("meta")).get("lastUpdated"))


def instant_us(text: Any) -> int | None:
    """A FHIR instant in microseconds since 1970-01-01T00:00Z."""
    moment = moment_of(text) if isinstance(text, str) else None
    return Instant.of(moment).utc_us if moment is not None and moment.tzinfo is not None else None


def _http_date(value: str | None) -> int | None:
    try:
        moment = parsedate_to_datetime(value) if value else None
    except ValueError:
        return None
    if moment is None:
        return None
    return Instant.of(moment if moment.tzinfo else moment.replace(tzinfo=UTC)).utc_us


def _same_host(one: SplitResult, other: SplitResult) -> bool:
    """The same host at the same port; or each at its scheme's own, as behind a proxy that ends TLS."""
    try:
        ports = [parts.port or PORTS.get(parts.scheme, 0) for parts in (one, other)]
    except ValueError:
        return False
    usual = all(port == PORTS.get(parts.scheme) for port, parts in zip(ports, (one, other), strict=True))
    return one.scheme in PORTS and one.hostname == other.hostname and (ports[0] == ports[1] or usual)


def _capabilities(statement: Mapping[str, Any]) -> Capabilities:
    found: dict[str, frozenset[str]] = {}
    for rest in _dicts(statement.get("rest")):
        for item in _dicts(rest.get("resource")):
            codes = (interaction.get("code") for interaction in _dicts(item.get("interaction")))
            if rest.get("mode", "server") == "server" and isinstance(item.get("type"), str):
                found[item["type"]] = frozenset(code for code in codes if isinstance(code, str))
    url = _dict(statement.get("implementation")).get("url")
    return Capabilities(interactions=found or None, url=url.rstrip("/") if isinstance(url, str) else None)


def _link(bundle: Mapping[str, Any], relation: str) -> str | None:
    for link in _dicts(bundle.get("link")):
        if link.get("relation") == relation and isinstance(link.get("url"), str) and link["url"]:
            return link["url"]
    return None


def _warnings(bundle: Mapping[str, Any]) -> Iterator[str]:
    for entry in _entries(bundle):
        for issue in _dicts(_dict(entry.get("resource")).get("issue")) if is_outcome(entry) else ():
            said = [issue.get(name) for name in ("severity", "code")]
            plain = all(isinstance(word, str) and len(word) < 30 and word.replace("-", "").isalpha() for word in said)
            yield ":".join(map(str, said)) if plain else "unknown"


def _entries(bundle: Mapping[str, Any]) -> list[dict[str, Any]]:
    return _dicts(bundle.get("entry"))


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
