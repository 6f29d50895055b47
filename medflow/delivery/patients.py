"""Patients whom a result names by an identifier alone, as the target's own records: what is found by its Patient too.

A patient known from images has no FHIR id here, but the target may have one: it is asked who has that identifier, and
where that is exactly one, the result points to them. Identifiers go in the body of a request, never in a URL.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import orjson

from medflow.fhir.capability import Capabilities
from medflow.fhir.client import FhirClient
from medflow.records import Identifier
from medflow.store.outbox import PendingResource

NAMED = b'"subject":{"identifier":'  # in canonical JSON: a subject by identifier, and by that alone
OURS = "urn:medflow:"  # of issuers that nobody mapped to a system: no server knows these
ASKED_AT_ONCE = 40


class Patients:
    """Who is who at one server. Asked from one thread; read by several."""

    def __init__(self, client: FhirClient, can: Capabilities) -> None:
        self._client, self._can = client, can
        self._found: dict[Identifier, str | None] = {}

    def prepare(self, resources: Iterable[PendingResource]) -> None:
        """Ask the server for the patients of these resources; errors are those of `FhirClient.search`."""
        if not self._can.offers("Patient", "search-type"):
            return
        wanted = {found for item in resources if (found := _subject(item.body)) and not found.system.startswith(OURS)}
        new = sorted(wanted - self._found.keys(), key=lambda item: (item.system, item.value))
        for start in range(0, len(new), ASKED_AT_ONCE):
            some = new[start : start + ASKED_AT_ONCE]
            self._found |= dict.fromkeys(some) | self._ask(some)

    def pointing(self, body: bytes) -> bytes:
        """A resource's JSON with its subject's Patient, where that is known."""
        subject = _subject(body) if self._found else None
        key = self._found.get(subject) if subject else None
        if key is None:
            return body
        resource = orjson.loads(body)
        resource["subject"]["reference"] = f"Patient/{key}"
        return orjson.dumps(resource, option=orjson.OPT_SORT_KEYS)

    def _ask(self, wanted: Sequence[Identifier]) -> dict[Identifier, str]:
        values = ",".join(f"{_escaped(item.system)}|{_escaped(item.value)}" for item in wanted)
        found = self._client.search("Patient", {"identifier": values, "_count": str(4 * ASKED_AT_ONCE)})
        patients: dict[Identifier, set[str]] = defaultdict(set)
        for patient in found or ():
            for item in patient.get("identifier") or ():
                patients[Identifier(system=item.get("system", ""), value=item.get("value", ""))].add(patient["id"])
        return {item: next(iter(patients[item])) for item in wanted if len(patients[item]) == 1}


def _subject(body: bytes) -> Identifier | None:
    if NAMED not in body:
        return None
    subject = orjson.loads(body)["subject"]
    return None if "reference" in subject else Identifier(**subject["identifier"])


def _escaped(value: str) -> str:
    """A search parameter's value (R4 search.html#escaping)."""
    for character in ("\\", "$", ",", "|"):
        value = value.replace(character, f"\\{character}")
    return value
