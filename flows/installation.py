"""What every flow shares: the installation it runs in, opened once per process."""

from __future__ import annotations

from functools import lru_cache

from prefect.cache_policies import NO_CACHE

from medflow.config import load_settings
from medflow.errors import TransientError
from medflow.scoring import LoadedModels
from medflow.steps import Site, open_site, refreshed, with_workers

# Arguments are names and results are counts: there is nothing worth hashing or keeping.
TASK = {"cache_policy": NO_CACHE, "retries": 3, "retry_delay_seconds": [5, 30, 120], "persist_result": False}


def only_transient(_task, _run, state) -> bool:  # noqa: ANN001 - Prefect's types
    """Retry what the infrastructure caused; an error in configuration or data stays one."""
    try:
        state.result()
    except TransientError:
        return True
    except Exception:  # noqa: BLE001 - the state carries it on
        return False
    return False


@lru_cache(maxsize=1)
def _opened() -> dict[str, Site]:
    return {"site": open_site(load_settings())}


def site() -> Site:
    """The installation that the environment describes."""
    return _opened()["site"]


def refresh() -> Site:
    """The same, with what was promoted meanwhile: at the start of a run, which goes on with what answered then."""
    _opened()["site"] = refreshed(site())
    return site()


def scoring_site() -> Site:
    """The installation with every model that a flow may have scored: where workers do it, theirs as well."""
    here = site()
    return with_workers(here) if here.settings.executor == "workers" else here


@lru_cache(maxsize=1)
def loaded_models() -> LoadedModels:
    """The models this process has loaded: they stay between chunks and runs."""
    return LoadedModels(load_settings())
