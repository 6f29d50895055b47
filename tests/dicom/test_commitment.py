"""Storage commitment, asked for by pynetdicom as a sender and by Orthanc."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from medflow.config import Settings, load_settings
from medflow.dicom import commitment
from medflow.dicom.receive import Receiver, receiver
from medflow.ingest.commitment import StoredInstances
from medflow.ingest.dicom import ingest_dicom
from medflow.ingest.received import remove_received
from tests.factories_dicom import slice_of, write_series
from tests.services.orthanc import orthanc


@contextmanager
def receiving(home: Path, stored=lambda _uids: {}, **options: object) -> Iterator[Receiver]:
    settings = load_settings(home=home, receive_port=0, receive_min_free_mib=0, **options)
    running = receiver(settings, stored=stored)
    running.start()
    hurry = threading.Event()
    hurry.set()
    try:
        yield running
    finally:
        running.stop(hurry)


class Reports:
    """What a sender is told, and where it listens for that on associations of others."""

    def __init__(self) -> None:
        self.said: list[tuple[int, Dataset]] = []
        self.came = threading.Event()

    def heard(self, event) -> tuple[int, None]:
        self.said.append((event.event_type, event.event_information))
        self.came.set()
        return 0x0000, None


@contextmanager
def sender(running: Receiver, reports: Reports) -> Iterator[Association]:
    entity = AE("SENDER")
    entity.add_requested_context(CTImageStorage, [ExplicitVRLittleEndian])
    entity.add_requested_context(StorageCommitmentPushModel)
    handlers = [(evt.EVT_N_EVENT_REPORT, reports.heard)]
    opened = entity.associate(*running.address, ae_title="MEDFLOW", evt_handlers=handlers)
    assert opened.is_established
    try:
        yield opened
    finally:
        opened.release()


def wanted(*pairs: tuple[str, str]) -> Dataset:
    """A request for these (SOP class, SOP instance)."""
    asked = Dataset()
    asked.TransactionUID = generate_uid()
    lines = []
    for sop_class, uid in pairs:
        line = Dataset()
        line.ReferencedSOPClassUID, line.ReferencedSOPInstanceUID = sop_class, uid
        lines.append(line)
    asked.ReferencedSOPSequence = Sequence(lines)
    return asked


def ask(association: Association, asked: Dataset, *, action: int = 1) -> int:
    status, _ = association.send_n_action(asked, action, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
    return status.Status


def references(said: Dataset, name: str) -> set[str]:
    return {line.ReferencedSOPInstanceUID for line in said.get(name, ())}


def test_what_was_acknowledged_is_committed_on_the_same_association(tmp_path):
    [path] = write_series(tmp_path / "sent", [slice_of(0)])
    image, reports = pydicom.dcmread(path), Reports()

    with receiving(tmp_path / "home") as running, sender(running, reports) as association:
        assert association.send_c_store(image).Status == 0x0000
        asked = wanted((CTImageStorage, image.SOPInstanceUID))
        status = ask(association, asked)
        assert reports.came.wait(10)

    [(event_type, said)] = reports.said
    assert (status, event_type, said.TransactionUID) == (0x0000, 1, asked.TransactionUID)
    assert references(said, "ReferencedSOPSequence") == {image.SOPInstanceUID}
    assert "FailedSOPSequence" not in said


def test_what_is_not_here_or_is_of_another_class_is_not_committed(tmp_path):
    [path] = write_series(tmp_path / "sent", [slice_of(0)])
    image, reports = pydicom.dcmread(path), Reports()

    with receiving(tmp_path / "home") as running, sender(running, reports) as association:
        association.send_c_store(image)
        ask(association, wanted((CTImageStorage, "1.2.3.4"), (MRImageStorage, image.SOPInstanceUID)))
        assert reports.came.wait(10)

    [(event_type, said)] = reports.said
    reasons = {line.ReferencedSOPInstanceUID: line.FailureReason for line in said.FailedSOPSequence}
    assert (event_type, reasons) == (2, {"1.2.3.4": 0x0112, image.SOPInstanceUID: 0x0119})
    assert "ReferencedSOPSequence" not in said


def test_what_ingest_took_out_of_the_spool_is_committed_by_the_store(tmp_path, settings: Settings, store):
    [path] = write_series(tmp_path / "sent", [slice_of(0)])
    image, reports = pydicom.dcmread(path), Reports()

    stored = StoredInstances(settings=settings)
    with receiving(tmp_path / "home", stored) as running, sender(running, reports) as association:
        association.send_c_store(image)
        ingest_dicom(store, settings, [running.spool.root])
        assert remove_received(store, [running.spool.root]) == 1
        ask(association, wanted((CTImageStorage, image.SOPInstanceUID)))
        assert reports.came.wait(10)

    assert [event_type for event_type, _ in reports.said] == [1]


def test_a_sender_with_a_configured_address_is_told_there_when_its_association_is_over(tmp_path):
    [path] = write_series(tmp_path / "sent", [slice_of(0)])
    image, reports, unused = pydicom.dcmread(path), Reports(), Reports()
    listening = AE("SENDER")
    listening.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    server = listening.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, reports.heard)]
    )
    try:
        address = f"SENDER@127.0.0.1:{server.server_address[1]}"
        with receiving(tmp_path / "home", receive_report_to=(address,)) as running:
            with sender(running, unused) as association:
                association.send_c_store(image)
                ask(association, wanted((CTImageStorage, image.SOPInstanceUID)))
            assert reports.came.wait(10)
    finally:
        server.shutdown()

    assert [event_type for event_type, _ in reports.said] == [1]
    assert unused.said == []


def test_a_request_that_names_nothing_or_wants_something_else_is_refused(tmp_path):
    empty = Dataset()
    empty.TransactionUID = generate_uid()

    with receiving(tmp_path) as running, sender(running, Reports()) as association:
        statuses = ask(association, empty), ask(association, wanted((CTImageStorage, "1.2.3")), action=2)

    assert statuses == (0x0115, 0x0123)


def test_a_request_beyond_those_under_way_is_refused_for_now(tmp_path, monkeypatch):
    monkeypatch.setattr(commitment, "REPORTS", 0)

    with receiving(tmp_path) as running, sender(running, Reports()) as association:
        assert ask(association, wanted((CTImageStorage, "1.2.3"))) == 0x0213


def test_orthanc_is_told_what_is_safe_here(tmp_path):
    files = write_series(tmp_path / "sent", [slice_of(number) for number in range(3)])
    (tmp_path / "orthanc").mkdir()

    with orthanc(tmp_path / "orthanc") as server, httpx.Client(base_url=server.url, timeout=20) as http:
        options = {"receive_port": server.modality_port, "receive_report_to": (server.address,)}
        settings = load_settings(home=tmp_path / "home", receive_min_free_mib=0, **options)
        running = receiver(settings)
        running.start()
        try:
            server.upload(*files)
            [study] = http.get("/studies").json()
            answer = http.post(
                "/modalities/medflow/store",
                json={"Resources": [study], "StorageCommitment": True, "Synchronous": True},
            ).json()
            transaction = answer["StorageCommitmentTransactionUID"]
            for _ in range(100):
                report = http.get(f"/storage-commitment/{transaction}").json()
                if report["Status"] != "Pending":
                    break
                threading.Event().wait(0.1)
        finally:
            running.stop()

    assert report["Status"] == "Success"
    assert len(report["Success"]) == 3
