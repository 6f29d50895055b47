import os
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path

import pytest

from medflow.errors import ConfigurationError, ObjectDamaged
from medflow.store.cache import ObjectCache

KIB = 1024


def kept(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")}


def of(number: int, size: int = KIB) -> tuple[str, bytes]:
    data = number.to_bytes(8, "little") * (size // 8)
    return sha256(data).hexdigest(), data


def opened(cache: ObjectCache, number: int, size: int = KIB) -> str:
    digest, data = of(number, size)
    cache.open(digest, lambda path: path.write_bytes(data) and None).close()
    return digest


def used(cache: ObjectCache, digest: str, *, ago_s: float) -> None:
    os.utime(cache.path(digest), (time.time() - ago_s,) * 2)


def never(path: Path) -> None:
    raise AssertionError("fetched again")


def test_an_object_is_fetched_once(tmp_path):
    cache = ObjectCache(tmp_path, KIB * 100)
    digest = opened(cache, 1)

    with cache.open(digest, never) as file:
        assert file.read() == of(1)[1]


def test_what_was_used_longest_ago_goes_first(tmp_path):
    cache = ObjectCache(tmp_path, KIB * 4)
    first, second, third = (opened(cache, number) for number in range(3))
    used(cache, first, ago_s=10)
    used(cache, second, ago_s=30)
    used(cache, third, ago_s=20)
    cache.open(second, never).close()

    fourth, fifth = opened(cache, 4), opened(cache, 5)

    assert kept(tmp_path) == {second, fourth, fifth}


def test_an_object_larger_than_the_cache_is_given_all_the_same(tmp_path):
    cache = ObjectCache(tmp_path, KIB)
    old = opened(cache, 1)

    large = opened(cache, 2, 10 * KIB)

    assert kept(tmp_path) == {large}
    assert old != large


def test_a_path_that_was_given_away_stays_though_the_cache_is_full(tmp_path):
    cache = ObjectCache(tmp_path, KIB * 2)
    digest, data = of(0)
    path = cache.held(digest, lambda target: target.write_bytes(data) and None)

    for number in range(1, 8):
        opened(cache, number)
    cache.open(digest, never).close()  # being read does not end the hold
    for number in range(8, 12):
        opened(cache, number)

    assert path.read_bytes() == data
    assert len(kept(tmp_path)) <= 2


def test_an_open_file_outlives_its_removal_by_another_process(tmp_path):
    cache = ObjectCache(tmp_path, KIB * 10)
    digest = opened(cache, 1)

    with cache.open(digest, never) as file:
        cache.path(digest).unlink()
        assert file.read() == of(1)[1]


def test_bytes_of_another_digest_are_fetched_once_more_and_never_kept(tmp_path):
    cache = ObjectCache(tmp_path, KIB * 10)
    digest, data = of(1)
    answers = [data[:-1], data]

    with cache.open(digest, lambda path: path.write_bytes(answers.pop(0)) and None) as file:
        assert file.read() == data
    cache.path(digest).unlink()
    with pytest.raises(ObjectDamaged, match=digest):
        cache.open(digest, lambda path: path.write_bytes(data[:-1]) and None)

    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"] == []


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    (tmp_path / ".incoming-dead").write_bytes(b"half")
    (tmp_path / ".incoming-alive").write_bytes(b"half")
    os.utime(tmp_path / ".incoming-dead", (1, 1))

    opened(ObjectCache(tmp_path, KIB * 10), 1)

    assert {path.name for path in tmp_path.glob(".incoming-*")} == {".incoming-alive"}


def test_a_folder_that_cannot_be_written_says_what_to_do(tmp_path):
    (tmp_path / "cache").write_text("a file")

    with pytest.raises(ConfigurationError, match="MEDFLOW_CACHE_MIB"):
        opened(ObjectCache(tmp_path / "cache", KIB), 1)


HAMMER = """
import random, sys
from hashlib import sha256
from pathlib import Path
from medflow.store.cache import ObjectCache

cache, seed = ObjectCache(Path(sys.argv[1]), 20 * 1024), int(sys.argv[2])
rng = random.Random(seed)
for _ in range(500):
    number = rng.randrange(60)
    data = number.to_bytes(8, "little") * 128
    with cache.open(sha256(data).hexdigest(), lambda path: path.write_bytes(data) and None) as file:
        assert file.read() == data
"""


def test_processes_share_a_cache_that_is_too_small_for_any_of_them(tmp_path):
    processes = [subprocess.Popen([sys.executable, "-c", HAMMER, str(tmp_path), str(seed)]) for seed in range(3)]
    watchdog = threading.Timer(120, lambda: [process.kill() for process in processes])
    watchdog.start()

    ends = [process.wait() for process in processes]
    watchdog.cancel()

    assert ends == [0, 0, 0]
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 1.5 * 20 * KIB
