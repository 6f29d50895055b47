"""What a stored resource says that no column holds: when a patient died, and a resource's own identifiers.

R4 Patient.deceased[x] is a boolean or a dateTime, and a dateTime may be a year, a month, a day or an instant
(https://hl7.org/fhir/R4/datatypes.html#dateTime); so a death is a span of time here, never a guessed moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import orjson

from medflow.fhir.r4 import moment_of
from medflow.records import Identifier, Instant


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """From the first to the last microsecond in which something may have happened; ``exact``: to the day or better."""

    first_us: int
    last_us: int
    exact: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Vital:
    """``died`` is None if no time of death is stated (or it cannot be placed); ``alive``: stated not to have died."""

    died: Span | None = None
    alive: bool = False


def vital_of(raw: bytes, zone: ZoneInfo | None) -> Vital:
    """What a Patient resource says of death. A time without a zone is placed in ``zone``, or not at all."""
    resource = orjson.loads(raw)
    if "deceasedDateTime" in resource:
        return Vital(died=span_of(resource["deceasedDateTime"], zone))
    return Vital(alive=resource.get("deceasedBoolean") is False)


def span_of(text: str, zone: ZoneInfo | None) -> Span | None:
    """The time that a dateTime stands for; None where it has no zone and none is configured."""
    padded = text + "-01-01"[: 10 - len(text)] if len(text) == 4 else text + "-01" if len(text) == 7 else text
    first = moment_of(padded)
    if first is None or (first.tzinfo is None and zone is None):
        return None
    if first.tzinfo is None:
        first = first.replace(tzinfo=zone)
    end = _end(first, len(text))
    return Span(
        first_us=Instant.of(first).utc_us,
        last_us=Instant.of(end).utc_us - 1 if len(text) <= 10 else Instant.of(end).utc_us,
        exact=len(text) >= 10,
    )


def _end(first: datetime, length: int) -> datetime:
    if length == 4:
        return first.replace(year=first.year + 1)
    if length == 7:
        return (first + timedelta(days=31)).replace(day=1)
    return first + timedelta(days=1) if length == 10 else first


def identifiers_of(raw: bytes) -> list[Identifier]:
    """A resource's identifiers that have a system and a value."""
    found = orjson.loads(raw).get("identifier", [])
    items = found if isinstance(found, list) else [found]
    return [
        Identifier(system=item["system"], value=item["value"]) for item in items if {"system", "value"} <= set(item)
    ]
