"""Received studies on their way into the store: when one is complete, and what happens to it then."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pydicom
import pytest

from medflow import steps
from medflow.arrivals import COUNT_AFTER_S, Arrivals, counted_by, take
from medflow.config import Settings, load_settings
from medflow.dicom.spool import Spool
from medflow.errors import ConfigurationError
from medflow.ingest.dicom import ingest_dicom
from medflow.ingest.received import remove_received
from medflow.registry import Registry
from medflow.store import Store
from tests.dicom.test_receive import program, service, spooled, wait_until
from tests.factories_dicom import slice_of, to_bytes, write_series
from tests.services.orthanc import orthanc

QUIET_S = 60.0


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = Spool(tmp_path / "received")
    made.prepare()
    return made


def keep(spool: Spool, count: int, *, study: int = 1, first: int = 0) -> None:
    for number in range(first, first + count):
        spool.keep([to_bytes(slice_of(number, study=study))])


def test_a_study_is_complete_when_nothing_came_of_it_for_the_quiet_time(spool: Spool):
    arrivals = Arrivals(spool, quiet_s=QUIET_S)
    keep(spool, 2)
    arrivals.look(0)
    keep(spool, 1, first=2)
    arrivals.look(50)

    assert arrivals.complete(100) == []
    assert len(arrivals.complete(111)) == 3


def test_a_study_that_still_comes_holds_up_no_other(spool: Spool):
    arrivals = Arrivals(spool, quiet_s=QUIET_S)
    keep(spool, 2, study=1)
    arrivals.look(0)
    keep(spool, 3, study=2)
    arrivals.look(50)

    assert len(arrivals.complete(70)) == 2


def test_what_names_no_study_is_not_kept_waiting_by_more_of_its_kind(spool: Spool):
    arrivals = Arrivals(spool, quiet_s=QUIET_S)
    spool.keep([b"nonsense" * 100])
    arrivals.look(0)
    spool.keep([b"more nonsense" * 100])
    arrivals.look(50)

    assert len(arrivals.complete(70)) == 1


def test_a_study_of_which_all_is_here_is_complete_at_once(spool: Spool):
    arrivals = Arrivals(spool, quiet_s=QUIET_S, expected=lambda _study: 3)
    keep(spool, 2)
    arrivals.look(0)
    assert arrivals.complete(COUNT_AFTER_S) == []
    keep(spool, 1, first=2)
    arrivals.look(10)

    assert arrivals.complete(10) == []  # more may come this very moment
    assert len(arrivals.complete(10 + COUNT_AFTER_S)) == 3


def test_what_is_no_dicom_is_offered_too_and_ends_as_a_reject(spool: Spool, settings: Settings, store):
    spool.keep([b"nonsense" * 100])
    arrivals = Arrivals(spool, quiet_s=0.001)
    arrivals.look(0)

    take(arrivals, settings)

    assert list(spool.files()) == []  # its bytes are kept with the reject
    arrivals.look(1)
    assert arrivals.complete(100) == []


def test_what_the_store_has_is_removed_and_what_stays_is_not_offered_again(spool: Spool, settings: Settings, store):
    keep(spool, 3)
    arrivals = Arrivals(spool, quiet_s=0.001)
    arrivals.look(0)

    take(arrivals, settings)

    assert list(spool.files()) == []
    site = steps.Site(settings=settings, store=store, registry=Registry(models={}, broken=()))
    again = [to_bytes(slice_of(number, study=1)) for number in range(3)]
    for data in again:
        spool.keep([data])
    tally = steps.ingest(site, steps.source_of("dicom", [spool.root], remove_received=True))
    assert (tally.unchanged, tally.notes["removed"]) == (3, 3)


def test_a_night_that_meets_files_which_are_taken_meanwhile_rejects_nothing(spool: Spool, settings: Settings, store):
    keep(spool, 5)
    listed = [Path(entry.path) for entry in spool.files()]
    ingest_dicom(store, settings, listed)
    remove_received(store, listed)

    tally = ingest_dicom(store, settings, listed)  # what the night had listed before

    assert (tally.offered, tally.unchanged, tally.rejected) == (5, 5, 0)


def test_counts_are_asked_only_of_a_pacs(tmp_path):
    sources = {"files": {"kind": "dicom", "paths": ["/in"]}}

    with pytest.raises(ConfigurationError, match="MEDFLOW_RECEIVE_COUNT_FROM"):
        counted_by(load_settings(home=tmp_path, sources=sources, receive_count_from="files"))


def test_what_orthanc_says_it_has_completes_a_study(tmp_path):
    files = write_series(tmp_path / "sent", [slice_of(number) for number in range(3)])
    (tmp_path / "orthanc").mkdir()
    with orthanc(tmp_path / "orthanc") as server:
        server.upload(*files)
        sources = {"pacs": {"kind": "pacs", "address": server.address}}
        expected = counted_by(load_settings(home=tmp_path, sources=sources, receive_count_from="pacs"))
        assert expected is not None
        counts = expected(pydicom.dcmread(files[0]).StudyInstanceUID), expected("1.2.3.4")

    assert counts == (3, 0)
    assert expected("1.2.3.4") is None  # the PACS has gone


def test_a_study_that_is_sent_is_in_the_store_without_anybody_asking(tmp_path, monkeypatch):
    home = tmp_path / "home"
    files = write_series(tmp_path / "sent", [slice_of(number, PatientID="SECRET-4711") for number in range(6)])
    monkeypatch.setenv("MEDFLOW_RECEIVE_QUIET_S", "0.5")

    with service(home, "--ingest", "--processes", 1) as (process, port):
        command = [program("storescu"), "-aec", "MEDFLOW", "127.0.0.1", str(port), "+sd", str(tmp_path / "sent")]
        assert subprocess.run(command, timeout=60).returncode == 0
        wait_until(lambda: "received: 6 stored" in home.with_suffix(".log").read_text())
        wait_until(lambda: not spooled(home))
        process.terminate()
        assert process.wait(20) == 0

    settings = load_settings(home=home)
    store = Store(settings).open()
    tally = ingest_dicom(store, settings, [tmp_path / "sent"])
    store.close()
    assert (tally.offered, tally.unchanged) == (len(files), len(files))
    assert "SECRET" not in home.with_suffix(".log").read_text()
