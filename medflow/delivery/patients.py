"""Patients whom a result names by an identifier alone, as the target's own records: what is found by its Patient too.

A patient known from images has no FHIR id here, but the target may have one: it is asked who has that identifier, and
where that is exactly one, the result points to them. What comes back is believed by the identifiers in it alone, as a
server may answer to a parameter that it does not know with everybody. A record that was merged into another is nobody;
one that is not active, or has the identifier no longer, is not pointed to, and makes it doubtful who is meant.
Identifiers go in the body of a request, never in a URL.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

from medflow.fhir.capability import Capabilities
from medflow.fhir.client import FhirClient
from medflow.records import Identifier
from medflow.store.outbox import PendingResource

NAMED = b'"subject":{"identifier":'  # in canonical JSON: a subject by identifier, and by that alone
OURS = "urn:medflow:"  # of issuers that nobody mapped to a system: no server knows these
ASKED_AT_ONCE = 40
ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")  # R4 datatypes.html#id
NOT_IN_USE = ("old", "temp")  # of Identifier.use


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
        doubtful: set[Identifier] = set()
        for patient in found or ():
            if _merged(patient):
                continue
            known = isinstance(patient["id"], str) and ID.fullmatch(patient["id"])
            for identifier, used in _identifiers(patient):
                patients[identifier].add(str(patient["id"]))
                if not (used and known) or patient.get("active") is False:
                    doubtful.add(identifier)
        return {
            item: next(iter(patients[item])) for item in wanted if len(patients[item]) == 1 and item not in doubtful
        }


def _subject(body: bytes) -> Identifier | None:
    if NAMED not in body:
        return None
    subject = orjson.loads(body)["subject"]
    return None if "reference" in subject else Identifier(**subject["identifier"])


def _merged(patient: dict[str, Any]) -> bool:
    """Whether another record is to be used in its place (R4 patient-definitions.html, Patient.link.type)."""
    links = patient.get("link")
    found = links if isinstance(links, list) else []
    return any(isinstance(link, dict) and link.get("type") == "replaced-by" for link in found)


def _identifiers(patient: dict[str, Any]) -> Iterator[tuple[Identifier, bool]]:
    """A record's identifiers, and whether each is in use."""
    listed = patient.get("identifier")
    for item in listed if isinstance(listed, list) else []:
        if isinstance(item, dict) and isinstance(item.get("system"), str) and isinstance(item.get("value"), str):
            yield Identifier(system=item["system"], value=item["value"]), item.get("use") not in NOT_IN_USE


def _escaped(value: str) -> str:
    """A search parameter's value (R4 search.html#escaping)."""
    for character in ("\\", "$", ",", "|"):
        value = value.replace(character, f"\\{character}")
    return value
