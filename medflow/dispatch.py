"""Scoring by other processes: a run asks for chunks in the store, and wakes whoever scores them.

What counts is in the store alone: the asked chunks, the leases of those who took them, the jobs. Waking (a Prefect task
run, a Dask task) may be lost, late or double without harm: it is done again while what was asked for lies untouched.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import stamina

from medflow.config import Settings
from medflow.errors import MedflowError, PluginBroken, StoreUnavailable, TransientError, WorkerMissing
from medflow.registry import RegisteredModel
from medflow.scoring import chunk_cases, model_id
from medflow.store import Store, chunks, workers
from medflow.store import jobs as queue
from medflow.store.chunks import Chunk

log = logging.getLogger(__name__)
Wake = Callable[[str, int], None]
HOLD_S = 60  # how long what a run asked for outlives it
REWAKE_S = 3.0  # asked, nobody at work: the call was not heard
ASKED_AT_ONCE = 32  # chunks of one model
FAILURES = 3  # chunks that the infrastructure failed, after which a model is left to the next run
BACK_OFF_S = 5.0
OUTAGE_S = 300.0  # of the database, which a run waits out
PAUSE_S = (0.03, 0.5)  # between looks: short at first, longer while nothing changes


@dataclass(kw_only=True, slots=True)
class _Round:
    """One model's part of the run, while it is open."""

    model: RegisteredModel
    model_id: int
    size: int
    asked_since: float = 0.0
    woken: float = 0.0
    failures: int = 0
    not_before: float = 0.0


class Dispatch:
    """Has the chunks of a run scored by others.

    Parameters
    ----------
    wake
        Called with a model's name and how many chunks have just been asked for; may raise `TransientError`.
    announced
        Whether whoever scores is on the store's list of workers, so that their absence can be told.
    explain
        Whether predictions are to be explained; the chunks remember it.
    """

    def __init__(
        self, store: Store, settings: Settings, run_id: int, wake: Wake, *, announced: bool, explain: bool = False
    ) -> None:
        self._store, self._settings, self._run_id = store, settings, run_id
        self._wake, self._announced, self._explain = wake, announced, explain
        self._held = 0.0

    def run(self, models: Sequence[RegisteredModel]) -> dict[str, MedflowError]:
        """Ask until all that waits for these models has ended; returns, by name, why a model was given up."""
        rounds = [
            _Round(model=model, model_id=model_id(self._store, model), size=chunk_cases(self._settings, model))
            for model in models
        ]
        given_up: dict[str, MedflowError] = {}
        pause, before = PAUSE_S[0], None
        try:
            while rounds:
                found = self._look()
                for item in list(rounds):
                    try:
                        going_on = self._tend(item, [chunk for chunk in found if chunk.model == item.model.name])
                    except StoreUnavailable:
                        break  # the next look waits for it
                    except MedflowError as error:
                        given_up[item.model.name] = error
                        going_on = False
                    if not going_on:
                        rounds.remove(item)
                now = [(chunk.id, chunk.state, chunk.done) for chunk in found]
                pause = PAUSE_S[0] if now != before else min(pause * 1.5, PAUSE_S[1])
                before = now
                if rounds:
                    time.sleep(pause)
        finally:
            with self._store.writing() as connection:
                chunks.withdraw(connection, self._run_id)
        return given_up

    @stamina.retry(on=StoreUnavailable, attempts=None, timeout=OUTAGE_S, wait_initial=0.5, wait_max=5.0)
    def _look(self) -> list[Chunk]:
        if time.monotonic() - self._held >= 1:
            with self._store.writing() as connection:
                chunks.hold(connection, self._run_id, seconds=HOLD_S)
            self._held = time.monotonic()
        with self._store.reading() as connection:
            return chunks.of_run(connection, self._run_id)

    def _tend(self, item: _Round, mine: Sequence[Chunk]) -> bool:
        """Ask for what is missing; False when the model has nothing left to do."""
        if broken := next((chunk for chunk in mine if chunk.state == chunks.BROKEN), None):
            self._withdraw(item)
            raise PluginBroken(broken.error or "the model cannot be run")
        self._count_failures(item, mine)
        asked = sum(chunk.state == chunks.ASKED for chunk in mine)
        with self._store.reading() as connection:
            free = queue.leasable(connection, item.model_id)
            at_work = chunks.running(connection)
        idle = bool(asked) and not at_work
        now = time.monotonic()
        if not free:
            if asked:
                self._withdraw(item)
            return item.model_id in at_work  # for whichever run: what a run that died had begun is waited for
        missing = min(-(-free // item.size), ASKED_AT_ONCE) - asked
        if missing > 0 and now >= item.not_before:
            self._ask(item, missing)
        elif idle and now - item.woken > REWAKE_S:
            self._call(item, asked)
        if not asked or not idle:
            item.asked_since = now
        elif now - item.asked_since > self._settings.worker_wait_s:
            raise self._nobody(item)
        return True

    def _ask(self, item: _Round, count: int) -> None:
        with self._store.writing() as connection:
            chunks.ask(connection, self._run_id, item.model_id, count, seconds=HOLD_S, explain=self._explain)
        self._call(item, count)

    def _call(self, item: _Round, count: int) -> None:
        item.woken = time.monotonic()
        try:
            self._wake(item.model.name, count)
        except TransientError as error:
            log.warning("chunks of %s are asked for, but nobody could be told: %s", item.model.name, error.message)

    def _count_failures(self, item: _Round, mine: Sequence[Chunk]) -> None:
        failed = [chunk for chunk in mine if chunk.state == chunks.FAILED]
        if len(failed) > item.failures:
            item.failures = len(failed)
            item.not_before = time.monotonic() + BACK_OFF_S * 2 ** (len(failed) - 1)
        if len(failed) >= FAILURES:
            self._withdraw(item)
            raise TransientError(f"{item.model.name}: {failed[-1].error}")

    def _withdraw(self, item: _Round) -> None:
        with self._store.writing() as connection:
            chunks.withdraw(connection, self._run_id, item.model_id)

    def _nobody(self, item: _Round) -> WorkerMissing:
        """What to say when nobody came: none is there, or those that are serve another version."""
        self._withdraw(item)
        name = item.model.name
        waited = f"nobody scored {name} within {self._settings.worker_wait_s} s"
        if not self._announced:
            return WorkerMissing(f"{waited}: look at the cluster, then run the same again")
        with self._store.reading() as connection:
            digests = workers.served(connection).get(name, set())
        if not digests:
            return WorkerMissing(f"{waited}: no `medflow worker` that serves it is running; start one")
        if item.model.digest not in digests:
            return WorkerMissing(
                f"{waited}: the workers have another version of it than this process; install the same on both"
            )
        return WorkerMissing(f"{waited}, though a worker serves it: see that worker's log")
