"""Processes beside the one that feeds the device, so that it has its interpreter to itself.

They read time series: a driver makes a Python object of every value of every row, hundreds for each stay, and holds the
interpreter while it does, so that a device that needs Python between its operations would wait for a thread that reads.
What comes back from a process is the dense array alone. And they make of answers what is to be sent.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from medflow.config import Settings
from medflow.garbage import collect_seldom, end_without_search
from medflow.plugin import TimeSeriesInput
from medflow.processes import follow_parent
from medflow.records import Instant

if TYPE_CHECKING:
    from medflow.store.session import Store
    from medflow.store.timeseries import SeriesBlock

log = logging.getLogger(__name__)
T = TypeVar("T")
NICE = 10  # they read ahead, and give way to the device that they read for
FROM = 500  # cases: as long as a process takes to start, reading here has them ready


class Beside:
    """The processes beside this one, of one `Store`: one fewer than ``settings.threads``, used when many cases come.

    What is asked of them is None while none is ready, and its future raises `BrokenProcessPool` when one died in the
    middle: it is done right here then.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._begun: ProcessPoolExecutor | None = None
        self._pool: ProcessPoolExecutor | None = None
        self._ready: Future[None] | None = None
        self._broken = False

    @property
    def ahead(self) -> int:
        """How many batches to ask for at once, so that no process waits for the next."""
        return self._settings.threads

    def begin(self) -> None:
        """Begin the processes as copies of this one, if that may be: they need not import what it has.

        To be called by a process that has no other thread and no connection yet. They wait until `start`.
        """
        if sys.platform == "linux" and threading.active_count() == 1 and self._count:
            self._begun = self._processes("fork")
            self._begun.submit(_ready)  # a pool of copies makes all of them with what is first asked of it

    def start(self, cases: int) -> bool:
        """Use the processes if so many cases are worth it, and go on without waiting; whether there are any.

        Those that were not begun are started.
        """
        with self._lock:
            if cases >= FROM and self._count and self._pool is None and not self._broken:
                self._pool, self._begun = self._begun or self._processes("spawn"), None
                self._ready = self._pool.submit(_ready)
            return self._pool is not None

    @property
    def _count(self) -> int:
        return self._settings.threads - 1

    def _processes(self, how: Literal["fork", "spawn"]) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self._count, mp_context=get_context(how), initializer=_start, initargs=(self._settings,)
        )

    def load(
        self, wanted: TimeSeriesInput, units: Sequence[tuple[int, Instant]], *, starting: bool = False
    ) -> Future[SeriesBlock] | None:
        """As `medflow.store.timeseries.load_series`, soon; by one that is ``starting`` still, if so."""
        return self.ask(_load, wanted, list(units), starting=starting)

    def ask(self, function: Callable[..., T], *arguments: Any, starting: bool = False) -> Future[T] | None:
        """Call a function of a module there, soon; arguments and what it returns travel."""
        with self._lock:
            pool, ready = self._pool, self._ready
        if pool is None or ready is None or not (ready.done() or starting):
            return None
        try:
            if ready.done():
                ready.result()
            return pool.submit(function, *arguments)
        except BrokenProcessPool:
            self._give_up()
            return None

    def close(self) -> None:
        """End the processes; another call for many starts new ones."""
        with self._lock:
            pools = self._pool, self._begun
            self._pool = self._begun = self._ready = None
        for pool in filter(None, pools):
            pool.shutdown(cancel_futures=True)

    def _give_up(self) -> None:
        with self._lock:
            if self._broken:
                return
            self._broken = True
        log.warning(
            "a process that reads records died, perhaps for want of memory: this process does its work from now on"
        )
        self.close()


# --- in such a process -------------------------------------------------------------------------------------------

_store_of_this_process: list[Store] = []


def _start(settings: Settings) -> None:
    from medflow.store.session import Store

    follow_parent()
    os.nice(NICE)
    collect_seldom()
    end_without_search()
    _store_of_this_process[:] = [Store(settings)]


def _ready() -> None:
    from medflow.store import timeseries  # noqa: F401 - takes longer to import than a batch to read


def _load(wanted: TimeSeriesInput, units: Sequence[tuple[int, Instant]]) -> SeriesBlock:
    from medflow.store.timeseries import load_series

    with _store_of_this_process[0].reading() as connection:
        return load_series(connection, wanted, units)
