"""What a server says it can do, and what follows for how results are written there."""

from __future__ import annotations

from typing import Any

import pytest

from medflow.fhir.capability import Capabilities, Manner, read_capabilities


def rest(*resources: dict[str, Any], interaction: list[str] | None = None) -> Capabilities:
    item: dict[str, Any] = {"mode": "server", "resource": list(resources)}
    if interaction is not None:
        item["interaction"] = [{"code": code} for code in interaction]
    return read_capabilities({"resourceType": "CapabilityStatement", "rest": [{"mode": "client"}, item]})


def observation(*interactions: str, **abilities: bool) -> dict[str, Any]:
    return {"type": "Observation", "interaction": [{"code": code} for code in interactions], **abilities}


@pytest.mark.parametrize(
    ("abilities", "manner"),
    [
        ({"updateCreate": True, "conditionalUpdate": True}, Manner.CLIENT_ID),
        ({"updateCreate": False, "conditionalUpdate": True, "conditionalCreate": True}, Manner.CONDITIONAL_UPDATE),
        ({"conditionalCreate": True}, Manner.CONDITIONAL_CREATE),
        ({}, None),
    ],
)
def test_the_surest_manner_that_is_offered_is_taken(abilities: dict[str, bool], manner: Manner | None) -> None:
    assert rest(observation("create", "update", **abilities)).manner("Observation") is manner


def test_what_may_only_be_read_is_not_written() -> None:
    found = rest(observation("read", updateCreate=True, conditionalUpdate=True, conditionalCreate=True))

    assert found.manner("Observation") is None
    assert not found.offers("Observation", "update")


def test_a_type_that_is_not_listed_is_lacking_and_named() -> None:
    found = rest(observation("update", updateCreate=True))

    assert found.manner("Provenance") is None
    assert found.lacks("Provenance") == "the server's CapabilityStatement has no Provenance"


def test_nothing_is_concluded_from_a_statement_that_lists_nothing() -> None:
    found = read_capabilities({"resourceType": "CapabilityStatement"})

    assert (found.transaction, found.batch) == (True, True)
    assert found.manner("Anything") is Manner.CLIENT_ID


@pytest.mark.parametrize(
    ("interaction", "expected"), [(["transaction"], (True, False)), (["batch"], (False, True)), (None, (False, False))]
)
def test_bundles_are_sent_where_they_are_offered(interaction: list[str] | None, expected: tuple[bool, bool]) -> None:
    found = rest(observation(updateCreate=True), interaction=interaction)

    assert (found.transaction, found.batch) == expected


@pytest.mark.parametrize("statement", [{"rest": "x"}, {"rest": [{"resource": [{"type": 7}, "x"]}]}, {"rest": [None]}])
def test_a_statement_that_is_none_tells_nothing(statement: dict[str, Any]) -> None:
    assert read_capabilities(statement).manner("Observation") is Manner.CLIENT_ID
