"""What a FHIR server says it can do, as far as writing results depends on it (R4 capabilitystatement.html).

Of what a statement leaves out altogether nothing is concluded: servers exist that list no resource types and take all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Manner(StrEnum):
    """How a resource of one type is written so that writing it twice gives one."""

    CLIENT_ID = "update with the client's id"
    CONDITIONAL_UPDATE = "conditional update"
    CONDITIONAL_CREATE = "conditional create"


@dataclass(frozen=True, kw_only=True, slots=True)
class TypeAbility:
    """What is offered for one resource type. ``interactions`` is None where the statement names none."""

    manner: Manner | None
    interactions: frozenset[str] | None = None

    def offers(self, interaction: str) -> bool:
        """An interaction ("update", "vread") is offered, or nothing is known of any."""
        return self.interactions is None or interaction in self.interactions


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What of a server matters for writing. ``types`` is None where the statement lists no resource types."""

    transaction: bool = True
    batch: bool = True
    types: Mapping[str, TypeAbility] | None = None

    def manner(self, kind: str) -> Manner | None:
        """How resources of this type are written; None if they cannot be, or not without the risk of duplicates."""
        if self.types is None:
            return Manner.CLIENT_ID
        return self.types[kind].manner if kind in self.types else None

    def offers(self, kind: str, interaction: str) -> bool:
        """Whether an interaction is offered for resources of this type."""
        if self.types is None:
            return True
        return kind in self.types and self.types[kind].offers(interaction)

    def lacks(self, kind: str) -> str:
        """Why resources of this type cannot be written."""
        if self.types is not None and kind not in self.types:
            return f"the server's CapabilityStatement has no {kind}"
        return (
            f"the server's CapabilityStatement offers {kind} without updateCreate, conditionalUpdate and "
            "conditionalCreate: sent twice, it would be there twice"
        )


def read_capabilities(statement: dict[str, Any]) -> Capabilities:
    """What a CapabilityStatement offers."""
    rests = [item for item in _list(statement, "rest") if item.get("mode", "server") == "server"]
    rest = rests[0] if rests else {}
    listed = [item for item in _list(rest, "resource") if isinstance(item.get("type"), str)]
    whole = _codes(rest) or (frozenset() if listed else None)  # who lists types would list these too
    return Capabilities(
        transaction=whole is None or "transaction" in whole,
        batch=whole is None or "batch" in whole,
        types={item["type"]: _ability(item) for item in listed} or None,
    )


def _ability(item: dict[str, Any]) -> TypeAbility:
    interactions = _codes(item)
    update = interactions is None or "update" in interactions
    create = interactions is None or "create" in interactions
    manner = None
    if update and item.get("updateCreate") is True:
        manner = Manner.CLIENT_ID
    elif update and item.get("conditionalUpdate") is True:
        manner = Manner.CONDITIONAL_UPDATE
    elif create and item.get("conditionalCreate") is True:
        manner = Manner.CONDITIONAL_CREATE
    return TypeAbility(manner=manner, interactions=interactions)


def _codes(element: dict[str, Any]) -> frozenset[str] | None:
    found = frozenset(str(item.get("code")) for item in _list(element, "interaction"))
    return found or None


def _list(element: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = element.get(name)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
