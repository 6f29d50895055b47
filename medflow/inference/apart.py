"""A process of its own for models on the CPU: it reads torch while this one still reads the rest of medflow.

It begins before this process has imported anything, so that both start at once; and a forward pass, which needs Python
between its operations, then never waits for a thread that selects, writes or commits.

Only the standard library is imported here: what the process does for models is in `medflow.inference.runner_apart`.
"""

from __future__ import annotations

import atexit
import gc
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

T = TypeVar("T")


class Apart:
    """A copy of this process as it is now, which does what it is asked, one call after the other."""

    def __init__(self) -> None:
        context = get_context("fork")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there,), name="apart", daemon=True)
        self._process.start()
        there.close()
        self._one_asks = threading.Lock()
        self._told = 0
        self.alive = True
        atexit.register(self.close)  # before multiprocessing's own end, which would wait for an import

    def tell(self, function: Callable[..., object], *arguments: Any) -> None:
        """Have a function of a module called there before all that is asked later, whatever comes of it."""
        with self._one_asks, suppress(OSError):  # of a death tells what is asked
            self._pipe.send((function, arguments))
            self._told += 1

    def ask(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function of a module there and wait; arguments and what it returns or raises travel.

        Raises
        ------
        BrokenPipeError
            The process was dead before.
        EOFError
            It died of this; the text says how.
        """
        with self._one_asks:
            if not self.alive:
                raise BrokenPipeError
            try:
                self._pipe.send((function, arguments))
                while self._told:
                    self._told -= 1
                    self._pipe.recv()
                fine, answer = self._pipe.recv()
            except (EOFError, OSError):
                self._tell_death()
        if not fine:
            raise answer
        return answer

    def close(self) -> None:
        """End the process: it holds nothing that is not elsewhere, too."""
        self.alive = False
        self._process.kill()
        self._process.join()

    def _tell_death(self) -> NoReturn:
        self._process.join(1)
        code = self._process.exitcode or 0
        self.close()
        wanting = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
        raise EOFError(f"was ended by signal {-code}{wanting}" if code < 0 else "has ended") from None


_begun: Apart | None = None


def begin() -> None:
    """Begin the process, first of all that this one does: a copy of one that has neither thread nor connection.

    Nothing happens where copies are not to be had, where there is no second processor, or where a device is named.
    """
    global _begun
    several = sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1
    if several and threading.active_count() == 1 and os.environ.get("MEDFLOW_DEVICE", "auto") in ("auto", "cpu"):
        _begun = Apart()


def begun() -> Apart | None:
    """The process, where one was begun and lives."""
    return _begun if _begun is not None and _begun.alive else None


# --- in that process ---------------------------------------------------------------------------------------------


def _serve(asked: Connection) -> None:
    from medflow.processes import follow_parent

    follow_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # who asked for the batch at hand still wants it, and ends this
    gc.disable()  # what is imported stays
    from medflow.errors import MedflowError, unforeseen
    from medflow.inference import runner_apart

    runner_apart.get_ready()
    gc.enable()
    while True:
        try:
            received = asked.recv_bytes()
        except EOFError:
            return
        try:
            function, arguments = pickle.loads(received)  # noqa: S301 - of the process that this is a copy of
            answer = pickle.dumps((True, function(*arguments)))
        except MedflowError as error:
            answer = pickle.dumps((False, error))
        except Exception as error:  # noqa: BLE001 - whatever it is; its text may quote a case
            answer = pickle.dumps((False, unforeseen(error)))
        asked.send_bytes(answer)
