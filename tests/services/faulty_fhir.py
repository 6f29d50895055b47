"""A FHIR server that misbehaves to order: it takes transactions of PUTs, unless its script says otherwise."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OUTCOME = {
    "resourceType": "OperationOutcome",
    "issue": [
        {
            "severity": "error",
            "code": "invalid",
            "expression": ["Observation.value"],
            "diagnostics": "SECRET of Jane Doe",
        }
    ],
}


@dataclass(kw_only=True)
class Reply:
    """What is sent back instead. ``statuses``: of the entries, by resource type, inside a 200."""

    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    wait_s: float = 0.0
    cut: int | None = None  # bytes of the body that are left out
    hang_up: bool = False


@dataclass(kw_only=True)
class FaultyServer:
    """What it was sent and what it is to do next. ``script`` is used up by transactions, one reply each."""

    url: str = ""
    script: deque[Reply] = field(default_factory=deque)
    always: Callable[[list[str]], Reply | None] = lambda _urls: None
    metadata: Reply = field(default_factory=Reply)
    stored: dict[str, dict[str, Any]] = field(default_factory=dict)
    transactions: list[list[str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    encodings: list[str | None] = field(default_factory=list)
    authorizations: set[str | None] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def faulty_fhir() -> Iterator[FaultyServer]:
    """Start it on a free port; stops with the block."""
    told = FaultyServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            told.authorizations.add(self.headers.get("Authorization"))
            statement = {"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1"}
            self._send(told.metadata, json.dumps(statement).encode())

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            told.encodings.append(encoding := self.headers.get("Content-Encoding"))
            bundle = json.loads(gzip.decompress(sent) if encoding == "gzip" else sent)
            urls = [entry["request"]["url"] for entry in bundle["entry"]]
            with told.lock:
                told.transactions.append(urls)
                told.times.append(time.monotonic())
                reply = told.script.popleft() if told.script else told.always(urls) or Reply()
            entries = []
            for entry in bundle["entry"]:
                url = entry["request"]["url"]
                status = reply.statuses.get(url.split("/")[0], 200)
                if status == 200 and reply.status == 200 and not reply.hang_up:
                    told.stored[url] = entry["resource"]
                response: dict[str, Any] = {"status": str(status)}
                if status >= 400:
                    response["outcome"] = OUTCOME
                entries.append({"response": response})
            answer = {"resourceType": "Bundle", "type": "transaction-response", "entry": entries}
            self._send(reply, json.dumps(answer if reply.status == 200 else OUTCOME).encode())

        def _send(self, reply: Reply, body: bytes) -> None:
            time.sleep(reply.wait_s)
            if reply.hang_up:
                self.close_connection = True
                return
            body = body if reply.body is None else reply.body
            self.send_response(reply.status)
            headers = {"Content-Type": "application/fhir+json", "Content-Length": str(len(body)), **reply.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body if reply.cut is None else body[: -reply.cut])
            self.close_connection = reply.cut is not None

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
