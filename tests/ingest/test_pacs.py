"""Images from archives of two makers by C-FIND with C-GET and C-MOVE: each once, byte for byte, whatever is missing."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from sqlalchemy import select

from medflow.config import Settings, load_settings
from medflow.connections.endpoints import PacsSource
from medflow.dicom.receive import Receiver, receiver
from medflow.errors import ConfigurationError, ServerUnavailable
from medflow.ingest import moved
from medflow.ingest.dicom import ingest_dicom
from medflow.ingest.fetch import fetch
from medflow.ingest.tally import Tally
from medflow.store import Store, ledger
from medflow.store.tables import InstanceRow
from tests.distributions import environment, medflow
from tests.factories_dicom import ROOT, volume_of, write_series
from tests.services.dcmtk import Listening, dcmqrscp, run
from tests.services.fault_proxy import Fault, FaultProxy, refused, reset, tcp_proxy
from tests.services.orthanc import Orthanc

NAME = "archive"
COMPRESSED = {
    "JPEG-lossy.dcm": "1.2.840.10008.1.2.4.51",
    "JPEG2000.dcm": "1.2.840.10008.1.2.4.91",
    "MR_small_RLE.dcm": "1.2.840.10008.1.2.5",
    "SC_rgb_small_odd_big_endian.dcm": "1.2.840.10008.1.2.2",
    "image_dfl.dcm": "1.2.840.10008.1.2.1.99",
}


@pytest.fixture(scope="module")
def dcmtk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    """dcmtk's archive: two studies of it, one of two series; it takes associations from MEDFLOW only."""
    folder = tmp_path_factory.mktemp("dcmqrscp")
    with dcmqrscp(folder) as archive:
        archive.keep(*files(folder))
        yield archive


Fresh = Callable[..., tuple[Store, Settings]]


@pytest.fixture
def fresh(tmp_path: Path, _migrated_sqlite: Path) -> Iterator[Fresh]:
    """Stores on SQLite, each with a home of its own and other settings: for what is about the archive."""
    with ExitStack() as opened:

        def make(name: str = "home", **options: Any) -> tuple[Store, Settings]:
            settings = load_settings(home=tmp_path / name, receive_min_free_mib=0, **options)
            settings.home.mkdir()
            shutil.copy(_migrated_sqlite, settings.home / "medflow.db")
            return opened.enter_context(closing(Store(settings).open())), settings

        yield make


@pytest.fixture
def local(fresh: Fresh) -> tuple[Store, Settings]:
    """One of them."""
    return fresh()


def files(folder: Path) -> list[Path]:
    """Twelve files of two studies, the second of the third of May and of another patient."""
    first = [*volume_of(5, study=1, series=1), *volume_of(4, study=1, series=2)]
    second = volume_of(3, study=2, series=1, StudyDate="20240503", Modality="MR", AccessionNumber="A2")
    return write_series(folder / "files", [*first, *second])


def source_of(archive: Orthanc | Listening | str, **wanted: Any) -> PacsSource:
    address = archive if isinstance(archive, str) else archive.address
    return PacsSource.model_validate({"kind": "pacs", "address": address, "days": None, "timeout_s": 10.0, **wanted})


def take(store: Store, settings: Settings, source: PacsSource) -> Tally:
    return fetch(store, settings, source, NAME)


def counts(tally: Tally) -> tuple[int, int, int, int]:
    return tally.offered, tally.stored, tally.unchanged, tally.rejected


def stored(store: Store) -> dict[str, str]:
    """SHA-256 by SOP Instance UID."""
    with store.reading() as connection:
        return {row.uid: row.sha256 for row in connection.execute(select(InstanceRow.uid, InstanceRow.sha256))}


def rejected(store: Store) -> list[tuple[str, str]]:
    with store.reading() as connection:
        return [(item.origin, item.reason) for item in ledger.list_rejects(connection)]


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


def test_a_study_has_the_same_bytes_whether_it_was_sent_or_got_or_moved(
    store: Store, settings: Settings, fresh: Fresh, orthanc: Orthanc, tmp_path: Path
) -> None:
    there = files(tmp_path)
    orthanc.upload(*there)
    sent, its = fresh("sent", receive_port=0)
    with receiving(its) as running:
        assert run("storescu", "-aec", "MEDFLOW", *running.address, *there).returncode == 0
    ingest_dicom(sent, its, [running.spool.root])
    by_storescu = stored(sent)
    moved, its = fresh("moved")
    source = source_of(orthanc, retrieve="move", move_port=orthanc.modality_port)
    by_move, again = take(moved, its, source), take(moved, its, source)
    assert stored(moved) == by_storescu
    left = [path for path in (its.home / "received").rglob("*") if path.is_file()]

    by_get = take(store, settings, source_of(orthanc))

    assert stored(store) == by_storescu
    assert len(by_storescu) == 12
    assert counts(by_get) == counts(by_move) == (12, 12, 0, 0)
    assert counts(again) == (12, 0, 12, 0)
    assert left == []


@pytest.mark.parametrize("name", COMPRESSED)
def test_an_object_comes_in_the_syntax_that_it_is_kept_in(
    name: str, local: tuple[Store, Settings], orthanc: Orthanc
) -> None:
    path = Path(str(get_testdata_file(name)))
    orthanc.upload(path)

    assert take(*local, source_of(orthanc)).stored == 1

    [digest] = stored(local[0]).values()
    with local[0].objects.open(digest) as file:
        got = dcmread(file)
    assert got.file_meta.TransferSyntaxUID == COMPRESSED[name]
    assert got.PixelData == dcmread(path).PixelData


def test_a_second_fetch_brings_what_came_since(local: tuple[Store, Settings], orthanc: Orthanc, tmp_path: Path) -> None:
    orthanc.upload(*write_series(tmp_path / "early", volume_of(4)))
    take(*local, source_of(orthanc))
    orthanc.upload(*write_series(tmp_path / "late", volume_of(6)))

    assert counts(take(*local, source_of(orthanc))) == (6, 2, 4, 0)
    assert counts(take(*local, source_of(orthanc))) == (6, 0, 6, 0)


def test_an_instance_that_replaced_another_is_fetched(
    local: tuple[Store, Settings], orthanc: Orthanc, tmp_path: Path
) -> None:
    files = write_series(tmp_path, volume_of(4))
    orthanc.upload(*files[1:])
    ingest_dicom(*local, files[:-1])  # as many of the series as the archive has

    assert counts(take(*local, source_of(orthanc))) == (3, 1, 2, 0)


@pytest.mark.parametrize(
    ("wanted", "number"),
    [
        ({"since": datetime(2024, 5, 1, tzinfo=UTC), "until": datetime(2024, 5, 3, tzinfo=UTC)}, 3),
        ({"since": datetime(2024, 5, 4, tzinfo=UTC)}, 0),
        ({"until": datetime(2024, 4, 30, tzinfo=UTC)}, 9),
        ({"modalities": ("CT", "US")}, 9),
        ({"modalities": ("MR", "CT")}, 12),
        ({"accession_number": "A2"}, 3),
        ({"patient_id": "P1"}, 9),
        ({"studies": (f"{ROOT}.2",)}, 3),
        ({"days": 7}, 0),
    ],
    ids=str,
)
def test_what_is_asked_for_is_what_comes(
    wanted: dict[str, Any], number: int, local: tuple[Store, Settings], dcmtk: Listening
) -> None:
    tally = take(*local, source_of(dcmtk, **wanted))

    assert counts(tally) == (number, number, 0, 0)


def test_an_archive_that_tells_neither_numbers_nor_classes_gives_all_that_it_has(
    fresh: Fresh, dcmtk: Listening
) -> None:
    one, its = fresh()
    other, theirs = fresh("other")

    got = take(one, its, source_of(dcmtk))
    take(other, theirs, source_of(dcmtk, retrieve="move", move_port=dcmtk.peer_port))

    assert stored(one) == stored(other)
    assert counts(got) == (12, 12, 0, 0)


def test_an_archive_that_would_send_all_of_a_class_in_one_syntax_is_asked_for_others(
    local: tuple[Store, Settings], tmp_path: Path
) -> None:
    compressed = Path(str(get_testdata_file("MR_small_RLE.dcm")))
    with dcmqrscp(tmp_path, "--prefer-rle") as archive:
        archive.keep(compressed, *write_series(tmp_path / "plain", volume_of(2)))

        assert counts(take(*local, source_of(archive))) == (3, 3, 0, 0)

    with local[0].reading() as connection:
        syntaxes = connection.scalars(select(InstanceRow.transfer_syntax_uid)).all()
    assert sorted(syntaxes) == ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"]


def test_an_instance_whose_file_the_archive_lost_costs_nobody_else(
    fresh: Fresh, orthanc: Orthanc, tmp_path: Path
) -> None:
    orthanc.upload(*files(tmp_path))
    lost, data = file_of(orthanc, f"{ROOT}.1.1.3")
    lost.unlink()
    got, its = fresh("got")
    moved, theirs = fresh("moved")
    by_get, by_move = source_of(orthanc), source_of(orthanc, retrieve="move", move_port=orthanc.modality_port)

    assert counts(take(got, its, by_get)) == counts(take(moved, theirs, by_move)) == (12, 11, 0, 1)

    for store in (got, moved):
        [(origin, reason)] = rejected(store)
        assert origin == f"{NAME}/studies/{ROOT}.1"
        assert "1 instances were not had" in reason
    lost.write_bytes(data)
    assert counts(take(got, its, by_get)) == counts(take(moved, theirs, by_move)) == (12, 1, 11, 0)
    assert rejected(got) == rejected(moved) == []


def file_of(orthanc: Orthanc, uid: str) -> tuple[Path, bytes]:
    """The file that Orthanc keeps an instance in."""
    kept = {path: path.read_bytes() for path in orthanc.storage.rglob("*") if len(path.name) == 36}
    [found] = [(path, data) for path, data in kept.items() if uid.encode() + b"\0" in data[200:400]]
    return found


def test_what_came_before_an_archive_died_is_stored_and_not_fetched_again(
    local: tuple[Store, Settings], orthanc: Orthanc, tmp_path: Path
) -> None:
    orthanc.upload(*write_series(tmp_path / "there", volume_of(60)))
    with tcp_proxy(orthanc.dicom_port) as proxy:
        source = source_of(f"ORTHANC@127.0.0.1:{proxy.port}")
        torn = proxy.begin(reset(after_bytes=30_000))
        watch = threading.Thread(target=away_once_struck, args=(proxy, torn))
        watch.start()
        with pytest.raises(ServerUnavailable) as raised:
            take(*local, source)
        watch.join()
        early = len(stored(local[0]))
        proxy.end()

        rest = take(*local, source)

    assert "127.0.0.1" in raised.value.message
    assert 0 < early < 60
    assert counts(rest) == (60, 60 - early, early, 0)


def away_once_struck(proxy: FaultProxy, torn: Fault) -> None:
    """Have nobody listen from the moment on at which a connection was torn down."""
    while not torn.struck:
        time.sleep(0.001)
    while proxy._live:
        time.sleep(0.001)
    proxy.begin(refused())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"calling_aet": "STRANGER"}, "have STRANGER registered in the archive"),
        ({"address": "NOBODY"}, "is not called NOBODY"),
        ({"retrieve": "move", "move_to": "UNKNOWN", "move_port": "free"}, "knows no UNKNOWN to move objects to"),
    ],
    ids=["who we are", "who it is", "where to"],
)
def test_an_ae_title_that_is_not_known_is_named_with_where_to_register_it(
    changes: dict[str, Any], said: str, local: tuple[Store, Settings], dcmtk: Listening
) -> None:
    if "address" in changes:
        changes = {"address": dcmtk.address.replace("DCMTK", "NOBODY")}
    if "move_port" in changes:
        changes = {**changes, "move_port": dcmtk.peer_port}

    with pytest.raises(ConfigurationError, match=said):
        take(*local, source_of(dcmtk, **changes))


def test_what_is_moved_to_a_receiver_that_runs_is_taken_from_its_folder(dcmtk: Listening, fresh: Fresh) -> None:
    store, its = fresh(receive_port=dcmtk.peer_port)
    with receiving(its) as running:
        tally = take(store, its, source_of(dcmtk, retrieve="move"))

    assert counts(tally) == (12, 12, 0, 0)
    assert len(list(running.spool.root.rglob("*.dcm"))) == 12  # not ours to remove


def test_another_server_at_the_port_that_is_to_receive_is_told_of(
    local: tuple[Store, Settings], dcmtk: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moved, "ECHO_S", 0.2)
    with socket.create_server(("127.0.0.1", dcmtk.peer_port)):
        with pytest.raises(ConfigurationError, match="name another port"):
            take(*local, source_of(dcmtk, retrieve="move", move_port=dcmtk.peer_port))


def test_the_command_names_no_patient_where_others_read(dcmtk: Listening, tmp_path: Path) -> None:
    env = {**environment(tmp_path / "home"), "MEDFLOW_LOG_LEVEL": "DEBUG"}

    done = medflow(env, "ingest", "pacs", dcmtk.address, "--patient", "P2", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stored"] == 3
    assert not [word for word in ("P2", "Nobody") if word in done.stderr + done.stdout]
