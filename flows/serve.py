"""`medflow serve`: runs the flow runs of medflow's work pool, each in a process of its own that starts warm.

Starting Python and importing Prefect, medflow and the plugins takes seconds; that is done once, in a process that does
nothing else. Each flow run is forked from it: its own process, which can be cancelled or killed alone, without the
wait. Everything else (polling, limits, cancelling, what a run that died is called) is Prefect's own worker.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any, cast
from uuid import UUID

import anyio
import anyio.abc
import httpx
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import InfrastructureNotFound, PrefectHTTPStatusError
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult

from medflow.config import load_log_settings
from medflow.errors import ConfigurationError
from medflow.logs import set_up_logging

log = logging.getLogger(__name__)
POOL = "medflow"
TYPE = "medflow"
PRELOADED = "medflow.flows.warm"
GRACE_S = 30
OUTAGE_S = 900


class FlowRunProcess(BaseJobConfiguration):
    """What a flow run's process is given: the environment."""


class FlowRunResult(BaseWorkerResult):
    """How a flow run's process ended."""


class FlowServer(BaseWorker[FlowRunProcess, BaseVariables, FlowRunResult]):
    """Prefect's worker for pools of type ``medflow``."""

    type = TYPE
    job_configuration = FlowRunProcess
    job_configuration_variables = BaseVariables
    _display_name = "medflow"
    _description = "Runs each flow run in a process forked from one in which medflow is loaded already."

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._context = cast(ForkServerContext, multiprocessing.get_context("forkserver"))
        self._context.set_forkserver_preload([PRELOADED])
        forkserver.ensure_running()  # it loads while this process goes on: the first run finds it warm
        self._running: dict[int, BaseProcess] = {}

    async def run(
        self,
        flow_run: FlowRun,
        configuration: FlowRunProcess,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> FlowRunResult:
        """Run one flow run to its end; the exit status tells Prefect whether it died."""
        environment = {name: value for name, value in configuration.env.items() if value is not None}
        process = self._context.Process(
            target=execute, args=(flow_run.id, environment), name=f"flow-run-{flow_run.id}", daemon=False
        )
        await anyio.to_thread.run_sync(process.start)
        pid = cast(int, process.pid)
        self._running[pid] = process
        if task_status is not None:
            task_status.started(pid)
        try:
            while process.is_alive():
                await anyio.sleep(0.05)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._stop(process, GRACE_S)
            raise
        finally:
            del self._running[pid]
        if process.exitcode:
            await self._prefect_is_back()
        return FlowRunResult(status_code=process.exitcode or 0, identifier=str(pid))

    async def _prefect_is_back(self) -> None:
        """Wait for a server that takes what is said next: that a flow run has died, perhaps because of its absence."""
        with anyio.move_on_after(OUTAGE_S):
            while True:
                try:
                    if (await self.client._client.get("/ready")).is_success:  # pyright: ignore[reportPrivateUsage]
                        return
                except (httpx.HTTPError, PrefectHTTPStatusError):
                    pass
                await anyio.sleep(1)

    async def kill_infrastructure(
        self, infrastructure_pid: str, configuration: FlowRunProcess, grace_seconds: int = GRACE_S
    ) -> None:
        """End a flow run's process: asked first, then forced."""
        process = self._running.get(int(infrastructure_pid))
        if process is None:
            raise InfrastructureNotFound(f"no process {infrastructure_pid} of this worker is running")
        await self._stop(process, grace_seconds)

    async def _stop(self, process: BaseProcess, grace_s: float) -> None:
        process.terminate()
        with anyio.move_on_after(grace_s):
            while process.is_alive():
                await anyio.sleep(0.05)
        if process.is_alive():
            process.kill()


def execute(flow_run_id: UUID, environment: dict[str, str]) -> None:
    """Run a flow run in this process, which was forked for it: what `python -m prefect.engine` does."""
    from prefect.context import refresh_global_settings_context
    from prefect.engine import handle_engine_signals
    from prefect.flow_engine import load_flow, load_flow_run, run_flow
    from prefect.logging.loggers import flow_run_logger

    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    set_up_logging(load_log_settings())
    refresh_global_settings_context()  # Prefect read its settings where this process was forked from
    with handle_engine_signals(flow_run_id):
        flow_run = load_flow_run(flow_run_id=flow_run_id)
        logger = cast(Any, flow_run_logger(flow_run=flow_run))  # an adapter, which Prefect's own engine passes too
        run_flow(load_flow(flow_run), flow_run=flow_run, error_logger=logger)


def serve(pool: str = POOL, *, limit: int | None = None, name: str | None = None) -> None:
    """Run the pool's flow runs until asked to stop (SIGTERM, SIGINT)."""
    if not os.environ.get("PREFECT_API_URL"):
        raise ConfigurationError(
            "serving flows needs a Prefect server: set PREFECT_API_URL, for example http://127.0.0.1:4200/api"
        )
    anyio.run(_serve, FlowServer(work_pool_name=pool, limit=limit, name=name))


async def _serve(server: FlowServer) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(_stop_when_asked, group.cancel_scope)
        await server.start(printer=log.info)


async def _stop_when_asked(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()
            return
