"""What results of several jobs are derived from: a variant of a sample, which every model reports as the same resource.

It is queued by whichever job comes first, and stands as long as the result of any job refers to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, Row, select

from medflow.store.tables import OutboxRow

COLUMNS = (OutboxRow.id, OutboxRow.type, OutboxRow.fhir_id, OutboxRow.envelope, OutboxRow.body, OutboxRow.sha256)
OBSERVATION = "Observation"
VOID = ("entered-in-error",)
GONE = ("amended", *VOID)  # the status of results that do not stand any more
PAGE = 1000
IN_LIST = 5000


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """A resource as it is in the outbox."""

    type: str
    fhir_id: str
    envelope: str
    resource: Mapping[str, Any]
    sha256: str


def sent(row: Row[Any]) -> Sent:
    """From a row of `COLUMNS` that is no DICOM object's."""
    resource = orjson.loads(row.body)
    return Sent(type=row.type, fhir_id=row.fhir_id, envelope=row.envelope, resource=resource, sha256=row.sha256)


def with_basis(connection: Connection, gone: Mapping[int, Sent]) -> dict[int, Sent]:
    """Resources that do not stand any more (all of some jobs, by id), with those that only they are derived from.

    Without those that results of other jobs refer to, whichever job queued them.
    """
    named = {name for row in gone.values() for name in _basis(row.resource)}
    shared = _present(connection, named)
    if not shared:
        return dict(gone)
    kept = _standing(connection, {row.envelope for row in shared.values()}, gone)
    return {key: row for key, row in {**gone, **shared}.items() if key not in shared or row.fhir_id not in kept}


def _present(connection: Connection, names: set[str]) -> dict[int, Sent]:
    """Those of these Observations that are results of ours: others are the records' own."""
    found: dict[int, Sent] = {}
    wanted = sorted(names)
    for start in range(0, len(wanted), IN_LIST):
        mine = OutboxRow.fhir_id.in_(wanted[start : start + IN_LIST])
        query = select(*COLUMNS).where(OutboxRow.type == OBSERVATION, mine).order_by(OutboxRow.id)
        found |= {row.id: sent(row) for row in connection.execute(query.with_for_update())}
    return found


def _standing(connection: Connection, envelopes: set[str], gone: Mapping[int, Sent]) -> set[str]:
    """What the Observations of these patients are derived from that stand, ``gone`` apart."""
    found: set[str] = set()
    for envelope in sorted(envelopes):
        query = select(OutboxRow.id, OutboxRow.body)
        query = query.where(OutboxRow.envelope == envelope, OutboxRow.type == OBSERVATION)
        for key, body in connection.execute(query.execution_options(yield_per=PAGE)):
            if key not in gone:
                resource = orjson.loads(body)
                if resource.get("status") not in GONE:
                    found.update(_basis(resource))
    return found


def _basis(resource: Mapping[str, Any]) -> Iterator[str]:
    """The ids of the Observations that a resource is derived from."""
    for item in resource.get("derivedFrom", ()):
        kind, _, key = item.get("reference", "").partition("/")
        if kind == OBSERVATION:
            yield key
