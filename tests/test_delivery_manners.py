"""Delivery to a FHIR server that does not take our ids, or not every type, or not many at once: by what it offers.

The server is a stranger's, and keeps to the CapabilityStatement that a test gives it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import orjson
import pytest

from medflow import delivery
from medflow.config import Settings, parsed_target
from medflow.connections.circuit import CircuitRule
from medflow.connections.patience import Patience
from medflow.delivery import server
from medflow.errors import ConfigurationError
from medflow.fhir.write import result_resources
from medflow.records import Identifier, Outgoing, Result, Subject
from medflow.store import Store, connections, outbox
from tests.every_kind import KINDS, resources_of
from tests.results import SPLEEN, catalog, context, model, risk_of
from tests.services.faulty_fhir import FaultyServer, Reply, faulty_fhir

TYPES = ("Device", "DocumentReference", "Observation", "RiskAssessment", "Provenance")
BOTH = ("transaction", "batch")
URN = "urn:ietf:rfc:3986"
HASTE = Patience(attempts=3, first_wait_s=0.01, longest_wait_s=0.05)
Offer = Callable[..., str]


@pytest.fixture(autouse=True)
def _haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PATIENCE", HASTE)
    monkeypatch.setattr(server, "AT_START", HASTE)
    monkeypatch.setattr(server, "CIRCUIT", CircuitRule(open_after=3, first_wait_s=0.02, patience_s=0.4))


@pytest.fixture
def offer(fhir_server: str) -> Offer:
    """Have the server offer these interactions, and every type with these abilities; gives its base URL."""

    def offered(*abilities: str, interactions: Sequence[str] = BOTH, types: Sequence[str] = TYPES) -> str:
        codes = [{"code": code} for code in ("read", "vread", "update", "create", "search-type")]
        resources = [{"type": kind, "interaction": codes, **dict.fromkeys(abilities, True)} for kind in types]
        rest = {"interaction": [{"code": code} for code in interactions], "resource": resources}
        where = fhir_server.removesuffix("/fhir/R4") + "/$offers"
        httpx.post(where, json=rest).raise_for_status()
        return fhir_server

    return offered


def queue(store: Store, outgoing: Sequence[Outgoing]) -> None:
    with store.writing() as connection:
        outbox.queue(connection, None, outgoing)


def deliver(store: Store, settings: Settings, url: str) -> delivery.DeliveryTally:
    return delivery.deliver(store, settings, parsed_target(url))


def cohort(*patients: int, chance: float = 0.25) -> list[Outgoing]:
    return [*catalog(), *(item for patient in patients for item in risk_of(patient, chance))]


def found(url: str, kind: str, **search: str) -> list[dict[str, Any]]:
    bundle = httpx.get(f"{url}/{kind}", params={"_count": "1000", **search}).json()
    return [entry["resource"] for entry in bundle.get("entry", ())]


def one(url: str, kind: str, **search: str) -> dict[str, Any]:
    [resource] = found(url, kind, **search)
    return resource


def references(resource: Any) -> set[str]:
    if isinstance(resource, list):
        return {name for item in resource for name in references(item)}
    if not isinstance(resource, dict):
        return set()
    own = {resource["reference"]} if isinstance(resource.get("reference"), str) else set()
    return own.union(*map(references, resource.values()))


def ours(resource: Any) -> set[str]:
    return {name for name in references(resource) if not name.startswith(("Patient/", "Encounter/"))}


@pytest.mark.parametrize("interactions", [BOTH, ("batch",), ()], ids=["transaction", "batch", "singly"])
@pytest.mark.parametrize("ability", ["updateCreate", "conditionalUpdate", "conditionalCreate"])
def test_whatever_it_offers_everything_is_there_once_and_refers_to_the_rest(
    ability: str, interactions: Sequence[str], local: Store, settings: Settings, offer: Offer
) -> None:
    url = offer(ability, interactions=interactions)
    queue(local, cohort(1, 2))

    first, second = deliver(local, settings, url), deliver(local, settings, url)
    with local.writing() as connection:  # as if the process had been killed before it could note what it was told
        connection.exec_driver_sql("UPDATE delivery SET state = 'pending', server_id = NULL, etag = NULL")
    third = deliver(local, settings, url)

    assert (first.delivered, first.failed, first.dead) == (8, 0, 0), first.errors
    assert second.pending == 0
    assert (third.delivered, third.failed) == (8, 0), third.errors
    stored = {f"{kind}/{item['id']}": item for kind in TYPES for item in found(url, kind)}
    assert len(stored) == 8
    for resource in stored.values():
        assert ours(resource) <= stored.keys()
    for patient in ("p1", "p2"):
        score = one(url, "Observation", patient=f"Patient/{patient}", code="urn:test:score|mortality")
        assert score["device"]["reference"] in stored


def test_ids_of_its_own_are_remembered_and_a_newer_result_goes_to_the_same_place(
    local: Store, settings: Settings, offer: Offer
) -> None:
    url = offer("conditionalUpdate")
    queue(local, cohort(1))
    deliver(local, settings, url)
    before = one(url, "Observation", patient="Patient/p1")

    queue(local, cohort(1, chance=0.5))
    tally = deliver(local, settings, url)

    after = one(url, "Observation", patient="Patient/p1")
    assert tally.delivered == 2
    assert after["id"] == before["id"] != orjson.loads(risk_of(1)[0].body)["id"]
    assert after["valueQuantity"]["value"] == 50
    assert f"Observation/{after['id']}" in ours(one(url, "RiskAssessment"))
    with local.reading() as connection:
        query = "SELECT server_id FROM delivery JOIN outbox ON outbox.id = outbox_id WHERE type = 'Observation'"
        assert connection.exec_driver_sql(query).scalars().all() == [after["id"]]


def test_how_many_it_takes_at_once_is_learned(local: Store, settings: Settings, offer: Offer) -> None:
    url = offer("conditionalUpdate")  # it takes no more than 8 entries where one of them is conditional and new
    queue(local, cohort(*range(20)))

    tally = deliver(local, settings, url)

    assert (tally.delivered, tally.failed) == (62, 0)
    assert len(found(url, "Observation")) == 20


def test_types_it_has_no_place_for_are_withheld_and_told_and_the_rest_is_delivered(
    local: Store, settings: Settings, offer: Offer
) -> None:
    url = offer("updateCreate", types=["Observation"])
    queue(local, cohort(1))

    tally, again = deliver(local, settings, url), deliver(local, settings, url)

    assert (tally.pending, tally.delivered, tally.failed, tally.dead, tally.withheld) == (5, 1, 0, 0, 4)
    assert tally.as_json()["lacking"] == {
        f"the server's CapabilityStatement has no {kind}": 1 for kind in TYPES if kind != "Observation"
    }
    assert again.pending == 0
    score = one(url, "Observation", patient="Patient/p1")
    assert ours(score) == set()
    assert score["device"]["identifier"] == {"system": "urn:medflow:model-digest", "value": "d" * 64}
    with local.reading() as connection:
        assert outbox.counts(connection)[url]["withheld"] == 4


def test_what_was_withheld_goes_when_there_is_a_place_for_it(local: Store, settings: Settings, offer: Offer) -> None:
    url = offer("updateCreate", types=["Observation"])
    queue(local, cohort(1))
    deliver(local, settings, url)

    offer("updateCreate")
    with local.writing() as connection:
        outbox.retry_deliveries(connection, url)
    tally = deliver(local, settings, url)

    assert (tally.delivered, tally.withheld) == (4, 0)


def test_a_server_where_results_would_be_there_twice_is_not_delivered_to(
    local: Store, settings: Settings, offer: Offer
) -> None:
    url = offer()
    queue(local, cohort(1))

    with pytest.raises(ConfigurationError, match="without updateCreate, conditionalUpdate and conditionalCreate"):
        deliver(local, settings, url)


def score_of(identifier: Identifier) -> list[Outgoing]:
    """A volume of a patient who is known from images alone."""
    subject = Subject(patient_id=1, identifier=identifier)
    return result_resources(context(model(SPLEEN), subject=subject), [Result(output="spleen", value=200.0, voxels=9)])


@pytest.mark.parametrize("ability", ["updateCreate", "conditionalUpdate"])
def test_a_patient_known_from_images_is_the_servers_own_where_it_has_exactly_one(
    ability: str, local: Store, settings: Settings, offer: Offer
) -> None:
    url = offer(ability, types=[*TYPES, "Patient"])
    known, twice, unknown = (Identifier(system="urn:oid:1.2.3", value=value) for value in ("4711", "2", "3"))
    for who in (known, twice, twice):
        body = {"resourceType": "Patient", "identifier": [{"system": who.system, "value": who.value}]}
        httpx.post(f"{url}/Patient", json=body).raise_for_status()
    mine = next(item for item in found(url, "Patient") if item["identifier"][0]["value"] == known.value)
    link = [{"type": "replaced-by", "other": {"reference": f"Patient/{mine['id']}"}}]
    gone, old = ({"system": known.system, "value": value, "use": use} for value, use in (("8", "usual"), ("9", "old")))
    for other in ({"link": link, "identifier": mine["identifier"]}, {"active": False, "identifier": [gone]}):
        httpx.post(f"{url}/Patient", json={"resourceType": "Patient"} | other).raise_for_status()
    httpx.post(f"{url}/Patient", json={"resourceType": "Patient", "identifier": [old]}).raise_for_status()
    doubtful = tuple(Identifier(system="urn:oid:1.2.3", value=value) for value in ("8", "9"))
    queue(local, [item for who in (known, twice, unknown, *doubtful) for item in score_of(who)])

    tally = deliver(local, settings, url)

    assert (tally.delivered, tally.failed) == (10, 0)
    subjects = {item["subject"]["identifier"]["value"]: item["subject"] for item in found(url, "Observation")}
    assert subjects[known.value]["reference"] == f"Patient/{mine['id']}"
    assert not any("reference" in subjects[who.value] for who in (twice, unknown, *doubtful))
    assert len(found(url, "Observation", patient=f"Patient/{mine['id']}", code="118565006")) == 1


# --- what somebody else changed ------------------------------------------------------------------------------


def amended(store: Store, patient: int) -> None:
    """As a superseded result is: another status under the same id."""
    changed = []
    for item in risk_of(patient):
        resource = orjson.loads(item.body)
        if "status" in resource:
            body = orjson.dumps({**resource, "status": "amended"}, option=orjson.OPT_SORT_KEYS)
            changed.append(
                Outgoing(type=item.type, id=item.id, body=body, sha256=f"x{item.id}", envelope=item.envelope)
            )
    queue(store, changed)


def change(url: str, resource: dict[str, Any], **changes: Any) -> None:
    """As a person does it with another system."""
    body = {key: value for key, value in (resource | changes).items()}
    httpx.put(f"{url}/{resource['resourceType']}/{resource['id']}", json=body).raise_for_status()


@pytest.mark.parametrize("ability", ["updateCreate", "conditionalUpdate", "conditionalCreate"])
def test_what_a_killed_process_left_unnoted_is_brought_up_to_date(
    ability: str, local: Store, settings: Settings, offer: Offer
) -> None:
    url = offer(ability)
    queue(local, cohort(1))
    deliver(local, settings, url)
    with local.writing() as connection:
        connection.exec_driver_sql("UPDATE delivery SET state = 'pending', server_id = NULL, etag = NULL")

    amended(local, 1)
    tally = deliver(local, settings, url)

    assert (tally.delivered, tally.failed) == (5, 0)
    assert one(url, "Observation")["status"] == one(url, "RiskAssessment")["status"] == "amended"


@pytest.mark.parametrize("interactions", [BOTH, ("batch",), ()], ids=["transaction", "batch", "singly"])
def test_what_a_person_changed_is_not_written_over(
    interactions: Sequence[str], local: Store, settings: Settings, offer: Offer
) -> None:
    url = offer("updateCreate", interactions=interactions)
    queue(local, cohort(1, 2))
    deliver(local, settings, url)
    score = one(url, "Observation", patient="Patient/p1")
    change(url, score, status="entered-in-error", note=[{"text": "another patient's"}])

    amended(local, 1)
    amended(local, 2)
    tally = deliver(local, settings, url)

    assert (tally.delivered, tally.failed) == (3, 1)
    [reason] = tally.errors
    assert "changed at the server" in reason and "medflow retry deliveries" in reason
    kept = one(url, "Observation", patient="Patient/p1")
    assert (kept["status"], kept["note"]) == ("entered-in-error", [{"text": "another patient's"}])
    assert one(url, "Observation", patient="Patient/p2")["status"] == "amended"

    with local.writing() as connection:
        outbox.retry_deliveries(connection, url, overwrite=True)
    assert deliver(local, settings, url).delivered == 1
    assert one(url, "Observation", patient="Patient/p1")["status"] == "amended"


def test_the_servers_own_bookkeeping_is_no_change(local: Store, settings: Settings, offer: Offer) -> None:
    url = offer("conditionalUpdate")
    queue(local, cohort(1))
    deliver(local, settings, url)
    change(url, one(url, "Observation", patient="Patient/p1"))  # the same again, as a new version

    amended(local, 1)
    tally = deliver(local, settings, url)

    assert (tally.delivered, tally.failed) == (2, 0)
    assert one(url, "Observation", patient="Patient/p1")["status"] == "amended"


def test_an_update_whose_answer_was_lost_is_found_to_be_there(local: Store, settings: Settings, offer: Offer) -> None:
    url = offer("updateCreate")
    queue(local, cohort(1))
    deliver(local, settings, url)
    amended(local, 1)
    for kind in ("Observation", "RiskAssessment"):
        change(url, one(url, kind), status="amended")

    tally = deliver(local, settings, url)

    assert (tally.delivered, tally.failed) == (2, 0)
    assert len(httpx.get(f"{url}/Observation/{risk_of(1)[0].id}/_history").json()["entry"]) == 2


def test_what_was_removed_is_not_put_back(local: Store, settings: Settings, offer: Offer) -> None:
    url = offer("updateCreate")
    queue(local, cohort(1))
    deliver(local, settings, url)
    httpx.delete(f"{url}/Observation/{risk_of(1)[0].id}").raise_for_status()

    amended(local, 1)
    tally = deliver(local, settings, url)

    assert (tally.delivered, tally.failed) == (1, 1)
    assert "removed at the server" in next(iter(tally.errors))
    assert found(url, "Observation") == []


# --- when it is in trouble ---------------------------------------------------------------------------------------


@pytest.fixture
def faulty() -> Iterator[FaultyServer]:
    with faulty_fhir() as running:
        yield running


def test_a_request_that_is_too_large_halves_what_is_sent_from_then_on(
    local: Store, settings: Settings, faulty: FaultyServer
) -> None:
    page = Reply(status=413, body=b"<html>too large</html>", headers={"Content-Type": "text/html"})
    faulty.always = lambda urls: page if len(urls) > 12 else None
    queue(local, cohort(*range(100)))

    tally = deliver(local, settings, faulty.url)

    assert (tally.delivered, tally.failed) == (302, 0)
    sizes = [len(urls) for urls in faulty.transactions]
    assert sum(size > 12 for size in sizes) < 20  # none after it was learned
    assert max(sizes[-10:]) <= 12


def test_one_entry_of_many_patients_is_sent_again_alone_after_the_wait_that_the_server_names(
    local: Store, settings: Settings, faulty: FaultyServer
) -> None:
    faulty.script.append(Reply())  # the catalog
    faulty.script.append(Reply(statuses={"RiskAssessment": 429}, headers={"Retry-After": "1"}))
    queue(local, cohort(1, 2))

    tally = deliver(local, settings, faulty.url)

    assert (tally.delivered, tally.failed) == (8, 0)
    again = [(urls, at) for urls, at in zip(faulty.transactions, faulty.times, strict=True) if len(urls) == 1]
    assert [urls[0].partition("/")[0] for urls, _ in again] == ["RiskAssessment"]
    assert again[0][1] - faulty.times[1] >= 1.0


def test_one_patients_refused_entry_is_put_aside_with_the_servers_words_and_in_the_end_dead(
    local: Store, settings: Settings, faulty: FaultyServer
) -> None:
    bad = f"Observation/{risk_of(7)[0].id}"
    faulty.always = lambda urls: Reply(status=422) if bad in urls else None
    queue(local, cohort(*range(20)))

    for _ in range(settings.max_attempts):
        deliver(local, settings, faulty.url)
        with local.writing() as connection:
            connection.exec_driver_sql("UPDATE delivery SET not_before_us = 0")

    with local.reading() as connection:
        assert outbox.counts(connection)[faulty.url] == dict.fromkeys(outbox.STATES, 0) | {"delivered": 59, "dead": 3}
        lines = outbox.list_errors(connection, faulty.url)
    assert {line[2:] for line in lines} == {
        ("dead", settings.max_attempts, "HTTP 422, invalid at Observation.value: SECRET of Jane Doe")
    }


def test_a_conflict_of_one_patient_is_waited_for_by_no_other(
    local: Store, settings: Settings, faulty: FaultyServer
) -> None:
    bad = f"Observation/{risk_of(7)[0].id}"
    faulty.always = lambda urls: Reply(status=409) if bad in urls else None
    queue(local, cohort(*range(20)))

    tally = deliver(local, settings, faulty.url)

    assert (tally.delivered, tally.failed) == (59, 3)
    assert tally.errors == {"HTTP 409, invalid at Observation.value": 3}
    refused = [len(urls) for urls in faulty.transactions if bad in urls]
    assert refused[-HASTE.attempts :] == [3] * HASTE.attempts  # alone by then
    assert len(refused) == len(set(refused)) + HASTE.attempts - 1


def test_a_patient_that_the_server_cannot_bear_is_found_and_the_others_arrive(
    local: Store, settings: Settings, faulty: FaultyServer
) -> None:
    bad = f"Observation/{risk_of(7)[0].id}"
    faulty.always = lambda urls: Reply(status=500) if bad in urls else None
    queue(local, cohort(*range(20)))

    tally = deliver(local, settings, faulty.url)

    assert (tally.delivered, tally.failed) == (59, 3)


def test_while_the_server_is_away_it_is_on_record_and_what_comes_back_in_time_is_waited_for(
    local: Store, settings: Settings, faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(server, "PATIENCE", Patience(attempts=50, first_wait_s=0.01, longest_wait_s=0.05))
    rule = CircuitRule(open_after=3, first_wait_s=0.1, longest_wait_s=0.1, patience_s=20)
    monkeypatch.setattr(server, "CIRCUIT", rule)
    faulty.always = lambda _urls: Reply(status=503)
    queue(local, cohort(*range(8)))
    said: list[str | None] = []

    def watch() -> None:
        while not any(said):
            time.sleep(0.05)
            with local.reading() as connection:
                said.extend(line.error for line in connections.standing(connection))
        faulty.always = lambda _urls: None

    watcher = threading.Thread(target=watch)
    watcher.start()
    tally = deliver(local, settings, faulty.url)
    watcher.join()

    assert (tally.delivered, tally.failed) == (26, 0)
    assert any("not available now (HTTP 503)" in text for text in said if text)
    with local.reading() as connection:
        [line] = connections.standing(connection)
    assert line.error is None


# --- every kind of result ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ability", ["updateCreate", "conditionalUpdate"])
def test_every_kind_of_result_is_taken_by_both_validators_once_and_found_by_patient_and_code(
    ability: str, local: Store, settings: Settings, offer: Offer
) -> None:
    url = offer(ability)
    everything = [item for kind in KINDS for item in resources_of(kind)]
    queue(local, everything)

    first = deliver(local, settings, url)
    with local.writing() as connection:
        connection.exec_driver_sql("UPDATE delivery SET state = 'pending'")
    second = deliver(local, settings, url)

    different = {(item.type, item.id) for item in everything}
    assert (first.delivered, second.delivered, first.errors, second.errors) == (len(different), len(different), {}, {})
    assert sum(len(found(url, kind)) for kind in TYPES) == len(different)
    for observation in (orjson.loads(item.body) for item in everything if item.type == "Observation"):
        search = {"code": observation["code"]["coding"][0]["code"], "identifier": observation["identifier"][0]["value"]}
        if reference := observation.get("subject", {}).get("reference"):
            search["patient"] = reference
        assert len(found(url, "Observation", **search)) == 1
