"""Result objects to an archive by STOW-RS: each once, what is refused put aside, and nothing else sent there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import requests
from pydicom import Dataset, dcmread

from medflow import delivery, steps
from medflow.config import Settings, load_settings
from medflow.connections.endpoints import DicomWebTarget
from medflow.connections.patience import Patience
from medflow.delivery import archive
from medflow.delivery.archive import ResultFile
from medflow.delivery.stow import answer_of, outcomes_of
from medflow.dicom.multipart import boundary_of, parts
from medflow.errors import ConfigurationError, TargetUnavailable
from medflow.records import Outgoing
from medflow.registry import Registry
from medflow.store import Store, outbox
from tests.factories_dicom import slice_of, to_bytes, volume_of
from tests.results import catalog
from tests.seg_readers import by_highdicom
from tests.services.fault_proxy import answering, http_proxy, refused, reset
from tests.services.orthanc import Orthanc
from tests.test_segmentation import made, site_of, take

HASTE = Patience(attempts=3, first_wait_s=0.01, longest_wait_s=0.02, longest_retry_after_s=1.0)


@pytest.fixture(autouse=True)
def _haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "PATIENCE", HASTE)
    monkeypatch.setattr(archive, "AT_START", HASTE)


@pytest.fixture
def local(settings: Settings, _migrated_sqlite: Path) -> Iterator[Store]:
    """A store on SQLite only: for what is about the target, not the database."""
    settings.home.mkdir()
    shutil.copy(_migrated_sqlite, settings.home / "medflow.db")
    opened = Store(settings).open()
    yield opened
    opened.close()


def target_of(url: str) -> DicomWebTarget:
    return DicomWebTarget.model_validate({"kind": "dicomweb", "url": url})


def queue(store: Store, datasets: Sequence[Dataset]) -> None:
    """Put objects in the outbox, as if they were results."""
    outgoing: list[Outgoing] = []
    for dataset in datasets:
        data = to_bytes(dataset)
        digest = sha256(data).hexdigest()
        store.objects.put(data)
        uid = str(dataset.SOPInstanceUID)
        outgoing.append(Outgoing(type="DICOM", id=uid, body=digest.encode(), sha256=digest, envelope="patient/1"))
    with store.writing() as connection:
        outbox.queue(connection, None, outgoing)


def found(orthanc: Orthanc, **keys: str) -> list[dict[str, Any]]:
    """What QIDO finds."""
    headers = {"Accept": "application/dicom+json"}
    return httpx.get(f"{orthanc.dicomweb}/instances", params=keys, headers=headers, timeout=10).json()


def retrieved(orthanc: Orthanc, instance: dict[str, Any]) -> bytes:
    """One file by WADO."""
    study, series, uid = (instance[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018"))
    url = f"{orthanc.dicomweb}/studies/{study}/series/{series}/instances/{uid}"
    answer = httpx.get(url, headers={"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'})
    (data,) = (b"".join(part.blocks) for part in parts([answer.content], boundary_of(answer.headers["Content-Type"])))
    return data


def test_a_segmentation_is_found_by_qido_and_its_mask_reads_back_equal(
    local: Store, settings: Settings, orthanc: Orthanc, tmp_path: Path
) -> None:
    site = site_of(local, settings)
    take(site, tmp_path / "in")
    steps.score(site)
    binary, _ = made(site, 1)

    first = delivery.deliver(local, settings, target_of(orthanc.dicomweb))
    second = delivery.deliver(local, settings, target_of(orthanc.dicomweb))

    assert (first.pending, first.delivered) == (2, 2)
    assert (second.pending, second.delivered) == (0, 0)
    there = found(orthanc, Modality="SEG")
    assert len(there) == 2
    (instance,) = (item for item in there if item["00080018"]["Value"] == [binary.sop_instance_uid])
    data = retrieved(orthanc, instance)
    sources = sorted(map(dcmread, (tmp_path / "in").iterdir()), key=lambda item: item.ImagePositionPatient[2])
    slices = [(str(item.SOPInstanceUID), 0) for item in sources]
    drawn = np.stack([item.pixel_array * 2.0 - 1000 > -900 for item in sources])
    assert 0 < drawn.sum() < drawn.size
    np.testing.assert_array_equal(by_highdicom(data, slices)["bright"], drawn)
    np.testing.assert_array_equal(
        by_highdicom(local.objects.get(binary.sha256), slices)["bright"], by_highdicom(data, slices)["bright"]
    )


def test_an_archive_is_sent_dicom_objects_and_nothing_else(local: Store, settings: Settings, orthanc: Orthanc) -> None:
    with local.writing() as connection:
        outbox.queue(connection, None, catalog())
    queue(local, volume_of(3))

    tally = delivery.deliver(local, settings, target_of(orthanc.dicomweb))

    assert (tally.pending, tally.delivered, tally.failed) == (3, 3, 0)
    with local.reading() as connection:
        assert outbox.counts(connection)[orthanc.dicomweb]["pending"] == 0


def test_several_targets_each_get_what_is_theirs_and_one_that_is_away_keeps_no_other_waiting(
    local: Store, settings: Settings, orthanc: Orthanc, tmp_path: Path
) -> None:
    with local.writing() as connection:
        outbox.queue(connection, None, catalog())
    queue(local, volume_of(2))
    number = len(catalog())
    targets = {"chart": {"kind": "folder", "path": str(tmp_path / "out")}, "pacs": orthanc.dicomweb}
    with http_proxy(orthanc.dicomweb) as (proxy, url):
        targets["pacs"] = {"kind": "dicomweb", "url": url}
        here = load_settings(home=settings.home, targets=targets, deliver_to="chart,pacs")
        site = steps.Site(settings=here, store=local, registry=Registry(models={}, broken=()))
        proxy.begin(refused())
        away = steps.deliver(site)
        proxy.end()
        back = steps.deliver(site)

    assert list(away.targets) == ["pacs", "chart"]
    assert (away.delivered, away.failed) == (number + 2, 1)  # a folder takes objects too
    assert (back.delivered, back.failed) == (2, 0)
    assert len(found(orthanc, Modality="CT")) == 2


def test_one_that_the_archive_refuses_holds_up_no_other(local: Store, settings: Settings, orthanc: Orthanc) -> None:
    queue(local, [slice_of(0), slice_of(1, SeriesInstanceUID=None), slice_of(2)])

    tally = delivery.deliver(local, settings, target_of(orthanc.dicomweb))

    assert (tally.delivered, tally.failed) == (2, 1)
    assert len(found(orthanc, Modality="CT")) == 2
    ((reason, count),) = tally.errors.items()
    assert count == 1
    assert "Nobody" not in reason


@pytest.mark.parametrize(
    "fault",
    [
        answering(429, retry_after_s=0.1, after_requests=1, requests=2),
        reset(side="request", after_requests=1, requests=2),
    ],
    ids=["busy", "reset"],
)  # the first request looks whether it is there
def test_a_fault_that_passes_is_not_noticed(local: Store, settings: Settings, orthanc: Orthanc, fault: Any) -> None:
    queue(local, volume_of(10))

    with http_proxy(orthanc.dicomweb) as (proxy, url):
        proxy.begin(fault)
        tally = delivery.deliver(local, settings, target_of(url))

    assert (tally.delivered, tally.failed) == (10, 0)
    assert fault.struck == 2
    assert len(found(orthanc, Modality="CT")) == 10


def test_what_an_archive_that_went_away_has_is_noted_and_the_rest_goes_later(
    local: Store, settings: Settings, orthanc: Orthanc
) -> None:
    queue(local, volume_of(20))

    with http_proxy(orthanc.dicomweb) as (proxy, url):
        proxy.begin(refused(after_requests=2))
        with pytest.raises(TargetUnavailable):
            delivery.deliver(local, settings, target_of(url))
        proxy.end()
        tally = delivery.deliver(local, settings, target_of(url))

    assert (tally.pending, tally.delivered) == (20 - archive.TOGETHER, 20 - archive.TOGETHER)
    assert len(found(orthanc, Modality="CT")) == 20


def test_an_archive_that_wants_other_credentials_is_a_matter_of_configuration(
    local: Store, settings: Settings, orthanc: Orthanc
) -> None:
    queue(local, volume_of(1))

    with http_proxy(orthanc.dicomweb) as (proxy, url):
        proxy.begin(answering(401))
        with pytest.raises(ConfigurationError, match="credentials"):
            delivery.deliver(local, settings, target_of(url))


# --- what an answer says (PS3.18 Annex I) --------------------------------------------------------------------------


def file_of(uid: str) -> ResultFile:
    resource = outbox.PendingResource.__new__(outbox.PendingResource)
    return ResultFile(
        resource=resource,
        sop_instance_uid=uid,
        sop_class_uid="1.2",
        transfer_syntax_uid="1.2",
        study_instance_uid="1",
        size=1,
        open=lambda: BytesIO(b""),
    )


def item_of(uid: str, **elements: int) -> dict[str, Any]:
    numbers = {tag: {"vr": "US", "Value": [value]} for tag, value in elements.items()}
    return {"00081155": {"vr": "UI", "Value": [uid]}, **numbers}


def test_every_object_of_an_answer_has_its_own_outcome() -> None:
    answer = {
        "00081198": {
            "vr": "SQ",
            "Value": [item_of("1.1", **{"00081197": 0xA700}), item_of("1.2", **{"00081197": 0xC122})],
        },
        "00081199": {"vr": "SQ", "Value": [item_of("1.3"), item_of("1.4", **{"00081196": 0xB000})]},
    }

    found = outcomes_of([file_of(f"1.{number}") for number in range(1, 6)], 202, answer)

    assert [outcome.taken for outcome in found] == [False, False, True, True, False]
    assert [outcome.busy for outcome in found] == [True, False, False, False, False]
    assert [outcome.said for outcome in found if not outcome.taken] == [
        "out-of-resources (0xA700)",
        "transfer-syntax-not-supported (0xC122)",
        "HTTP 202",
    ]


@pytest.mark.parametrize(("status", "taken"), [(200, True), (202, False), (409, False)])
def test_without_a_word_of_it_only_200_says_that_an_object_is_there(status: int, taken: bool) -> None:
    (outcome,) = outcomes_of([file_of("1.1")], status, {})

    assert outcome.taken is taken


@pytest.mark.parametrize(
    "answer",
    [
        {"00081198": {"Value": [{"00081197": {"Value": [0xA700]}}]}},  # something failed, and it is not said what
        {"00081198": {"Value": [item_of("1.1", **{"00081197": 0xB000})]}},
        {"00081199": {"Value": [item_of("1.2")]}},
    ],
    ids=["unnamed", "with-a-warning", "another"],
)
def test_status_200_is_not_believed_against_the_answer_it_comes_with(answer: dict[str, Any]) -> None:
    (outcome,) = outcomes_of([file_of("1.1")], 200, answer)

    assert not outcome.taken


@pytest.mark.parametrize(
    ("body", "understood"),
    [
        (b"", True),
        (b"<html>Sign in</html>", False),
        (b"<NativeDicomModel></NativeDicomModel>", True),
        (b'<NativeDicomModel><DicomAttribute tag="00081198"/></NativeDicomModel>', False),
    ],
    ids=["empty", "page", "xml", "failures-in-xml"],
)
def test_a_page_with_status_200_confirms_nothing(body: bytes, understood: bool) -> None:
    response = requests.Response()
    response.status_code, response._content = 200, body

    assert (answer_of(response) == {}) is understood
