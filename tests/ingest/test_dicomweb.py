"""Images from Orthanc by DICOMweb: what the store lacks, each once, whatever happens on the way."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from medflow import replay, steps
from medflow.config import Settings, load_settings
from medflow.connections.endpoints import DicomWebSource
from medflow.connections.patience import Patience
from medflow.dicom import web
from medflow.errors import ConfigurationError, RejectCode, SourceUnavailable
from medflow.ingest import dicomweb
from medflow.ingest.fetch import fetch
from medflow.ingest.landing import Landing
from medflow.ingest.retrieval import asked_for
from medflow.ingest.tally import Tally
from medflow.registry import Registry
from medflow.store import Store, ledger
from medflow.store.connections import standing
from medflow.store.tables import InstanceRow, SeriesRow
from medflow.store.watermarks import Watermark, read_mark
from tests.dicom.test_web import result, serving
from tests.distributions import environment, medflow
from tests.factories_dicom import ROOT, slice_of, to_bytes, volume_of, write_series
from tests.services.fault_proxy import cut, http_proxy, refused
from tests.services.orthanc import Orthanc
from tests.services.orthanc import orthanc as run_orthanc

HASTE = Patience(attempts=3, first_wait_s=0.01, longest_wait_s=0.02)
NAME = "archive"


@pytest.fixture(autouse=True)
def _haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicomweb, "PATIENCE", HASTE)
    monkeypatch.setattr(dicomweb, "AT_START", HASTE)


@pytest.fixture
def local(settings: Settings, _migrated_sqlite: Path) -> Iterator[Store]:
    """A store on SQLite only: for what is about the archive, not the database."""
    settings.home.mkdir()
    shutil.copy(_migrated_sqlite, settings.home / "medflow.db")
    opened = Store(settings).open()
    yield opened
    opened.close()


def source_of(orthanc: Orthanc | str, **wanted: Any) -> DicomWebSource:
    url = orthanc if isinstance(orthanc, str) else orthanc.dicomweb
    return DicomWebSource.model_validate({"kind": "dicomweb", "url": url, "days": None, **wanted})


def fill(orthanc: Orthanc, folder: Path, *, studies: int = 2, series: int = 2, slices: int = 4, **elements: Any) -> int:
    for study in range(1, studies + 1):
        for number in range(1, series + 1):
            data = volume_of(slices, study=study, series=number, **elements)
            orthanc.upload(*write_series(folder / f"{study}-{number}", data))
    return studies * series * slices


def take(store: Store, settings: Settings, source: DicomWebSource) -> Tally:
    return fetch(store, settings, source, NAME)


def counts(tally: Tally) -> tuple[int, int, int, int]:
    return tally.offered, tally.stored, tally.unchanged, tally.rejected


def stored(store: Store) -> set[str]:
    with store.reading() as connection:
        return set(connection.scalars(select(InstanceRow.uid)))


def test_what_the_archive_has_is_stored_once(
    store: Store, settings: Settings, orthanc: Orthanc, tmp_path: Path
) -> None:
    number = fill(orthanc, tmp_path)

    first = take(store, settings, source_of(orthanc))
    second = take(store, settings, source_of(orthanc))

    assert counts(first) == (number, number, 0, 0)
    assert counts(second) == (number, 0, number, 0)
    assert len(stored(store)) == number
    assert [path.name for path in (settings.home / "fetching").rglob("*") if path.is_file()] == [".lock"]
    with store.reading() as connection:
        assert [(line.name, line.error) for line in standing(connection)] == [(NAME, None)]


def test_only_what_is_lacking_is_asked_for(local: Store, settings: Settings, orthanc: Orthanc, tmp_path: Path) -> None:
    fill(orthanc, tmp_path, studies=1, series=1, slices=4)
    take(local, settings, source_of(orthanc))
    orthanc.upload(*write_series(tmp_path / "late", volume_of(6)))

    with http_proxy(orthanc.dicomweb) as (proxy, url):
        tally = take(local, settings, source_of(url))
        asked = proxy.requests

    assert counts(tally) == (6, 2, 4, 0)
    assert asked <= 9  # a page and an empty one of studies, series and instances; a look at it; two instances


def test_series_of_other_modalities_stay_there(
    local: Store, settings: Settings, orthanc: Orthanc, tmp_path: Path
) -> None:
    orthanc.upload(*write_series(tmp_path / "ct", volume_of(2, series=1)))
    orthanc.upload(*write_series(tmp_path / "mr", volume_of(3, series=2, Modality="MR")))

    tally = take(local, settings, source_of(orthanc, modalities=["MR"]))

    assert counts(tally) == (3, 3, 0, 0)
    with local.reading() as connection:
        series = select(SeriesRow.uid).join(InstanceRow, InstanceRow.series_id == SeriesRow.id)
        assert list(connection.scalars(series)) == [f"{ROOT}.1.2"] * 3


@pytest.mark.parametrize(
    "wanted",
    [
        {"patient_id": "P2"},
        {"accession_number": "A2"},
        {"studies": [f"{ROOT}.2"]},
        {"since": "2024-03-01T00:00:00Z", "until": "2024-03-31T00:00:00Z"},
    ],
    ids=lambda wanted: "-".join(wanted),
)
def test_what_is_asked_for_is_what_comes(
    local: Store, settings: Settings, orthanc: Orthanc, tmp_path: Path, wanted: dict[str, Any]
) -> None:
    for study, date in ((1, "20240102"), (2, "20240303"), (3, "20240401")):
        data = volume_of(1, study=study, StudyDate=date, AccessionNumber=f"A{study}")
        orthanc.upload(*write_series(tmp_path / str(study), data))

    take(local, settings, source_of(orthanc, **wanted))

    assert stored(local) == {f"{ROOT}.2.1.1"}
    with local.reading() as connection:
        assert read_mark(connection, NAME, "studies").until_us is None  # it says nothing of the others


def test_a_server_that_gives_a_few_results_at_a_time_is_read_to_its_end(
    local: Store, settings: Settings, orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "PAGE", 2)
    number = fill(orthanc, tmp_path, studies=3, series=1, slices=5)

    assert counts(take(local, settings, source_of(orthanc))) == (number, number, 0, 0)


def test_a_series_that_breaks_off_goes_on_where_it_was(
    local: Store, settings: Settings, orthanc: Orthanc, tmp_path: Path
) -> None:
    number = fill(orthanc, tmp_path, studies=1, series=1, slices=8)

    with http_proxy(orthanc.dicomweb) as (proxy, url):
        proxy.begin(cut(after_requests=7, requests=1))  # the series itself
        tally = take(local, settings, source_of(url))

    assert counts(tally) == (number, number, 0, 0)


def test_an_archive_that_goes_away_is_said_after_what_came_is_stored(
    local: Store, settings: Settings, orthanc: Orthanc, tmp_path: Path
) -> None:
    number = fill(orthanc, tmp_path, studies=3, series=1)

    with http_proxy(orthanc.dicomweb) as (proxy, url):
        proxy.begin(refused(after_requests=10))
        with pytest.raises(SourceUnavailable):
            take(local, settings, source_of(url))
        before = len(stored(local))
        with local.reading() as connection:
            assert read_mark(connection, NAME, "studies").until_us is None
            assert ledger.list_rejects(connection) == []
        proxy.end()
        tally = take(local, settings, source_of(url))

    assert 0 < before < number
    assert counts(tally) == (number, number - before, before, 0)
    with local.reading() as connection:
        assert read_mark(connection, NAME, "studies").until_us is not None


@pytest.fixture(scope="module")
def _careless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Orthanc, Path]]:
    folder = tmp_path_factory.mktemp("careless")
    with run_orthanc(folder, OverwriteInstances=True, MaximumStorageCacheSize=0) as archive:
        yield archive, folder / "storage"


@pytest.fixture
def careless(_careless: tuple[Orthanc, Path]) -> tuple[Orthanc, Path]:
    """An empty Orthanc that notices at once when a file of its storage, the folder, is lost."""
    _careless[0].empty()
    return _careless


def test_a_study_that_is_not_given_is_on_record_until_it_comes(
    local: Store, settings: Settings, tmp_path: Path, careless: tuple[Orthanc, Path]
) -> None:
    archive, storage = careless
    fill(archive, tmp_path / "in", studies=3, series=1, slices=2)
    lost = tmp_path / "in" / "2-1" / "001.dcm"
    _lose(lost.read_bytes(), storage)

    first = take(local, settings, source_of(archive))
    with local.reading() as connection:
        (reject,) = ledger.list_rejects(connection)
    archive.upload(lost)
    second = take(local, settings, source_of(archive))

    assert first.reasons == {"not-retrieved": first.rejected}
    assert {f"{ROOT}.{study}.1.{number}" for study in (1, 3) for number in (1, 2)} <= stored(local)
    assert (reject.code, reject.source, reject.origin) == ("not-retrieved", NAME, f"{NAME}/studies/{ROOT}.2")
    assert (second.offered, second.rejected, len(stored(local))) == (6, 0, 6)
    with local.reading() as connection:
        assert ledger.list_rejects(connection) == []


def test_an_archive_that_fails_over_one_day_gives_the_others(
    local: Store, settings: Settings, tmp_path: Path, careless: tuple[Orthanc, Path]
) -> None:
    archive, storage = careless
    for study in (1, 2, 3):
        data = volume_of(1, study=study, StudyDate=f"2024010{study}")
        archive.upload(*write_series(tmp_path / str(study), data))
    _lose((tmp_path / "2" / "000.dcm").read_bytes(), storage)  # Orthanc reads it to list its study
    window = {"since": "2024-01-01T00:00:00Z", "until": "2024-01-04T00:00:00Z"}

    with pytest.raises(SourceUnavailable):
        take(local, settings, source_of(archive, **window))

    assert stored(local) == {f"{ROOT}.1.1.1", f"{ROOT}.3.1.1"}


def _lose(content: bytes, storage: Path) -> None:
    """Have Orthanc know an instance whose file is gone."""
    (file,) = (path for path in storage.rglob("*") if path.is_file() and path.read_bytes() == content)
    file.unlink()


def test_a_study_that_is_listed_and_empty_is_on_record_until_it_is_gone(local: Store, settings: Settings) -> None:
    listed = {"/studies": [result(study="1.5")]}

    with serving(lambda path, offset: (200, [] if offset else listed.get(path, []))) as source:
        first = take(local, settings, source)
        listed.clear()
        second = take(local, settings, source)

    assert (counts(first), counts(second)) == ((1, 0, 0, 1), (0, 0, 0, 0))
    with local.reading() as connection:
        assert list(ledger.open_origins(connection, NAME, RejectCode.NOT_RETRIEVED)) == []


def test_a_study_asked_for_by_its_uid_that_is_not_there_is_told(
    local: Store, settings: Settings, orthanc: Orthanc
) -> None:
    tally = take(local, settings, source_of(orthanc, studies=[f"{ROOT}.404"]))

    assert counts(tally) == (1, 0, 0, 1)
    assert tally.reasons == {"not-retrieved": 1}


def test_retrying_rejects_asks_a_configured_archive_again(
    local: Store, settings: Settings, orthanc: Orthanc, tmp_path: Path
) -> None:
    source = source_of(orthanc, days=3)
    here = settings.model_copy(update={"sources": {NAME: source}})
    site = steps.Site(settings=here, store=local, registry=Registry(models={}, broken=()))
    take(local, settings, source.model_copy(update={"studies": (f"{ROOT}.1",)}))
    fetch(local, settings, source.model_copy(update={"studies": (f"{ROOT}.9",)}), "elsewhere")
    orthanc.upload(*write_series(tmp_path / "late", volume_of(2)))

    tally = replay.replay_rejects(site)

    assert (tally.stored, tally.rejected, tally.notes) == (2, 0, {"left-to-the-next-fetch": 1})
    with local.reading() as connection:
        assert [item.source for item in ledger.list_rejects(connection)] == ["elsewhere"]


def test_a_window_reaches_back_to_the_last_complete_fetch() -> None:
    now = datetime(2026, 3, 31, 12, tzinfo=UTC)
    source = source_of("http://archive.example", days=7)
    settings = load_settings()
    ago = {days: Watermark(until_us=int((now - timedelta(days=days)).timestamp() * 1e6)) for days in (1, 20)}

    assert asked_for(source, Watermark(), settings, now=now).since == datetime(2026, 3, 23).date()
    assert asked_for(source, ago[1], settings, now=now).since == datetime(2026, 3, 23).date()
    assert asked_for(source, ago[20], settings, now=now).since == datetime(2026, 3, 10).date()


def test_what_a_killed_process_had_fetched_is_taken_first(
    local: Store, settings: Settings, orthanc: Orthanc, tmp_path: Path
) -> None:
    number = fill(orthanc, tmp_path, studies=1, series=1)
    take(local, settings, source_of(orthanc))
    (folder,) = (settings.home / "fetching").iterdir()
    (left,) = write_series(tmp_path / "left", volume_of(1, study=7))
    left.rename(folder / f"{sha256(left.read_bytes()).hexdigest()}.dcm")
    (folder / f"{'0' * 64}.dcm").write_bytes(to_bytes(slice_of(0, study=8))[:-1] + b"?")
    (folder / ".incoming-half").write_bytes(b"half of one")

    tally = take(local, settings, source_of(orthanc))

    assert counts(tally) == (number + 1, 1, number, 0)
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_what_an_archive_gives_twice_is_offered_once(settings: Settings) -> None:
    data = to_bytes(slice_of(0))
    landing = Landing(settings.home, NAME)
    landing.prepare()

    landing.keep([data])
    first = landing.take(5)
    landing.keep([data])  # while the first is ingested
    landing.done(first)

    assert (len(first), landing.take(5)) == (1, [])
    landing.keep([data])
    assert [file.path.is_file() for file in landing.take(5)] == [True]
    landing.close()


def test_the_command_names_no_patient_where_others_read(orthanc: Orthanc, tmp_path: Path) -> None:
    fill(orthanc, tmp_path, studies=2, series=1, slices=1)
    home = tmp_path / "home"
    sources = {"archive": {"kind": "dicomweb", "url": orthanc.dicomweb}}
    env = {**environment(home), "MEDFLOW_LOG_LEVEL": "DEBUG", "MEDFLOW_SOURCES": json.dumps(sources)}

    done = medflow(env, "ingest", "dicomweb", "archive", "--patient", "P2", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stored"] == 1  # of years ago: whoever names a patient means it whenever it was
    assert "P2" not in done.stderr + done.stdout
    site = steps.open_site(load_settings(home=home))
    with site.store.reading() as connection:
        run = connection.exec_driver_sql("SELECT command, source, counts FROM run").one()
    assert (run.command, run.source) == ("ingest dicomweb", "archive")
    assert "P2" not in str(run.counts)


def test_the_log_has_no_query_at_any_level(
    local: Store, settings: Settings, orthanc: Orthanc, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(orthanc, tmp_path, studies=1, series=1, slices=1)
    caplog.clear()

    with caplog.at_level(logging.DEBUG):
        take(local, settings, source_of(orthanc, patient_id="P1"))

    assert "P1" not in caplog.text
    assert stored(local)


def test_a_server_that_is_none_is_said_so(local: Store, settings: Settings, orthanc: Orthanc) -> None:
    with pytest.raises(ConfigurationError, match="DICOMweb"):
        take(local, settings, source_of(orthanc.url))

    assert httpx.get(f"{orthanc.url}/studies", timeout=5).status_code == 200  # which it answers, in its own way
