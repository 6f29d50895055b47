"""Where an installation stands, as Prometheus metrics: asked of the store at each scrape, kept nowhere.

Labels are names of models, sources, targets, workers and codes; never a path, an address or anything of a patient.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from medflow.config import Settings
from medflow.errors import ConfigurationError, MedflowError
from medflow.status import Standing, look_from, worker_state
from medflow.store import Store
from medflow.store.standing import DAY_US, JOB_STATES, Totals

log = logging.getLogger(__name__)
PORT = 9464
READ_TIMEOUT_S = 30  # for a client that connects and says nothing
UNDELIVERED = ("pending", "failed", "dead")


class StandingCollector(Collector):
    """Asks the store where things stand, once a scrape; scrapes at the same time take turns."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store, self._settings = store, settings
        self._totals = Totals()
        self._turn = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """Every metric; when the store does not answer, only that it does not."""
        started = time.perf_counter()
        try:
            with self._turn, self._store.reading() as connection:
                found = look_from(connection, self._settings)
                cases, seconds = self._totals.look(connection, at_us=found.at_us)
        except MedflowError as error:
            log.error("no metrics: %s", error.message)
            yield _gauge("medflow_up", "Whether the store answers.", (), [((), 0)])
            return
        yield _gauge("medflow_up", "Whether the store answers.", (), [((), 1)])
        yield InfoMetricFamily("medflow", "The version that runs.", value={"version": version("medflow")})
        yield from _sources(found)
        yield from _work(found)
        yield _counter(
            "medflow_scored_cases",
            "Cases scored since the beginning.",
            ("model",),
            [((model,), count) for (model, end), count in sorted(cases.items()) if end == "done"],
        )
        yield _counter(
            "medflow_unscored_cases",
            "Attempts at a case that ended without a result: failed (tried again) or dead.",
            ("model", "end"),
            [(key, count) for key, count in sorted(cases.items()) if key[1] != "done"],
        )
        yield _counter(
            "medflow_stage_seconds",
            "Time spent on scoring, by stage.",
            ("model", "stage"),
            [(key, spent) for key, spent in sorted(seconds.items())],
        )
        yield from _targets(found)
        yield from _links(found)
        yield from _others(found)
        spent = time.perf_counter() - started
        yield _gauge("medflow_scrape_seconds", "How long it took to ask the store.", (), [((), spent)])


Samples = Iterable[tuple[tuple[str, ...], float]]


def _gauge(name: str, text: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _counter(name: str, text: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _since(found: Standing, then_us: int | None) -> float:
    age_s = found.age_s(then_us)
    return math.inf if age_s is None else age_s


def _sources(found: Standing) -> Iterator[Metric]:
    yield _gauge(
        "medflow_source_age_seconds",
        "Time since a configured source was last ingested to its end; infinite: never.",
        ("source",),
        [((one.name,), _since(found, one.success.finished_us if one.success else None)) for one in found.sources],
    )
    yield _gauge(
        "medflow_source_attempt_age_seconds",
        "Time since ingesting a configured source last began; infinite: never.",
        ("source",),
        [((one.name,), _since(found, one.attempt.started_us if one.attempt else None)) for one in found.sources],
    )
    names = ("offered", "stored", "unchanged", "rejected")
    yield _gauge(
        "medflow_source_inputs",
        "What the last complete ingest of a configured source brought.",
        ("source", "outcome"),
        [
            ((one.name, name), one.success.counts.get(name, 0))
            for one in found.sources
            for name in names
            if one.success is not None
        ],
    )
    yield _gauge(
        "medflow_source_read_age_seconds",
        "How far back what a configured server has was last read to its end, by kind of record; infinite: never.",
        ("source", "kind"),
        [((one.name, mark.kind), _since(found, mark.until_us)) for one in found.sources for mark in one.marks],
    )
    yield _gauge(
        "medflow_received_age_seconds",
        "Time since anything new of a kind of input was stored.",
        ("kind",),
        [((kind,), _since(found, line.finished_us)) for kind, line in found.received.items()],
    )


def _work(found: Standing) -> Iterator[Metric]:
    yield _gauge(
        "medflow_jobs",
        "Cases by state; failed ones are tried again, dead ones are not.",
        ("model", "state"),
        [((model.model, state), model.jobs.get(state, 0)) for model in found.work for state in JOB_STATES],
    )
    yield _gauge(
        "medflow_ready_age_seconds",
        "How long the oldest case that is ready has waited; 0: none.",
        ("model",),
        [((model.model,), found.age_s(model.oldest_ready_us) or 0.0) for model in found.work],
    )
    yield _gauge(
        "medflow_chunks",
        "Chunks of cases that are asked for or running.",
        ("model", "state"),
        [((model.model, state), model.chunks.get(state, 0)) for model in found.work for state in ("asked", "running")],
    )


def _targets(found: Standing) -> Iterator[Metric]:
    watched = [target for target in found.targets if target.watched]
    yield _gauge(
        "medflow_deliveries",
        "Results that a configured target has not taken: pending and failed ones are sent again, dead ones are not.",
        ("target", "state"),
        [((one.name, state), one.line.states[state]) for one in watched for state in UNDELIVERED],
    )
    yield _gauge(
        "medflow_delivered",
        "Results that a configured target has.",
        ("target",),
        [((one.name,), one.line.states["delivered"]) for one in watched],
    )
    yield _gauge(
        "medflow_undelivered_age_seconds",
        "How long the oldest result that a configured target still has to be sent has waited; 0: none.",
        ("target",),
        [((one.name,), found.age_s(one.line.oldest_us) or 0.0) for one in watched],
    )
    yield _gauge(
        "medflow_delivered_last_hour",
        "Results that a configured target took in the last hour.",
        ("target",),
        [((one.name,), one.line.hour) for one in watched],
    )


def _links(found: Standing) -> Iterator[Metric]:
    links = [((one.line.role, one.name), one) for one in found.links]
    labels = ("role", "name")
    yield _gauge(
        "medflow_connection_up",
        "Whether a server or folder did what it was asked when it was last asked.",
        labels,
        [(key, one.up) for key, one in links],
    )
    yield _gauge(
        "medflow_connection_failures",
        "How often in a row it did not.",
        labels,
        [(key, one.line.failures) for key, one in links],
    )
    yield _gauge(
        "medflow_connection_failing_seconds",
        "Time since the first of these failures; 0: none.",
        labels,
        [(key, found.age_s(one.line.failing_since_us) or 0.0) for key, one in links],
    )
    yield _gauge(
        "medflow_connection_answered_age_seconds",
        "Time since it last did what it was asked; infinite: never.",
        labels,
        [(key, _since(found, one.line.ok_us)) for key, one in links],
    )


def _others(found: Standing) -> Iterator[Metric]:
    yield _gauge("medflow_rejects", "Open rejects.", ("code",), [((code,), n) for code, n in found.rejects.items()])
    yield _gauge(
        "medflow_worker_up",
        "Whether a worker is there: 1 if it was heard of in the last minute.",
        ("worker", "device"),
        [((one.name, one.device), worker_state(one) != "gone") for one in found.workers],
    )
    yield _gauge(
        "medflow_worker_seen_age_seconds",
        "Time since a worker was last heard of.",
        ("worker",),
        [((one.name,), _since(found, one.seen_us)) for one in found.workers],
    )
    lately: dict[tuple[str, str], int] = {}
    successes: dict[str, int] = {}
    for run in found.runs:
        if run.started_us >= found.at_us - DAY_US:
            lately[run.command, run.status] = lately.get((run.command, run.status), 0) + 1
        if run.status == "completed" and run.finished_us:
            successes.setdefault(run.command, run.finished_us)
    yield _gauge("medflow_runs", "Runs that began in the last day.", ("command", "status"), sorted(lately.items()))
    yield _gauge(
        "medflow_run_success_age_seconds",
        "Time since a command last completed.",
        ("command",),
        [((command,), _since(found, at_us)) for command, at_us in sorted(successes.items())],
    )


# --- how they are read ---------------------------------------------------------------------------------------


def exposition(store: Store, settings: Settings) -> str:
    """All metrics once, in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(StandingCollector(store, settings))
    return generate_latest(registry).decode()


class MetricsServer:
    """Metrics over HTTP, from a thread of their own, until `close`."""

    def __init__(self, server: WSGIServer) -> None:
        self._server = server
        self.host, self.port = str(server.server_address[0]), int(server.server_address[1])
        self._thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = READ_TIMEOUT_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Scrapes are not worth a line each."""


def start_metrics(store: Store, settings: Settings, port: int = PORT, host: str = "127.0.0.1") -> MetricsServer:
    """Serve the metrics, and those of this process; port 0 takes a free one.

    Raises
    ------
    ConfigurationError
        The port is taken, or the address is not one of this machine's.
    """
    registry = CollectorRegistry()
    registry.register(StandingCollector(store, settings))
    ProcessCollector(registry=registry)
    kind = _Server6 if ":" in host else _Server
    try:
        server = make_server(host, port, make_wsgi_app(registry), server_class=kind, handler_class=_Handler)
    except OSError as error:
        raise ConfigurationError(
            f"metrics cannot be served at {host}:{port} ({error.strerror or error}): choose another --port or --host"
        ) from None
    return MetricsServer(server)
