import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from hashlib import sha256
from uuid import uuid4

import fsspec
import pytest

from medflow.config import load_settings
from medflow.errors import ConfigurationError, InputRejected, ObjectsUnavailable, RejectCode
from medflow.store import FolderObjects
from medflow.store.objects import object_store


@pytest.fixture(params=["home", "folder", "file", "memory", "s3"])
def objects(request, tmp_path):
    """An empty object store of each kind."""
    (tmp_path / "shared").mkdir()
    places = {
        "home": lambda: None,
        "folder": lambda: str(tmp_path / "shared"),
        "file": lambda: (tmp_path / "shared").as_uri(),
        "memory": lambda: f"memory://{uuid4().hex}",
        "s3": lambda: request.getfixturevalue("s3").url,
    }
    made = object_store(load_settings(home=tmp_path / "home", objects=places[request.param]()))
    yield made
    made.close()


def stored(objects):
    """The names of all that lies in a store, whatever it is called."""
    if isinstance(objects, FolderObjects):
        return [path.name for path in objects.root.rglob("*") if path.is_file()]
    system, root = fsspec.core.url_to_fs(objects.url, use_listings_cache=False, skip_instance_cache=True)
    return [path.rpartition("/")[2] for path in system.find(root)]


def test_an_object_that_is_removed_is_gone_and_can_be_stored_again(objects):
    digest = objects.put(b"weights")
    assert objects.get(digest) == b"weights"

    for _ in range(2):  # removing what is not there does nothing
        objects.remove(digest)

    assert (digest in objects, stored(objects)) == (False, [])
    with pytest.raises(KeyError):
        objects.get(digest)
    assert objects.get(objects.put(b"weights")) == b"weights"


def test_what_is_put_is_got_under_its_digest(objects):
    digest = objects.put(b"pixels")

    assert digest == sha256(b"pixels").hexdigest()
    assert objects.get(digest) == b"pixels"
    assert digest in objects
    assert objects.path(digest).read_bytes() == b"pixels"
    with objects.open(digest) as file:
        assert file.read(3) == b"pix"


def test_the_same_bytes_are_kept_once(objects):
    digest = objects.put(b"pixels")
    objects.put(b"pixels")

    assert stored(objects) == [digest]


def test_bytes_that_are_there_are_not_read_again(objects):
    digest = objects.put(b"pixels")

    objects.put_chunks((pytest.fail("read") for _ in range(1)), digest)


def test_what_is_not_there_is_a_key_error(objects):
    with pytest.raises(KeyError):
        objects.get("0" * 64)
    with pytest.raises(KeyError):
        objects.open("0" * 64)
    assert "0" * 64 not in objects
    assert not objects.path("0" * 64).exists()
    objects.fetch(["0" * 64, "1" * 64])


@pytest.mark.parametrize("size", [4, 20 << 20], ids=["small", "large"])
def test_a_source_that_breaks_off_leaves_nothing(objects, tmp_path, size):
    def changed():
        yield b"h" * (size // 2)
        yield b"h" * (size // 2)
        raise InputRejected(RejectCode.VANISHED, "changed")

    with pytest.raises(InputRejected):
        objects.put_chunks(changed(), "ab" * 32)

    assert stored(objects) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_is_staged_can_be_looked_at_and_is_stored_only_when_it_is_kept(objects):
    data = os.urandom(3000)
    with objects.staged([data[:2000], data[2000:]]) as staged:
        assert (staged.path.read_bytes(), staged.sha256, staged.size) == (data, sha256(data).hexdigest(), 3000)
    assert staged.sha256 not in objects and not staged.path.exists()

    for _ in range(2):
        with objects.staged([data]) as staged:
            objects.keep(staged)
        assert not staged.path.exists()
    assert (objects.get(staged.sha256), stored(objects)) == (data, [staged.sha256])


def test_staging_a_source_that_breaks_off_leaves_nothing(objects, tmp_path):
    def breaking_off():
        yield b"some"
        raise InputRejected(RejectCode.VANISHED, "gone")

    with pytest.raises(InputRejected), objects.staged(breaking_off()):
        pass

    assert stored(objects) == [] and not list((tmp_path / "home").rglob(".incoming-*"))


def test_a_large_object_comes_and_goes_in_pieces(objects, tmp_path):
    pieces = [os.urandom(1 << 20) for _ in range(40)]
    digest = sha256(b"".join(pieces)).hexdigest()

    objects.put_chunks(iter(pieces), digest)

    assert objects.get(digest) == b"".join(pieces)
    assert [path for path in tmp_path.rglob(".incoming-*")] == []


def test_threads_put_and_open_beside_each_other(objects):
    contents = [f"slice {number}".encode() * 100 for number in range(60)]
    with ThreadPoolExecutor(16) as pool:
        digests = list(pool.map(objects.put, contents * 2))[:60]
        objects.fetch(digests)
        assert list(pool.map(objects.get, digests)) == contents

    assert sorted(stored(objects)) == sorted(digests)


@pytest.mark.parametrize("objects", ["folder", "s3"], indirect=True)
def test_a_forked_process_uses_a_store_that_its_parent_has_used(objects):
    before = objects.put(b"of the parent")
    child = os.fork()
    if child == 0:
        right = objects.get(before) == b"of the parent"
        objects.put(b"of the child")
        os._exit(0 if right else 1)
    watchdog = threading.Timer(60, os.kill, (child, 9))
    watchdog.start()

    _, status = os.waitpid(child, 0)
    watchdog.cancel()

    assert os.waitstatus_to_exitcode(status) == 0
    assert objects.get(sha256(b"of the child").hexdigest()) == b"of the child"


SAME_OBJECTS = """
import sys
from medflow.config import load_settings
from medflow.store.objects import object_store

objects = object_store(load_settings(objects=sys.argv[1]))
for number in range(40):
    digest = objects.put(number.to_bytes(2, "little") * 5000)
    assert objects.get(digest) == number.to_bytes(2, "little") * 5000
"""


@pytest.mark.parametrize("objects", ["folder", "s3"], indirect=True)
def test_processes_write_the_same_objects_at_once(objects, tmp_path):
    place = str(objects.root) if isinstance(objects, FolderObjects) else objects.url
    command = [sys.executable, "-c", SAME_OBJECTS, place]
    processes = [
        subprocess.Popen(command, env={**os.environ, "MEDFLOW_HOME": str(tmp_path / str(number))})
        for number in range(3)
    ]

    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert len(stored(objects)) == 40
    assert all(sha256(objects.get(digest)).hexdigest() == digest for digest in stored(objects))


def test_a_shared_folder_that_is_not_mounted_is_out_of_reach_and_not_made(tmp_path):
    objects = object_store(load_settings(objects=str(tmp_path / "not-mounted")))

    with pytest.raises(ObjectsUnavailable, match="mounted"):
        objects.open("0" * 64)
    with pytest.raises(ConfigurationError, match="MEDFLOW_OBJECTS"):
        objects.put(b"pixels")

    assert not (tmp_path / "not-mounted").exists()


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
    objects = FolderObjects(small_disk / "objects")
    kept = objects.put(b"a" * 1000)

    with pytest.raises(ConfigurationError, match=r"No space left on device.*free space"):
        objects.put(b"b" * (2 << 20))

    assert objects.get(kept) == b"a" * 1000
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == [kept]


def test_a_database_on_a_full_disk_says_what_to_do(small_disk):
    from medflow.config import load_settings
    from medflow.store import Store, ledger

    reject = ledger.Reject(kind="dicom", source="local", origin="x", code="empty", reason="r" * 4000)

    opened = closing(Store(load_settings(home=small_disk)).open())  # else the disk stays in use

    with opened as store, pytest.raises(ConfigurationError, match="disk is full"):
        for number in range(1000):
            with store.writing() as connection:
                ledger.record_rejects(connection, None, [ledger.Reject(**{**_fields(reject), "origin": f"x{number}"})])


def _fields(reject):
    return {name: getattr(reject, name) for name in type(reject).__dataclass_fields__}
