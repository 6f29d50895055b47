"""Several receiving processes behind one port: one accepts, and hands each connection to the least busy of them.

Associations are few and long. The kernel, asked to spread them (SO_REUSEPORT), goes by a hash, which puts four of them
on one process as readily as on four. The process that accepts reads nothing itself: it counts, so that the limit holds
over all of them, and replaces a process that died.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from medflow.config import Settings
from medflow.dicom.commitment import Held
from medflow.dicom.listener import allowed, listening, not_allowed, tls_context
from medflow.dicom.receive import ENDING_S, prepare, receiver
from medflow.errors import MedflowError
from medflow.processes import follow_parent

log = logging.getLogger(__name__)
SetUp = Callable[[Settings], object]

MOST_PROCESSES = 8
STARTING_S = 60.0
AGAIN_S = 1.0  # between the start of a process that died and that of its successor
GARBAGE_S = 12  # pynetdicom's ended associations hold one another
TAKE, TURN_AWAY, STOP, HURRY = b"t", b"f", b"s", b"h"  # to a process; the first two with a connection
BESIDE_AGAIN_S = 10.0
READY, ENDED, CUT_OFF = b"r", b"e", b"c"  # from it


def process_count(settings: Settings) -> int:
    """How many processes receive: as many as are asked for, or one a core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = settings.receive_processes or min(cores, MOST_PROCESSES)
    return min(wanted, settings.receive_associations)


@dataclass(kw_only=True, eq=False)
class _Worker:
    """A receiving process, as the one that accepts sees it."""

    process: Any
    channel: socket.socket
    started: float = field(default_factory=time.monotonic)
    ready: bool = False
    open: int = 0
    cut_off: int = 0

    def tell(self, word: bytes) -> None:
        """Say something to it; one that has gone is found out elsewhere."""
        with suppress(OSError):
            self.channel.sendall(word)

    def heard(self) -> None:
        """Take in what it says."""
        try:
            said = self.channel.recv(1024, socket.MSG_DONTWAIT)
        except OSError:
            return
        self.ready = self.ready or READY in said
        self.open -= said.count(ENDED)
        self.cut_off += said.count(CUT_OFF)


class Reception:
    """The running receiver of several processes: `start` it, then `serve` until asked to stop.

    ``set_up`` is called with the settings first in each process; ``stored`` is the `Receiver`'s. ``beside`` is run in
    a process of its own, with the settings and ``set_up``, until that is sent SIGTERM. All are pickled.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        set_up: SetUp,
        stored: Callable[[Collection[str]], Held],
        beside: Callable[[Settings, SetUp], object] | None = None,
    ) -> None:
        self._settings = settings
        self._set_up = set_up
        self._stored = stored
        self._beside = beside
        self._other: Any = None  # the process of it
        self._other_due = 0.0
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        self._due: list[float] = []  # when processes that died are to be replaced
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Listen, with every process ready.

        Raises
        ------
        ConfigurationError
            The folder cannot be written, the address cannot be had, or the TLS files cannot be read.
        MedflowError
            A process did not start.
        """
        settings = self._settings
        prepare(receiver(settings).spool)
        tls = tls_context(settings)
        self._socket = listening(settings)
        for _ in range(process_count(settings)):
            self._begin()
        deadline = time.monotonic() + STARTING_S
        while not all(worker.ready for worker in self._workers):
            self._look(0.1)
            if self._due or time.monotonic() > deadline:
                self._kill()
                raise MedflowError("a receiving process did not start: what it logged before this says why")
        self._selector.register(self._socket, selectors.EVENT_READ, self._accept)
        where = self._socket.getsockname()[:2]
        log.info("listening as %s at %s:%d%s", settings.receive_aet, *where, " with TLS" if tls else "")

    def serve(self, asked: threading.Event, hurry: threading.Event) -> None:
        """Until ``asked`` to stop; then let associations end within the grace time, which ``hurry`` ends early."""
        while not asked.is_set():
            self._look(0.2)
            now = time.monotonic()
            self._keep_company(now)
            for due in [due for due in self._due if due <= now]:
                self._due.remove(due)
                self._begin()
        self._stop(hurry)

    def _keep_company(self, now: float) -> None:
        """Start what runs beside, and start it again when it has ended."""
        if self._beside is None or now < self._other_due or (self._other is not None and self._other.is_alive()):
            return
        if self._other is not None:
            log.error("the process that takes studies ended (exit status %s) and is replaced", self._other.exitcode)
        self._other_due = now + BESIDE_AGAIN_S
        words = self._settings, self._set_up
        self._other = get_context("spawn").Process(target=self._beside, args=words, name="medflow-take")
        self._other.start()

    def _look(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            key.data()

    def _begin(self) -> None:
        # a copy of this process starts at once and shares its memory, which is safe while it has one thread
        context: Any = get_context("fork" if threading.active_count() == 1 and hasattr(os, "fork") else "spawn")
        channel, theirs = socket.socketpair()
        process = context.Process(
            target=_work, args=(self._settings, theirs, self._set_up, self._stored), name="medflow-receive"
        )
        process.start()
        theirs.close()
        worker = _Worker(process=process, channel=channel)
        self._workers.append(worker)
        self._selector.register(channel, selectors.EVENT_READ, worker.heard)
        self._selector.register(process.sentinel, selectors.EVENT_READ, lambda: self._died(worker))

    def _forget(self, worker: _Worker) -> None:
        worker.heard()
        self._selector.unregister(worker.channel)
        self._selector.unregister(worker.process.sentinel)
        worker.channel.close()
        self._workers.remove(worker)

    def _died(self, worker: _Worker) -> None:
        if worker not in self._workers:
            return
        worker.process.join()
        self._forget(worker)
        log.error(
            "a receiving process ended (exit status %s) and is replaced; %d associations were broken off",
            worker.process.exitcode,
            worker.open,
        )
        self._due.append(max(time.monotonic(), worker.started + AGAIN_S))

    def _accept(self) -> None:
        assert self._socket is not None  # noqa: S101 - started
        able = [worker for worker in self._workers if worker.ready]
        if not able:
            time.sleep(0.1)  # connections wait in the kernel's queue for the first to come back
            return
        try:
            connection, address = self._socket.accept()
        except OSError:
            time.sleep(0.05)  # gone before it was accepted, or no handles are left for it
            return
        with connection:
            if not allowed(address[0], self._settings.receive_allow_addresses):
                not_allowed(address[0])
                return
            running, limit = sum(worker.open for worker in self._workers), self._settings.receive_associations
            if running > 2 * limit:
                return  # not even a refusal is spoken
            worker = min(able, key=lambda one: one.open)
            try:
                socket.send_fds(worker.channel, [TAKE if running < limit else TURN_AWAY], [connection.fileno()])
                worker.open += 1
            except OSError:
                log.warning("connection from %s refused: the process it was for has ended", address[0])

    def _stop(self, hurry: threading.Event) -> None:
        assert self._socket is not None  # noqa: S101 - started
        self._selector.unregister(self._socket)
        self._socket.close()
        log.info("stopping: no new associations; %d running", sum(worker.open for worker in self._workers))
        for worker in self._workers:
            worker.tell(STOP)
        if self._other is not None:
            self._other.terminate()
        deadline = time.monotonic() + self._settings.receive_grace_s + 2 * ENDING_S
        told, cut_off = False, 0
        while self._workers and time.monotonic() < deadline:
            self._look_for_ends()
            if hurry.is_set() and not told:
                told = True
                for worker in self._workers:
                    worker.tell(HURRY)
            for worker in [one for one in self._workers if not one.process.is_alive()]:
                self._forget(worker)
                cut_off += worker.cut_off if worker.process.exitcode == 0 else worker.open
        cut_off += sum(worker.open for worker in self._workers)
        self._kill()
        if self._other is not None:
            self._other.join(max(0.0, deadline - time.monotonic()))
            self._other.kill()  # what it was at is rolled back, and taken at the next start
        log.info("stopped; %d associations were cut off", cut_off)

    def _look_for_ends(self) -> None:
        for key, _ in self._selector.select(0.1):
            if isinstance(key.fileobj, socket.socket):
                key.data()

    def _kill(self) -> None:
        for worker in list(self._workers):
            worker.process.kill()
            worker.process.join()
            self._forget(worker)


def _work(
    settings: Settings,
    channel: socket.socket,
    set_up: SetUp,
    stored: Callable[[Collection[str]], Held],
    copied: Sequence[Any] = (),
) -> None:
    """A receiving process: serve what is handed over, until told to stop or left alone."""
    for other in copied:  # of the process that accepts, which alone is to have them
        other.close()
    follow_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a service manager sends it to all; the parent says when
    set_up(settings)
    own = receiver(settings, stored=stored)
    server = own.attend(lambda: channel.sendall(ENDED))
    hurry = threading.Event()
    ending: threading.Thread | None = None
    channel.sendall(READY)
    channel.settimeout(GARBAGE_S / 60)
    while ending is None or ending.is_alive():
        try:
            word, handles, _, _ = socket.recv_fds(channel, 1, 1)
        except TimeoutError:
            server.service_actions()
            continue
        if not word:
            break  # the parent has gone
        for handle in handles:
            server.take(socket.socket(fileno=handle), over_limit=word == TURN_AWAY)
        if word == STOP:
            ending = threading.Thread(target=lambda: channel.sendall(CUT_OFF * own.end(hurry)))
            ending.start()
        elif word == HURRY:
            hurry.set()
