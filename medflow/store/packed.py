"""FHIR resources reduced to what is written of them, without a database: what worker processes hand to the writer.

Tuples of plain values cross from process to process cheaply; surrogate ids are all that is missing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

from medflow.records import CodedFact, Coding, Encounter, FhirResource, Measurement, Patient

MARK_BITS = 40  # sums of millions of marks stay within 63 bits
Code = tuple[str, str]
# the system of a concept that has several codings, each of which a channel may name: its code lists them as JSON
SEVERAL = "urn:medflow:codings"


class PackedMeasurement(NamedTuple):
    """A `Measurement`, all but surrogate ids."""

    subject: str
    encounter: str | None
    code: Code
    effective_us: int
    effective_offset: int
    available_us: int
    status: str
    value: float | None
    unit: str | None
    value_code: Code | None
    mark_1: int
    mark_2: int


class PackedFact(NamedTuple):
    """A `CodedFact`, all but surrogate ids."""

    kind: str
    subject: str | None
    encounter: str | None
    code: Code
    start_us: int | None
    end_us: int | None
    recorded_us: int | None
    status: str | None


class Packed(NamedTuple):
    """A `FhirResource` made ready for the store."""

    type: str
    id: str
    raw: bytes
    sha256: str
    version: str | None
    last_updated_us: int | None
    deleted: bool
    subject: str | None
    patient: Patient | None
    encounter: Encounter | None
    measurements: tuple[PackedMeasurement, ...]
    facts: tuple[PackedFact, ...]
    displays: tuple[tuple[str, str, str], ...]  # system, code, display


def pack(resource: FhirResource) -> Packed:
    """Make a resource ready for `ClinicalWriter.write`. Pure: may run in another process."""
    codings = [item.code for item in (*resource.measurements, *resource.facts)]
    codings += [item.value_code for item in resource.measurements if item.value_code is not None]
    return Packed(
        resource.type,
        resource.id,
        b"" if resource.deleted else resource.raw,
        "" if resource.deleted else resource.sha256,
        resource.version,
        resource.last_updated.utc_us if resource.last_updated else None,
        resource.deleted,
        resource.subject,
        resource.patient,
        resource.encounter,
        tuple(_pack_measurement(item) for item in resource.measurements if item.subject is not None),
        tuple(_pack_fact(item) for item in resource.facts),
        tuple((item.system, item.code, item.display) for item in codings if item.display),
    )


def codings_of(code: str) -> frozenset[Coding]:
    """The codings that the code of a concept of the system SEVERAL lists."""
    return frozenset(Coding(system=system, code=its_code) for system, its_code in json.loads(code))


def _concept(coding: Coding, also: Sequence[Coding]) -> Code:
    """The one concept of an element's codings, whatever their order."""
    codes = sorted({(item.system, item.code) for item in (coding, *also)})
    return codes[0] if len(codes) == 1 else (SEVERAL, json.dumps(codes, separators=(",", ":")))


def _pack_measurement(item: Measurement) -> PackedMeasurement:
    code = _concept(item.code, item.also)
    value_code = _concept(item.value_code, item.value_also) if item.value_code else None
    content = (
        *code,
        item.effective.utc_us,
        item.available.utc_us,
        item.status,
        None if item.value is None else repr(float(item.value)),
        item.unit,
        value_code,
    )
    digest = blake2b(json.dumps(content).encode(), digest_size=2 * MARK_BITS // 8).digest()
    half = MARK_BITS // 8
    return PackedMeasurement(
        item.subject or "",
        item.encounter,
        code,
        item.effective.utc_us,
        item.effective.offset_min,
        item.available.utc_us,
        item.status,
        item.value,
        item.unit,
        value_code,
        int.from_bytes(digest[:half], "big"),
        int.from_bytes(digest[half:], "big"),
    )


def _pack_fact(item: CodedFact) -> PackedFact:
    start, end, recorded = (moment.utc_us if moment else None for moment in (item.start, item.end, item.recorded))
    code = (item.code.system, item.code.code)
    return PackedFact(item.kind, item.subject, item.encounter, code, start, end, recorded, item.status)
