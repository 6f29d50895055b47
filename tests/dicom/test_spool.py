import os
import threading
import time
from hashlib import sha256
from pathlib import Path

import pytest

from medflow.dicom import spool as module
from medflow.dicom.spool import ABANDONED_S, PARTIAL, Spool


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "received")


def files(spool: Spool) -> list[Path]:
    return sorted(path for path in spool.root.rglob("*") if path.is_file())


def test_the_parts_are_kept_as_one_file(spool: Spool):
    digest = spool.keep([b"head", memoryview(b"body")])

    [kept] = files(spool)
    assert kept.read_bytes() == b"headbody"
    assert kept.stem == digest == sha256(b"headbody").hexdigest()


def test_the_bytes_are_flushed_before_the_name_exists_and_the_name_before_the_answer(spool: Spool, monkeypatch):
    spool.prepare()
    happened = []
    fsync, replace = os.fsync, os.replace

    def flushed(handle: int) -> None:
        happened.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def renamed(old: object, new: object) -> None:
        happened.append("name")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    spool.keep([b"bytes"])

    assert happened == ["file", "name", "folder"]


def test_a_write_that_fails_leaves_nothing(spool: Spool, monkeypatch):
    spool.prepare()

    def fails(_handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output"):
        spool.keep([b"bytes"])

    assert files(spool) == []


def test_a_day_folder_that_was_removed_is_made_again(spool: Spool):
    spool.keep([b"one"])
    [kept] = files(spool)
    kept.unlink()
    kept.parent.rmdir()

    spool.keep([b"two"])

    assert [path.read_bytes() for path in files(spool)] == [b"two"]


def test_what_a_killed_process_left_is_removed_later_but_not_what_is_being_written(spool: Spool):
    spool.prepare()
    [day] = spool.root.iterdir()
    for name, age in (("old", ABANDONED_S + 60), ("new", 5)):
        path = day / f"{PARTIAL}{name}"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)

    spool.prepare()

    assert [path.name for path in files(spool)] == [f"{PARTIAL}new"]


def test_those_that_wait_for_a_flush_share_the_next(spool: Spool, monkeypatch):
    spool.prepare()
    folder = spool._folder
    assert folder is not None
    flushes = []
    first_runs, first_may_end = threading.Event(), threading.Event()

    def slow(_path: Path) -> None:
        flushes.append(1)
        first_runs.set()
        assert first_may_end.wait(10)

    monkeypatch.setattr(module, "_flush", slow)
    threads = [threading.Thread(target=folder.flush)]
    threads[0].start()
    first_runs.wait(10)
    waiting = [threading.Thread(target=folder.flush) for _ in range(8)]
    for thread in waiting:
        thread.start()
    time.sleep(0.2)  # all of them wait for the one under way
    first_may_end.set()
    for thread in [*threads, *waiting]:
        thread.join(10)

    assert len(flushes) == 2
