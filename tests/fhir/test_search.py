import pytest

from medflow.connections.endpoints import HttpServer
from medflow.connections.patience import Patience
from medflow.errors import ConfigurationError, SourceUnavailable
from medflow.fhir.search import Capabilities, RecordServer, SearchRefused, ahead
from tests.services.paging_fhir import paging_fhir

HERE = "https://ehr.example/fhir/r4"
SOON = Patience(attempts=3, first_wait_s=0.01, longest_wait_s=0.02)


def reading(url, **options):
    return RecordServer(HttpServer.model_validate({"url": url}), timeout_s=10, patience=SOON, **options)


@pytest.mark.parametrize(
    ("link", "leads"),
    [
        ("https://ehr.example/fhir/r4?page=2", f"{HERE}?page=2"),
        ("https://EHR.example:443/fhir/r4?page=2", f"{HERE}?page=2"),
        ("https://ehr.example/pages/2", "https://ehr.example/pages/2"),
        ("http://ehr.example/fhir/r4?page=2", f"{HERE}?page=2"),  # a proxy ends TLS
        ("https://who@ehr.example/fhir/r4?page=2#top", f"{HERE}?page=2"),
        ("http://inside:8080/r4?page=2", f"{HERE}?page=2"),
        ("?page=2", f"{HERE}/Patient?page=2"),
        ("/fhir/r4?page=2", f"{HERE}?page=2"),
        ("Patient?page=2", f"{HERE}/Patient?page=2"),
    ],
)
def test_a_next_link_is_followed_at_the_address_that_is_configured(link, leads):
    with reading(HERE, also=("http://inside:8080/r4",)) as server:
        assert server._trusted(link, f"{HERE}/Patient?_count=2") == leads


@pytest.mark.parametrize(
    "link",
    [
        "https://elsewhere.example/fhir/r4?page=2",
        "https://ehr.example.evil.example/fhir/r4",
        "https://ehr.example:8443/fhir/r4?page=2",
        "http://inside:8080/r4x?page=2",
        "//elsewhere.example/fhir",
        "ftp://ehr.example/fhir/r4",
        "https://ehr.example:port/",
    ],
)
def test_a_next_link_to_another_address_is_refused(link):
    with reading(HERE, also=("http://inside:8080/r4",)) as server:
        with pytest.raises(ConfigurationError, match="`also`"):
            server._trusted(link, f"{HERE}/Patient?_count=2")


def test_the_time_is_the_servers(monkeypatch):
    with paging_fhir() as told, reading(told.url) as server:
        server.capabilities()
        assert server.now_us == int(told.now.timestamp()) * 1_000_000


def test_a_statement_that_lists_types_says_what_is_offered():
    stated = Capabilities(interactions={"Patient": frozenset({"read"}), "Observation": frozenset()})
    assert stated.offers("Patient", "search-type") is False
    assert stated.offers("Observation", "search-type") is True  # it lists no interactions
    assert stated.offers("Encounter", "search-type") is False
    assert Capabilities().offers("Patient", "search-type") is None


def test_a_busy_server_is_asked_again_and_one_that_refuses_is_not():
    with paging_fhir() as told, reading(told.url) as server:
        told.on_request = lambda its, _path: 503 if len(its.requests) < 3 else None
        server.page(f"{told.url}/Patient", [("_count", "1")])
        assert len(told.requests) == 3
        told.on_request = lambda _server, _path: 403
        with pytest.raises(SearchRefused, match="HTTP 403"):
            server.page(f"{told.url}/Patient", [("_count", "1")])
        assert len(told.requests) == 4


def test_what_is_refused_carries_no_query_and_no_words_of_the_server():
    with paging_fhir() as told, reading(told.url) as server:
        told.on_request = lambda _server, _path: 500
        with pytest.raises(SourceUnavailable) as caught:
            server.page(f"{told.url}/Patient", [("family", "Doe")])
    assert "Doe" not in str(caught.value)


def test_the_next_item_is_made_while_one_is_used_and_nobody_waits_for_what_nobody_wants():
    made, stopped = [], []

    def items():
        for number in range(10):
            made.append(number)
            yield number

    using = ahead(items(), lambda: stopped.append(1))
    assert next(using) == 0
    using.close()
    assert len(made) <= 2
    assert stopped == [1]
