from pathlib import Path

import pytest

from medflow.config import Settings
from medflow.dicom.spool import Spool
from medflow.ingest.dicom import ingest_dicom
from medflow.ingest.received import remove_received
from medflow.store import Store
from tests.factories_dicom import slice_of, to_bytes


@pytest.fixture
def spool(settings: Settings) -> Spool:
    return Spool(settings.home / "received")


def spooled(spool: Spool) -> list[Path]:
    return sorted(spool.root.glob("*/*"))


def test_what_is_stored_is_removed(store: Store, settings: Settings, spool: Spool):
    digests = {spool.keep([to_bytes(slice_of(number))]) for number in range(3)}
    ingest_dicom(store, settings, [spool.root])

    removed = remove_received(store, [spool.root])

    assert removed == 3
    assert spooled(spool) == []
    assert all(digest in store.objects for digest in digests)


def test_what_came_after_the_ingest_stays(store: Store, settings: Settings, spool: Spool):
    spool.keep([to_bytes(slice_of(0))])
    ingest_dicom(store, settings, [spool.root])
    late = spool.keep([to_bytes(slice_of(1))])

    remove_received(store, [spool.root])

    assert [path.stem for path in spooled(spool)] == [late]


def test_what_was_refused_is_removed_because_its_bytes_are_kept(store: Store, settings: Settings, spool: Spool):
    digest = spool.keep([to_bytes(slice_of(0, StudyInstanceUID=None))])
    tally = ingest_dicom(store, settings, [spool.root])
    assert tally.rejected == 1

    remove_received(store, [spool.root])

    assert spooled(spool) == []
    assert store.objects.get(digest)


def test_a_file_whose_object_is_gone_stays(store: Store, settings: Settings, spool: Spool):
    digest = spool.keep([to_bytes(slice_of(0))])
    ingest_dicom(store, settings, [spool.root])
    store.objects.path(digest).unlink()

    assert remove_received(store, [spool.root]) == 0
    assert [path.stem for path in spooled(spool)] == [digest]


def test_a_file_that_was_taken_in_place_stays(store: Store, settings: Settings, spool: Spool):
    spool.keep([to_bytes(slice_of(0))])
    ingest_dicom(store, settings, [spool.root], in_place=True)

    assert remove_received(store, [spool.root]) == 0


def test_a_file_that_another_put_there_stays(store: Store, settings: Settings, spool: Spool):
    spool.prepare()
    theirs = spool.root / "IM0001.dcm"
    theirs.write_bytes(to_bytes(slice_of(0)))
    ingest_dicom(store, settings, [spool.root])

    assert remove_received(store, [spool.root]) == 0
    assert theirs.exists()
