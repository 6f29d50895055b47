"""What a finished Bulk Data export consists of: the pages of its manifest, read; no input or output here.

HL7 Bulk Data Access IG, STU 2, "Bulk Data Status Request", "Response - Complete Status".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

from medflow.errors import ConfigurationError, SourceUnavailable
from medflow.fhir.r4 import moment_of, resource_types
from medflow.records import Instant

AZURE = frozenset(["sv", "se", "st", "sp", "sr", "spr", "sip", "sig", "sks", "skt", "ske", "skv", "skoid", "sktid"])
KEYED = frozenset({"signature", "expires", "policy", "key-pair-id", "awsaccesskeyid", "googleaccessid"})


class Section(StrEnum):
    """What a file of an export holds: Bundles of DELETE requests, resources, or OperationOutcomes."""

    DELETED = "deleted"
    OUTPUT = "output"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportFile:
    """One file that a manifest names. ``url`` may be all that is needed to read it, so it is shown nowhere.

    ``type`` is a resource type of R4, else ""; ``count`` is how many lines the server says that it has.
    """

    section: Section
    type: str
    url: str = field(repr=False)
    count: int | None = None

    @property
    def key(self) -> str:
        """The same for the same file of the same export, however often its address is signed anew."""
        parts = urlsplit(self.url)
        query = urlencode(_unsigned(parse_qsl(parts.query, keep_blank_values=True)))
        named = f"{self.section} {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}?{query}"
        return sha256(named.encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A finished export: all of its pages. ``transaction_us`` is the moment that its content is of, by its server."""

    transaction_us: int
    requires_token: bool
    files: tuple[ExportFile, ...]


def files_of(page: dict[str, Any], base: str, server: str) -> list[ExportFile]:
    """The files that one page at the address ``base`` names; ``server`` is what it is called in messages.

    Raises
    ------
    SourceUnavailable
        One has no address.
    ConfigurationError
        One would travel in the clear.
    """
    found = []
    for section in Section:
        listed = page.get(section) or []
        for item in listed if isinstance(listed, list) else [None]:
            url = item.get("url") if isinstance(item, dict) else None
            if not isinstance(url, str) or not isinstance(item, dict):
                raise SourceUnavailable(f"the manifest of an export of {server} names a file without an address")
            kind, count = item.get("type"), item.get("count")
            found.append(
                ExportFile(
                    section=section,
                    type=kind if isinstance(kind, str) and kind in resource_types() else "",
                    url=address(base, url, server),
                    count=count if isinstance(count, int) and not isinstance(count, bool) else None,
                )
            )
    return found


def transaction_us(page: dict[str, Any]) -> int | None:
    """The page's transactionTime; None where it has none that is an instant."""
    text = page.get("transactionTime")
    moment = moment_of(text) if isinstance(text, str) else None
    return Instant.of(moment).utc_us if moment is not None and moment.tzinfo is not None else None


def next_page(page: dict[str, Any]) -> str | None:
    """The address of the page that follows."""
    links = page.get("link")
    for item in links if isinstance(links, list) else []:
        if isinstance(item, dict) and item.get("relation") == "next" and isinstance(item.get("url"), str):
            return item["url"]
    return None


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port (RFC 6454): what a credential is meant for."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


def address(base: str, written: str, server: str) -> str:
    """An absolute address, from one that a server gave at ``base``.

    Raises
    ------
    SourceUnavailable
        It is none.
    ConfigurationError
        It is not https though ``base`` is.
    """
    try:
        url = urljoin(base, written)
        scheme, host, _ = origin(url)
    except ValueError:
        url = scheme = host = ""
    if scheme not in ("http", "https") or not host:
        raise SourceUnavailable(f"{server} gave something that is no http address")
    if scheme == "http" and urlsplit(base).scheme == "https":
        raise ConfigurationError(
            f"{server} names an address of its export that is not https, so records would travel in the clear: have it "
            "configured with the base URL that it is reached by"
        )
    return url


def _unsigned(query: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Without what object stores add to an address to sign it (S3, Google, CloudFront, Azure) and differs each time."""
    pairs = [(name, value) for name, value in query if not name.lower().startswith(("x-amz-", "x-goog-"))]
    names = {name.lower() for name, _ in pairs}
    if {"sig", "sv"} <= names:
        pairs = [pair for pair in pairs if pair[0].lower() not in AZURE]
    if "signature" in names and names & {"key-pair-id", "awsaccesskeyid", "googleaccessid"}:
        pairs = [pair for pair in pairs if pair[0].lower() not in KEYED]
    return pairs
