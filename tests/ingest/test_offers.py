"""What is offered: folders, links, archives and DICOMDIRs, with nothing lost and nothing read outside."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pydicom
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from medflow.dicom.directory import read_directory
from medflow.errors import InputRejected, RejectCode
from medflow.ingest.archives import Limits
from medflow.ingest.offers import Offer, offers
from medflow.ingest.tally import Refused

MEDIA = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"
SMALL = Limits(members=5, member_bytes=1000, total_bytes=3000, ratio=10, ratio_from=500)


def _split(found: Iterable[Offer | Refused]) -> tuple[list[str], list[tuple[str, str]]]:
    """Origins of what is offered; origin and code of what is refused."""
    items = list(found)
    taken = [item.origin for item in items if isinstance(item, Offer)]
    return taken, [(item.origin, str(item.error.code)) for item in items if isinstance(item, Refused)]


def _zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


# --- files and folders -----------------------------------------------------------------------------------------


def test_folders_are_walked_in_name_order(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a/9", "c"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")

    taken, refused = _split(offers([tmp_path]))

    assert [Path(origin).relative_to(tmp_path).as_posix() for origin in taken] == ["c", "a/9", "b/1", "b/2"]
    assert refused == []


def test_links_that_lead_in_circles_end(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"x")
    (folder / "up").symlink_to(tmp_path)
    (folder / "self").symlink_to(folder / "self")
    (tmp_path / "again").symlink_to(folder)

    taken, refused = _split(offers([tmp_path]))

    assert len(taken) == 1  # under one of its two names
    assert [code for _, code in refused] == ["unreadable"]  # the link to itself


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")

    taken, refused = _split(offers([tmp_path, tmp_path / "never"]))

    assert taken == []
    assert [code for _, code in refused] == ["vanished", "vanished"]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    assert [code for _, code in _split(offers([tmp_path]))[1]] == ["unreadable"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(mode=0)
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "file").chmod(0)

    assert {code for _, code in _split(offers([tmp_path]))[1]} == {"unreadable"}


def test_a_file_that_vanishes_after_it_was_offered(tmp_path: Path) -> None:
    (tmp_path / "file.dcm").write_bytes(b"x")
    (offer,) = offers([tmp_path])
    (tmp_path / "file.dcm").unlink()

    assert isinstance(offer, Offer)
    with pytest.raises(InputRejected) as caught:
        offer.read(10)
    assert caught.value.code == RejectCode.VANISHED


def test_reading_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_bytes(b"")
    (tmp_path / "large.json").write_bytes(b"12345")
    codes = []
    for offer in offers([tmp_path]):
        assert isinstance(offer, Offer)
        with pytest.raises(InputRejected) as caught:
            offer.read(4)
        codes.append(caught.value.code)
    assert codes == [RejectCode.EMPTY, RejectCode.TOO_LARGE]


def test_a_name_that_is_no_text_still_has_an_origin(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff\xfe.dcm", "wb") as file:
        file.write(b"x")

    taken, _ = _split(offers([tmp_path]))

    assert taken[0].encode() and "\\xff" in taken[0]


# --- archives --------------------------------------------------------------------------------------------------


def test_members_of_archives_are_offered_wherever_the_archive_lies(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    _zip(folder / "study.zip", {"a/b/1": b"one", "a/2": b"two", "empty/": b""})
    _zip(folder / "NOSUFFIX", {"3": b"three"})
    _zip(folder / "letter.docx", {"[Content_Types].xml": b"<x/>"})

    items = [item for item in offers([folder]) if isinstance(item, Offer)]

    assert {item.origin.rpartition("/folder/")[2]: item.data for item in items} == {
        "NOSUFFIX!3": b"three",
        "letter.docx": None,
        "study.zip!a/b/1": b"one",
        "study.zip!a/2": b"two",
    }


def test_paths_out_of_the_archive_are_refused_member_by_member(tmp_path: Path) -> None:
    names = ["../up", "a/../../up", "/etc/passwd", "C:\\x", "..\\up", "fine"]

    taken, refused = _split(offers([_zip(tmp_path / "a.zip", dict.fromkeys(names, b"x"))]))

    assert [origin.rpartition("!")[2] for origin in taken] == ["fine"]
    assert {code for _, code in refused} == {"archive-path"}
    assert len(refused) == 5


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")

    assert [code for _, code in _split(offers([tmp_path]))[1]] == ["archive-path"]


def test_an_encrypted_member_is_refused_and_the_others_taken(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {"secret": b"x", "open": b"y"})
    data = bytearray(path.read_bytes())
    for at in (data.index(b"PK\x03\x04") + 6, data.index(b"PK\x01\x02") + 8):
        data[at] |= 1
    path.write_bytes(data)

    taken, refused = _split(offers([path]))

    assert [origin.rpartition("!")[2] for origin in taken] == ["open"]
    assert [code for _, code in refused] == ["archive-encrypted"]


@pytest.mark.parametrize(
    "members",
    [
        {str(number): b"x" for number in range(6)},
        {str(number): os.urandom(900) for number in range(4)},
        {"zeros": bytes(900)},
    ],
    ids=["members", "total", "ratio"],
)
def test_a_bomb_is_refused_as_a_whole(tmp_path: Path, members: dict[str, bytes]) -> None:
    taken, refused = _split(offers([_zip(tmp_path / "a.zip", members)], limits=SMALL))

    assert taken == []
    assert [code for _, code in refused] == ["archive-bomb"]


def test_a_member_that_is_too_large_is_refused_alone(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {"large": os.urandom(1500), "fine": b"x"})

    taken, refused = _split(offers([path], limits=SMALL))

    assert len(taken) == 1
    assert [code for _, code in refused] == ["archive-bomb"]


def test_members_that_share_their_bytes_are_a_bomb(tmp_path: Path) -> None:
    data = os.urandom(400)
    path = _zip(tmp_path / "a.zip", {"1": data, "2": data}, zipfile.ZIP_STORED)
    packed = path.read_bytes()
    first, second = packed.index(b"PK\x03\x04"), packed.index(b"PK\x03\x04", 4)
    directory = packed.index(b"PK\x01\x02")
    entries = packed[directory : packed.index(b"PK\x05\x06")].replace(
        struct.pack("<L", second), struct.pack("<L", first)
    )
    end = bytearray(packed[packed.index(b"PK\x05\x06") :])
    end[16:20] = struct.pack("<L", second)
    path.write_bytes(packed[first:second] + entries + end)

    assert [code for _, code in _split(offers([path]))[1]] == ["archive-bomb"]


def test_a_lie_about_a_members_size_yields_no_more_than_it_says(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {"zeros": bytes(100_000)})
    data = path.read_bytes().replace(struct.pack("<L", 100_000), struct.pack("<L", 10))
    path.write_bytes(data)

    taken, refused = _split(offers([path]))

    assert (taken, [code for _, code in refused]) == ([], ["archive-broken"])


def test_an_archive_in_an_archive_is_not_opened(tmp_path: Path) -> None:
    inner = _zip(tmp_path / "inner", {"x": b"x"}).read_bytes()
    path = _zip(tmp_path / "outer.zip", {"inner.zip": inner})

    assert [code for _, code in _split(offers([path]))[1]] == ["unsupported-type"]


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"no archive", b"PK\x05\x06" + bytes(17)])
def test_a_broken_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(data)

    assert [code for _, code in _split(offers([tmp_path]))[1]] == ["archive-broken"]


def test_an_archive_without_files_is_refused(tmp_path: Path) -> None:
    assert [code for _, code in _split(offers([_zip(tmp_path / "a.zip", {})]))[1]] == ["empty"]


@examples(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), max_size=12), st.integers(0, 400))
def test_damaged_archives_never_crash(tmp_path: Path, changes: list[tuple[int, int]], length: int) -> None:
    path = _zip(tmp_path / "a.zip", {"1": b"one" * 30, "a/2": b"two" * 30, "3": os.urandom(20)})
    data = bytearray(path.read_bytes())
    for at, value in changes:
        data[at % len(data)] = value
    path.write_bytes(data if length > 300 else data[:length])

    items = list(offers([path]))

    assert items
    assert all(item.data is not None or isinstance(item, Refused) for item in items)


# --- DICOMDIR --------------------------------------------------------------------------------------------------


def test_a_dicomdir_offers_the_files_that_it_names() -> None:
    taken, refused = _split(offers([MEDIA / "TINY_ALPHA" / "DICOMDIR"], index=read_directory))

    assert len(taken) == 50
    assert refused == []


def test_in_a_folder_a_dicomdir_adds_nothing(tmp_path: Path) -> None:
    taken, refused = _split(offers([MEDIA / "TINY_ALPHA"], index=read_directory))

    assert len(taken) == len(set(taken)) == 51  # its 50 files and a README
    assert refused == []


def test_files_are_found_whatever_a_copy_made_of_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "disc"
    shutil.copytree(MEDIA / "TINY_ALPHA", folder)
    for path in sorted(folder.rglob("*"), key=lambda path: -len(path.parts)):
        if path.name != "DICOMDIR":
            path.rename(path.with_name(path.name.lower() + (";1" if path.is_file() else "")))

    taken, refused = _split(offers([folder / "DICOMDIR"], index=read_directory))

    assert (len(taken), refused) == (50, [])


def test_files_that_a_dicomdir_names_in_vain_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "disc"
    shutil.copytree(MEDIA / "TINY_ALPHA", folder)
    missing = folder / "PT000000" / "ST000000" / "SE000000"
    (missing / "IM000003").unlink()

    named = _split(offers([folder / "DICOMDIR"], index=read_directory))
    walked = _split(offers([folder], index=read_directory))

    for taken, refused in (named, walked):
        assert [code for _, code in refused] == ["dicomdir-missing-file"]
        assert len([origin for origin in taken if "IM0000" in origin]) == 49


def test_a_dicomdir_reaches_only_into_its_own_folder(tmp_path: Path) -> None:
    folder = tmp_path / "disc"
    folder.mkdir()
    (tmp_path / "SECRET").write_bytes(b"x")
    (folder / "LINK").symlink_to(tmp_path)
    index = [("..", "SECRET"), ("/etc/passwd",), ("LINK", "SECRET"), ("A/B",), ()]
    (folder / "DICOMDIR").write_bytes(b"x")

    taken, refused = _split(offers([folder / "DICOMDIR"], index=lambda _: list(index)))

    assert taken == []
    assert {code for _, code in refused} == {"archive-path"}
    assert len(refused) == 5


def test_a_broken_dicomdir_is_refused_and_its_folder_still_walked(tmp_path: Path) -> None:
    (tmp_path / "DICOMDIR").write_bytes(b"not DICOM")
    (tmp_path / "IM1").write_bytes(b"x")

    taken, refused = _split(offers([tmp_path], index=read_directory))

    assert len(taken) == 1
    assert [code for _, code in refused] == ["not-dicom"]


def test_a_dicomdir_in_an_archive_is_an_index_too(tmp_path: Path) -> None:
    source = MEDIA / "TINY_ALPHA"
    members = {f"disc/{path.relative_to(source)}": path.read_bytes() for path in source.rglob("*") if path.is_file()}
    del members["disc/PT000000/ST000000/SE000000/IM000000"]

    taken, refused = _split(offers([_zip(tmp_path / "disc.zip", members)], index=read_directory))

    assert len(taken) == 50
    assert [code for _, code in refused] == ["dicomdir-missing-file"]


def test_without_an_index_reader_a_dicomdir_is_a_file_like_any_other() -> None:
    taken, _ = _split(offers([MEDIA / "TINY_ALPHA"]))

    assert len(taken) == 52


@pytest.mark.parametrize("name", ["DICOMDIR", "DICOMDIR-bigEnd", "DICOMDIR-implicit", "DICOMDIR-nooffset"])
def test_dicomdirs_of_every_encoding_are_read(name: str) -> None:
    assert len(read_directory((MEDIA / name).read_bytes()) or []) == 31
