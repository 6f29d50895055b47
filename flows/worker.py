"""`medflow worker`: a Prefect task worker that keeps its models on one device, chunk after chunk, run after run.

Two chunks are in hand at once, so that one is read and prepared while the device works on the other. Asked to stop
(SIGTERM, SIGINT), it commits the batch at hand, gives the rest of its chunks back, and leaves; killed, its leases run
out and others take what it held.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import anyio
from prefect.task_worker import TaskWorker

from medflow import steps
from medflow.config import load_settings
from medflow.errors import ConfigurationError, MedflowError
from medflow.flows.chunks import worker_task
from medflow.metrics import start_metrics
from medflow.registry import RegisteredModel, installed
from medflow.scoring import LoadedModels, model_id
from medflow.steps import Site
from medflow.store import chunks, workers
from medflow.store.jobs import process_of, process_owner

log = logging.getLogger(__name__)
IN_HAND = 2  # chunks at once
AGAIN_S = 2.0  # before subscribing again after Prefect's server was lost


class Worker:
    """One device, its models, and the chunks it has in hand.

    Parameters
    ----------
    models
        Names of the models to serve, which are loaded at once; all that are installed otherwise, each when it is
        first asked for.

    Raises
    ------
    ConfigurationError
        No Prefect server is configured, no model is installed, a model or the device is unknown, or another worker has
        the name.
    """

    def __init__(self, site: Site, models: Sequence[str] = (), *, name: str | None = None) -> None:
        if not os.environ.get("PREFECT_API_URL"):
            raise ConfigurationError(
                "a worker needs a Prefect server to listen to: set PREFECT_API_URL, for example http://127.0.0.1:4200/api"
            )
        self.site = site
        self.models = {model.name: model for model in site.registry.choose(models)}
        # what is broken may be mended while this process lives
        self.names = tuple(models) or tuple(sorted(self.models.keys() | installed().models.keys()))
        self._taking_up = threading.Lock()
        if not self.models:
            raise ConfigurationError("no model is installed that this worker could serve: install a plugin")
        self.loaded = LoadedModels(site.settings)
        self.name = name or self._free_name()
        self.owner = process_owner()
        self.stopping = threading.Event()
        self._ended = threading.Event()
        self._preload = list(self.models.values()) if models else []
        self._in_hand: set[str] = set()  # owners of the leases that chunks in hand have
        self._listener: _Listener | None = None

    def serve(self) -> None:
        """Serve until asked to stop."""
        for model in self.models.values():
            model_id(self.site.store, model)  # a flow that has not seen it can select for it
        log.info("worker %s serves %s on %s", self.name, ", ".join(self.models), self.loaded.device)
        heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        ear = threading.Thread(target=self._look_out, name="promotions", daemon=True)
        try:
            for model in self._preload:
                self._load(model)
            self._announce()
            heart.start()
            ear.start()
            log.info("worker %s is ready", self.name)
            anyio.run(self._listen)
        finally:
            self.stopping.set()
            self._ended.set()
            with self.site.store.writing() as connection:
                workers.leave(connection, self.name, self.owner)
            self.loaded.close()

    def score(self, name: str) -> dict[str, Any] | None:
        """Score one asked chunk of a model, if one is asked for still; with the version that is served by now."""
        if self.stopping.is_set():
            return None
        self._take_up()
        model = self.models.get(name)
        if model is None:
            return None
        self.loaded.keep(_digests(self.models).values())
        owner = process_owner()
        self._in_hand.add(owner)
        try:
            tally = steps.score_asked(
                self.site,
                model,
                self.loaded,
                worker=self.name,
                owner=owner,
                stopping=self.stopping.is_set,
            )
        finally:
            self._in_hand.discard(owner)
        return tally.as_json() if tally.leased else None

    def _take_up(self) -> None:
        """Serve what was promoted since the last look, and say so; what can no longer be served is left."""
        with self._taking_up:
            self.site = steps.refreshed(self.site)
            registry = self.site.registry
            now = {name: registry.models[name] for name in self.names if name in registry.models}
            if _digests(now) == _digests(self.models):
                return
            for name in sorted(self.names):
                if name in self.models and name not in now:
                    broken = next((plugin.error for plugin in registry.broken if plugin.entry_point == name), "gone")
                    log.error("worker %s no longer serves %s: %s", self.name, name, broken)
                elif name in now and (name not in self.models or self.models[name].digest != now[name].digest):
                    log.info("worker %s serves %s %s from now on", self.name, name, now[name].spec.version)
                    model_id(self.site.store, now[name])
            with self.site.store.writing() as connection:
                workers.now_serves(connection, self.name, self.owner, _digests(now))
            self.models = now

    def _look_out(self) -> None:
        """Take up what is promoted while no chunk is asked for; beside the heartbeat, as files may be slow to see."""
        while not self._ended.wait(workers.HEARTBEAT_S):
            try:
                self._take_up()
            except MedflowError as error:
                log.warning("what is promoted is not known now: %s", error.message)

    def _load(self, model: RegisteredModel) -> None:
        with self.loaded.using(model):
            log.info("%s is loaded", model.name)

    def _free_name(self) -> str:
        usual = f"{platform.node()}/{self.loaded.device}"
        with self.site.store.reading() as connection:
            return f"{usual}/{os.getpid()}" if workers.is_taken(connection, usual) else usual

    def _announce(self) -> None:
        with self.site.store.writing() as connection:
            if workers.is_taken(connection, self.name):
                raise ConfigurationError(f"a worker called {self.name} is running: give this one another --name")
            workers.announce(connection, self.name, self.owner, self.loaded.device, _digests(self.models))

    def _beat(self) -> None:
        while True:
            state = workers.DRAINING if self.stopping.is_set() else workers.SERVING
            try:
                with self.site.store.writing() as connection:
                    workers.beat(connection, self.name, self.owner, loaded=self.loaded.names(), state=state)
                    # what could not be given back while the database was away
                    chunks.abandon(connection, process_of(self.owner), but=set(self._in_hand))
            except MedflowError as error:
                log.warning("no heartbeat: %s", error.message)
            if self._ended.wait(workers.HEARTBEAT_S):
                return

    async def _listen(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._subscribe)
            while not self.stopping.is_set() or self._at_work():
                await anyio.sleep(0.05)
            group.cancel_scope.cancel()

    def _at_work(self) -> bool:
        return self._listener is not None and any(self._listener.in_flight_task_runs.values())

    async def _subscribe(self) -> None:
        """Listen to Prefect's server; when it is lost, again and again until it is back."""
        while not self.stopping.is_set():
            self._listener = _Listener(self)
            try:
                await self._listener.astart()
            except Exception as error:  # noqa: BLE001 - whatever ended the subscription, the server may come back
                log.warning("Prefect's server is lost (%s); listening again", type(error).__name__)
                await anyio.sleep(AGAIN_S)


def _digests(models: Mapping[str, RegisteredModel]) -> dict[str, str]:
    return {name: model.digest for name, model in models.items()}


class _Listener(TaskWorker):
    """Prefect's task worker, with tasks that keep no results, and a stop that lets chunks end."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        made = [worker_task(name, worker.score) for name in worker.names]
        super().__init__(*made, limit=IN_HAND)
        self.tasks = list(made)  # the base class would have every result written to disk

    def handle_sigterm(self, signum: int, frame: object) -> None:
        """Stop taking chunks; those in hand end at their next batch."""
        log.info("asked to stop: chunks in hand are given back")
        self._worker.stopping.set()

    async def astart(self, timeout: float | None = None) -> None:
        """Subscribe, and take interrupts as it takes SIGTERM."""
        signal.signal(signal.SIGINT, self.handle_sigterm)
        await super().astart(timeout)


def serve(models: Sequence[str] = (), *, name: str | None = None, metrics: tuple[str, int] | None = None) -> None:
    """Serve the named models (default: all that are installed) on the configured device until asked to stop.

    ``metrics`` is the host and port at which Prometheus finds the installation's figures, and this process's own.
    """
    site = steps.open_site(load_settings())
    worker = Worker(site, models, name=name)
    if metrics is None:
        worker.serve()
        return
    host, port = metrics
    with closing(start_metrics(site.store, site.settings, port, host)):
        worker.serve()
