"""A circuit breaker: a server that keeps failing is asked by one request at a time, ever less often, and then left.

Closed, every thread goes through. After some failures in a row it opens: nobody goes through until a wait is over, then
one does (half-open), and its answer closes the circuit or doubles the wait. Open for longer than ``patience_s``, it
gives up. One is shared by all threads that talk to one server.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from medflow.errors import ServerUnavailable


@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitRule:
    """After how many failures in a row it opens, how long it waits, and for how long it is open before it gives up."""

    open_after: int = 5
    first_wait_s: float = 1.0
    longest_wait_s: float = 30.0
    patience_s: float = 120.0


class Circuit:
    """The state of one server as the threads of a run see it. Thread-safe."""

    def __init__(self, rule: CircuitRule | None = None) -> None:
        self._rule = rule or CircuitRule()
        self._changed = threading.Condition()
        self._failures = 0
        self._opened_at: float | None = None  # monotonic
        self._wait_s = self._rule.first_wait_s
        self._next_at = 0.0  # nobody goes through before
        self._prober: int | None = None  # the thread that went through while it is open
        self._trouble: str | None = None
        self._stopped = False

    @property
    def trouble(self) -> str | None:
        """What is wrong while the circuit is open, as an operator may read it."""
        return self._trouble if self._opened_at is not None else None

    @property
    def gave_up(self) -> bool:
        """It was open for longer than its patience, or was stopped: nobody goes through any more."""
        return self._stopped

    def stop(self) -> None:
        """Let nobody through from now on, and wake who waits."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def admit(self) -> None:
        """Wait until a request may be sent; tell `answered` or `failed` afterwards.

        Raises
        ------
        ServerUnavailable
            The circuit gave up.
        """
        with self._changed:
            while not self._stopped:
                now = time.monotonic()
                if self._opened_at is not None and now - self._opened_at > self._rule.patience_s:
                    self._stopped = True
                    self._changed.notify_all()
                    break
                if now >= self._next_at and (self._opened_at is None or self._prober is None):
                    self._prober = None if self._opened_at is None else threading.get_ident()
                    return
                self._changed.wait(timeout=max(0.01, min(self._next_at - now, 1.0)))
        raise ServerUnavailable(self._trouble or "the run ends: nothing more is sent")

    def answered(self) -> None:
        """The server did what it is there for, if only to refuse something."""
        with self._changed:
            self._failures, self._opened_at, self._prober = 0, None, None
            self._wait_s = self._rule.first_wait_s
            self._changed.notify_all()

    def failed(self, error: ServerUnavailable, *, hold_s: float = 0.0) -> None:
        """The server gave no answer, or none but that it cannot; nobody asks again for ``hold_s`` seconds."""
        with self._changed:
            now = time.monotonic()
            self._failures += 1
            self._trouble = error.message
            if hold_s:
                self._next_at = max(self._next_at, now + hold_s)
            if self._opened_at is None and self._failures >= self._rule.open_after:
                self._opened_at = now
                self._next_at = max(self._next_at, now + self._wait_s)
            elif self._prober == threading.get_ident():
                self._prober = None
                self._wait_s = min(2 * self._wait_s, self._rule.longest_wait_s)
                self._next_at = max(self._next_at, now + self._wait_s)
            self._changed.notify_all()
