"""FHIR servers: what their CapabilityStatement offers of what we read or write, and whether we may."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medflow.connections import http
from medflow.connections.endpoints import FhirSource, FhirTarget
from medflow.doctor.finding import FAILED, OK, WARNING, Said
from medflow.doctor.web import clock, credentials
from medflow.errors import ConfigurationError
from medflow.fhir.capability import read_capabilities

FHIR_JSON = {"Accept": "application/fhir+json"}
RESULTS = ("Observation", "RiskAssessment", "Provenance", "Device", "DocumentReference")
WRONG_URL = "give the server's FHIR base URL, which often ends in /fhir or /fhir/R4"


def source(server: FhirSource, timeout_s: float) -> Iterator[Said]:
    """Whether records can be read from it in the way that is configured."""
    yield from credentials(server, timeout_s)
    answer, statement = _statement(server, timeout_s)
    yield from clock(answer)
    if server.mode == "export":
        yield from _export(server, statement)
    else:
        yield from _search(server, statement)
    yield from _may_read(server, timeout_s)


def target(server: FhirTarget, timeout_s: float) -> Iterator[Said]:
    """Whether results can be written to it so that writing them twice gives one."""
    yield from credentials(server, timeout_s)
    answer, statement = _statement(server, timeout_s)
    yield from clock(answer)
    able = read_capabilities(statement)
    if not able.transaction:
        how = "in batches" if able.batch else "one by one"
        yield WARNING, f"it offers no transactions: results go {how}, and a patient's may arrive in part"
    lacking = [kind for kind in RESULTS if able.manner(kind) is None]
    for kind in lacking:
        yield FAILED, f"{able.lacks(kind)}; have it enabled there, or results that need it become dead deliveries"
    if not lacking:
        manners = sorted({str(able.manner(kind)) for kind in RESULTS})
        yield OK, f"a FHIR R4 server; results are written by {' and '.join(manners)}"


def _statement(server: FhirSource | FhirTarget, timeout_s: float) -> tuple[Any, dict[str, Any]]:
    with http.client(server, timeout_s=timeout_s, headers=FHIR_JSON) as client:
        answer = http.send(client, server, "GET", f"{server.url}/metadata")
    http.check_status(answer, server)
    if answer.status_code == 403:
        raise ConfigurationError(f"{server.public} refuses these credentials (HTTP 403): check its auth")
    try:
        statement = answer.json() if answer.status_code == 200 else {}
    except ValueError:
        statement = {}
    if not isinstance(statement, dict) or statement.get("resourceType") != "CapabilityStatement":
        raise ConfigurationError(
            f"what answers at {server.public} is no FHIR server (HTTP {answer.status_code}): {WRONG_URL}"
        )
    spoken = str(statement.get("fhirVersion", "4.0.1"))
    if not spoken.startswith("4."):
        raise ConfigurationError(f"{server.public} speaks FHIR {spoken[:12]}; medflow speaks R4")
    return answer, statement


def _search(server: FhirSource, statement: Mapping[str, Any]) -> Iterator[Said]:
    """Types that can be searched, and by when they changed."""
    types = {item["type"]: item for item in _resources(statement)}
    if not types:
        yield OK, "a FHIR R4 server; it does not list what can be searched, which shows with the first fetch"
        return
    absent = [kind for kind in server.types if kind not in types or not _searchable(types[kind])]
    undated = [
        kind
        for kind in server.types
        if kind not in absent and not _codes(types[kind], "searchParam", "name", "_lastUpdated")
    ]
    undated = [] if _codes(_rest(statement), "searchParam", "name", "_lastUpdated") else undated
    if absent:
        yield WARNING, f"it offers no search of {', '.join(absent)}: take them out of types, or have them enabled there"
    if undated:
        yield (
            WARNING,
            f"it does not list _lastUpdated as a search parameter of {', '.join(undated)}: "
            "where it does not know it, each fetch reads all of them",
        )
    if server.mode == "everything" and not _codes(types.get("Patient", {}), "operation", "name", "everything"):
        yield WARNING, "its CapabilityStatement lists no Patient/$everything: mode search may be the one that works"
    if len(absent) == len(server.types):
        yield FAILED, "none of the types that are wanted can be searched"
    else:
        yield OK, f"a FHIR R4 server; {len(server.types) - len(absent)} of {len(server.types)} types can be searched"


def _searchable(item: Mapping[str, Any]) -> bool:
    return not _dicts(item.get("interaction")) or _codes(item, "interaction", "code", "search-type")


def _export(server: FhirSource, statement: Mapping[str, Any]) -> Iterator[Said]:
    """Bulk Data, at the level that is wanted."""
    kind = {"system": None, "patient": "Patient"}.get(server.level, "Group")
    places = [_rest(statement)] if kind is None else [item for item in _resources(statement) if item["type"] == kind]
    names = {str(item.get("name")) for place in places for item in _dicts(place.get("operation"))}
    if names & {"export", "patient-export", "group-export"}:
        yield OK, f"a FHIR R4 server that offers Bulk Data export ({server.level})"
    else:
        yield (
            WARNING,
            f"its CapabilityStatement lists no $export ({server.level}): if a fetch is refused, choose another level "
            "or mode search",
        )


def _may_read(server: FhirSource, timeout_s: float) -> Iterator[Said]:
    """Counts of one type are asked for: a number, and nothing of a patient."""
    kind = server.types[0] if server.types else "Patient"
    with http.client(server, timeout_s=timeout_s, headers=FHIR_JSON) as client:
        answer = http.send(client, server, "GET", f"{server.url}/{kind}", params={"_summary": "count"})
    http.check_status(answer, server)
    if answer.status_code == 403:
        yield FAILED, f"we may not read {kind} (HTTP 403): have the scope or right given to this client"
    elif answer.status_code >= 400 and server.mode != "export":
        yield WARNING, f"it does not answer a search of {kind} (HTTP {answer.status_code})"


def _rest(statement: Mapping[str, Any]) -> Mapping[str, Any]:
    found = [rest for rest in _dicts(statement.get("rest")) if rest.get("mode", "server") == "server"]
    return found[0] if found else {}


def _resources(statement: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [item for item in _dicts(_rest(statement).get("resource")) if isinstance(item.get("type"), str)]


def _codes(element: Mapping[str, Any], name: str, key: str, wanted: str) -> bool:
    """Whether a code is among those listed."""
    return any(item.get(key) == wanted for item in _dicts(element.get(name)))


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
