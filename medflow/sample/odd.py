"""Input that must be refused, one line for each reason: what a real feed contains sooner or later."""

from __future__ import annotations

import json

from medflow.sample.cohort import Resource


def odd_lines(observation: Resource) -> list[bytes]:
    """NDJSON lines that no FHIR store should take, made from one good ``observation``."""

    def with_(number: int, **changes: object) -> bytes:
        changed = {**observation, "id": f"demo-odd-{number}", **changes}
        return json.dumps({key: value for key, value in changed.items() if value is not None}).encode()

    time_without_zone = str(observation["effectiveDateTime"])[:19]
    return [
        with_(1, resourceType="Observatoin"),  # no such resource type
        with_(2, effectiveDateTime=time_without_zone),  # FHIR R4 2.24.0.1, dateTime: a time needs its zone
        with_(3, valueQuantitty={"value": 80}),  # no such element
        with_(4, status=None),  # a required element is missing
        with_(5, valueString="high"),  # two values: value[x] is one of them
        b'{"resourceType": "Observation", "id": "demo-odd-6", "status": ',  # cut off
        b'{"kind": "not a resource at all"}',
    ]
