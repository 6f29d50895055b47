"""What became of a result at the server since it was put there: whether it may be written over.

A clinician's system may have corrected it, or taken it away. That is never undone silently: only where nothing but the
server's own bookkeeping differs is it written over.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import orjson

from medflow.fhir.capability import Capabilities
from medflow.fhir.client import Answer, FhirClient, Found, version_of
from medflow.store.outbox import PendingResource

BOOKKEEPING = ("versionId", "lastUpdated", "source")  # of meta: what a server writes itself
ADVICE = "look at it there; `medflow retry deliveries --overwrite` puts medflow's version in its place"


class Since(Enum):
    """What a person or another system did to it."""

    NOTHING = "nothing"
    SAME = "it is there already as it is to be"
    CHANGED = "changed at the server since it was delivered"
    GONE = "removed at the server since it was delivered"


def since_delivered(
    client: FhirClient, can: Capabilities, item: PendingResource, key: str, wanted: bytes, etag: str
) -> tuple[Since, Found | None]:
    """What happened to a resource since the version of ``etag``, and how it is there now.

    ``key`` is its id at the server, ``wanted`` the JSON that is to be put there. Errors are those of `FhirClient.read`.
    """
    now = client.read(item.type, key)
    if now is None:
        return Since.GONE, None
    desired = orjson.loads(wanted)
    if _content(now.resource) == _content(desired):
        return Since.SAME, now
    version = version_of(etag)
    before = client.read(item.type, key, version) if version and can.offers(item.type, "vread") else None
    # where the server keeps no versions, nobody can tell who changed it
    same = before is not None and _content(now.resource) == _content(before.resource)
    return (Since.NOTHING if same else Since.CHANGED), now


def refusal(since: Since) -> Answer:
    """The answer that stands for not writing over it."""
    return Answer(status=412, reason=f"HTTP 412, {since.value}: {ADVICE}", final=True)


def _content(resource: dict[str, Any]) -> dict[str, Any]:
    """A resource without its id, generated text and the server's bookkeeping."""
    meta = {key: value for key, value in (resource.get("meta") or {}).items() if key not in BOOKKEEPING}
    return {key: value for key, value in resource.items() if key not in ("meta", "text", "id")} | {"meta": meta}
