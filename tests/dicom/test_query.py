"""What archives are asked, and what becomes of one that does not answer; asking itself is in tests/ingest/test_pacs."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.events import Event

from medflow.connections.endpoints import DicomNode
from medflow.dicom.association import echo
from medflow.dicom.query import FIND, Query, date_windows, identifier
from medflow.dicom.retrieve import SYNTAXES, storage_contexts
from medflow.errors import ConfigurationError, InputRejected, ServerUnavailable
from tests.factories_dicom import ROOT, volume_of, write_series
from tests.services import free_port
from tests.services.certificates import certificates
from tests.services.dcmtk import storescp
from tests.services.fault_proxy import reset, tcp_proxy
from tests.services.orthanc import Orthanc

TODAY = date(2024, 5, 10)


def node(address: str, timeout_s: float = 5.0) -> DicomNode:
    return DicomNode(address=address, timeout_s=timeout_s)


@contextmanager
def finding(*answers: tuple[int, Dataset | None]) -> Iterator[str]:
    """An archive of our own that gives these answers to every question."""
    entity = AE("FINDING")
    entity.add_supported_context(FIND)

    def find(_event: Event) -> Iterator[tuple[int, Dataset | None]]:
        yield from answers

    port = free_port()
    server: Any = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    yield f"FINDING@127.0.0.1:{port}"
    server.shutdown()


def match(**elements: str) -> Dataset:
    found = Dataset()
    for name, value in elements.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize(
    ("since", "until", "windows"),
    [
        (None, None, [""]),
        (None, date(2024, 5, 1), ["-20240501"]),
        (date(2024, 5, 9), None, ["20240509-20240509", "20240510-"]),
        (date(2024, 5, 12), None, ["20240512-"]),
        (date(2024, 5, 1), date(2024, 5, 2), ["20240501-20240501", "20240502-20240502"]),
        (date(2024, 5, 2), date(2024, 5, 1), []),
    ],
)
def test_days_are_asked_for_one_by_one(since: date | None, until: date | None, windows: list[str]) -> None:
    assert date_windows(since, until, TODAY) == windows


@pytest.mark.parametrize("days", [40, 1000])
def test_a_long_time_is_asked_for_in_parts_without_a_gap(days: int) -> None:
    since = date.fromordinal(TODAY.toordinal() - days)

    windows = [window.split("-") for window in date_windows(since, TODAY, TODAY)]

    days_of = [(date.fromisoformat(start).toordinal(), date.fromisoformat(end).toordinal()) for start, end in windows]
    assert [start for start, _ in days_of[1:]] == [end + 1 for _, end in days_of[:-1]]
    assert (days_of[0][0], days_of[-1][1]) == (since.toordinal(), TODAY.toordinal())
    assert len(windows) < 40


def test_a_key_that_is_no_ascii_says_how_it_is_written() -> None:
    asked = identifier("STUDY", {"PatientID": "Ω1", "StudyInstanceUID": ""})

    assert asked.SpecificCharacterSet == "ISO_IR 192"
    assert "SpecificCharacterSet" not in identifier("STUDY", {"PatientID": "1"})


def test_answers_in_other_character_sets_and_without_a_uid_are_counted_and_nothing_of_them_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    named = match(SpecificCharacterSet="ISO_IR 144", PatientName="Люкceмбypг", StudyInstanceUID="1.2.3")
    with caplog.at_level(logging.DEBUG), finding((0xFF00, named), (0xFF01, match(PatientName="Nobody"))) as address:
        query = Query(node(address), "US")
        assert query.studies({"PatientID": "Nobody"}) == (["1.2.3"], 1)
        query.close()

    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("medflow", "pynetdicom"))]
    assert not [line for line in ours if "Nobody" in line or "Люк" in line]


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (0xA700, ServerUnavailable, "out of resources"),
        (0xA900, ConfigurationError, "ask by other keys"),
        (0x0122, ConfigurationError, "does not allow C-FIND"),
        (0xC001, ServerUnavailable, "could not answer"),
    ],
)
def test_a_question_about_all_that_fails_ends_the_asking(status: int, error: type[Exception], said: str) -> None:
    with finding((status, None)) as address:
        query = Query(node(address), "US")
        with pytest.raises(error, match=said):
            query.studies({})
        query.close()


def test_a_question_about_one_study_that_fails_is_about_that_study() -> None:
    with finding((0xC001, None)) as address:
        query = Query(node(address), "US")
        with pytest.raises(InputRejected, match="0xC001"):
            query.series("1.2.3")
        query.close()


def test_an_association_that_was_broken_meanwhile_is_opened_again(orthanc: Orthanc, tmp_path: Path) -> None:
    orthanc.upload(*write_series(tmp_path / "there", volume_of(2)))
    with tcp_proxy(orthanc.dicom_port) as proxy:
        query = Query(node(f"ORTHANC@127.0.0.1:{proxy.port}"), "US")
        first = query.studies({})
        broken = proxy.begin(reset(after_bytes=0, connections=1))

        assert query.studies({}) == first == ([f"{ROOT}.1"], 0)
        assert broken.struck == 1
        query.close()


def test_one_that_takes_a_connection_and_says_nothing_is_left_in_time() -> None:
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(ServerUnavailable, match="did not answer, when an association was asked for"):
            echo(node(f"SILENT@127.0.0.1:{silent.getsockname()[1]}"), "US", 0.3)

    assert time.monotonic() - began < 5


def test_nobody_there_and_no_such_host_are_told_apart_from_a_refusal() -> None:
    for address in (f"X@127.0.0.1:{free_port()}", "X@no-such-host.invalid:104"):
        with pytest.raises(ServerUnavailable, match="cannot be reached"):
            echo(node(address), "US", 2.0)


def test_both_sides_of_tls_show_a_certificate(tmp_path: Path) -> None:
    files = certificates(tmp_path)
    words = ("+tls", files.server.key, files.server.cert, "+cf", files.ca)
    with storescp(tmp_path, *words) as receiver:
        shown = {"ca": files.ca, "cert": files.client.cert, "key": files.client.key}
        echo(DicomNode.model_validate({"address": receiver.address, "tls": shown}), "US", 5.0)

        for tls in (None, {"ca": files.ca}, {"cert": files.client.cert, "key": files.client.key}):
            with pytest.raises(ServerUnavailable, match="TLS"):
                echo(DicomNode.model_validate({"address": receiver.address, "tls": tls}), "US", 5.0)


@pytest.mark.parametrize("number", [1, 3, 60, 200])
def test_no_more_is_proposed_than_one_association_holds(number: int) -> None:
    contexts = storage_contexts([f"1.2.{index}" for index in range(number)])

    assert len(contexts) <= 127
    assert len({context.abstract_syntax for context in contexts}) == min(number, 127)
    if number == 1:
        assert [context.transfer_syntax for context in contexts] == [[syntax] for syntax in SYNTAXES]
