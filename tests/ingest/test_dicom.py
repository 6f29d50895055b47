"""DICOM into the store: every input accounted for, a second time changes nothing, and failures leave nothing half."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from medflow.config import Settings
from medflow.errors import ConfigurationError
from medflow.ingest import dicom
from medflow.ingest.dicom import ingest_dicom
from medflow.plugin import ImagingInput
from medflow.records import Instant
from medflow.store import Store
from medflow.store.imaging import series_instances
from medflow.store.ledger import list_rejects
from medflow.store.selection import due_series
from tests.factories_dicom import slice_of, to_bytes, volume_of, write_series

SAMPLES = Path(pydicom.__file__).parent / "data"
CT = ImagingInput(modality=("CT",))
LATE = Instant(utc_us=4_000_000_000_000_000)


def _objects(store: Store) -> list[Path]:
    return [path for path in store.objects.root.rglob("*") if path.is_file()]


def test_a_folder_is_stored_and_a_second_time_unchanged(store: Store, settings: Settings, tmp_path: Path) -> None:
    write_series(tmp_path / "in", volume_of(5))
    counted: list[int] = []

    first = ingest_dicom(store, settings, [tmp_path / "in"], progress=counted.append)
    second = ingest_dicom(store, settings, [tmp_path / "in"])

    assert (first.offered, first.stored, first.rejected) == (5, 5, 0)
    assert (second.offered, second.unchanged) == (5, 5)
    assert sum(counted) == 5
    assert len(_objects(store)) == 5


def test_bytes_are_kept_as_received(store: Store, settings: Settings, tmp_path: Path) -> None:
    (path,) = write_series(tmp_path / "in", volume_of(1))

    ingest_dicom(store, settings, [path])

    assert [found.read_bytes() for found in _objects(store)] == [path.read_bytes()]


def test_the_series_is_due_with_its_patient(store: Store, settings: Settings, tmp_path: Path) -> None:
    write_series(tmp_path / "in", volume_of(5))

    ingest_dicom(store, settings, [tmp_path / "in"])

    with store.reading() as connection:
        (due,) = due_series(connection, CT, as_of=LATE, model_id=1)
        instances = series_instances(connection, due.unit.id)
    assert [item.instance_number for item in instances] == [1, 2, 3, 4, 5]
    assert all(store.objects.path(item.sha256).is_file() for item in instances)


def test_one_bad_file_does_not_stop_the_batch(store: Store, settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    paths = write_series(folder, volume_of(4))
    paths[1].write_bytes(paths[1].read_bytes()[:-3])
    (folder / "notes.txt").write_text("no image")
    (folder / "empty.dcm").write_bytes(b"")
    (folder / "gone.dcm").symlink_to(folder / "nowhere")

    tally = ingest_dicom(store, settings, [folder])

    assert (tally.offered, tally.stored, tally.rejected) == (7, 3, 4)
    assert tally.reasons == {"truncated": 1, "not-dicom": 1, "empty": 1, "vanished": 1}
    with store.reading() as connection:
        rejects = {reject.code: reject for reject in list_rejects(connection)}
    truncated = rejects["truncated"]
    assert truncated.payload and store.objects.get(truncated.sha256 or "") == paths[1].read_bytes()
    assert truncated.origin == str(paths[1])


def test_a_truncated_file_does_not_bar_the_whole_one(store: Store, settings: Settings, tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, volume_of(1))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    ingest_dicom(store, settings, [path])
    path.write_bytes(whole)

    assert ingest_dicom(store, settings, [path]).stored == 1


def test_the_same_object_twice_in_one_batch(store: Store, settings: Settings, tmp_path: Path) -> None:
    (path,) = write_series(tmp_path / "in", volume_of(1))
    shutil.copy(path, path.with_name("copy.dcm"))

    tally = ingest_dicom(store, settings, [path.parent])

    assert (tally.stored, tally.unchanged) == (1, 1)


def test_the_same_uid_with_other_bytes_is_a_conflict(store: Store, settings: Settings, tmp_path: Path) -> None:
    write_series(tmp_path / "in", [slice_of(), slice_of(RescaleSlope=3)])

    first = ingest_dicom(store, settings, [tmp_path / "in"])
    second = ingest_dicom(store, settings, [tmp_path / "in"])

    assert (first.stored, first.reasons) == (1, {"uid-conflict": 1})
    assert (second.unchanged, second.reasons) == (1, {"uid-conflict": 1})


def test_archives_are_taken_in_whole(store: Store, settings: Settings, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for number, dataset in enumerate(volume_of(3)):
            archive.writestr(f"a/{number}", to_bytes(dataset))
        archive.writestr("../b", b"x")

    tally = ingest_dicom(store, settings, [tmp_path / "study.zip"], in_place=True)

    assert (tally.offered, tally.stored, tally.reasons) == (4, 3, {"archive-path": 1})
    assert len(_objects(store)) == 3


def test_in_place_leaves_files_where_they_are(store: Store, settings: Settings, tmp_path: Path) -> None:
    paths = write_series(tmp_path / "in", volume_of(2))

    ingest_dicom(store, settings, [tmp_path / "in"], in_place=True)

    with store.reading() as connection:
        (due,) = due_series(connection, CT, as_of=LATE, model_id=1)
        instances = series_instances(connection, due.unit.id)
    assert [item.path for item in instances] == [str(path) for path in paths]
    assert _objects(store) == []


def test_files_that_were_moved_are_found_again(store: Store, settings: Settings, tmp_path: Path) -> None:
    write_series(tmp_path / "in", volume_of(2))
    ingest_dicom(store, settings, [tmp_path / "in"], in_place=True)
    (tmp_path / "in").rename(tmp_path / "moved")

    tally = ingest_dicom(store, settings, [tmp_path / "moved"], in_place=True)

    assert tally.unchanged == 2
    with store.reading() as connection:
        (due,) = due_series(connection, CT, as_of=LATE, model_id=1)
        assert all(Path(item.path or "").is_file() for item in series_instances(connection, due.unit.id))


def test_a_name_that_is_no_text_cannot_stay_in_place(store: Store, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with open(os.fsencode(tmp_path) + b"/in/\xff.dcm", "wb") as file:
        file.write(to_bytes(slice_of()))

    assert ingest_dicom(store, settings, [tmp_path / "in"], in_place=True).stored == 1
    assert len(_objects(store)) == 1


def test_a_lost_object_is_put_back(store: Store, settings: Settings, tmp_path: Path) -> None:
    write_series(tmp_path / "in", volume_of(1))
    ingest_dicom(store, settings, [tmp_path / "in"])
    (path,) = _objects(store)
    path.unlink()

    assert ingest_dicom(store, settings, [tmp_path / "in"]).unchanged == 1
    assert path.is_file()


def test_large_files_are_streamed(
    store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom, "HELD", 100)
    monkeypatch.setattr(dicom, "BLOCK", 64)
    paths = write_series(tmp_path / "in", volume_of(3))
    paths[2].write_bytes(paths[2].read_bytes()[:-3])

    tally = ingest_dicom(store, settings, [tmp_path / "in"])

    assert (tally.stored, tally.reasons) == (2, {"truncated": 1})
    assert {path.read_bytes() for path in _objects(store)} == {path.read_bytes() for path in paths}


def test_an_input_beyond_the_limit_is_refused(store: Store, settings: Settings, tmp_path: Path) -> None:
    write_series(tmp_path / "in", volume_of(1))
    tight = settings.model_copy(update={"max_input_bytes": 100})

    assert ingest_dicom(store, tight, [tmp_path / "in"]).reasons == {"too-large": 1}


def test_many_chunks_add_up(store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom, "CHUNK", 3)
    write_series(tmp_path / "in", volume_of(10))
    counted: list[int] = []

    tally = ingest_dicom(store, settings, [tmp_path / "in"], progress=counted.append)

    assert (tally.stored, counted) == (10, [3, 3, 3, 1])
    with store.reading() as connection:
        (due,) = due_series(connection, CT, as_of=LATE, model_id=1)
        assert len(series_instances(connection, due.unit.id)) == 10


def test_a_full_disk_is_said_and_leaves_nothing_half(store: Store, settings: Settings, tmp_path: Path) -> None:
    write_series(tmp_path / "in", volume_of(3, PixelData=bytes(200_000)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with store.reading() as connection:
        connection.exec_driver_sql("SELECT 1")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[0][1]))  # the kernel refuses to write more
    try:
        with pytest.raises(ConfigurationError) as caught:
            ingest_dicom(store, settings, [tmp_path / "in"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
        signal.signal(signal.SIGXFSZ, before[1])

    assert "object store" in caught.value.message
    assert _objects(store) == []
    with store.reading() as connection:
        assert due_series(connection, CT, as_of=LATE, model_id=1) == []
    assert ingest_dicom(store, settings, [tmp_path / "in"]).stored == 3


def test_notes_say_what_the_headers_lack(store: Store, settings: Settings, tmp_path: Path) -> None:
    write_series(tmp_path / "in", [slice_of(TimezoneOffsetFromUTC=None, PatientID="")])

    assert ingest_dicom(store, settings, [tmp_path / "in"]).notes == {"time-without-zone": 1, "no-patient-id": 1}


def test_a_second_source_of_the_patient_contradicting_the_first(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    write_series(tmp_path / "in", [slice_of(0), slice_of(0, series=2, PatientBirthDate="19910101")])

    assert ingest_dicom(store, settings, [tmp_path / "in"]).reasons == {"patient-mismatch": 1}


def test_damaged_headers_never_stop_a_batch(store: Store, settings: Settings, tmp_path: Path) -> None:
    chance = random.Random(7)
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(200):
        data = bytearray(to_bytes(slice_of(number, series=number, StudyDescription="a" * 300)))
        for _ in range(chance.randint(1, 9)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        (folder / f"{number}.dcm").write_bytes(data)

    tally = ingest_dicom(store, settings, [folder])

    assert tally.offered == 200
    assert 50 < tally.stored < 150


# --- files of others -------------------------------------------------------------------------------------------


def test_every_file_of_pydicoms_wheel_is_accounted_for(store: Store, settings: Settings) -> None:
    """Its test files: transfer syntaxes, character sets, media directories, and many that are broken on purpose."""
    first = ingest_dicom(store, settings, [SAMPLES])
    second = ingest_dicom(store, settings, [SAMPLES])

    assert first.offered == first.stored + first.unchanged + first.rejected > 180
    assert first.stored > 70
    assert set(first.reasons) == {"missing-uid", "not-an-instance", "not-dicom", "truncated", "uid-conflict"}
    assert (second.stored, second.rejected) == (0, first.rejected)
    assert second.reasons == first.reasons
    assert second.unchanged == first.stored + first.unchanged


@pytest.mark.parametrize(
    ("pack", "stored", "reasons"),
    [
        ("dcm_qa_nih", 608, {"not-dicom": 32}),
        ("totalseg_ct", 0, {"missing-uid": 20, "not-dicom": 5}),
        ("highdicom", 24, {"not-dicom": 6, "uid-conflict": 1}),
    ],
)
def test_published_sets(
    store: Store,
    settings: Settings,
    realdata: Callable[[str], Path],
    pack: str,
    stored: int,
    reasons: dict[str, int],
) -> None:
    tally = ingest_dicom(store, settings, [realdata(pack)], in_place=True)

    assert (tally.stored, dict(tally.reasons)) == (stored, reasons)
    assert ingest_dicom(store, settings, [realdata(pack)], in_place=True).unchanged == stored
