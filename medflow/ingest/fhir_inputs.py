"""What a file of FHIR JSON offers: its form is told by its content, and each resource keeps its bytes as received.

One document (a resource, or a Bundle that is taken apart entry by entry) or NDJSON, line by line and never whole in
memory; each of them gzipped or not.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from io import BufferedReader, BytesIO
from json.decoder import JSONDecoder, scanstring  # type: ignore[attr-defined]  # public, though the stubs lack it
from typing import IO, Any, NamedTuple

import orjson

from medflow.errors import InputRejected, RejectCode
from medflow.fhir.r4 import ID, moment_of, resource_types
from medflow.fhir.read import Context
from medflow.ingest.offers import Offer
from medflow.ingest.tally import Refused
from medflow.records import FhirResource, Instant

GZIP = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"
LINE_BYTES = 64 << 20  # of one resource in NDJSON
RATIO, RATIO_FROM = 200, 256 << 20  # a gzip that inflates more, once it is larger than that, is a bomb
BLOCK = 1 << 20
PEEK = 8
SPACE = re.compile(r"[ \t\r\n]*")
TAKEN = {"transaction", "batch", "collection", "searchset", "history", "document", "message"}
TAKEN |= {"transaction-response", "batch-response"}


class Piece(NamedTuple):
    """One resource offered. ``id`` stands in for a missing one; ``replay``: whether its bytes alone can replay it."""

    origin: str
    raw: bytes
    context: Context
    id: str | None = None
    replay: bool = True


class Deletion(NamedTuple):
    """One resource that a Bundle says is gone."""

    origin: str
    resource: FhirResource


Input = Piece | Deletion | Refused


def inputs(offer: Offer, context: Context, max_bytes: int) -> Iterator[Input]:
    """Everything that a file offers; a file that is not FHIR JSON offers one thing, refused."""
    try:
        with _opened(offer, max_bytes) as stream:
            yield from _inputs(offer.origin, stream, context, max_bytes)
    except InputRejected as error:
        yield Refused.of(offer.origin, error, offer.data)
    except FileNotFoundError:
        yield Refused.of(offer.origin, InputRejected(RejectCode.VANISHED, "the file is no longer there"))
    except OSError as error:
        reason = f"the file cannot be read: {error.strerror or type(error).__name__}"
        yield Refused.of(offer.origin, InputRejected(RejectCode.UNREADABLE, reason))


def parse(raw: bytes) -> dict[str, Any]:
    """One JSON object that claims to be a resource.

    Raises
    ------
    InputRejected
        WRONG_ENCODING, NUMBER_OUT_OF_RANGE, NOT_JSON, or NOT_FHIR.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise _unparsable(raw) from None
    if not isinstance(value, dict) or not isinstance(value.get("resourceType"), str):
        raise InputRejected(RejectCode.NOT_FHIR, "it is JSON, but no object with a resourceType")
    return value


def _unparsable(raw: bytes) -> InputRejected:
    """Why JSON does not parse, as well as it can be told."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in raw[:4]:
        return InputRejected(RejectCode.WRONG_ENCODING, "it is UTF-16 or UTF-32; FHIR JSON is UTF-8")
    head = raw.lstrip()[:1]
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        if head in (b"{", b"["):
            return InputRejected(RejectCode.WRONG_ENCODING, "it is not UTF-8, as FHIR JSON must be")
        return InputRejected(RejectCode.NOT_JSON, "it is no JSON text")
    if head == b"<":
        return InputRejected(RejectCode.UNSUPPORTED_TYPE, "it looks like XML; medflow reads FHIR as JSON and NDJSON")
    odd: list[str] = []
    try:
        json.loads(raw, parse_constant=odd.append, parse_float=lambda text: _float(text, odd))
    except (ValueError, RecursionError):
        odd.clear()
    if odd:
        return InputRejected(RejectCode.NUMBER_OUT_OF_RANGE, "it has a number that is not finite, or too large to hold")
    return InputRejected(RejectCode.NOT_JSON, "it is not valid JSON")


def _float(text: str, odd: list[str]) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        odd.append(text)
    return value


# --- bytes -------------------------------------------------------------------------------------------------------


def _opened(offer: Offer, max_bytes: int) -> IO[bytes]:
    if offer.data is not None:
        plain: IO[bytes] = BytesIO(offer.data)
        size = len(offer.data)
    else:
        assert offer.path is not None  # noqa: S101 - one of the two is always set
        size = offer.path.stat().st_size
        plain = offer.path.open("rb")
    if size > max_bytes:
        plain.close()
        raise InputRejected(RejectCode.TOO_LARGE, f"{size} bytes; MEDFLOW_MAX_INPUT_BYTES allows {max_bytes}")
    stream = plain if isinstance(plain, BufferedReader) else BufferedReader(plain)  # type: ignore[type-var]  # BytesIO
    if stream.peek(2)[:2] == GZIP:
        return BufferedReader(_Inflated(stream, max(size, 1), max_bytes), BLOCK)
    return stream


class _Inflated(gzip.GzipFile):
    """A gzip that stops where it turns out to be a bomb, and says in medflow's terms what is wrong with it."""

    def __init__(self, stream: IO[bytes], size: int, max_bytes: int) -> None:
        super().__init__(fileobj=stream)
        self._stream, self._limit = stream, min(max_bytes, max(RATIO_FROM, size * RATIO))
        self._total = 0

    def readinto(self, buffer: Any) -> int:
        try:
            data = self.read1(len(buffer))
        except (OSError, EOFError, zlib.error):
            raise InputRejected(RejectCode.ARCHIVE_BROKEN, "the gzip file is damaged or cut off") from None
        self._total += len(data)
        if self._total > self._limit:
            raise InputRejected(RejectCode.ARCHIVE_BOMB, f"the gzip file inflates to more than {self._limit} bytes")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        super().close()
        self._stream.close()


# --- forms -------------------------------------------------------------------------------------------------------


def _inputs(origin: str, stream: IO[bytes], context: Context, max_bytes: int) -> Iterator[Input]:
    head: list[bytes] = []  # the first lines, to tell NDJSON from one document
    while len(head) < PEEK and (line := stream.readline(LINE_BYTES)):
        head.append(line)
        if _is_object(line, any_object=len(head) == 1):
            break
    if not head:
        raise InputRejected(RejectCode.EMPTY, "the file has no bytes")
    head[0] = head[0].removeprefix(BOM)
    if _is_object(head[-1], any_object=len(head) == 1) and _starts_lines(head):
        following = _next_line(stream)
        if following or len(head) > 1 and any(line.strip() for line in head[:-1]):
            yield from _lines(origin, [*head, following], stream, context)
            return
        stream = BytesIO()
    raw = b"".join([*head, *iter(lambda: stream.read(BLOCK), b"")])
    yield from _document(origin, raw.strip(b" \t\r\n"), context)


def _is_object(line: bytes, *, any_object: bool) -> bool:
    """Whether a line is a resource of its own, or at least an object, as no first line of a longer document is."""
    text = line.removeprefix(BOM).strip()
    if not (text.startswith(b"{") and text.endswith(b"}")):
        return False
    try:
        return "resourceType" in orjson.loads(text) or any_object
    except orjson.JSONDecodeError:
        return False


def _starts_lines(head: list[bytes]) -> bool:
    """Whether every line so far could be a line of NDJSON: an object, whole or broken, or nothing."""
    first = [line.strip() for line in head[:-1]]
    return all(not text or (text.startswith(b"{") and len(text) > 1) for text in first)


def _next_line(stream: IO[bytes]) -> bytes:
    while line := stream.readline(LINE_BYTES):
        if line.strip():
            return line
    return b""


def _lines(origin: str, head: list[bytes], stream: IO[bytes], context: Context) -> Iterator[Input]:
    number = 0
    for lines in (head, iter(partial(stream.readline, LINE_BYTES), b"")):
        for line in lines:
            number += 1
            raw = line.strip()
            if not raw:
                number -= not line  # the end of the file is no line
                continue
            where = f"{origin}#{number}"
            if len(line) >= LINE_BYTES and not line.endswith(b"\n"):
                while (rest := stream.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                reason = f"one line is longer than {LINE_BYTES} bytes"
                yield Refused.of(where, InputRejected(RejectCode.TOO_LARGE, reason))
            elif b'"Bundle"' in raw and _is_bundle(raw):
                yield from _document(where, raw, context)
            else:
                yield Piece(where, raw, context)


def _is_bundle(raw: bytes) -> bool:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and value.get("resourceType") == "Bundle"


def _document(origin: str, raw: bytes, context: Context) -> Iterator[Input]:
    try:
        value = parse(raw)
        if value["resourceType"] != "Bundle":
            yield Piece(origin, raw, context)
            return
        entries = _entries(value)
    except InputRejected as error:
        yield Refused.of(origin, error, raw)
        return
    within = links_of(entries, context)
    spans = spans_of(raw, len(entries))
    moment = _instant(value.get("timestamp")) or _instant(_dict(value.get("meta")).get("lastUpdated"))
    for index, entry in enumerate(entries):
        where = f"{origin}#entry[{index}]"
        try:
            yield _entry(where, entry, spans[index], within, moment)
        except InputRejected as error:
            yield Refused.of(where, error, spans[index] or orjson.dumps(entry))


# --- Bundles -----------------------------------------------------------------------------------------------------


def _entries(bundle: dict[str, Any]) -> list[dict[str, Any]]:
    kind = bundle.get("type")
    if not isinstance(kind, str) or kind not in TAKEN:
        raise InputRejected(
            RejectCode.INVALID_RESOURCE, "Bundle.type: missing, or not a code of its required value set"
        )
    entries = bundle.get("entry", [])
    if not isinstance(entries, list) or not all(isinstance(item, dict) for item in entries):
        raise InputRejected(RejectCode.INVALID_RESOURCE, "Bundle.entry: wrong JSON type")
    if not entries:
        raise InputRejected(RejectCode.EMPTY, "the Bundle has no entries")
    return entries


def _entry(origin: str, entry: dict[str, Any], span: bytes | None, context: Context, moment: Instant | None) -> Input:
    request = _dict(entry.get("request"))
    method = request.get("method")
    if method == "DELETE":
        told = _instant(_dict(entry.get("response")).get("lastModified")) or moment
        return Deletion(origin, deletion_of(request.get("url"), context, told))
    resource = entry.get("resource")
    if resource is None:
        raise InputRejected(RejectCode.UNSUPPORTED_TYPE, "the entry has no resource, and deletes none")
    if method in ("PATCH", "GET", "HEAD"):
        raise InputRejected(RejectCode.UNSUPPORTED_TYPE, f"the entry is a {method}; medflow takes whole resources")
    raw = span if span is not None else orjson.dumps(resource)
    return Piece(origin, raw, context, id_of(entry), replay=False)


def deletion_of(url: Any, context: Context, moment: Instant | None) -> FhirResource:
    """The tombstone of what a DELETE names; raises InputRejected where that is no one resource."""
    parts = url.rstrip("/").split("/_history/")[0].split("/") if isinstance(url, str) else []
    if len(parts) < 2 or "?" in str(url):
        reason = "Bundle.entry.request.url: a DELETE must name one resource, as Type/id"
        raise InputRejected(RejectCode.UNSUPPORTED_TYPE, reason)
    kind, name = parts[-2:]
    if kind not in resource_types():
        raise InputRejected(RejectCode.UNKNOWN_RESOURCE_TYPE, "its resourceType is not one of R4's")
    if not ID.fullmatch(name):
        raise InputRejected(RejectCode.INVALID_RESOURCE, "Bundle.entry.request.url: the id is not a FHIR id")
    return FhirResource(
        source=context.source, type=kind, id=name, raw=b"", sha256="", deleted=True, last_updated=moment
    )


def links_of(entries: list[dict[str, Any]], context: Context) -> Context:
    """What references mean inside this Bundle (bundle.html#references)."""
    links: dict[str, str] = {}
    bases: set[str] = set()
    for entry in entries:
        url, resource = entry.get("fullUrl"), _dict(entry.get("resource"))
        kind, name = resource.get("resourceType"), resource.get("id") or id_of(entry)
        if not isinstance(url, str) or not isinstance(kind, str) or not isinstance(name, str):
            continue
        links[url] = f"{kind}/{name}"
        if "://" in url and url.endswith(f"/{kind}/{name}"):
            bases.add(url.removesuffix(f"/{kind}/{name}"))
    return Context(source=context.source, zone=context.zone, links=links, bases=context.bases | bases)


def id_of(entry: dict[str, Any]) -> str | None:
    """The id that a fullUrl gives to a resource without one."""
    url = entry.get("fullUrl")
    name = re.split(r"[/:]", url)[-1] if isinstance(url, str) else ""
    return name if ID.fullmatch(name) else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _instant(text: Any) -> Instant | None:
    moment = moment_of(text) if isinstance(text, str) else None
    return Instant.of(moment) if moment is not None and moment.tzinfo is not None else None


def spans_of(raw: bytes, count: int) -> list[bytes | None]:
    """The bytes of each entry's resource, cut from the Bundle as received; None where an entry has none.

    Where they cannot be told apart (the same key twice, nesting beyond the decoder's depth) all are None, and the
    resource is written anew from what was parsed.
    """
    try:
        spans = _Scanner(raw.decode("utf-8")).spans()
    except (ValueError, StopIteration, RecursionError, IndexError):
        spans = []
    return spans if len(spans) == count else [None] * count


@dataclass(slots=True)
class _Scanner:
    """Finds where values begin and end in valid JSON, with the decoder of the standard library doing the work."""

    text: str
    _scan = staticmethod(JSONDecoder().raw_decode)

    def spans(self) -> list[bytes | None]:
        found: list[bytes | None] = []
        at = self._first(self._space(0), "{")
        while self.text[at] != "}":
            key, at = self._key(at)
            if key == "entry":
                found, at = self._entries(at)
            else:
                at = self._end(at)
            at = self._further(at)
        return found

    def _entries(self, at: int) -> tuple[list[bytes | None], int]:
        """The resources of the array at ``at``, and where it ends."""
        found = []
        at = self._first(at, "[")
        while self.text[at] != "]":
            resource, at = self._entry(at)
            found.append(resource)
            at = self._further(at)
        return found, at + 1

    def _entry(self, at: int) -> tuple[bytes | None, int]:
        found = None
        at = self._first(at, "{")
        while self.text[at] != "}":
            key, begin = self._key(at)
            at = self._end(begin)
            if key == "resource":
                found = self.text[begin:at].encode()
            at = self._further(at)
        return found, at + 1

    def _first(self, at: int, opening: str) -> int:
        """Where the first member or item of the object or array at ``at`` begins, or its end."""
        if self.text[at] != opening:
            raise ValueError("another kind of value")
        return self._space(at + 1)

    def _key(self, at: int) -> tuple[str, int]:
        """The key at ``at``, and where its value begins."""
        key, at = scanstring(self.text, at + 1)
        return key, self._space(self._space(at) + 1)

    def _further(self, at: int) -> int:
        """Where the next member or item begins, given where one ends."""
        at = self._space(at)
        return self._space(at + 1) if self.text[at] == "," else at

    def _end(self, at: int) -> int:
        return self._scan(self.text, at)[1]

    def _space(self, at: int) -> int:
        found = SPACE.match(self.text, at)
        return found.end() if found else at
