"""Child processes: none outlives the process that started it, and Ctrl-C is that one's to handle."""

from __future__ import annotations

import os
import signal
from multiprocessing import parent_process
from threading import Thread


def follow_parent() -> None:
    """Call first in a child process of `multiprocessing`: it ends as soon as its parent has, however that ended.

    A process pool's children wait on a pipe that they hold open themselves, and would wait for ever for a parent that
    was killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to parent and children alike
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a copy of its parent has that one's handler
    Thread(target=_end_with_parent, name="follow-parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
