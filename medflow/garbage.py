"""Python's search for garbage, made seldom where very many small objects come and go.

Each search goes through what is alive, and finds nothing: what a load makes has no cycles, and is freed by its count of
references. At the usual settings a quarter of a load's time goes into it.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

SELDOM = (50_000, 20, 20)  # containers made and not yet freed, then searches of the youngest, of the next
_lock = Lock()
_blocks = 0
_usual = gc.get_threshold()


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Within the block, in all threads, garbage is searched for seldom."""
    global _blocks, _usual
    with _lock:
        if not _blocks:
            _usual = gc.get_threshold()
            collect_seldom()
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks:
                gc.set_threshold(*_usual)
                gc.unfreeze()


def collect_seldom() -> None:
    """From now on, in a process that does nothing else; what is alive now is never searched again."""
    gc.freeze()
    gc.set_threshold(*SELDOM)


def end_without_search() -> None:
    """Search for no garbage when the process ends: one that imported torch ends a third of a second sooner."""
    atexit.register(gc.freeze)
