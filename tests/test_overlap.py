"""Selecting and scoring at once."""

import threading
import time

import pytest

from medflow.errors import PluginBroken
from medflow.overlap import select_and_score
from medflow.scoring import ScoreTally


class Jobs:
    """A queue of jobs, of which a chunk has at most ``size``; ``read_s`` and ``device_s`` are what a chunk takes."""

    def __init__(self, *, size: int = 4, read_s: float = 0.0, device_s: float = 0.0) -> None:
        self.size, self.read_s, self.device_s = size, read_s, device_s
        self.waiting = 0
        self.lock = threading.Lock()
        self.reading = self.most_reading = 0
        self.on_device = self.read_beside = 0
        self.gave_back = 0

    def select(self, *parts: int, wait_s: float = 0.0):
        def choose(selected) -> ScoreTally:
            for part in parts:
                time.sleep(wait_s)
                with self.lock:
                    self.waiting += part
                selected(part)
            return ScoreTally(selected=sum(parts))

        return choose

    def score(self, *, on_read, stopping) -> ScoreTally:
        with self.lock:
            leased = min(self.size, self.waiting)
            if not leased:
                return ScoreTally()
            self.waiting -= leased
            self.reading += 1
            self.most_reading = max(self.most_reading, self.reading)
        time.sleep(self.read_s)
        with self.lock:
            self.reading -= 1
            self.read_beside += bool(self.on_device)
            self.on_device += 1
        on_read()
        try:
            return self._work(leased, stopping)
        finally:
            with self.lock:
                self.on_device -= 1

    def _work(self, leased: int, stopping) -> ScoreTally:
        until = time.monotonic() + self.device_s
        while time.monotonic() < until:
            if stopping():
                self.gave_back += leased
                return ScoreTally(leased=leased)
            time.sleep(0.005)
        return ScoreTally(leased=leased, done=leased)


def total(parts) -> ScoreTally:
    tally = ScoreTally()
    for part in parts:
        tally.add(part)
    return tally


def test_everything_that_is_selected_is_scored():
    jobs = Jobs()

    tally = total(select_and_score(jobs.select(4, 4, 3, wait_s=0.02), jobs.score))

    assert (tally.selected, tally.leased, tally.done) == (11, 11, 11)


def test_what_waited_before_is_scored_though_nothing_is_new():
    jobs = Jobs()
    jobs.waiting = 6

    assert total(select_and_score(jobs.select(), jobs.score)).done == 6


def test_the_first_are_scored_while_others_are_still_selected():
    jobs = Jobs()
    scored_first = threading.Event()

    def choose(selected) -> ScoreTally:
        tally = jobs.select(4)(selected)
        assert scored_first.wait(timeout=30)
        tally.add(jobs.select(4)(selected))
        return tally

    def score(*, on_read, stopping) -> ScoreTally:
        tally = jobs.score(on_read=on_read, stopping=stopping)
        if tally.done:
            scored_first.set()
        return tally

    assert total(select_and_score(choose, score)).done == 8


def test_a_chunk_is_read_while_the_device_has_another_and_never_two():
    jobs = Jobs(read_s=0.1, device_s=0.1)

    total(select_and_score(jobs.select(24), jobs.score))

    assert jobs.read_beside
    assert jobs.most_reading == 1


def test_when_selecting_fails_what_is_there_is_scored_and_the_error_raised():
    jobs = Jobs()
    jobs.waiting = 5

    def choose(_selected) -> ScoreTally:
        raise PluginBroken("another version was promoted meanwhile")

    with pytest.raises(PluginBroken, match="promoted"):
        total(select_and_score(choose, jobs.score))
    assert jobs.waiting == 0


def test_when_a_chunk_fails_the_other_is_asked_to_stop():
    jobs = Jobs(device_s=30)
    chunks = iter(range(9))

    def score(*, on_read, stopping) -> ScoreTally:
        if next(chunks) == 1:
            raise PluginBroken("does not load")
        return jobs.score(on_read=on_read, stopping=stopping)

    jobs.waiting = 100
    started = time.monotonic()
    with pytest.raises(PluginBroken, match="does not load"):
        total(select_and_score(jobs.select(), score))

    assert time.monotonic() - started < 10
    assert jobs.gave_back == 4
