"""Selecting and scoring at once: chunks are leased as soon as there are jobs, and read while the device has others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from threading import Event, Lock
from typing import Protocol

from medflow.scoring import ScoreTally

IN_HAND = 2  # chunks: one that is read and one that ends
LOOK_S = 1.0  # between looks at whether to stop, while selecting goes on

Selected = Callable[[int], None]


class ScoreChunk(Protocol):
    """Leases and scores one chunk, if there is one."""

    def __call__(self, *, on_read: Callable[[], None], stopping: Callable[[], bool]) -> ScoreTally:
        """``on_read`` is to be called when all its cases are being read; ``stopping`` asks to give the rest back."""
        ...


def select_and_score(select: Callable[[Selected], ScoreTally], score: ScoreChunk) -> Iterator[ScoreTally]:
    """Select, and score chunks until none is left; gives the count of each chunk, and that of selecting at last.

    ``select`` is given what to call whenever there are new jobs. One chunk is read at a time, so that two never wait in
    memory. When anything fails, what is in hand is asked to stop: what is scored is committed, the rest given back, and
    the error raised.
    """
    turns = _Turns(score)
    with ThreadPoolExecutor(1 + IN_HAND, "chunk") as pool:
        selecting = turns.begin(pool.submit(select, turns.more))
        running = {pool.submit(turns.take) for _ in range(IN_HAND)}
        try:
            while running:
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for tally in [future.result() for future in ended]:
                    if tally.leased:
                        running.add(pool.submit(turns.take))
                        yield tally
            yield selecting.result()
        finally:
            turns.stopping.set()


class _Turns:
    """Who may lease and read a chunk now, and whether there may be another."""

    def __init__(self, score: ScoreChunk) -> None:
        self.stopping = Event()
        self._score = score
        self._reading = Lock()
        self._news = Event()
        self._selecting: Future[ScoreTally] = Future()

    def begin(self, selecting: Future[ScoreTally]) -> Future[ScoreTally]:
        self._selecting = selecting
        selecting.add_done_callback(lambda _: self._news.set())
        return selecting

    def more(self, _count: int) -> None:
        """There are new jobs."""
        self._news.set()

    def take(self) -> ScoreTally:
        """Score a chunk, as soon as there is one; an empty tally when there will be none."""
        with ExitStack() as turn:
            self._reading.acquire()
            turn.callback(self._reading.release)
            while not self.stopping.is_set():
                self._news.clear()
                last = self._selecting.done()
                tally = self._score(on_read=turn.close, stopping=self.stopping.is_set)
                if tally.leased or last:
                    return tally
                self._news.wait(LOOK_S)
            return ScoreTally()
