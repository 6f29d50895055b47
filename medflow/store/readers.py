"""Processes that read time series, so that the one that feeds the device has its interpreter to itself.

A driver makes a Python object of every value of every row, hundreds for each stay, and holds the interpreter while it
does: read by a thread, a device that needs Python between its operations waits for it. What comes back from a process
is the dense array alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from threading import Lock
from typing import TYPE_CHECKING

from medflow.config import Settings
from medflow.garbage import collect_seldom
from medflow.plugin import TimeSeriesInput
from medflow.processes import follow_parent
from medflow.records import Instant

if TYPE_CHECKING:
    from medflow.store.session import Store
    from medflow.store.timeseries import SeriesBlock

log = logging.getLogger(__name__)
FROM = 500  # cases: as long as a process takes to start, reading here has them ready


class Readers:
    """The reading processes of one `Store`: one fewer than ``settings.threads``, started at the first call for many."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._ready: Future[None] | None = None
        self._broken = False

    @property
    def ahead(self) -> int:
        """How many batches to ask for at once, so that no process waits for the next."""
        return self._settings.threads

    def start(self, cases: int) -> None:
        """Start the processes if so many cases are worth it, and go on without waiting for them."""
        count = self._settings.threads - 1
        with self._lock:
            if cases >= FROM and count > 0 and self._pool is None and not self._broken:
                self._pool = ProcessPoolExecutor(
                    count, mp_context=get_context("spawn"), initializer=_start, initargs=(self._settings,)
                )
                self._ready = self._pool.submit(_ready)

    def load(self, wanted: TimeSeriesInput, units: Sequence[tuple[int, Instant]]) -> Future[SeriesBlock] | None:
        """As `medflow.store.timeseries.load_series`, soon; None while no process is ready: read it here.

        A process that died in the middle gives `BrokenProcessPool`: read it here as well.
        """
        with self._lock:
            pool, ready = self._pool, self._ready
        if pool is None or ready is None or not ready.done():
            return None
        try:
            ready.result()
            return pool.submit(_load, wanted, list(units))
        except BrokenProcessPool:
            self._give_up()
            return None

    def close(self) -> None:
        """End the processes; another call for many starts new ones."""
        with self._lock:
            pool, self._pool, self._ready = self._pool, None, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)

    def _give_up(self) -> None:
        with self._lock:
            if self._broken:
                return
            self._broken = True
        log.warning(
            "a process that reads records died, perhaps for want of memory: this process reads them from now on"
        )
        self.close()


# --- in a reading process ----------------------------------------------------------------------------------------

_store_of_this_process: list[Store] = []


def _start(settings: Settings) -> None:
    from medflow.store.session import Store

    follow_parent()
    collect_seldom()
    _store_of_this_process[:] = [Store(settings)]


def _ready() -> None:
    from medflow.store import timeseries  # noqa: F401 - takes longer to import than a batch to read


def _load(wanted: TimeSeriesInput, units: Sequence[tuple[int, Instant]]) -> SeriesBlock:
    from medflow.store.timeseries import load_series

    with _store_of_this_process[0].reading() as connection:
        return load_series(connection, wanted, units)
