"""One instance by several ways is one instance; another data set under its UID is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, Sequence, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from sqlalchemy import select

from medflow.config import Settings, load_settings
from medflow.connections.endpoints import DicomWebSource, PacsSource
from medflow.dicom.equal import same_elements
from medflow.dicom.header import same_data_set
from medflow.dicom.receive import receiver
from medflow.ingest.dicom import ingest_dicom
from medflow.ingest.fetch import fetch
from medflow.ingest.received import remove_received
from medflow.store import Store
from medflow.store.tables import InstanceRow, SeriesRow, StudyRow
from tests.factories_dicom import slice_of, to_bytes, volume_of, write_series
from tests.services import dcmtk
from tests.services.orthanc import Orthanc


@dataclass(frozen=True, kw_only=True)
class Site:
    """A store of its own."""

    store: Store
    settings: Settings

    def files(self) -> dict[str, bytes]:
        """What is stored, by SOP Instance UID."""
        with self.store.reading() as connection:
            rows = connection.execute(select(InstanceRow.uid, InstanceRow.sha256)).all()
        return {row.uid: self.store.objects.get(row.sha256) for row in rows}


@pytest.fixture
def sites(tmp_path: Path, _migrated_sqlite: Path) -> Iterator[list[Site]]:
    """Five of them."""
    made: list[Site] = []
    for number in range(5):
        settings = load_settings(home=tmp_path / f"site{number}", receive_port=0)
        settings.home.mkdir()
        shutil.copy(_migrated_sqlite, settings.home / "medflow.db")
        made.append(Site(store=Store(settings).open(), settings=settings))
    yield made
    for site in made:
        site.store.close()


def test_a_study_received_fetched_by_dicomweb_by_c_get_and_by_c_move_is_one_study(
    sites: list[Site], orthanc: Orthanc, tmp_path: Path
) -> None:
    received, by_web, by_get, by_move, whole = sites
    sent = write_series(tmp_path / "in", volume_of(3))
    assert dcmtk.run("storescu", "-aec", "ORTHANC", "127.0.0.1", orthanc.dicom_port, *sent).returncode == 0
    listening = receiver(received.settings)
    listening.start()
    assert dcmtk.run("storescu", "-aec", "MEDFLOW", *listening.address, *sent).returncode == 0
    listening.stop()
    ingest_dicom(received.store, received.settings, [listening.spool.root])
    web = DicomWebSource.model_validate({"kind": "dicomweb", "url": orthanc.dicomweb, "days": None})
    pacs = {"kind": "pacs", "address": orthanc.address, "days": None}
    get = PacsSource.model_validate(pacs)
    move = PacsSource.model_validate({**pacs, "retrieve": "move", "move_port": orthanc.modality_port})
    for site, source in ((by_web, web), (by_get, get), (by_move, move)):
        assert fetch(site.store, site.settings, source, "archive").stored == 3

    files = [site.files() for site in (received, by_web, by_get, by_move)]
    for uid, file in files[0].items():
        assert files[2][uid] == files[3][uid] == file
        assert same_data_set(BytesIO(files[1][uid]), BytesIO(file))
        assert _meta_that_differs(files[1][uid], file) == {
            "FileMetaInformationGroupLength",
            "ImplementationClassUID",
            "ImplementationVersionName",
        }
    tallies = [
        ingest_dicom(whole.store, whole.settings, [site.settings.home / "objects"])
        for site in (received, by_web, by_get, by_move)
    ]
    assert [(item.stored, item.unchanged, item.rejected) for item in tallies] == [(3, 0, 0), *[(0, 3, 0)] * 3]
    assert [dict(item.notes) for item in tallies] == [{}, {"other-header": 3}, {}, {}]
    with whole.store.reading() as connection:
        rows = [len(connection.execute(select(table.id)).all()) for table in (StudyRow, SeriesRow, InstanceRow)]
    assert rows == [1, 1, 3]


def _meta_that_differs(one: bytes, other: bytes) -> set[str]:
    metas = [dcmread(BytesIO(data), stop_before_pixels=True).file_meta for data in (one, other)]
    names = {item.keyword for meta in metas for item in meta}
    return {name for name in names if metas[0].get(name) != metas[1].get(name)}


def _with_other_header(data: bytes) -> bytes:
    return b"\x00" * 127 + b"x" + data[128:]


def test_another_header_in_one_chunk_is_unchanged_too(sites: list[Site], tmp_path: Path) -> None:
    data = to_bytes(slice_of())
    (tmp_path / "a.dcm").write_bytes(data)
    (tmp_path / "b.dcm").write_bytes(_with_other_header(data))

    tally = ingest_dicom(sites[0].store, sites[0].settings, [tmp_path / "a.dcm", tmp_path / "b.dcm"])

    assert (tally.offered, tally.stored, tally.unchanged, tally.rejected) == (2, 1, 1, 0)
    assert tally.notes == {"other-header": 1}


def _written(dataset: Dataset, **how: bool) -> bytes:
    """A file with a sequence, its lengths undefined or not, in explicit or implicit VR."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "1", "99X", "x"
    item.is_undefined_length_sequence_item = how.get("undefined", False)
    dataset.ProcedureCodeSequence = Sequence([item])
    dataset["ProcedureCodeSequence"].is_undefined_length = how.get("undefined", False)
    dataset.add_new(0x00091001, "UN", b"private")
    implicit = how.get("implicit", False)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True, implicit_vr=implicit, little_endian=True)
    return buffer.getvalue()


@pytest.mark.parametrize("how", [{"undefined": True}, {"implicit": True}, {"implicit": True, "undefined": True}])
def test_the_same_elements_written_another_way_are_unchanged(
    sites: list[Site], tmp_path: Path, how: dict[str, bool]
) -> None:
    paths = [tmp_path / "a.dcm", tmp_path / "b.dcm", tmp_path / "c.dcm"]
    paths[0].write_bytes(_written(slice_of()))
    paths[1].write_bytes(_written(slice_of(), **how))
    paths[2].write_bytes(_written(slice_of(StudyDate="20240103"), **how))

    tally = ingest_dicom(sites[0].store, sites[0].settings, paths)

    assert (tally.stored, tally.unchanged, tally.rejected) == (1, 1, 1)
    assert tally.notes == {"other-encoding": 1}
    assert tally.reasons == {"uid-conflict": 1}


@pytest.mark.parametrize("together", [True, False])
def test_another_data_set_under_the_same_uid_is_refused(sites: list[Site], tmp_path: Path, together: bool) -> None:
    paths = [tmp_path / "a.dcm", tmp_path / "b.dcm"]
    paths[0].write_bytes(to_bytes(slice_of()))
    paths[1].write_bytes(to_bytes(slice_of(PatientSex="M")))
    if not together:
        ingest_dicom(sites[0].store, sites[0].settings, paths[:1])

    tally = ingest_dicom(sites[0].store, sites[0].settings, paths if together else paths[1:])

    assert tally.reasons == {"uid-conflict": 1}
    assert not tally.notes


def test_a_received_file_is_removed_when_its_data_set_is_stored_from_another(sites: list[Site], tmp_path: Path) -> None:
    data = to_bytes(slice_of())
    (tmp_path / "a.dcm").write_bytes(data)
    ingest_dicom(sites[0].store, sites[0].settings, [tmp_path / "a.dcm"])
    spool = receiver(sites[0].settings).spool
    spool.prepare()
    spool.keep([_with_other_header(data)])
    other = spool.keep([_with_other_header(to_bytes(slice_of(PatientSex="M")))])

    assert remove_received(sites[0].store, [spool.root]) == 1
    assert [path.stem for path in spool.root.rglob("*.dcm")] == [other]


def test_what_is_no_dicom_is_the_same_as_nothing() -> None:
    data = to_bytes(slice_of())

    assert not same_data_set(BytesIO(b""), BytesIO(b""))
    assert not same_data_set(BytesIO(data), BytesIO(b"not dicom"))
    assert not same_data_set(BytesIO(data), BytesIO(data[:-2]))
    assert same_data_set(BytesIO(data), BytesIO(_with_other_header(data)))


def test_what_may_grow_without_end_is_not_inflated_to_be_compared() -> None:
    dataset = dcmread(BytesIO(to_bytes(slice_of())))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    written = BytesIO()
    dataset.save_as(written, enforce_file_format=True)

    assert same_data_set(BytesIO(written.getvalue()), BytesIO(written.getvalue()))
    assert not same_elements(BytesIO(written.getvalue()), BytesIO(written.getvalue()))
