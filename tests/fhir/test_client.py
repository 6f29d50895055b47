"""The FHIR client: what a server may answer, told apart by type, and nothing of it that a log must not have."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from pydantic import SecretStr

from medflow.config import parsed_target
from medflow.connections.endpoints import Bearer, FhirTarget
from medflow.errors import ConfigurationError, DeliveryRefused, ServerUnavailable
from medflow.fhir.client import FhirClient, Write
from tests.results import catalog, risk_of
from tests.services import free_port
from tests.services.faulty_fhir import FaultyServer, Reply, faulty_fhir


def server(url: str, token: str | None = None) -> FhirTarget:
    found = parsed_target(url)
    assert isinstance(found, FhirTarget)
    return found.model_copy(update={"auth": Bearer(type="bearer", token=SecretStr(token))}) if token else found


def put(kind: str, key: str, body: bytes) -> Write:
    return Write(method="PUT", url=f"{kind}/{key}", body=body)


PUTS = [put(item.type, item.id, item.body) for item in risk_of(1)]


@pytest.fixture
def faulty() -> Iterator[FaultyServer]:
    with faulty_fhir() as server:
        yield server


@pytest.fixture
def client(faulty: FaultyServer) -> Iterator[FhirClient]:
    with FhirClient(server(faulty.url), timeout_s=0.5) as opened:
        yield opened


def test_a_transaction_is_stored_by_a_real_server(fhir_server: str) -> None:
    puts = [put(item.type, item.id, item.body) for item in [*catalog(), *risk_of(1)]]
    with FhirClient(server(fhir_server + "/")) as client:
        client.check()
        answers = client.bundle("transaction", puts)
        again = client.bundle("transaction", puts)

    assert all(answer.taken for answer in [*answers, *again])
    for write in puts:
        assert httpx.get(f"{fhir_server}/{write.url}").status_code == 200


def test_what_a_real_server_refuses_is_told_with_its_reason(fhir_server: str) -> None:
    bad = put("Observation", "x", b'{"resourceType":"Observation","id":"x","status":"foo","code":{}}')

    with FhirClient(server(fhir_server)) as client, pytest.raises(DeliveryRefused) as caught:
        client.bundle("transaction", [bad])

    assert caught.value.answer.status == 400
    assert "HTTP 400" in caught.value.message


def test_every_entry_has_its_own_answer(faulty: FaultyServer, client: FhirClient) -> None:
    faulty.script.append(Reply(statuses={"Observation": 422, "RiskAssessment": 429}))

    refused, busy, taken = client.bundle("transaction", PUTS)

    assert (refused.status, refused.taken, refused.busy) == (422, False, False)
    assert (busy.status, busy.taken, busy.busy) == (429, False, True)
    assert taken.taken
    assert refused.reason == "HTTP 422, invalid at Observation.value"
    assert refused.detail == "SECRET of Jane Doe"


def test_a_servers_own_words_are_in_no_message(faulty: FaultyServer, client: FhirClient) -> None:
    faulty.script.append(Reply(status=400))

    with pytest.raises(DeliveryRefused) as caught:
        client.bundle("transaction", PUTS)

    assert "SECRET" not in str(caught.value) and "SECRET" in caught.value.answer.detail
    assert pickle.loads(pickle.dumps(caught.value)).answer == caught.value.answer


def test_what_a_real_server_calls_a_resource_is_told_of_either_way_of_writing_it(fhir_server: str) -> None:
    with FhirClient(server(fhir_server)) as client:
        [bundled] = client.bundle("transaction", PUTS[:1])
        single = client.write(PUTS[0])
        created = client.write(Write(method="POST", url="Observation", body=risk_of(1)[0].body))
        now = client.read("Observation", risk_of(1)[0].id)
        version = single.etag.removeprefix('W/"').rstrip('"') if single.etag else ""
        then = client.read("Observation", risk_of(1)[0].id, version)

    assert bundled.id == single.id == risk_of(1)[0].id != created.id
    assert bundled.etag != single.etag
    assert now is not None and then is not None
    assert now.etag == then.etag == single.etag


def test_an_update_of_another_version_is_refused_by_a_real_server(fhir_server: str) -> None:
    with FhirClient(server(fhir_server)) as client:
        client.write(PUTS[0])
        answer = client.write(replace(PUTS[0], if_match='W/"another"'))

    assert answer.status == 412


def test_what_a_proxy_finds_too_large_is_a_refusal_and_no_wrong_address(
    faulty: FaultyServer, client: FhirClient
) -> None:
    faulty.script.append(Reply(status=413, body=b"<html>", headers={"Content-Type": "text/html"}))

    with pytest.raises(DeliveryRefused) as caught:
        client.bundle("transaction", PUTS)

    assert caught.value.answer.status == 413


def test_a_server_that_takes_gzip_is_sent_it(faulty: FaultyServer, client: FhirClient) -> None:
    faulty.metadata = Reply(headers={"Accept-Encoding": "gzip, identity"})
    client.bundle("transaction", PUTS)
    client.check()

    client.bundle("transaction", PUTS)

    assert faulty.encodings == [None, "gzip"]
    assert faulty.transactions[0] == faulty.transactions[1]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_busy_server_is_worth_another_try(status: int, faulty: FaultyServer, client: FhirClient) -> None:
    faulty.script.append(Reply(status=status, headers={"Retry-After": "7"}))

    with pytest.raises(ServerUnavailable) as caught:
        client.bundle("transaction", PUTS)

    assert caught.value.retry_after_s == 7.0


def test_retry_after_may_be_a_date(faulty: FaultyServer, client: FhirClient) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    faulty.script.append(Reply(status=503, headers={"Retry-After": date}))

    with pytest.raises(ServerUnavailable) as caught:
        client.bundle("transaction", PUTS)

    assert 25 < caught.value.retry_after_s <= 30


@pytest.mark.parametrize("value", ["soon", "", "-3", "Mon, 99 Foo 2026"])
def test_a_retry_after_that_is_neither_is_as_none(value: str, faulty: FaultyServer, client: FhirClient) -> None:
    faulty.script.append(Reply(status=503, headers={"Retry-After": value}))

    with pytest.raises(ServerUnavailable) as caught:
        client.bundle("transaction", PUTS)

    assert caught.value.retry_after_s is None


@pytest.mark.parametrize(
    "reply",
    [
        Reply(wait_s=1.0),
        Reply(hang_up=True),
        Reply(cut=20),
        Reply(body=b'{"resourceType":"Bundle","entry":[{"resp'),
        Reply(body=b'{"resourceType":"Bundle","entry":[]}'),
        Reply(body=b'{"resourceType":"Bundle"}'),
        Reply(body=b"[]"),
        Reply(body=b""),
        Reply(headers={"Content-Encoding": "gzip"}),
    ],
    ids=["hang", "hang up", "cut", "broken JSON", "no entries", "no list", "array", "empty", "not gzip"],
)
def test_an_answer_that_does_not_arrive_whole_is_worth_another_try(
    reply: Reply, faulty: FaultyServer, client: FhirClient
) -> None:
    faulty.script.append(reply)

    with pytest.raises(ServerUnavailable):
        client.bundle("transaction", PUTS)


def test_no_server_is_waited_for_longer_than_a_day(faulty: FaultyServer, client: FhirClient) -> None:
    faulty.script.append(Reply(status=503, headers={"Retry-After": "9" * 400}))

    with pytest.raises(ServerUnavailable) as caught:
        client.bundle("transaction", PUTS)

    assert caught.value.retry_after_s == 86_400


@pytest.mark.parametrize(("place", "taken"), [("", False), (',"location":"Observation/1/_history/1"', True)])
def test_a_success_that_is_all_error_is_believed_where_something_was_stored(
    place: str, taken: bool, faulty: FaultyServer, client: FhirClient
) -> None:
    outcome = '{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"invalid"}]}'
    entry = f'{{"response":{{"status":"200","outcome":{outcome}{place}}}}}'
    faulty.script.append(Reply(body=f'{{"resourceType":"Bundle","entry":[{entry},{entry},{entry}]}}'.encode()))

    answers = client.bundle("transaction", PUTS)

    assert [answer.taken for answer in answers] == [taken] * 3
    assert all(answer.taken or answer.reason == "HTTP 200 with an error, invalid" for answer in answers)


def test_what_a_server_says_where_a_code_or_an_id_belongs_is_no_code_and_no_id(
    faulty: FaultyServer, client: FhirClient
) -> None:
    outcome = {"resourceType": "OperationOutcome", "issue": [{"code": "Jane Doe", "diagnostics": "no\0thing"}]}
    entries = [
        {"response": {"status": "400", "outcome": outcome}},
        {"response": {"status": "200", "location": "Observation/a?b", "etag": 'W/"1"\r\nX: y'}},
        {"response": {"status": "200", "location": "Observation/a", "etag": 'W/"1"'}},
    ]
    faulty.script.append(Reply(body=json.dumps({"resourceType": "Bundle", "entry": entries}).encode()))

    refused, odd, usual = client.bundle("transaction", PUTS)

    assert (refused.reason, refused.detail) == ("HTTP 400, unknown", "nothing")
    assert (odd.taken, odd.id, odd.etag) == (True, None, None)
    assert (usual.id, usual.etag) == ("a", 'W/"1"')


@pytest.mark.parametrize("entry", ["null", "{}", '{"response":{}}', '{"response":{"status":"fine"}}', '"x"'])
def test_an_entry_without_a_status_is_not_taken(entry: str, faulty: FaultyServer, client: FhirClient) -> None:
    body = f'{{"resourceType":"Bundle","entry":[{entry},{entry},{entry}]}}'.encode()
    faulty.script.append(Reply(body=body))

    assert not any(answer.taken for answer in client.bundle("transaction", PUTS))


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=404),
        Reply(status=404, body=b"<html>", headers={"Content-Type": "text/html"}),
        Reply(body=b"<html>hello</html>", headers={"Content-Type": "text/html"}),
        Reply(body=b'{"hello": "world"}', headers={"Content-Type": "application/json"}),
        Reply(status=301, headers={"Location": "http://elsewhere.example/?token=SECRET"}),
        Reply(body=b'{"resourceType":"CapabilityStatement","fhirVersion":"5.0.0"}'),
    ],
    ids=["404", "404 HTML", "HTML", "JSON", "redirect", "R5"],
)
def test_a_wrong_address_is_told_from_a_server_in_trouble(
    reply: Reply, faulty: FaultyServer, client: FhirClient
) -> None:
    faulty.metadata = reply

    with pytest.raises(ConfigurationError) as caught:
        client.check()

    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403])
def test_missing_credentials_name_the_setting(status: int, faulty: FaultyServer, client: FhirClient) -> None:
    faulty.metadata = Reply(status=status)

    with pytest.raises(ConfigurationError, match="auth"):
        client.check()


def test_nobody_there_is_unavailable() -> None:
    with FhirClient(server(f"http://127.0.0.1:{free_port()}/fhir")) as client, pytest.raises(ServerUnavailable):
        client.check()


def test_a_token_is_sent_as_a_bearer_token(faulty: FaultyServer) -> None:
    with FhirClient(server(faulty.url, token="SECRET")) as client:
        client.check()

    assert faulty.authorizations == {"Bearer SECRET"}


def test_credentials_in_the_address_are_used_and_never_shown(faulty: FaultyServer) -> None:
    url = faulty.url.replace("http://", "http://me:SECRET@")

    with FhirClient(server(url)) as client:
        client.check()
        faulty.metadata = Reply(status=404)
        with pytest.raises(ConfigurationError) as caught:
            client.check()

    assert faulty.authorizations == {"Basic bWU6U0VDUkVU"}
    assert "SECRET" not in client.base_url and "SECRET" not in str(caught.value)
