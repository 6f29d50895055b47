"""A proxy on the loopback between medflow and a server, with faults that are switched on and off while it runs.

`http_proxy` understands HTTP/1.1 and passes on whole requests and answers, so that it can answer in the server's place
or cut an answer in its middle; `tcp_proxy` passes on bytes and knows nothing of what they mean (DICOM's upper layer).
"""

from __future__ import annotations

import http.client
import io
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from tests.services import free_port

Kind = Literal["refuse", "reset", "hang", "stall", "drip", "status", "pad", "cut"]
Side = Literal["request", "answer"]
CHUNK = 65536
BEAT_S = 0.02  # how soon a thread that waits sees that its fault is over
HOP = frozenset({"connection", "keep-alive", "proxy-connection", "transfer-encoding", "te", "trailer", "upgrade"})
REDONE = frozenset({"accept-encoding", "content-length", "expect"})  # said anew by the proxy, or not at all
OUTCOME = b'{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"transient"}]}'


@dataclass(kw_only=True, eq=False)
class Fault:
    """What goes wrong, once ``after_requests`` passed, for the next ``connections`` or ``requests`` (None: for all).

    ``after_bytes`` go through before it, of each connection and the given side (over HTTP: of each answer or request
    body); None is half of an answer or body, and at once where nothing is known of the length.
    """

    kind: Kind
    side: Side = "answer"
    after_bytes: int | None = None
    after_requests: int = 0
    connections: int | None = None
    requests: int | None = None
    status: int = 200
    retry_after_s: float | None = None
    bytes_per_s: float = 0.0
    struck: int = 0  # connections or requests that met it
    over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _met: set[int] = field(default_factory=set)

    def meets_connection(self, number: int) -> bool:
        """Whether this connection is one of those that it is for."""
        with self._lock:
            if self.over.is_set():
                return False
            if number not in self._met:
                if self.connections is not None and len(self._met) >= self.connections:
                    return False
                self._met.add(number)
                self.struck += 1
            return True

    def meets_request(self, number: int) -> bool:
        """Whether the next request, of this connection, is one of those that it is for."""
        with self._lock:
            if self.over.is_set() or (self.requests is not None and self.struck >= self.requests):
                return False
            if self.after_requests:
                self.after_requests -= 1
                return False
            if number not in self._met and self.connections is not None and len(self._met) >= self.connections:
                return False
            self._met.add(number)
            self.struck += 1
            return True


def refused(*, after_requests: int = 0) -> Fault:
    """Nobody listens, and those who were connected are not any more."""
    return Fault(kind="refuse", after_requests=after_requests)


def reset(*, side: Side = "answer", after_bytes: int | None = None, **limits: Any) -> Fault:
    """The connection is torn down (RST) in the middle."""
    return Fault(kind="reset", side=side, after_bytes=after_bytes, **limits)


def hung(**limits: Any) -> Fault:
    """It takes connections and requests, and never answers."""
    return Fault(kind="hang", **limits)


def stalled(*, after_bytes: int | None = None, **limits: Any) -> Fault:
    """It begins to answer, and goes silent."""
    return Fault(kind="stall", after_bytes=after_bytes, **limits)


def dripping(bytes_per_s: float, **limits: Any) -> Fault:
    """It answers, so many bytes a second."""
    return Fault(kind="drip", bytes_per_s=bytes_per_s, **limits)


def answering(status: int, *, retry_after_s: float | None = None, **limits: Any) -> Fault:
    """HTTP: it answers with this status; the server is not asked."""
    return Fault(kind="status", status=status, retry_after_s=retry_after_s, **limits)


def padded(**limits: Any) -> Fault:
    """HTTP: half of the body is missing, and the Content-Length is right: blanks take its place."""
    return Fault(kind="pad", **limits)


def cut(**limits: Any) -> Fault:
    """HTTP: half of the body is missing, and the connection is closed in good order."""
    return Fault(kind="cut", **limits)


class FaultProxy:
    """A proxy that runs until `close`. ``requests`` counts what was asked of it; ``connections`` who came."""

    def __init__(self, host: str, port: int, *, speaks_http: bool, listen: int | None = None) -> None:
        self.upstream = (host, port)
        self.port = listen or free_port()
        self.connections = 0
        self.requests = 0
        self._speaks_http = speaks_http
        self._fault: Fault | None = None
        self._live: dict[int, list[socket.socket]] = {}
        self._lock = threading.Lock()
        self._switching = threading.Lock()
        self._closing = threading.Event()
        self._listener = self._listen()
        self._listening = True
        self._thread = threading.Thread(target=self._accept, name="fault-proxy", daemon=True)
        self._thread.start()

    @property
    def authority(self) -> str:
        """Its own host and port, as in a URL."""
        return f"127.0.0.1:{self.port}"

    # --- switched by the tests -----------------------------------------------------------------------------------

    def begin(self, fault: Fault) -> Fault:
        """Switch a fault on, in place of one that may be on."""
        self.end()
        self._fault = fault
        if fault.kind == "refuse" and not fault.after_requests:
            self.leave(fault)
        return fault

    def leave(self, fault: Fault) -> None:
        """Listen no more, as a server that ended: the port stays ours, and the system refuses who connects."""
        with self._switching:
            # It is over by now, or another connection met it first: Linux shuts whatever is accepted later where a
            # listener is shut down twice
            if fault is not self._fault or not self._listening:
                return
            self._listening = False
            self._listener.shutdown(socket.SHUT_RDWR)
            self._hang_up()

    def end(self) -> None:
        """Switch it off; who was left hanging is hung up on."""
        with self._switching:
            fault, self._fault = self._fault, None
            if fault is not None:
                fault.over.set()
                if not self._listening:
                    self._listener.listen(128)
                    self._listening = True

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[Fault]:
        """The fault is on inside the block."""
        self.begin(fault)
        try:
            yield fault
        finally:
            self.end()

    def close(self) -> None:
        """Stop."""
        self.end()
        self._closing.set()
        self._thread.join()
        self._listener.close()
        self._hang_up()

    # --- connections ---------------------------------------------------------------------------------------------

    def _listen(self) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.setblocking(False)
        listener.listen(128)
        return listener

    def _hang_up(self) -> None:
        with self._lock:
            found = [each for sockets in self._live.values() for each in sockets]
        for each in found:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._closing.is_set():
            client = self._next()
            if client is None:
                continue
            with self._lock:
                self.connections += 1
                number = self.connections
                self._live[number] = [client]
            client.setblocking(True)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(number, client), daemon=True).start()

    def _next(self) -> socket.socket | None:
        try:
            ready, _, _ = select.select([self._listener], [], [], BEAT_S)
            return self._listener.accept()[0] if ready else None
        except (OSError, ValueError):  # nobody listens now
            self._closing.wait(BEAT_S)
            return None

    def _serve(self, number: int, client: socket.socket) -> None:
        try:
            with suppress(OSError, http.client.HTTPException):
                (_Http if self._speaks_http else _Tcp)(self, number, client).serve()
        finally:
            with self._lock:
                sockets = self._live.pop(number, [])
            for each in sockets:
                each.close()

    def connected(self, number: int) -> socket.socket:
        """A connection to the server, that ends with the client's."""
        upstream = socket.create_connection(self.upstream, timeout=30)
        upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._live.setdefault(number, []).append(upstream)
        return upstream

    def met_by_connection(self, number: int) -> Fault | None:
        """The fault that this connection meets now."""
        fault = self._fault
        return fault if fault is not None and fault.meets_connection(number) else None

    def met_by_request(self, number: int) -> Fault | None:
        """The fault that the next request of this connection meets."""
        fault = self._fault
        with self._lock:
            self.requests += 1
        return fault if fault is not None and fault.meets_request(number) else None


def _tear_down(*sockets: socket.socket) -> None:
    for each in sockets:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        each.close()


def _drip(fault: Fault, out: socket.socket, data: bytes) -> None:
    step = max(1, round(fault.bytes_per_s * BEAT_S))
    for start in range(0, len(data), step):
        if fault.over.is_set():
            out.sendall(data[start:])
            return
        out.sendall(data[start : start + step])
        time.sleep(step / fault.bytes_per_s)


# --- bytes -------------------------------------------------------------------------------------------------------


class _Tcp:
    """One connection, passed on in both directions by one thread, so that tearing it down is at once."""

    def __init__(self, proxy: FaultProxy, number: int, client: socket.socket) -> None:
        self._proxy, self._number, self._client = proxy, number, client
        self._passed = {"request": 0, "answer": 0}

    def serve(self) -> None:
        server = self._proxy.connected(self._number)
        while True:
            ready, _, _ = select.select([self._client, server], [], [], BEAT_S)
            for each in ready:
                side, out = ("request", server) if each is self._client else ("answer", self._client)
                data = each.recv(CHUNK)
                if not data or not self._pass_on(side, data, out):
                    _tear_down(server, self._client) if data else None
                    return

    def _pass_on(self, side: Side, data: bytes, out: socket.socket) -> bool:
        """Returns whether the connection lives on."""
        fault = self._proxy.met_by_connection(self._number)
        concerned = fault is not None and (fault.kind == "hang" or fault.side == side)
        if fault is not None and concerned and fault.kind != "drip":
            room = 0 if fault.kind == "hang" else max(0, (fault.after_bytes or 0) - self._passed[side])
            if len(data) > room:
                out.sendall(data[:room])
                if fault.kind != "reset":
                    fault.over.wait()
                return False
        self._passed[side] += len(data)
        if fault is not None and concerned and fault.kind == "drip":
            _drip(fault, out, data)
        else:
            out.sendall(data)
        return True


# --- HTTP --------------------------------------------------------------------------------------------------------


class _Http:
    """One connection, request by request (RFC 9112)."""

    def __init__(self, proxy: FaultProxy, number: int, client: socket.socket) -> None:
        self._proxy, self._number, self._client = proxy, number, client
        self._in = client.makefile("rb")
        self._server: http.client.HTTPConnection | None = None

    def serve(self) -> None:
        try:
            while (line := self._in.readline(CHUNK)).strip():
                method, path, _ = line.decode("latin-1").split()
                headers = http.client.parse_headers(self._in)
                fault = self._proxy.met_by_request(self._number)
                if fault is not None and fault.kind == "refuse":
                    self._proxy.leave(fault)
                    return
                if fault is not None and fault.kind == "reset" and fault.side == "request":
                    half = int(headers.get("Content-Length", 0)) // 2
                    self._read_body(headers, most=half if fault.after_bytes is None else fault.after_bytes)
                    self._tear_down()
                    return
                body = self._read_body(headers)
                if not self._answer(fault, method, path, headers, body):
                    return
        finally:
            self._in.close()

    def _read_body(self, headers: http.client.HTTPMessage, *, most: int | None = None) -> bytes:
        """The body, or ``most`` bytes of it."""
        if "chunked" in headers.get("Transfer-Encoding", "").lower():
            body = io.BytesIO()
            while size := int(self._in.readline(CHUNK).split(b";")[0], 16):
                body.write(self._in.read(size))
                self._in.readline(CHUNK)
            while self._in.readline(CHUNK).strip():
                pass
            return body.getvalue()
        length = int(headers.get("Content-Length", 0))
        return self._in.read(length if most is None else min(length, most))

    def _answer(
        self, fault: Fault | None, method: str, path: str, headers: http.client.HTTPMessage, body: bytes
    ) -> bool:
        """Returns whether the connection lives on."""
        if fault is None:
            self._client.sendall(b"".join(self._asked(method, path, headers, body)))
            return True
        kind = fault.kind
        if kind == "hang":
            fault.over.wait()
            self._tear_down()
            return False
        if kind == "status":
            self._client.sendall(_refusal(fault) + (OUTCOME if method != "HEAD" else b""))
            return True
        head, content = self._asked(method, path, headers, body)
        half = len(head) + len(content) // 2 if fault.after_bytes is None else fault.after_bytes
        if kind == "pad":
            self._client.sendall((head + content)[:half].ljust(len(head + content)))
            return True
        if kind == "drip":
            _drip(fault, self._client, head + content)
            return True
        self._client.sendall((head + content)[:half])
        if kind == "stall":
            fault.over.wait()
        if kind != "cut":
            self._tear_down()
        return False

    def _asked(self, method: str, path: str, headers: http.client.HTTPMessage, body: bytes) -> tuple[bytes, bytes]:
        """The server's own answer: its head and its body, with this proxy's address where it names its own."""
        if self._server is None:
            self._server = http.client.HTTPConnection(*self._proxy.upstream, timeout=30)
            self._server.sock = self._proxy.connected(self._number)
        self._server.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            if name.lower() not in HOP | REDONE:
                self._server.putheader(name, value)
        if body or method in ("POST", "PUT", "PATCH"):
            self._server.putheader("Content-Length", str(len(body)))
        self._server.endheaders(body or None)
        answer = self._server.getresponse()
        content, theirs = answer.read(), f"{self._proxy.upstream[0]}:{self._proxy.upstream[1]}"
        if any(word in answer.headers.get("Content-Type", "") for word in ("json", "xml", "text")):
            content = content.replace(theirs.encode(), self._proxy.authority.encode())
        lines = [f"HTTP/1.1 {answer.status} {answer.reason}"]
        for name, value in answer.headers.items():
            if name.lower() not in HOP | {"content-length"}:
                lines.append(f"{name}: {value.replace(theirs, self._proxy.authority)}")
        if method == "HEAD":
            lines.append(f"Content-Length: {answer.headers.get('Content-Length', 0)}")
        elif answer.status not in (204, 304):
            lines.append(f"Content-Length: {len(content)}")
        if answer.will_close:
            self._server.close()
            self._server = None
        return "\r\n".join([*lines, "", ""]).encode("latin-1"), content

    def _tear_down(self) -> None:
        self._in.close()  # it holds the socket open otherwise
        _tear_down(self._client)


def _refusal(fault: Fault) -> bytes:
    reason = http.client.responses.get(fault.status, "Fault")
    lines = [f"HTTP/1.1 {fault.status} {reason}", "Content-Type: application/fhir+json"]
    lines.append(f"Content-Length: {len(OUTCOME)}")
    if fault.retry_after_s is not None:
        lines.append(f"Retry-After: {fault.retry_after_s:.0f}")
    if fault.status == 401:
        lines.append('WWW-Authenticate: Bearer error="invalid_token"')
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


# --- started -----------------------------------------------------------------------------------------------------


@contextmanager
def http_proxy(url: str) -> Iterator[tuple[FaultProxy, str]]:
    """A proxy in front of the server of a URL, and the same URL through it; stops with the block."""
    parts = urlsplit(url)
    with _running(FaultProxy(parts.hostname or "127.0.0.1", parts.port or 80, speaks_http=True)) as proxy:
        yield proxy, parts._replace(netloc=proxy.authority).geturl()


@contextmanager
def tcp_proxy(port: int, host: str = "127.0.0.1", *, listen: int | None = None) -> Iterator[FaultProxy]:
    """A proxy in front of a TCP port, at a free port or the one to ``listen`` at; stops with the block."""
    with _running(FaultProxy(host, port, speaks_http=False, listen=listen)) as proxy:
        yield proxy


@contextmanager
def _running(proxy: FaultProxy) -> Iterator[FaultProxy]:
    try:
        yield proxy
    finally:
        proxy.close()
