"""What a page of a FHIR server offers: its resources by their bytes, and what its history says is gone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import orjson

from medflow.errors import InputRejected, RejectCode
from medflow.fhir.read import Context
from medflow.fhir.search import Page, instant_us, is_match, is_outcome, updated_us
from medflow.ingest.fhir_inputs import Deletion, Input, Piece, deletion_of, id_of, links_of, spans_of
from medflow.ingest.tally import Refused
from medflow.records import Instant

PORTS = {"http": ":80", "https": ":443"}


def offered_on(page: Page, context: Context, name: str, *, again: Collection[tuple[str, int]] = ()) -> Iterator[Input]:
    """Every resource of a page; ``context.bases`` are the base URLs of its server, ``name`` what the source is called.

    Matches in ``again`` (id and time) were on the page before and are passed over. A resource of another server is
    refused: its id means nothing among this one's.
    """
    entries = page.bundle.get("entry")
    every = entries if isinstance(entries, list) else []
    spans = spans_of(page.raw, len(every))
    taken = [
        (entry, span)
        for entry, span in zip(every, spans, strict=True)
        if not (isinstance(entry, dict) and (is_outcome(entry) or _was_read(entry, again)))
    ]
    own = {_plain(base) for base in context.bases}
    ours = [entry for entry, _ in taken if isinstance(entry, dict) and not _foreign(entry, own)]
    within = links_of(ours, context)
    for entry, span in taken:
        origin = _origin(name, entry)
        if not isinstance(entry, dict) or not isinstance(entry.get("resource"), dict):
            error = InputRejected(RejectCode.UNSUPPORTED_TYPE, "the entry of the server's Bundle has no resource")
            yield Refused.of(origin, error)
        elif _foreign(entry, own):
            reason = "its server says that it is another server's, and ids are unique within one only (`also`)"
            yield Refused.of(origin, InputRejected(RejectCode.IDENTITY_CONFLICT, reason))
        else:
            raw = span if span is not None else orjson.dumps(entry["resource"])
            yield Piece(origin, raw, within, id_of(entry))


def gone(page: Page, context: Context, name: str, met: set[str]) -> Iterator[Input]:
    """The deletions of a page of a type's history, newest first (R4 http.html#history).

    Only the last that happened to a resource counts: ``met`` are those that were met already, on this page or before.
    """
    for entry in page.entries:
        request = entry.get("request")
        request = request if isinstance(request, dict) else {}
        address = request.get("url") if isinstance(request.get("url"), str) else entry.get("fullUrl")
        address = address.split("/_history/")[0] if isinstance(address, str) else ""
        which = "/".join(address.split("/")[-2:])
        if which in met:
            continue
        met.add(which)
        if request.get("method") != "DELETE":
            continue
        response = entry.get("response")
        told_us = instant_us(response.get("lastModified")) if isinstance(response, dict) else None
        origin = f"{name}/{which}"
        try:
            moment = Instant(utc_us=told_us) if told_us is not None else None
            yield Deletion(origin, deletion_of(address, context, moment))
        except InputRejected as error:
            yield Refused.of(origin, error)


def changed_us(page: Page) -> int | None:
    """When the last of a history's changes on this page happened."""
    times = []
    for entry in page.entries:
        response, resource = entry.get("response"), entry.get("resource")
        if isinstance(response, dict):
            times.append(instant_us(response.get("lastModified")))
        if isinstance(resource, dict) and isinstance(resource.get("meta"), dict):
            times.append(instant_us(resource["meta"].get("lastUpdated")))
    return max((time for time in times if time is not None), default=None)


def bases_of(urls: Iterable[str | None]) -> frozenset[str]:
    """Base URLs of one server, those that it gives in its self links among them."""
    return frozenset(url.rstrip("/") for url in urls if url)


def self_base(page: Page, path: str) -> str | None:
    """The base URL in a page's self link, if that is to ``path``, as what was asked for was."""
    address = (page.self_url or "").partition("?")[0].rstrip("/")
    return address.removesuffix(f"/{path}") if address.endswith(f"/{path}") and "://" in address else None


def _was_read(entry: dict[str, Any], again: Collection[tuple[str, int]]) -> bool:
    resource = entry.get("resource")
    return (
        bool(again)
        and is_match(entry)
        and isinstance(resource, dict)
        and (resource.get("id"), updated_us(entry)) in again
    )


def _foreign(entry: dict[str, Any], own: set[str]) -> bool:
    url, resource = entry.get("fullUrl"), entry.get("resource")
    if not isinstance(url, str) or not url.startswith(("http://", "https://")) or not isinstance(resource, dict):
        return False
    end = f"/{resource.get('resourceType')}/{resource.get('id')}"
    return url.endswith(end) and _plain(url.removesuffix(end)) not in own


def _plain(url: str) -> str:
    """A base URL without what a proxy that ends TLS changes: its scheme and that scheme's usual port."""
    parts = urlsplit(url)
    return parts.netloc.lower().removesuffix(PORTS.get(parts.scheme, ":")) + parts.path.rstrip("/")


def _origin(name: str, entry: Any) -> str:
    resource = entry.get("resource") if isinstance(entry, dict) else None
    if not isinstance(resource, dict):
        return name
    kind, its_id = resource.get("resourceType"), resource.get("id") or (id_of(entry))
    return f"{name}/{kind if isinstance(kind, str) else 'unknown'}/{its_id if isinstance(its_id, str) else 'unknown'}"
