"""Servers that fail in every way, between medflow and each of them: while it lasts, a command ends soon and `medflow
status` says what is wrong; when it is over, the same command brings everything, once.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import stamina
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import build_context

from medflow import steps
from medflow.config import Settings, load_settings
from medflow.connections import http
from medflow.connections.circuit import CircuitRule
from medflow.connections.endpoints import DicomNode
from medflow.connections.http import tls_context
from medflow.dicom.association import associated, undisturbed
from medflow.dicom.receive import Receiver, receiver
from medflow.errors import ConfigurationError, ServerUnavailable
from medflow.records import Outgoing
from medflow.registry import Registry
from medflow.status import look, problems
from medflow.store import Store, outbox
from tests.factories_dicom import slice_of, to_bytes, volume_of, write_series
from tests.results import catalog, risk_of
from tests.services import free_port
from tests.services.bulk_fhir import bulk_server
from tests.services.fault_proxy import (
    Fault,
    FaultProxy,
    answering,
    cut,
    dripping,
    http_proxy,
    hung,
    padded,
    refused,
    reset,
    stalled,
    tcp_proxy,
)
from tests.services.oauth import Client, authorisation_server
from tests.services.orthanc import Orthanc
from tests.services.paging_fhir import PagingServer, paging_fhir

TIMEOUT_S = 0.5
CONTEXT = cache(tls_context)  # of no server here: making one for each client is what would take longest
BOUND_S = 20.0  # of a command while a fault lasts, on a machine that has other things to do
AFTER_S = 20.0  # within which everything is there afterwards
OVER_HTTP: dict[str, Callable[..., Fault]] = {
    "refused": refused,
    "reset": reset,
    "reset in the request": partial(reset, side="request"),
    "hung": hung,
    "stalled": stalled,
    "drips": partial(dripping, 400),
    "429": partial(answering, 429, retry_after_s=1),
    "500": partial(answering, 500),
    "503": partial(answering, 503),
    "truncated": padded,
    "cut": cut,
    "expired": partial(answering, 401),
}
OVER_TCP: dict[str, Callable[..., Fault]] = {  # after so many bytes of the answers, of the requests
    "refused": lambda _answers, _requests: refused(),
    "reset": lambda answers, _requests: reset(after_bytes=answers),
    "reset in the request": lambda _answers, requests: reset(side="request", after_bytes=requests),
    "hung": lambda _answers, _requests: hung(),
    "stalled": lambda answers, _requests: stalled(after_bytes=answers),
    "drips": lambda _answers, _requests: dripping(50),
}
HTTP_CONNECTORS = {  # and how many requests pass first
    "deliver by FHIR": 2,
    "deliver by STOW": 1,
    "fetch by DICOMweb": 5,
    "fetch by search": 3,
    "fetch by export": 3,
}
TCP_CONNECTORS = {  # and bytes: past a C-ECHO
    "deliver by C-STORE": (300, 900),
    "fetch by C-GET": (700, 900),
    "fetch by C-MOVE": (700, 450),
    "moved to us": (300, 900),
}
AT_ONCE = {("deliver by STOW", "truncated")}  # under way the status is 200: all is stored, whatever the body says


@dataclass(frozen=True, kw_only=True)
class Connector:
    """A command through a proxy, and what there is where it brings things to, each with how often it is there."""

    site: steps.Site
    role: str
    proxy: FaultProxy
    command: Callable[[], Any]
    arrived: Callable[[], Counter[str]]
    expected: Counter[str]

    def wrong(self) -> str:
        """Run the command; what did not go well, if anything. Its error tells which server and nothing of a patient."""
        try:
            found = self.command().as_json()
        except (ServerUnavailable, ConfigurationError) as error:
            assert "127.0.0.1" in error.message, "which server?"
            assert "Nobody" not in error.message and "?" not in error.message
            return error.message
        return ", ".join(f"{found[name]} {name}" for name in ("failed", "dead", "rejected") if found.get(name))

    def problems(self) -> list[tuple[str, str]]:
        """What status says needs a person, but that a source is not ingested yet."""
        found = problems(look(self.site.store, self.site.settings))
        return [(item.code, item.name) for item in found if item.code != "stale-source"]


@pytest.fixture(autouse=True)
def _haste(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    rule = CircuitRule(first_wait_s=0.01, longest_wait_s=0.1, patience_s=0.3)
    monkeypatch.setattr("medflow.delivery.server.CIRCUIT", rule)
    monkeypatch.setattr(http, "tls_context", CONTEXT)
    monkeypatch.setattr("medflow.ingest.moved.LATE_S", TIMEOUT_S)
    with stamina.set_testing(True, attempts=1):
        yield


# --- the connectors ----------------------------------------------------------------------------------------------


@contextmanager
def site_of(tmp_path: Path, request: pytest.FixtureRequest, **servers: Any) -> Iterator[steps.Site]:
    """A site on SQLite, migrated before."""
    settings = load_settings(home=tmp_path / "home", http_timeout_s=TIMEOUT_S, device="cpu", workers=1, **servers)
    settings.home.mkdir()
    shutil.copy(request.getfixturevalue("_migrated_sqlite"), settings.home / "medflow.db")
    store = Store(settings).open()
    yield steps.Site(settings=settings, store=store, registry=Registry(models={}, broken=()))
    store.close()


@contextmanager
def delivering_fhir(tmp_path: Path, request: pytest.FixtureRequest, **auth: Any) -> Iterator[Connector]:
    server = request.getfixturevalue("fhir_server")
    sent = [*catalog(), *(item for patient in (1, 2, 3) for item in risk_of(patient))]
    named = {"kind": "fhir", **auth}
    with (
        http_proxy(server) as (proxy, url),
        site_of(tmp_path, request, targets={"chart": {**named, "url": url}}) as site,
        httpx.Client(timeout=30, verify=False) as direct,
    ):
        with site.store.writing() as connection:
            outbox.queue(connection, None, sent)

        def arrived() -> Counter[str]:
            found: Counter[str] = Counter()
            for kind in {item.type for item in sent}:
                for entry in direct.get(f"{server}/{kind}?_count=100").json().get("entry", []):
                    found[f"{kind}/{entry['resource']['id']}"] += 1
            return found

        yield Connector(
            site=site,
            role="target",
            proxy=proxy,
            command=lambda: steps.deliver(site, "chart"),
            arrived=arrived,
            expected=Counter(f"{item.type}/{item.id}" for item in sent),
        )


def uids_in(server: Orthanc) -> Counter[str]:
    found = httpx.get(f"{server.url}/instances?expand", timeout=30, verify=False).json()
    return Counter(item["MainDicomTags"]["SOPInstanceUID"] for item in found)


@contextmanager
def delivering_objects(tmp_path: Path, request: pytest.FixtureRequest, way: str, **auth: Any) -> Iterator[Connector]:
    server: Orthanc = request.getfixturevalue("orthanc")
    objects = [slice_of(number) for number in range(5)]
    with (
        in_front(server, way, **auth) as (proxy, there),
        site_of(tmp_path, request, targets={"archive": there}) as site,
    ):
        digests = [site.store.objects.put(to_bytes(item)) for item in objects]
        outgoing = [
            Outgoing(type=outbox.DICOM, id=item.SOPInstanceUID, body=digest.encode(), sha256=digest, envelope="p/1")
            for item, digest in zip(objects, digests, strict=True)
        ]
        with site.store.writing() as connection:
            outbox.queue(connection, None, outgoing)
        yield Connector(
            site=site,
            role="target",
            proxy=proxy,
            command=lambda: steps.deliver(site, "archive"),
            arrived=lambda: uids_in(server),
            expected=Counter(item.SOPInstanceUID for item in objects),
        )


@contextmanager
def fetching_images(tmp_path: Path, request: pytest.FixtureRequest, way: str, **auth: Any) -> Iterator[Connector]:
    server: Orthanc = request.getfixturevalue("orthanc")
    slices = [item for study in (1, 2) for item in volume_of(3, study=study)]
    server.upload(*write_series(tmp_path / "there", slices))
    with (
        in_front(server, way, days=None, **auth) as (proxy, there),
        site_of(tmp_path, request, sources={"archive": there}) as site,
    ):
        yield fetching(site, proxy, "SELECT uid FROM instance", (item.SOPInstanceUID for item in slices))


def fetching(site: steps.Site, proxy: FaultProxy, query: str, expected: Iterable[str]) -> Connector:
    return Connector(
        site=site,
        role="source",
        proxy=proxy,
        command=lambda: steps.ingest(site, site.settings.sources["archive"], name="archive"),
        arrived=lambda: rows(site.settings, query),
        expected=Counter(expected),
    )


RECORDS = [
    *({"resourceType": "Patient", "id": f"p{number}"} for number in range(3)),
    *(
        {
            "resourceType": "Observation",
            "id": f"o{number}",
            "status": "final",
            "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
            "subject": {"reference": f"Patient/p{number % 3}"},
            "effectiveDateTime": "2026-01-01T00:07:00Z",
            "valueQuantity": {"value": 70.5, "system": "http://unitsofmeasure.org", "code": "/min"},
        }
        for number in range(12)
    ),
]
HELD = "SELECT type || '/' || fhir_id FROM fhir_resource WHERE NOT deleted"


@contextmanager
def fetching_records(tmp_path: Path, request: pytest.FixtureRequest, mode: str, **auth: Any) -> Iterator[Connector]:
    with paging_fhir() if mode == "search" else bulk_server() as server:
        for record in RECORDS:
            server.put(record) if isinstance(server, PagingServer) else server.put(**record)
        source = {"kind": "fhir-server", "mode": mode, "types": ["Patient", "Observation"], "count": 4, **auth}
        with (
            http_proxy(server.url) as (proxy, url),
            site_of(tmp_path, request, sources={"archive": {**source, "url": url}}) as site,
        ):
            yield fetching(site, proxy, HELD, (f"{item['resourceType']}/{item['id']}" for item in RECORDS))


@contextmanager
def in_front(server: Orthanc, way: str, **options: Any) -> Iterator[tuple[FaultProxy, dict[str, Any]]]:
    """A proxy in front of an archive, and the archive through it as a source or target."""
    if way == "dicomweb":
        with http_proxy(server.dicomweb) as (proxy, url):
            yield proxy, {"kind": "dicomweb", "url": url, **options}
    elif way == "moved":  # what it sends to us
        options |= {"retrieve": "move", "move_port": free_port(), "timeout_s": TIMEOUT_S}
        with tcp_proxy(options["move_port"], listen=server.modality_port) as proxy:
            yield proxy, {"kind": "pacs", "address": f"ORTHANC@127.0.0.1:{server.dicom_port}", **options}
    else:
        if way == "move":
            options |= {"retrieve": "move", "move_port": server.modality_port}
        with tcp_proxy(server.dicom_port) as proxy:
            address = f"ORTHANC@127.0.0.1:{proxy.port}"
            yield proxy, {"kind": "pacs", "address": address, "timeout_s": TIMEOUT_S, **options}


def rows(settings: Settings, query: str) -> Counter[str]:
    with sqlite3.connect(settings.home / "medflow.db") as connection:
        return Counter(row[0] for row in connection.execute(query))


CONNECTORS = {
    "deliver by FHIR": delivering_fhir,
    "deliver by STOW": partial(delivering_objects, way="dicomweb"),
    "deliver by C-STORE": partial(delivering_objects, way="pacs"),
    "fetch by DICOMweb": partial(fetching_images, way="dicomweb"),
    "fetch by C-GET": partial(fetching_images, way="pacs"),
    "fetch by C-MOVE": partial(fetching_images, way="move"),
    "moved to us": partial(fetching_images, way="moved"),
    "fetch by search": partial(fetching_records, mode="search"),
    "fetch by export": partial(fetching_records, mode="export"),
}


@pytest.fixture
def connector(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Connector]:
    with CONNECTORS[request.param](tmp_path, request) as made:
        yield made


# --- what they do ------------------------------------------------------------------------------------------------


def held_out_and_recovered(connector: Connector, fault: Fault) -> None:
    started = time.monotonic()
    with connector.proxy.failing(fault):
        assert connector.wrong(), "the fault was not met"
        assert time.monotonic() - started < BOUND_S
        assert connector.problems() == [(f"{connector.role}-fails", name_of(connector))]
        assert not connector.arrived() - connector.expected
    everything_is_there(connector)


def name_of(connector: Connector) -> str:
    settings = connector.site.settings
    return next(iter(settings.targets if connector.role == "target" else settings.sources))


def everything_is_there(connector: Connector) -> None:
    """The same command again, and again where a wait that the server asked for is not over."""
    deadline = time.monotonic() + AFTER_S
    while (wrong := connector.wrong()) or connector.arrived() != connector.expected:
        lacking = connector.expected - connector.arrived()
        assert time.monotonic() < deadline, f"{lacking.total()} have not come: {wrong or 'nothing was to be done'}"
        time.sleep(0.1)
    assert connector.problems() == []
    assert connector.wrong() == ""
    assert connector.arrived() == connector.expected
    assert rows(connector.site.settings, "SELECT code FROM reject WHERE state = 'open'") == {}


@pytest.mark.parametrize("fault", OVER_HTTP)
@pytest.mark.parametrize("connector", HTTP_CONNECTORS, indirect=True)
def test_what_fails_under_way_over_http_is_said_and_brought_later(
    connector: Connector, fault: str, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["connector"]
    passing = 0 if (name, fault) in AT_ONCE else HTTP_CONNECTORS[name]

    held_out_and_recovered(connector, OVER_HTTP[fault](after_requests=passing))


@pytest.mark.parametrize("fault", OVER_TCP)
@pytest.mark.parametrize("connector", TCP_CONNECTORS, indirect=True)
def test_what_fails_over_dicoms_upper_layer_is_said_and_brought_later(
    connector: Connector, fault: str, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["connector"]

    held_out_and_recovered(connector, OVER_TCP[fault](*TCP_CONNECTORS[name]))


# --- what passes while a command runs ----------------------------------------------------------------------------


@pytest.mark.parametrize("connector", HTTP_CONNECTORS, indirect=True)
def test_one_answer_that_is_lost_costs_nothing(connector: Connector, request: pytest.FixtureRequest) -> None:
    passing = HTTP_CONNECTORS[request.node.callspec.params["connector"]]

    with stamina.set_testing(True, attempts=3), connector.proxy.failing(reset(after_requests=passing, requests=1)):
        assert connector.wrong() == ""

    assert connector.arrived() == connector.expected
    assert connector.problems() == []


@pytest.fixture(scope="module")
def token_url() -> Iterator[str]:
    with authorisation_server() as oauth:
        oauth.clients["medflow"] = Client(secret="secret", scope="system/*.*")  # noqa: S106 - of a server of the test's own
        yield oauth.token_url


@pytest.mark.parametrize("name", HTTP_CONNECTORS)
def test_a_token_that_ends_under_way_is_renewed(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, token_url: str
) -> None:
    who = {"client_id": "medflow", "client_secret": "secret"}
    auth = {"type": "client-credentials", "token_url": token_url, "scope": "system/*.*", **who}
    expired = answering(401, after_requests=HTTP_CONNECTORS[name], requests=1)

    with CONNECTORS[name](tmp_path, request, auth=auth) as connector, connector.proxy.failing(expired):
        assert connector.wrong() == ""

        assert expired.struck == 1
        assert connector.arrived() == connector.expected
        assert connector.problems() == []


# --- those who send to us ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [refused(), reset(after_bytes=900), reset(side="request", after_bytes=5000), hung(), stalled(after_bytes=900)],
    ids=lambda fault: f"{fault.kind} {fault.side}",
)
def test_what_a_sender_was_acknowledged_before_the_network_failed_is_there_once(
    fault: Fault, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    objects = [slice_of(number) for number in range(8)]
    with site_of(tmp_path, request, receive_port=0, receive_min_free_mib=0) as site, receiving(site.settings) as here:
        with tcp_proxy(here.address[1]) as proxy:
            with proxy.failing(fault):
                acknowledged = sent(objects, proxy.port)
            first = spooled(here)
            again = sent(objects, proxy.port)
        tally = steps.ingest(site, steps.source_of("dicom", [here.spool.root]))

    uids = Counter(item.SOPInstanceUID for item in objects)
    assert acknowledged <= first
    assert len(acknowledged) < len(objects)
    assert again == set(uids)
    assert rows(site.settings, "SELECT uid FROM instance") == uids
    assert tally.rejected == 0


@contextmanager
def receiving(settings: Settings) -> Iterator[Receiver]:
    running = receiver(settings)
    running.start()
    hurry = threading.Event()
    hurry.set()
    try:
        yield running
    finally:
        running.stop(hurry)


def spooled(here: Receiver) -> set[str]:
    return {str(dcmread(path).SOPInstanceUID) for path in here.spool.root.glob("*/*.dcm")}


def sent(objects: Sequence[Dataset], port: int) -> set[str]:
    """Send them as a sender of its own mind would; the UIDs that were acknowledged."""
    acknowledged: set[str] = set()
    node = DicomNode(address=f"MEDFLOW@127.0.0.1:{port}", timeout_s=TIMEOUT_S)
    with suppress(ServerUnavailable, ValueError, RuntimeError):  # pynetdicom's, where there is no association any more
        with associated(node, "SENDER", [build_context(CTImageStorage, ExplicitVRLittleEndian)]) as association:
            for item in objects:
                to_bytes(item)  # gives it file meta information
                undisturbed(association)
                if association.send_c_store(item).get("Status") != 0:
                    break
                acknowledged.add(item.SOPInstanceUID)
    return acknowledged
