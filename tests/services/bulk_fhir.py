"""A FHIR server with Bulk Data exports: its records change, its files lie here or at another host, and it can fail.

It keeps a clock of its own (a second for every change), so that what `_since` and transactionTime mean can be seen. An
object store is a second `bulk_server` whose ``files`` are the first one's.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

SECRET = "Jane Doe, born 1970"
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
Token = str | Callable[[str], bool] | None  # the one that is asked for, or what says whether one is good


def outcome(code: str, severity: str = "error") -> dict[str, Any]:
    """An OperationOutcome whose words name a patient."""
    return {
        "resourceType": "OperationOutcome",
        "issue": [{"severity": severity, "code": code, "diagnostics": SECRET}],
    }


@dataclass(kw_only=True)
class Seen:
    """One request."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]


@dataclass(kw_only=True)
class Export:
    """One export: the files it consists of, by name, and how often its status may still say that it is not done."""

    transaction: str
    names: dict[str, list[tuple[str, str]]]  # section: (type, name of the file)
    counts: dict[str, int]
    pending: int


@dataclass(kw_only=True)
class BulkFhirServer:
    """What it holds, what it was asked, and how it is to behave."""

    url: str = ""
    clock: int = 0
    records: dict[tuple[str, str], tuple[int, dict[str, Any]]] = field(default_factory=dict)
    gone: dict[tuple[str, str], int] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    exports: dict[str, Export] = field(default_factory=dict)
    begun: int = 0
    requests: list[Seen] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)  # bytes of each file's body that left

    per_file: int = 100
    per_page: int | None = None  # files on a page of the manifest
    pending: int = 1
    retry_after: str | None = "0"
    progress: str = f"40% of {SECRET}"
    polls: list[tuple[int, dict[str, str], Any]] = field(default_factory=list)  # answers to come first
    kick_offs: list[tuple[int, dict[str, str], Any]] = field(default_factory=list)
    token: Token = None
    requires_token: bool = False
    file_base: str = ""  # where files are said to lie
    file_token: Token = None  # that files are asked for
    signature: int | None = None  # of the addresses of files; others are refused
    cuts: dict[str, list[int]] = field(default_factory=dict)  # after how many bytes of a body to hang up, each once
    hangs: set[str] = field(default_factory=set)  # files whose body never ends
    ranges: bool = True
    gzipped: bool = False
    redirect_to: str | None = None
    add_to_count: dict[str, int] = field(default_factory=dict)

    def put(self, **resource: Any) -> None:
        """Create or change a record."""
        self.clock += 1
        key = (resource["resourceType"], resource["id"])
        version = {"versionId": str(self.clock), "lastUpdated": self.moment()}
        self.gone.pop(key, None)
        self.records[key] = (self.clock, {**resource, "meta": version})

    def delete(self, kind: str, name: str) -> None:
        """Delete a record."""
        self.clock += 1
        del self.records[kind, name]
        self.gone[kind, name] = self.clock

    def moment(self) -> str:
        """The server's time."""
        return (EPOCH + timedelta(seconds=self.clock)).isoformat().replace("+00:00", "Z")

    def asked(self, method: str, pattern: str) -> list[Seen]:
        """The requests so far whose path matches."""
        return [seen for seen in self.requests if seen.method == method and re.search(pattern, seen.path)]

    def export(self, level: str, types: list[str], since: str | None) -> str:
        """Begin an export; its number."""
        self.begun += 1
        number = str(self.begun)
        after = (datetime.fromisoformat(since) - EPOCH).total_seconds() if since else -1
        export = Export(
            transaction=self.moment(), names={"output": [], "deleted": [], "error": []}, counts={}, pending=self.pending
        )
        wanted = [key for key in sorted(self.records) if not types or key[0] in types]
        changed = [self.records[key] for key in wanted if self.records[key][0] > after]
        for kind in dict.fromkeys(resource["resourceType"] for _, resource in changed):
            lines = [resource for _, resource in changed if resource["resourceType"] == kind]
            for start in range(0, len(lines), self.per_file):
                self._keep(export, number, "output", kind, lines[start : start + self.per_file])
        deleted = [key for key, when in sorted(self.gone.items()) if since and when > after]
        if deleted:
            entries = [{"request": {"method": "DELETE", "url": "/".join(key)}} for key in deleted]
            bundle = {
                "resourceType": "Bundle",
                "type": "transaction",
                "meta": {"lastUpdated": self.moment()},
                "entry": entries,
            }
            self._keep(export, number, "deleted", "Bundle", [bundle])
        if self.errors:
            self._keep(export, number, "error", "OperationOutcome", self.errors)
        self.exports[number] = export
        return number

    def _keep(self, export: Export, number: str, section: str, kind: str, lines: list[dict[str, Any]]) -> None:
        name = f"{number}-{section}-{kind}-{len(export.names[section])}.ndjson"
        self.files[name] = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        export.names[section].append((kind, name))
        export.counts[name] = len(lines) + self.add_to_count.get(name, 0)

    def manifest(self, number: str, page: int) -> dict[str, Any]:
        """A page of a finished export's manifest."""
        export = self.exports[number]
        named = [(section, kind, name) for section, files in export.names.items() for kind, name in files]
        size = self.per_page or max(len(named), 1)
        found: dict[str, Any] = {
            "transactionTime": export.transaction,
            "request": f"{self.url}/$export",
            "requiresAccessToken": self.requires_token,
            "output": [],
            "deleted": [],
            "error": [],
        }
        signed = "" if self.signature is None else f"?X-Amz-Signature={self.signature}"
        for section, kind, name in named[page * size : (page + 1) * size]:
            url = f"{self.file_base or self.url}/files/{name}{signed}"
            found[section].append({"type": kind, "url": url, "count": export.counts[name]})
        if (page + 1) * size < len(named):
            found["link"] = [{"relation": "next", "url": f"{self.url}/status/{number}/{page + 1}"}]
        return found


@contextmanager
def bulk_server() -> Iterator[BulkFhirServer]:
    """Start it on a free port; stops with the block."""
    told = BulkFhirServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(told))
    server.daemon_threads = True
    told.url = f"http://127.0.0.1:{server.server_port}/fhir"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield told
    finally:
        told.hangs.clear()
        server.shutdown()
        server.server_close()


def _handler(told: BulkFhirServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            path, query = self._heard()
            if not path.startswith("/files/") and not self._allowed(told.token):
                return
            if path.endswith("$export"):
                self._kick_off(path, query)
            elif path.startswith("/status/"):
                self._status(path)
            else:
                self._file(path.rpartition("/")[2], query)

        def do_DELETE(self) -> None:
            path, _ = self._heard()
            if self._allowed(told.token):
                known = told.exports.pop(path.split("/")[2], None)
                self._answer(202 if known else 404, {})

        def _heard(self) -> tuple[str, dict[str, str]]:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            path = parts.path.removeprefix("/fhir")
            told.requests.append(Seen(method=self.command, path=path, query=query, headers=dict(self.headers)))
            return path, query

        def _allowed(self, token: Token) -> bool:
            _, _, given = self.headers.get("Authorization", "").partition("Bearer ")
            if token is None or (token(given) if callable(token) else token == given):
                return True
            self._answer(401, {}, outcome("login"))
            return False

        def _kick_off(self, path: str, query: dict[str, str]) -> None:
            if told.kick_offs:
                self._answer(*told.kick_offs.pop(0))
                return
            types = query["_type"].split(",") if "_type" in query else []
            number = told.export(path, types, query.get("_since"))
            self._answer(202, {"Content-Location": f"{told.url}/status/{number}"})

        def _status(self, path: str) -> None:
            _, _, number, *page = path.split("/")
            if told.polls and not page:
                self._answer(*told.polls.pop(0))
                return
            export = told.exports.get(number)
            if export is None:
                self._answer(404, {}, outcome("not-found"))
            elif export.pending > 0:
                export.pending -= 1
                headers = {"X-Progress": told.progress}
                self._answer(202, headers | ({"Retry-After": told.retry_after} if told.retry_after else {}))
            else:
                self._answer(200, {}, told.manifest(number, int(page[0]) if page else 0))

        def _answer(self, status: int, headers: dict[str, str], body: Any = None) -> None:
            data = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(data)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def _file(self, name: str, query: dict[str, str]) -> None:
            if told.redirect_to is not None:
                self._answer(307, {"Location": f"{told.redirect_to}/files/{name}"})
                return
            if told.signature is not None and query.get("X-Amz-Signature") != str(told.signature):
                self._answer(403, {})
                return
            if not self._allowed(told.file_token):
                return
            if name not in told.files:
                self._answer(404, {})
                return
            body = gzip.compress(told.files[name], mtime=0) if told.gzipped else told.files[name]
            start, tag = 0, f'"{name}"'
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if told.ranges and asked and self.headers.get("If-Range") == tag:
                start = int(asked[1])
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", "application/fhir+ndjson")
            self.send_header("Content-Length", str(len(body) - start))
            if told.gzipped:
                self.send_header("Content-Encoding", "gzip")
            if told.ranges:
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("ETag", tag)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            self._body(name, body[start:])

        def _body(self, name: str, body: bytes) -> None:
            cuts = told.cuts.get(name)
            end = cuts.pop(0) if cuts else len(body)
            if name in told.hangs:
                end //= 2
            self.wfile.write(body[:end])
            self.wfile.flush()
            told.sent[name] += len(body[:end])
            while name in told.hangs:
                time.sleep(0.02)
            self.close_connection = end < len(body)

    return Handler
