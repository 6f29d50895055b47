import os
import subprocess
from hashlib import sha256

import pytest

from medflow.errors import ConfigurationError
from medflow.store import ObjectStore


def test_what_is_put_is_got_under_its_digest(tmp_path):
    objects = ObjectStore(tmp_path)

    digest = objects.put(b"pixels")

    assert digest == sha256(b"pixels").hexdigest()
    assert objects.get(digest) == b"pixels"
    assert digest in objects


def test_the_same_bytes_are_kept_once(tmp_path):
    objects = ObjectStore(tmp_path)

    objects.put(b"pixels")
    objects.put(b"pixels")

    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_what_is_not_there_is_a_key_error(tmp_path):
    with pytest.raises(KeyError):
        ObjectStore(tmp_path).get("0" * 64)


def test_a_source_that_breaks_off_leaves_nothing(tmp_path):
    def broken():
        yield b"half"
        raise OSError("gone")

    with pytest.raises((OSError, ConfigurationError)):
        ObjectStore(tmp_path).put_chunks(broken(), "ab" * 32)

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one mebibyte."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_says_what_to_do_and_leaves_nothing_half_written(small_disk):
    objects = ObjectStore(small_disk / "objects")
    kept = objects.put(b"a" * 1000)

    with pytest.raises(ConfigurationError, match=r"No space left on device.*free space"):
        objects.put(b"b" * (2 << 20))

    assert objects.get(kept) == b"a" * 1000
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == [kept]


def test_a_database_on_a_full_disk_says_what_to_do(small_disk):
    from medflow.config import load_settings
    from medflow.store import Store, ledger

    store = Store(load_settings(home=small_disk)).open()
    reject = ledger.Reject(kind="dicom", source="local", origin="x", code="empty", reason="r" * 4000)

    with pytest.raises(ConfigurationError, match="disk is full"):
        for number in range(1000):
            with store.writing() as connection:
                ledger.record_rejects(connection, None, [ledger.Reject(**{**_fields(reject), "origin": f"x{number}"})])


def _fields(reject):
    return {name: getattr(reject, name) for name in type(reject).__dataclass_fields__}
