"""A small FHIR server of our own that is searched by `_lastUpdated` and answers in pages, with the habits of real ones.

Its clock is its own (`now`), what it shows as Date may be off, what is written may show late, pages may be cut by
offset (so that they shift when something changes between them) or be a snapshot whose links expire. A test writes with
`put` and `delete`, and changes what is asked for under way with `on_request`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

START = datetime(2026, 3, 1, 6, 0, tzinfo=UTC)
SHIFTING, SNAPSHOT = "shifting", "snapshot"


@dataclass(kw_only=True)
class Stored:
    """One resource: its versions' last, when it was written, and from when it is found."""

    resource: dict[str, Any]
    written: datetime
    visible: datetime
    version: int
    deleted: bool = False


@dataclass(kw_only=True)
class PagingServer:
    """What it holds and how it behaves. `requests` are the paths and queries that it was asked, in order."""

    url: str = ""
    now: datetime = START
    tick: timedelta = timedelta(milliseconds=10)  # between writes
    date_skew: timedelta = timedelta()  # of the Date header
    dated: bool = True
    paging: str = SHIFTING
    lifetime: int = 1_000_000  # requests that a snapshot's links live
    most: int = 1000  # entries a page, whatever is asked
    sorts: bool = True
    filters: bool = True  # whether it knows _lastUpdated
    finds_nothing: bool = False  # ... and what it then does
    self_links: bool = True
    next_links: bool = True
    history: bool = True
    everything: bool = True
    absolute: bool = True  # next links
    public: str | None = None  # the base URL that it believes it has
    types: tuple[str, ...] | None = None  # that its CapabilityStatement has; None: it says nothing of types
    refused: dict[str, int] = field(default_factory=dict)  # type -> status
    warns: bool = False
    next_link: Callable[[str], str] = lambda link: link
    page_body: Callable[[bytes], bytes] = lambda body: body
    on_request: Callable[[PagingServer, str], int | None] = lambda _server, _path: None  # a status to answer with
    held: dict[tuple[str, str], Stored] = field(default_factory=dict)
    snapshots: dict[str, tuple[int, list[dict[str, Any]], str]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    # --- what a test does to it ------------------------------------------------------------------------------------

    def put(self, resource: dict[str, Any], *, late: timedelta = timedelta()) -> dict[str, Any]:
        """Write a resource, found only after ``late``."""
        with self.lock:
            self.now += self.tick
            key = resource["resourceType"], resource["id"]
            version = self.held[key].version + 1 if key in self.held else 1
            meta = {"versionId": str(version), "lastUpdated": _text(self.now)}
            stored = {"resourceType": key[0], "id": key[1], "meta": meta, **resource}
            self.held[key] = Stored(resource=stored, written=self.now, visible=self.now + late, version=version)
            return stored

    def delete(self, kind: str, name: str) -> None:
        """Delete a resource; its history remembers it."""
        with self.lock:
            self.now += self.tick
            found = self.held[kind, name]
            found.deleted, found.written, found.visible = True, self.now, self.now
            found.version += 1

    @property
    def searches(self) -> list[str]:
        """The requests that were searches or pages of one."""
        return [path for path in self.requests if not path.startswith(("/metadata",)) and "_history" not in path]

    # --- what it answers -------------------------------------------------------------------------------------------

    def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        parts = urlsplit(path)
        query = parse_qsl(parts.query)
        asked = dict(query)
        if parts.path == "/metadata":
            return 200, self._capabilities()
        if "_page" in asked:
            return self._page(asked)
        kind, _, rest = parts.path.strip("/").partition("/")
        if kind in self.refused:
            return self.refused[kind], {"resourceType": "OperationOutcome", "issue": [{"code": "forbidden"}]}
        if rest.endswith("/$everything"):
            name = rest.partition("/")[0]
            if not self.everything or ("Patient", name) not in self.held:
                return 404, {"resourceType": "OperationOutcome", "issue": [{"code": "not-found"}]}
            found = [self._entry(item) for item in self._visible() if _about(item.resource, name)]
            return self._first(path, found, int(asked.get("_count", 100)), type="searchset")
        if rest == "_history":
            if not self.history:
                return 404, {"resourceType": "OperationOutcome", "issue": [{"code": "not-supported"}]}
            since = datetime.fromisoformat(asked["_since"])
            changed = [item for (its, _), item in self.held.items() if its == kind and item.written >= since]
            changed.sort(key=lambda item: item.written, reverse=True)
            return self._first(
                path, [self._version(item) for item in changed], int(asked.get("_count", 100)), "history"
            )
        if rest:
            item = self.held.get((kind, rest))
            return (404, {"resourceType": "OperationOutcome"}) if item is None or item.deleted else (200, item.resource)
        return self._search(path, kind, query)

    def _search(self, path: str, kind: str, query: list[tuple[str, str]]) -> tuple[int, dict[str, Any]]:
        asked = dict(query)
        if "_lastUpdated" in asked and not self.filters and self.finds_nothing:
            return self._first(path, [], 10, "searchset")
        matches = [item for item in self._visible() if item.resource["resourceType"] == kind]
        if self.filters:
            for name, value in query:
                if name == "_lastUpdated":
                    limit = datetime.fromisoformat(value[2:])
                    later = value.startswith("ge")
                    matches = [item for item in matches if (item.written >= limit) == later]
        if self.sorts and "_sort" in asked:
            matches.sort(key=lambda item: item.written, reverse=asked["_sort"].startswith("-"))
        else:
            matches.sort(key=lambda item: item.resource["id"])
        entries = [self._entry(item) for item in matches]
        return self._first(path, entries, int(asked.get("_count", 100)), "searchset", asked.get("_include"))

    def _first(
        self, path: str, entries: list[dict[str, Any]], count: int, type: str, include: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        count = min(count, self.most)
        token = str(len(self.snapshots))
        self.snapshots[token] = (len(self.requests), entries, path)
        return self._cut(token, entries, 0, count, type, path, include)

    def _page(self, asked: dict[str, str]) -> tuple[int, dict[str, Any]]:
        made, entries, path = self.snapshots[asked["_page"]]
        if len(self.requests) - made > self.lifetime:
            return 410, {"resourceType": "OperationOutcome", "issue": [{"code": "expired"}]}
        offset, count, type = int(asked["_offset"]), int(asked["_count"]), asked["_type"]
        if self.paging == SHIFTING and type == "searchset" and "$everything" not in path:
            token = str(len(self.snapshots))
            self._search(path, urlsplit(path).path.strip("/"), parse_qsl(urlsplit(path).query))  # as it is now
            entries = self.snapshots[token][1]
        include = dict(parse_qsl(urlsplit(path).query)).get("_include")
        return self._cut(asked["_page"], entries, offset, count, type, path, include)

    def _cut(
        self,
        token: str,
        entries: list[dict[str, Any]],
        offset: int,
        count: int,
        type: str,
        path: str,
        include: str | None,
    ) -> tuple[int, dict[str, Any]]:
        shown = entries[offset : offset + count]
        base = self.public or self.url
        links = []
        if self.self_links:
            query = [
                item
                for item in parse_qsl(urlsplit(path).query)
                if (self.filters or item[0] != "_lastUpdated") and (self.sorts or item[0] != "_sort")
            ]
            links.append({"relation": "self", "url": f"{base}{urlsplit(path).path}?{urlencode(query)}"})
        if self.next_links and offset + count < len(entries):
            following = {"_page": token, "_offset": offset + count, "_count": count, "_type": type}
            link = f"?{urlencode(following)}"
            links.append({"relation": "next", "url": self.next_link(f"{base}{link}" if self.absolute else link)})
        if include is not None:
            shown = [*shown, *self._included(shown, include.partition(":")[2])]
        if self.warns:
            outcome = {"resourceType": "OperationOutcome", "issue": [{"severity": "warning", "code": "not-supported"}]}
            shown = [*shown, {"resource": outcome, "search": {"mode": "outcome"}}]
        bundle = {"resourceType": "Bundle", "type": type, "total": 7, "link": links}
        return 200, {**bundle, "entry": shown} if shown else bundle

    def _included(self, shown: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
        names = {entry["resource"].get(name, {}).get("reference") for entry in shown}
        return [
            {**self._entry(item), "search": {"mode": "include"}}
            for (kind, name), item in self.held.items()
            if f"{kind}/{name}" in names
        ]

    def _visible(self) -> list[Stored]:
        return [item for item in self.held.values() if item.visible <= self.now and not item.deleted]

    def _entry(self, item: Stored) -> dict[str, Any]:
        url = f"{self.public or self.url}/{item.resource['resourceType']}/{item.resource['id']}"
        return {"fullUrl": url, "resource": item.resource, "search": {"mode": "match"}}

    def _version(self, item: Stored) -> dict[str, Any]:
        url = f"{item.resource['resourceType']}/{item.resource['id']}"
        response = {"status": "204" if item.deleted else "200", "lastModified": _text(item.written)}
        request = {"method": "DELETE" if item.deleted else "PUT", "url": url}
        full = {"fullUrl": f"{self.public or self.url}/{url}", "request": request, "response": response}
        return full if item.deleted else {**full, "resource": item.resource}

    def _capabilities(self) -> dict[str, Any]:
        rest: dict[str, Any] = {"mode": "server"}
        if self.types is not None:
            codes = ["read", "search-type", *(["history-type"] if self.history else [])]
            interactions = [{"code": code} for code in codes]
            rest["resource"] = [{"type": name, "interaction": interactions} for name in self.types]
        return {"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1", "rest": [rest]}


def _about(resource: dict[str, Any], name: str) -> bool:
    its = (resource["resourceType"], resource["id"]) == ("Patient", name)
    return its or resource.get("subject", {}).get("reference", "").endswith(f"Patient/{name}")


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


@contextmanager
def paging_fhir(**habits: Any) -> Iterator[PagingServer]:
    """Start it on a free port; stops with the block."""
    told = PagingServer(**habits)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_arguments: object) -> None:
            pass

        def date_time_string(self, timestamp: float | None = None) -> str:
            return format_datetime(told.now + told.date_skew, usegmt=True)

        def do_GET(self) -> None:
            path = self.path.removeprefix("/fhir") or "/"
            with told.lock:
                told.requests.append(path)
                told.authorizations.append(self.headers.get("Authorization"))
                status = told.on_request(told, path)
                code, answer = told.answer(path) if status is None else (status, {"resourceType": "OperationOutcome"})
                body = json.dumps(answer).encode()
                if "_history" not in path and path != "/metadata":
                    body = told.page_body(body)
            self.send_response_only(code)
            if told.dated:
                self.send_header("Date", self.date_time_string())
            self.send_header("Content-Type", "application/fhir+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    told.url = f"http://127.0.0.1:{server.server_port}/fhir"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
