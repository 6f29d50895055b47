"""Headers: what is taken, what is refused and why, whatever the bytes."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import pydicom
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

from medflow.config import Settings, load_settings
from medflow.dicom.read import Reading, read_bytes
from medflow.errors import InputRejected, RejectCode
from medflow.records import Identifier, Instant
from tests.factories_dicom import slice_of, to_bytes

SAMPLES = Path(pydicom.__file__).parent / "data"
PLAIN = load_settings(home=Path("unused"))


def _sample(name: str) -> bytes:
    return Path(str(get_testdata_file(name))).read_bytes()


def _refusal(data: bytes, settings: Settings = PLAIN) -> tuple[RejectCode, str]:
    with pytest.raises(InputRejected) as caught:
        read_bytes(data, settings)
    return caught.value.code, caught.value.message


# --- what is taken ---------------------------------------------------------------------------------------------


def test_the_four_levels_of_an_object() -> None:
    data = to_bytes(slice_of(3, BodyPartExamined="CHEST", AccessionNumber="A1", SeriesDescription="axial"))

    item = read_bytes(data, PLAIN).object

    assert item.patient.identifiers == (Identifier(system="urn:medflow:dicom-patient-id", value="P1"),)
    assert (item.patient.birth_date, item.patient.sex) == (date(1950, 1, 2), "female")
    assert item.study.accession_number == "A1"
    assert (item.series.modality, item.series.body_part, item.series.description) == ("CT", "CHEST", "axial")
    assert (item.instance.rows, item.instance.columns, item.instance.frames) == (6, 4, 1)
    assert (item.instance.instance_number, item.instance.size) == (4, len(data))
    assert item.instance.transfer_syntax_uid == ExplicitVRLittleEndian


def test_headers_say_what_pydicom_reads() -> None:
    """Against pydicom, an independent reader, for each of its own files that is taken."""
    compared = 0
    for path in sorted(SAMPLES.rglob("*")):
        try:
            item = read_bytes(path.read_bytes(), PLAIN).object if path.is_file() else None
        except InputRejected:
            item = None
        if item is None:
            continue
        peer = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        shown = {
            "SOPInstanceUID": item.instance.sop_instance_uid,
            "StudyInstanceUID": item.study.study_instance_uid,
            "SeriesInstanceUID": item.series.series_instance_uid,
            "StudyDescription": item.study.description,
            "Rows": item.instance.rows,
            "Columns": item.instance.columns,
            "PatientID": item.patient.identifiers[0].value if item.patient.identifiers else None,
        }
        for name, value in shown.items():
            assert str(peer.get(name) or "").strip() == str(value or ""), (path.name, name)
        compared += 1
    assert compared > 100


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "image_dfl.dcm",
    ],
)
def test_any_transfer_syntax_of_dicom_is_taken(name: str) -> None:
    assert read_bytes(_sample(name), PLAIN).object.instance.rows


def test_a_data_set_without_preamble_is_taken_once_it_proves_to_be_one() -> None:
    bare = to_bytes(slice_of())
    bare = bare[bare.index(b"\x08\x00\x16\x00UI") :]

    assert read_bytes(bare, PLAIN).object.instance.transfer_syntax_uid == ExplicitVRLittleEndian


@pytest.mark.parametrize("name", sorted(path.name for path in (SAMPLES / "charset_files").glob("chr[A-R]*.dcm")))
def test_every_character_set_reads(name: str) -> None:
    dataset = pydicom.dcmread(SAMPLES / "charset_files" / name)
    item = slice_of(SpecificCharacterSet=dataset.get("SpecificCharacterSet"), StudyDescription=str(dataset.PatientName))

    assert read_bytes(to_bytes(item), PLAIN).object.study.description == str(dataset.PatientName).strip()


def test_a_wrong_character_set_loses_letters_not_the_file() -> None:
    data = to_bytes(slice_of(SpecificCharacterSet="ISO_IR 192", StudyDescription="scan"))
    for wrong in (b"ISO_IR 999", b"\xff\xfe\xfd bad   "):
        broken = data.replace(b"ISO_IR 192", wrong).replace(b"scan", b"s\xe9\xffn")
        assert read_bytes(broken, PLAIN).object.study.description


# --- identity --------------------------------------------------------------------------------------------------


def _identifier(settings: Settings, **elements: object) -> Identifier | None:
    found = read_bytes(to_bytes(slice_of(**elements)), settings).object.patient.identifiers
    return found[0] if found else None


def test_an_issuer_maps_to_the_configured_system() -> None:
    settings = load_settings(
        home=Path("unused"),
        issuer_systems={"HOSP A": "http://a.example/mrn"},
        default_patient_system="http://d.example",
    )

    assert _identifier(settings, IssuerOfPatientID="HOSP A") == Identifier(system="http://a.example/mrn", value="P1")
    assert _identifier(settings) == Identifier(system="http://d.example", value="P1")
    assert _identifier(settings, IssuerOfPatientID="B C") == Identifier(
        system="urn:medflow:dicom-issuer:B%20C", value="P1"
    )


def test_a_universal_id_of_the_issuer_is_its_system() -> None:
    qualifiers = Dataset()
    qualifiers.UniversalEntityID, qualifiers.UniversalEntityIDType = "1.2.3.4", "ISO"

    found = _identifier(PLAIN, IssuerOfPatientID="X", IssuerOfPatientIDQualifiersSequence=[qualifiers])

    assert found == Identifier(system="urn:oid:1.2.3.4", value="P1")


def test_a_blank_patient_id_names_nobody() -> None:
    reading = read_bytes(to_bytes(slice_of(PatientID="  ")), PLAIN)

    assert reading.object.patient.identifiers == ()
    assert "no-patient-id" in reading.notes


# --- times -----------------------------------------------------------------------------------------------------


def _times(settings: Settings, **elements: object) -> tuple[Instant | None, Instant | None, tuple[str, ...]]:
    reading: Reading = read_bytes(to_bytes(slice_of(**elements)), settings)
    return reading.object.study.started, reading.object.instance.acquired, reading.notes


def test_the_objects_own_offset_places_its_times() -> None:
    started, acquired, notes = _times(PLAIN)

    zone = timezone(timedelta(hours=1))
    assert started == Instant.of(datetime(2024, 1, 2, 10, 11, 12, tzinfo=zone))
    assert acquired == Instant.of(datetime(2024, 1, 2, 10, 15, 0, tzinfo=zone))
    assert notes == ()


def test_without_offset_the_configured_zone_places_them() -> None:
    settings = load_settings(home=Path("unused"), timezone="Europe/Berlin")

    _, acquired, _ = _times(settings, TimezoneOffsetFromUTC=None, AcquisitionDate="20240702")

    assert acquired is not None and acquired.offset_min == 120


def test_without_any_zone_no_time_is_guessed_and_that_is_noted() -> None:
    assert _times(PLAIN, TimezoneOffsetFromUTC=None) == (None, None, ("time-without-zone",))


def test_an_acquisition_datetime_brings_its_own_offset() -> None:
    _, acquired, _ = _times(PLAIN, AcquisitionDateTime="20240102030405.25-0500")

    zone = timezone(timedelta(hours=-5))
    assert acquired == Instant.of(datetime(2024, 1, 2, 3, 4, 5, 250_000, tzinfo=zone))


@pytest.mark.parametrize("time", ["", "noon", "256199", "1"])
def test_a_day_without_a_proper_time_is_no_instant(time: str) -> None:
    started, _, _ = _times(PLAIN, StudyTime=time)
    assert started is None


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"hello", b"{}", b"\x1f\x8b" * 99, bytes(300), b"\x08\x00" * 99])
def test_other_files_are_not_dicom(data: bytes) -> None:
    assert _refusal(data)[0] in (RejectCode.NOT_DICOM, RejectCode.TRUNCATED)


@pytest.mark.parametrize("name", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID"])
@pytest.mark.parametrize("blank", [True, False])
def test_a_missing_uid_is_named(name: str, blank: bool) -> None:
    dataset = slice_of(**{name: "" if blank else None})

    code, reason = _refusal(to_bytes(dataset))

    assert code == RejectCode.MISSING_UID
    assert name in reason


@pytest.mark.parametrize("uid", ["1.2.x", "1..2", "1.2.", "1." + "2" * 70, "1.02.3"])
def test_an_invalid_uid_is_refused(uid: str) -> None:
    assert _refusal(to_bytes(slice_of(StudyInstanceUID=uid)))[0] == RejectCode.INVALID_UID


def test_an_unknown_transfer_syntax_is_refused() -> None:
    data = to_bytes(slice_of()).replace(b"1.2.840.10008.1.2.1\x00", b"1.2.840.10008.1.2.77")

    assert _refusal(data)[0] == RejectCode.UNKNOWN_TRANSFER_SYNTAX


def test_directories_and_objects_of_no_patient_are_not_instances() -> None:
    assert _refusal(_sample("DICOMDIR"))[0] == RejectCode.NOT_AN_INSTANCE
    assert _refusal((SAMPLES / "palettes" / "pet.dcm").read_bytes())[0] == RejectCode.NOT_AN_INSTANCE


def test_pixel_data_too_short_for_the_image_are_truncated() -> None:
    data = to_bytes(slice_of(Rows=7))

    assert _refusal(data)[0] == RejectCode.TRUNCATED


def test_compressed_pixel_data_without_their_last_fragment_are_truncated() -> None:
    data = _sample("MR_small_jp2klossless.dcm")

    assert _refusal(data[:-200])[0] == RejectCode.TRUNCATED
    assert read_bytes(data, PLAIN).object.instance.transfer_syntax_uid == JPEG2000Lossless


def test_a_deflated_bomb_is_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medflow.dicom.header.INFLATED", 10_000)

    assert _refusal(_sample("image_dfl.dcm"))[0] == RejectCode.TOO_LARGE


def test_endless_nesting_is_refused() -> None:
    nested = b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 5000
    data = bytes(128) + b"DICM" + b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\x00" + nested

    assert _refusal(data)[0] == RejectCode.NOT_DICOM


def test_no_reason_quotes_the_patient() -> None:
    for changes in ({"SOPInstanceUID": None}, {"StudyInstanceUID": "1.2.Nobody"}, {"Rows": 70}):
        _, reason = _refusal(to_bytes(slice_of(PatientID="SECRET", **changes)))
        assert "Nobody" not in reason and "SECRET" not in reason


# --- whatever the bytes ----------------------------------------------------------------------------------------

IMAGES = ("CT_small.dcm", "MR_small_implicit.dcm", "JPEG2000.dcm")
WHOLE = {name: _sample(name) for name in (*IMAGES, "rtplan.dcm")}
QUIET = examples(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _ends(name: str) -> int:
    """Where the last byte that matters lies: trailing padding may be cut."""
    data = WHOLE[name]
    padding = data.find(b"\xfc\xff\xfc\xff")
    return padding if padding > 0 else len(data)


@pytest.mark.parametrize("name", IMAGES)  # without pixels, a cut between two elements cannot be told from an end
def test_an_image_cut_anywhere_is_refused(name: str) -> None:
    @QUIET
    @given(st.integers(min_value=0, max_value=_ends(name) - 9))
    def cut(length: int) -> None:
        with pytest.raises(InputRejected):
            read_bytes(WHOLE[name][:length], PLAIN)

    cut()


@pytest.mark.parametrize("name", WHOLE)
def test_damaged_bytes_never_crash(name: str) -> None:
    @QUIET
    @given(
        st.lists(
            st.tuples(
                st.integers(min_value=0, max_value=len(WHOLE[name]) - 1), st.integers(min_value=0, max_value=255)
            ),
            min_size=1,
            max_size=40,
        )
    )
    def damage(changes: list[tuple[int, int]]) -> None:
        data = bytearray(WHOLE[name])
        for position, value in changes:
            data[position % 1500 if position % 2 else position] = value  # most of them in the header
        try:
            assert isinstance(read_bytes(bytes(data), PLAIN), Reading)
        except InputRejected as error:
            assert error.message

    damage()
