"""The measurements behind an explanation: of channels that moved an answer, the last one that the model was given.

It is found under the very condition under which the model's input is read, so that nothing that was not known at the
prediction time is ever named as the basis of a score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

import numpy as np
from sqlalchemy import Connection, select

from medflow.plugin import Channel, TimeSeriesInput
from medflow.records import Instant
from medflow.store.measurements import readings, wanted_of
from medflow.store.tables import EncounterRow, FhirResourceRow
from medflow.timeseries import last_taken

CHUNK = 1000  # units in one statement: four parameters each
IN_LIST = 5000
NONE = -1  # no resource


def last_measurements(
    connection: Connection, spec: TimeSeriesInput, channels: Sequence[Channel], units: Sequence[tuple[int, Instant]]
) -> list[Mapping[str, str]]:
    """For each of ``units``, by channel: the FHIR reference of the last measurement in the window that it took.

    A channel without one is absent; so is one whose last measurement came from another source than the encounter, where
    its id means nothing.

    Parameters
    ----------
    connection
        Reading.
    spec
        What the model is given.
    channels
        Those of ``spec`` that are asked for.
    units
        Pairs of an encounter's id and the prediction time, at which its window ends.
    """
    if not channels or not units:
        return [{} for _ in units]
    asked = replace(spec, channels=tuple(channels))
    wanted = wanted_of(connection, asked)
    resources = np.full((len(units), len(channels)), NONE, dtype=np.int64)
    for start in range(0, len(units), CHUNK):
        chunk = units[start : start + CHUNK]
        found = readings(connection, wanted, chunk, spec.window // timedelta(microseconds=1), resources=True)
        assert found.resource is not None  # noqa: S101 - they were asked for
        last = last_taken(asked, found, len(chunk))
        resources[start : start + len(chunk)] = np.append(found.resource, NONE)[last]  # -1 is the place of NONE
    named = _references(connection, sorted(set(resources[resources != NONE].tolist())))
    sources = _sources(connection, sorted({encounter_id for encounter_id, _ in units}))
    names = [channel.name for channel in channels]
    return [
        {
            name: named[key][1]
            for name, key in zip(names, row, strict=True)
            if key in named and named[key][0] == sources.get(encounter_id)
        }
        for (encounter_id, _), row in zip(units, resources.tolist(), strict=True)
    ]


def _references(connection: Connection, resource_ids: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Source and reference of resources, by id."""
    found: dict[int, tuple[str, str]] = {}
    for start in range(0, len(resource_ids), IN_LIST):
        query = select(FhirResourceRow.id, FhirResourceRow.source, FhirResourceRow.type, FhirResourceRow.fhir_id)
        part = query.where(FhirResourceRow.id.in_(resource_ids[start : start + IN_LIST]))
        found.update({key: (source, f"{kind}/{name}") for key, source, kind, name in connection.execute(part)})
    return found


def _sources(connection: Connection, encounter_ids: Sequence[int]) -> dict[int, str]:
    found: dict[int, str] = {}
    for start in range(0, len(encounter_ids), IN_LIST):
        query = select(EncounterRow.id, EncounterRow.source)
        part = query.where(EncounterRow.id.in_(encounter_ids[start : start + IN_LIST]))
        found.update({key: source for key, source in connection.execute(part)})
    return found
