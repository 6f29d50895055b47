"""What every written resource is made of: ids, references, FHIR data types, and the check before it may leave."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid5

import orjson

from medflow.fhir.check import Checker
from medflow.plugin import ModelSpec
from medflow.records import Coding, Identifier, InputReference, Instant, Outgoing, Subject, digest_of

Json = dict[str, Any]

NAMESPACE = UUID("fb6598b9-0dae-40b0-a66c-f81dc33df2af")  # of all ids made here; changing it would orphan every result
UCUM = "http://unitsofmeasure.org"
COMPONENT = "urn:medflow:observation-component"  # codes of components that no terminology has
RUN_TIMES = ("issued", "recorded")  # of the run, not of the result: no change by themselves
SIGNIFICANT = 6  # digits of a value: about what a 32-bit network computes alike in any batch


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelIdentity:
    """Which model speaks. ``digest`` is over its code, weights and spec."""

    name: str
    version: str
    digest: str
    spec: ModelSpec
    distribution: str

    @property
    def device_id(self) -> str:
        """The id of the Device that stands for it."""
        return _model_part_id("Device", self.name, self.digest)

    @property
    def card_id(self) -> str:
        """The id of the DocumentReference that carries its card."""
        return _model_part_id("DocumentReference", self.name, self.digest)

    @property
    def device(self) -> Json:
        """The reference to its Device."""
        return {"reference": f"Device/{self.device_id}"}


@cache
def _model_part_id(kind: str, name: str, digest: str) -> str:
    return made_id(kind, name, digest)


def made_id(*parts: object) -> str:
    """The UUIDv5 of what these parts stand for: the same wherever it is made."""
    return str(uuid5(NAMESPACE, digest_of(*parts)))


def outgoing(resource: Json, envelope: str) -> Outgoing:
    """A resource made ready to send: checked, and in canonical bytes (keys in order, no spaces).

    Its ``sha256`` leaves out when the run was: the same result of a later run is no change.

    Raises
    ------
    InputRejected
        It is not valid R4.
    """
    _checker().check(resource)
    body = orjson.dumps(resource, option=orjson.OPT_SORT_KEYS)
    lasting = {name: value for name, value in resource.items() if name not in RUN_TIMES}
    content = orjson.dumps(lasting, option=orjson.OPT_SORT_KEYS)
    return Outgoing(
        type=resource["resourceType"],
        id=resource["id"],
        body=body,
        sha256=sha256(content).hexdigest(),
        envelope=envelope,
    )


@cache
def _checker() -> Checker:
    return Checker()  # it remembers what it has seen: results of one model differ in few elements


def subject_element(subject: Subject | None) -> Json | None:
    """The Reference to a patient; None when there is none, or none that FHIR could name."""
    if subject is None:
        return None
    if subject.reference:
        return {"reference": subject.reference, "type": "Patient"}
    return {"type": "Patient", "identifier": identifier(subject.identifier)} if subject.identifier else None


def reference(item: InputReference) -> Json:
    """The Reference to an input: literal, logical (by identifier), or both."""
    logical = identifier(item.identifier) if item.identifier else None
    return without_empty(
        {"reference": item.reference, "type": item.type, "identifier": logical, "display": item.display}
    )


def identifier(item: Identifier) -> Json:
    """Identifier."""
    return {"system": item.system, "value": item.value}


def concept(code: Coding) -> Json:
    """CodeableConcept of one coding."""
    return {"coding": [without_empty({"system": code.system, "code": code.code, "display": code.display})]}


def coded(system: str, code: str) -> Json:
    """CodeableConcept of one code of HL7's own systems."""
    return {"coding": [{"system": system, "code": code}]}


def quantity(value: float, unit: str) -> Json:
    """Quantity in a UCUM unit."""
    return {"value": rounded(value), "unit": unit, "system": UCUM, "code": unit}


def rounded(value: float) -> float:
    """To the digits that are reproducible."""
    return float(f"{value:.{SIGNIFICANT}g}")


def time(instant: Instant) -> str:
    """R4 dateTime and instant: in the offset it came with, milliseconds only where there are any."""
    moment = instant.datetime()
    return moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds")


def without_empty(element: Json) -> Json:
    """Without what has no content: FHIR JSON knows no null and no empty array or object (R4 json.html)."""
    return {name: value for name, value in element.items() if value is not None and value != [] and value != {}}
