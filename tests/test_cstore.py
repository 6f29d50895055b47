"""Result objects by C-STORE: to dcmtk's receiver bit by bit, to Orthanc which finds them, and to one that says no."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import stamina
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, SegmentationStorage
from pynetdicom import AE, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made from a table

from medflow.config import Settings, load_settings
from medflow.connections.endpoints import PacsTarget
from medflow.delivery import DeliveryTally, deliver
from medflow.errors import ConfigurationError, TargetUnavailable
from medflow.records import Outgoing
from medflow.store import Store, outbox
from tests.factories_dicom import to_bytes, volume_of
from tests.services import free_port
from tests.services.dcmtk import storescp
from tests.services.orthanc import Orthanc

Site = tuple[Store, Settings]


@pytest.fixture
def site(tmp_path: Path, _migrated_sqlite: Path) -> Iterator[Site]:
    settings = load_settings(home=tmp_path / "home")
    settings.home.mkdir()
    shutil.copy(_migrated_sqlite, settings.home / "medflow.db")
    with closing(Store(settings).open()) as store, stamina.set_testing(True, attempts=2):
        yield store, settings


def queue(site: Site, objects: Sequence[Dataset], syntax: str = ExplicitVRLittleEndian) -> dict[str, bytes]:
    """Put them where results are put; their files by SOP Instance UID."""
    store, _ = site
    made = {str(one.SOPInstanceUID): to_bytes(one, syntax) for one in objects}
    with store.writing() as connection:
        for uid, data in made.items():
            digest = store.objects.put(data)
            one = Outgoing(type=outbox.DICOM, id=uid, body=digest.encode(), sha256=digest, envelope="patient/1")
            outbox.queue(connection, None, [one])
    return made


def send(site: Site, address: str, **options: Any) -> DeliveryTally:
    target = PacsTarget.model_validate({"kind": "pacs", "address": address, "timeout_s": 5.0, **options})
    return deliver(*site, target)


def counts(tally: DeliveryTally) -> tuple[int, int, int, int]:
    return tally.pending, tally.delivered, tally.failed, tally.dead


def dataset_of(file: bytes) -> bytes:
    """What follows the file meta group, which is the receiver's own."""
    return file[file.index(b"\x08\x00\x16\x00UI") :]


@contextmanager
def saying(answer: Callable[[int], int], *, syntax: str = ExplicitVRLittleEndian) -> Iterator[tuple[str, list[str]]]:
    """An archive of our own, that answers its n-th object with a status; -1 has it break off. And what it was sent."""
    sent: list[str] = []
    entity = AE("SAYING")
    entity.add_supported_context(Verification)
    entity.add_supported_context(CTImageStorage, syntax)

    def store(event: Event) -> int:
        request: Any = event.request
        sent.append(str(request.AffectedSOPInstanceUID))
        status = answer(len(sent))
        if status < 0:
            event.assoc.abort()
        return max(status, 0)

    port = free_port()
    server: Any = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store), (evt.EVT_C_ECHO, lambda _event: 0)]
    )
    yield f"SAYING@127.0.0.1:{port}", sent
    server.shutdown()


def test_a_stranger_s_file_holds_what_was_sent_bit_by_bit(site: Site, tmp_path: Path) -> None:
    made = queue(site, volume_of(3))
    with storescp(tmp_path) as receiver:
        first, second = send(site, receiver.address), send(site, receiver.address)
        got = {path.name.removeprefix("CT.").removesuffix(".dcm"): path.read_bytes() for path in receiver.objects()}

    assert counts(first) == (3, 3, 0, 0)
    assert counts(second) == (0, 0, 0, 0)
    assert {uid: dataset_of(file) for uid, file in got.items()} == {uid: dataset_of(file) for uid, file in made.items()}


def test_an_archive_finds_what_it_was_sent(site: Site, orthanc: Orthanc) -> None:
    made = queue(site, volume_of(3))

    assert counts(send(site, orthanc.address)) == (3, 3, 0, 0)

    found = httpx.get(f"{orthanc.url}/instances?expand", timeout=10).json()
    assert {item["MainDicomTags"]["SOPInstanceUID"] for item in found} == made.keys()


def test_what_an_archive_does_not_take_in_its_syntax_is_refused_by_name_and_the_rest_is_sent(site: Site) -> None:
    queue(site, [*volume_of(2)])
    queue(site, volume_of(1, series=7, SOPClassUID=SegmentationStorage))
    with saying(lambda _number: 0) as (address, sent):
        tally = send(site, address)

    assert counts(tally) == (3, 2, 1, 0)
    assert list(tally.errors) == ["context-rejected SegmentationStorage ExplicitVRLittleEndian"]
    assert len(sent) == 2


def test_an_archive_that_takes_nothing_of_what_is_sent_is_no_reason_to_stop(site: Site) -> None:
    queue(site, volume_of(2))
    with saying(lambda _number: 0, syntax=RLELossless) as (address, sent):
        tally = send(site, address)

    assert counts(tally) == (2, 0, 2, 0)
    assert sent == []


@pytest.mark.parametrize(
    ("statuses", "delivered", "errors"),
    [
        ({1: 0xB000, 2: 0xB007}, 3, []),
        ({2: 0xA700}, 3, []),
        ({2: 0xC000}, 2, ["cannot-understand (0xC000)"]),
        ({1: 0x0124}, 2, ["not-authorized (0x0124)"]),
        ({2: -1}, 3, []),
    ],
    ids=["warnings", "busy for a moment", "not understood", "not allowed", "breaks off"],
)
def test_every_answer_is_looked_at(statuses: dict[int, int], delivered: int, errors: list[str], site: Site) -> None:
    made = queue(site, volume_of(3))
    with saying(lambda number: statuses.get(number, 0)) as (address, sent):
        tally = send(site, address)

    assert (tally.delivered, tally.failed, list(tally.errors)) == (delivered, 3 - delivered, errors)
    assert set(sent) == made.keys()


def test_an_archive_that_is_away_keeps_what_is_to_be_sent_waiting(site: Site) -> None:
    queue(site, volume_of(2))
    nobody = f"PACS@127.0.0.1:{free_port()}"

    with pytest.raises(TargetUnavailable, match="cannot be reached"):
        send(site, nobody)
    with saying(lambda _number: 0) as (address, _):
        assert counts(send(site, address)) == (2, 2, 0, 0)


def test_an_archive_that_does_not_know_us_is_told_of(site: Site) -> None:
    queue(site, volume_of(1))
    entity = AE("STRICT")
    entity.require_calling_aet = ["SOMEBODY"]
    entity.add_supported_context(Verification)
    port = free_port()
    server: Any = entity.start_server(("127.0.0.1", port), block=False)
    try:
        with pytest.raises(ConfigurationError, match="does not know MEDFLOW: have this AE title registered"):
            send(site, f"STRICT@127.0.0.1:{port}")
        assert counts(send_known(site, port)) == (1, 0, 1, 0)  # it takes no objects, and says so of this one
    finally:
        server.shutdown()


def send_known(site: Site, port: int) -> DeliveryTally:
    return send(site, f"STRICT@127.0.0.1:{port}", calling_aet="SOMEBODY")


def test_an_archive_that_does_not_answer_for_one_object_is_not_waited_for_longer_than_allowed(site: Site) -> None:
    queue(site, volume_of(1))
    began = time.monotonic()
    with saying(lambda _number: time.sleep(1.0) or 0) as (address, _):
        tally = send(site, address, timeout_s=0.3)

    assert (tally.failed, list(tally.errors)) == (1, ["unavailable"])
    assert time.monotonic() - began < 10
