"""Registers what deploy/prefect.yaml lists at a Prefect server, with forms made from what is installed and configured.

Doing it again changes only what differs, and leaves alone what is a person's to decide on Prefect's pages: a schedule
or an automation that was switched off stays off.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from typing import Any
from zoneinfo import available_timezones

import httpx
import yaml
from prefect import Flow, get_client
from prefect import __version__ as prefect_version
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import get_current_settings
from pydantic import ValidationError

from medflow import __version__
from medflow.config import Settings
from medflow.errors import ConfigurationError, TransientError
from medflow.flows import automations
from medflow.flows.forms import form
from medflow.flows.serve import TYPE, FlowServer
from medflow.registry import Registry

OLDEST = (3, 8)  # of Prefect's servers: the deployments' limits and strategies are understood from there on
POOL_TYPES = (TYPE, "process", "docker", "kubernetes", "kubernetes-gpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What an operator may decide beside the file: where runs go, when nights begin, who is told of failures."""

    pool: str | None = None
    pool_type: str = TYPE
    cron: str | None = None
    timezone: str | None = None
    notify: str | None = None
    silent_s: float = automations.SILENT_S


def deploy(settings: Settings, registry: Registry, options: Options) -> dict[str, Any]:
    """Register the work pool, the deployments and the automations; returns what became of each.

    Raises
    ------
    ConfigurationError
        No server is configured, it refuses the credentials, it is too old, or an option is wrong.
    TransientError
        The server cannot be reached.
    """
    url = get_current_settings().api.url
    if not url:
        raise ConfigurationError(
            "deploying needs a Prefect server: set PREFECT_API_URL, for example http://127.0.0.1:4200/api"
        )
    try:
        with get_client(sync_client=True) as client:
            _check_version(client)
            return _register(client, settings, registry, options)
    except PrefectHTTPStatusError as error:
        raise _refused(error, url) from None
    except httpx.TransportError as error:
        raise TransientError(
            f"Prefect's server at {_shown(url)} cannot be reached ({type(error).__name__}): is it running, and is "
            "PREFECT_API_URL its address, with /api at the end?"
        ) from None


def _register(client: SyncPrefectClient, settings: Settings, registry: Registry, options: Options) -> dict[str, Any]:
    wanted = list(automations.wanted(client, notify=options.notify, silent_s=options.silent_s))  # checked before all
    listed = [_with_options(entry, settings, options) for entry in read_file()["deployments"]]
    pool = _put_pool(client, listed[0]["work_pool"]["name"], options.pool_type)
    return {
        "medflow": __version__,
        "work_pool": pool,
        "deployments": [_put_deployment(client, entry, settings, registry) for entry in listed],
        "automations": [{"name": item.name, "status": automations.put(client, item)} for item in wanted],
    }


def read_file() -> dict[str, Any]:
    """deploy/prefect.yaml."""
    return yaml.safe_load(files("medflow.deploy").joinpath("prefect.yaml").read_text(encoding="utf-8"))


def _with_options(entry: dict[str, Any], settings: Settings, options: Options) -> dict[str, Any]:
    zone = options.timezone or settings.timezone
    if zone is not None and zone not in available_timezones():
        raise ConfigurationError(f"--timezone {zone!r} is not an IANA time zone, for example Europe/Berlin")
    schedules = [
        {**item, "cron": options.cron or item["cron"], "timezone": zone or item["timezone"]}
        for item in entry.get("schedules", ())
    ]
    pool = {**entry["work_pool"], "name": options.pool or entry["work_pool"]["name"]}
    return {**entry, "schedules": schedules, "work_pool": pool}


# --- the work pool -----------------------------------------------------------------------------------------------


def _put_pool(client: SyncPrefectClient, name: str, kind: str) -> dict[str, str]:
    template = _template(kind)
    kind = kind.removesuffix("-gpu")  # to Prefect's workers, a GPU is part of the job, not of the pool's type
    told = {"name": name, "type": kind}
    try:
        found = client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template))
        return {**told, "status": "created"}
    if found.type != kind:
        raise ConfigurationError(
            f"the work pool {name} is of type {found.type}: name another with --pool, or say --pool-type {found.type}"
        )
    if found.base_job_template == template:
        return {**told, "status": "unchanged"}
    client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))
    return {**told, "status": "updated"}


def _template(kind: str) -> dict[str, Any]:
    if kind not in POOL_TYPES:
        raise ConfigurationError(f"--pool-type {kind!r} is none of {', '.join(POOL_TYPES)}")
    if kind == TYPE:
        return FlowServer.get_default_base_job_template()
    return json.loads(files("medflow.deploy").joinpath("work-pools", f"{kind}.json").read_text(encoding="utf-8"))


# --- deployments -------------------------------------------------------------------------------------------------


def _put_deployment(
    client: SyncPrefectClient, entry: dict[str, Any], settings: Settings, registry: Registry
) -> dict[str, Any]:
    flow = _flow(entry["entrypoint"])
    before = _find(client, flow.name, entry["name"])
    fields = {
        "name": entry["name"],
        "version": __version__,
        "description": entry["description"],
        "tags": entry["tags"],
        "entrypoint": entry["entrypoint"],
        "work_pool_name": entry["work_pool"]["name"],
        "job_variables": entry["work_pool"]["job_variables"],
        "parameter_openapi_schema": form(flow, settings, registry).model_dump_for_openapi(),
        "enforce_parameter_schema": entry["enforce_parameter_schema"],
        "schedules": [_schedule(item, before) for item in entry["schedules"]],
        **_limit(entry.get("concurrency_limit")),
    }
    told = {"name": f"{flow.name}/{entry['name']}"}
    if schedules := [f"{item['cron']} {item['timezone']}" for item in entry["schedules"]]:
        told["schedule"] = ", ".join(schedules)
    if before is not None and _as_deployed(before) == _as_asked(fields):
        return {**told, "id": str(before.id), "status": "unchanged"}
    made = client.create_deployment(flow_id=client.create_flow(flow), **fields)
    return {**told, "id": str(made), "status": "updated" if before else "created"}


def _flow(entry_point: str) -> Flow[..., Any]:
    module, _, name = entry_point.rpartition(".")
    return getattr(import_module(module), name)


def _find(client: SyncPrefectClient, flow: str, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(f"{flow}/{name}")
    except ObjectNotFound:
        return None


def _schedule(item: dict[str, Any], before: DeploymentResponse | None) -> DeploymentScheduleCreate:
    try:
        schedule = CronSchedule(cron=item["cron"], timezone=item["timezone"])
    except ValidationError:
        raise ConfigurationError(f'--cron {item["cron"]!r} is not a cron line, for example "0 2 * * *"') from None
    kept = [had.active for had in before.schedules if had.slug == item["slug"]] if before else []
    return DeploymentScheduleCreate(schedule=schedule, slug=item["slug"], active=kept[0] if kept else item["active"])


def _limit(asked: dict[str, Any] | None) -> dict[str, Any]:
    if asked is None:
        return {"concurrency_limit": None, "concurrency_options": None}
    options = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy(asked["collision_strategy"]))
    return {"concurrency_limit": asked["limit"], "concurrency_options": options}


def _as_asked(fields: dict[str, Any]) -> dict[str, Any]:
    options = fields["concurrency_options"]
    return {
        **{name: value for name, value in fields.items() if name not in ("name", "schedules", "concurrency_options")},
        "schedules": sorted((item.slug, _cron(item.schedule), item.active) for item in fields["schedules"]),
        "collision": options.collision_strategy if options else None,
    }


def _as_deployed(found: DeploymentResponse) -> dict[str, Any]:
    same = ("version", "description", "tags", "entrypoint", "work_pool_name", "job_variables")
    options = found.concurrency_options
    limit = found.global_concurrency_limit
    return {
        **{name: getattr(found, name) for name in (*same, "parameter_openapi_schema", "enforce_parameter_schema")},
        "concurrency_limit": limit.limit if limit else None,
        "schedules": sorted((item.slug or "", _cron(item.schedule), item.active) for item in found.schedules),
        "collision": options.collision_strategy if options else None,
    }


def _cron(schedule: Any) -> tuple[str, str]:
    return str(getattr(schedule, "cron", "")), str(getattr(schedule, "timezone", ""))


# --- the server --------------------------------------------------------------------------------------------------


def _check_version(client: SyncPrefectClient) -> None:
    found = client.api_version()
    if tuple(int(number) for number in found.split(".")[:2]) < OLDEST:
        raise ConfigurationError(
            f"Prefect's server has version {found}, which is older than {'.'.join(map(str, OLDEST))}: install the "
            f"version that medflow has ({prefect_version}) there"
        )


def _refused(error: PrefectHTTPStatusError, url: str) -> Exception:
    status = error.response.status_code
    if status in (401, 403):
        return ConfigurationError(
            f"Prefect's server at {_shown(url)} refuses the credentials ({status}): set PREFECT_API_AUTH_STRING to the "
            "user:password that the server has in PREFECT_SERVER_API_AUTH_STRING"
        )
    if status >= 500:
        return TransientError(f"Prefect's server at {_shown(url)} failed ({status}): its log says why")
    return ConfigurationError(
        f"Prefect's server at {_shown(url)} does not take the deployments ({status}): is PREFECT_API_URL its address, "
        "with /api at the end, and has it the version that medflow has?"
    )


def _shown(url: str) -> str:
    parsed = httpx.URL(url)
    return f"{parsed.scheme}://{parsed.host}{f':{parsed.port}' if parsed.port else ''}{parsed.path}"
