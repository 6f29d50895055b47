"""Who scores the chunks of a flow: its own process, the workers, or Dask. One setting chooses (MEDFLOW_EXECUTOR).

Wherever it runs, a chunk is leased and accounted for in the store. The Prefect task of a worker has no parameters: it
says "a chunk of this model is wanted", and so nothing need be shared between the machines but the store and Prefect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import httpx
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectException

from medflow import steps
from medflow.errors import ConfigurationError, MedflowError, PluginBroken, TransientError
from medflow.flows.installation import TASK, loaded_models, only_transient, refresh, site
from medflow.registry import RegisteredModel
from medflow.steps import Run, Site

Scored = dict[str, MedflowError]
TASK_KEY = "medflow.score/{}"  # what a worker subscribes to: no hash of code, which may lie at another path there


def score_chunks(here: Site, run: Run, models: Sequence[RegisteredModel], *, explain: bool = False) -> Scored:
    """Score all that waits for these models, where the settings say; returns, by name, why a model was given up."""
    if here.settings.executor == "workers":
        return steps.dispatch(here, run, models, wake_workers, explain=explain)
    if here.settings.executor == "dask":
        with dask(here) as wake:
            return steps.dispatch(here, run, models, wake, announced=False, explain=explain)
    given_up: Scored = {}
    for model in models:
        try:
            while score_here(model.name, run.id, explain):
                pass
        except (PluginBroken, TransientError) as error:
            given_up[model.name] = error
    return given_up


# --- in the flow's own process -----------------------------------------------------------------------------------


@task(task_run_name="score {model}", retry_condition_fn=only_transient, **TASK)
def score_here(model: str, run_id: int, explain: bool) -> int:
    """Lease and score one chunk in this process; returns how many cases were leased."""
    here = site()
    registered = here.registry.get(model)
    return steps.score_chunk(here, registered, loaded_models(), run_id=run_id, explain=explain).leased


# --- on workers --------------------------------------------------------------------------------------------------


def worker_task(model: str, score: Callable[[str], object] | None = None) -> Task[[], None]:
    """The background task that stands for one chunk of a model; a worker gives what it does about it."""

    def score_asked() -> None:
        if score is not None:
            score(model)

    # no retries: the run that asked sees to it
    made = Task(score_asked, name=f"score {model}", cache_policy=NO_CACHE, persist_result=False)
    made.task_key = TASK_KEY.format(model)
    return made


def wake_workers(model: str, count: int) -> None:
    """Put so many background tasks before the workers.

    Raises
    ------
    TransientError
        Prefect's server does not answer.
    """
    asked = _background(model)
    for _ in range(count):
        try:
            asked.delay()
        except (httpx.HTTPError, OSError, PrefectException) as error:
            raise TransientError(f"Prefect's server does not take tasks ({type(error).__name__})") from None


_background = lru_cache(worker_task)


# --- on Dask -----------------------------------------------------------------------------------------------------


@task(task_run_name="score {model}", **{**TASK, "retries": 0})
def score_on_dask(model: str) -> None:
    """Score one asked chunk in a Dask worker's process, which keeps its models loaded."""
    here = refresh()  # the process stays, whatever is promoted
    steps.score_asked(here, here.registry.get(model), loaded_models(), worker="")


@contextmanager
def dask(here: Site) -> Iterator[Callable[[str, int], None]]:
    """Wake Dask's workers: those of the scheduler at MEDFLOW_DASK_ADDRESS, or of a local cluster."""
    try:
        from prefect_dask.task_runners import DaskTaskRunner
    except ModuleNotFoundError:
        raise ConfigurationError(
            "MEDFLOW_EXECUTOR=dask needs prefect-dask: pip install 'medflow[dask]', here and on the cluster"
        ) from None
    address = here.settings.dask_address
    local: dict[str, Any] = {
        "n_workers": here.settings.threads,
        "threads_per_worker": 1,
        "processes": True,
        "host": "127.0.0.1",
        "dashboard_address": None,
    }
    runner = DaskTaskRunner(address=address) if address else DaskTaskRunner(cluster_kwargs=local)
    with runner as running:
        yield partial(_submit, running)


def _submit(runner: Any, model: str, count: int) -> None:
    for _ in range(count):
        runner.submit(score_on_dask, {"model": model})
