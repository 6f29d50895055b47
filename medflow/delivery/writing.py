"""How a result is written to one FHIR server: where it is put, and what it calls the others there.

A server that takes our ids gets every resource as it lies in the outbox. One that gives ids of its own is asked to
update what has our identifier (or to create what nothing has), and its ids are remembered; resources refer to one
another by them, or within one transaction by what they are called there (R4 http.html#transaction, #cond-update).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import orjson

from medflow.delivery.patients import Patients
from medflow.fhir.capability import Capabilities, Manner
from medflow.fhir.client import FhirClient, Write
from medflow.fhir.write.elements import made_id
from medflow.store.outbox import Known, PendingResource

Name = tuple[str, str]  # type and id, as the outbox has them
Lookup = Callable[[Collection[Name]], Mapping[Name, Known]]
MEDFLOW_ID = "urn:medflow:id"  # a tag that stands in for the identifier that R4 gives no Provenance


class Writer:
    """Makes requests of resources. Thread-safe between calls of `prepare`."""

    def __init__(self, client: FhirClient, capabilities: Capabilities, lookup: Lookup) -> None:
        self._base_url, self._can, self._lookup = client.base_url, capabilities, lookup
        self._patients = Patients(client, capabilities)
        self._known: dict[Name, Known] = {}
        # resources are sent as they are where every type that they may refer to goes under our own ids
        self._plain = all(capabilities.manner(kind) is Manner.CLIENT_ID for kind in WRITTEN)

    def prepare(self, resources: Sequence[PendingResource]) -> None:
        """Learn what these, those they refer to and their patients are called; needed before any is written.

        Errors are those of `FhirClient.search`.
        """
        self._patients.prepare(resources)
        if self._plain:
            return
        self._known = {}
        for item in resources:
            resource = orjson.loads(item.body)
            self._known[_name(item)] = Known(server_id=item.server_id, identifier=_identifier(resource))
        wanted = {name for item in resources for name in _references(orjson.loads(item.body))} - self._known.keys()
        self._known |= self._lookup(wanted)

    def write(self, item: PendingResource, siblings: Collection[Name] = (), *, etag: str | None = None) -> Write:
        """The request that puts a resource in its place.

        ``siblings`` are written in the same transaction; ``etag`` is the version that may be written over.
        """
        body = self._patients.pointing(item.body)
        if self._plain:
            where = f"{item.type}/{item.id}"
            return Write(method="PUT", url=where, body=body, full_url=f"{self._base_url}/{where}", if_match=etag)
        resource = self._referring(orjson.loads(body), frozenset(siblings))
        manner, server_id = self._can.manner(item.type), self._server_id(_name(item))
        if manner is Manner.CLIENT_ID or server_id:
            resource["id"] = server_id or item.id
            where = f"{item.type}/{resource['id']}"
            return Write(
                method="PUT", url=where, body=_json(resource), full_url=f"{self._base_url}/{where}", if_match=etag
            )
        del resource["id"]
        condition = _condition(resource, item)
        update = manner is Manner.CONDITIONAL_UPDATE
        return Write(
            method="PUT" if update else "POST",
            url=f"{item.type}?{condition}" if update else item.type,
            body=_json(resource),
            full_url=_placeholder(_name(item)),
            if_none_exist=None if update else condition,
        )

    def learn(self, item: PendingResource, server_id: str | None) -> None:
        """Remember what the server calls it."""
        name = _name(item)
        if server_id and name in self._known and self._can.manner(item.type) is not Manner.CLIENT_ID:
            self._known[name] = replace(self._known[name], server_id=server_id)

    def server_id(self, item: PendingResource) -> str | None:
        """What the server calls it, where that is not its own id."""
        return item.server_id or self._server_id(_name(item))

    def rounds(self, items: Sequence[PendingResource]) -> Iterator[list[PendingResource]]:
        """Parts to be written one after the other where entries cannot refer to one another: referred-to first."""
        if self._plain:
            yield list(items)
            return
        left = {_name(item): item for item in items}
        needs = {name: _references(orjson.loads(item.body)) & left.keys() for name, item in left.items()}
        while left:
            ready = [item for name, item in left.items() if not (needs[name] & left.keys()) - {name}]
            ready = ready or list(left.values())
            yield ready
            for item in ready:
                del left[_name(item)]

    def _server_id(self, name: Name) -> str | None:
        known = self._known.get(name)
        return known.server_id if known else None

    def _referring(self, element: Any, siblings: frozenset[Name]) -> Any:
        if isinstance(element, list):
            return [self._referring(item, siblings) for item in element]
        if not isinstance(element, dict):
            return element
        changed = {key: self._referring(value, siblings) for key, value in element.items()}
        name = _named(element.get("reference"))
        return changed if name is None or name not in self._known else self._reference(changed, name, siblings)

    def _reference(self, element: dict[str, Any], name: Name, siblings: frozenset[Name]) -> dict[str, Any]:
        """A reference to a result of ours, as this server can follow it; by identifier where it cannot."""
        manner, known = self._can.manner(name[0]), self._known[name]
        if manner is Manner.CLIENT_ID:
            return element
        if known.server_id:
            return element | {"reference": f"{name[0]}/{known.server_id}"}
        if manner is not None and name in siblings:
            return element | {"reference": _placeholder(name)}
        rest = {key: value for key, value in element.items() if key != "reference"}
        logical = known.identifier or {"system": MEDFLOW_ID, "value": name[1]}
        return rest | {"type": name[0], "identifier": logical}


WRITTEN = frozenset({"Device", "DocumentReference", "Observation", "RiskAssessment", "Provenance"})


def _name(item: PendingResource) -> Name:
    return item.type, item.id


def _named(reference: Any) -> Name | None:
    kind, slash, key = reference.partition("/") if isinstance(reference, str) else ("", "", "")
    return (kind, key) if slash and kind in WRITTEN else None


def _references(element: Any) -> set[Name]:
    """What of our own types a resource refers to."""
    if isinstance(element, list):
        return {name for item in element for name in _references(item)}
    if not isinstance(element, dict):
        return set()
    name = _named(element.get("reference"))
    return {found for value in element.values() for found in _references(value)} | ({name} if name else set())


def _identifier(resource: dict[str, Any]) -> dict[str, Any] | None:
    found = resource.get("identifier")
    return found[0] if isinstance(found, list) and found else None


def _placeholder(name: Name) -> str:
    # another UUID than the id: a server may replace the placeholder wherever it stands, and our identifier has the id
    return f"urn:uuid:{made_id('placeholder', *name)}"


def _condition(resource: dict[str, Any], item: PendingResource) -> str:
    """The search that finds this resource and no other; one without an identifier is given a tag for it."""
    if identifier := _identifier(resource):
        return f"identifier={quote(identifier['system'] + '|' + identifier['value'], safe='')}"
    meta = resource.setdefault("meta", {})
    meta["tag"] = [*meta.get("tag", ()), {"system": MEDFLOW_ID, "code": item.id}]
    return f"_tag={quote(f'{MEDFLOW_ID}|{item.id}', safe='')}"


def _json(resource: dict[str, Any]) -> bytes:
    return orjson.dumps(resource, option=orjson.OPT_SORT_KEYS)
