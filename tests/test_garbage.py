import gc
import subprocess
import sys

from medflow.garbage import SELDOM, seldom_collected

ENDING = """
import atexit, gc
atexit.register(lambda: print(len(gc.get_objects())))
from medflow.garbage import end_without_search
end_without_search()
kept = [[] for _ in range(1000)]
print(len(gc.get_objects()))
"""


def test_garbage_is_searched_for_seldom_until_the_last_block_ends():
    usual = gc.get_threshold()

    with seldom_collected():
        with seldom_collected():
            assert gc.get_threshold() == SELDOM
        assert gc.get_threshold() == SELDOM
        assert gc.get_freeze_count()

    assert gc.get_threshold() == usual
    assert not gc.get_freeze_count()


def test_nothing_is_left_to_search_when_a_process_ends():
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, check=True, timeout=60)

    before, left = map(int, done.stdout.split())
    assert left < 1000 < before
