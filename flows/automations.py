"""What Prefect's server does about medflow's runs by itself: it ends those that fell silent, and tells of failures."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from medflow.errors import ConfigurationError

SILENT = "medflow: a run fell silent"
FAILED = "medflow: a run failed"
# Prefect's own beat is every 180 s where nothing else is set: a run that keeps to it is never taken for dead.
SILENT_S = 300
OURS = ResourceSpecification({"prefect.resource.id": "prefect.tag.medflow", "prefect.resource.role": "tag"})
RUNS = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})

# Names and a link: notifications leave the hospital's systems, and what is in them is read on telephones.
SUBJECT = "medflow: {{ flow.name }} {{ flow_run.state.name }}"
BODY = "The run {{ flow_run.name }} ended as {{ flow_run.state.name }}.\n\n{{ flow_run | ui_url }}"


def silent_runs(silent_s: float = SILENT_S) -> AutomationCore:
    """A run that sent a heartbeat, and then nothing at all for a while, is crashed: its machine is gone.

    Any event of the run will do as a sign of life, whatever its state is called.
    """
    trigger = EventTrigger(
        posture=Posture.Proactive,
        match=RUNS,
        match_related=OURS,
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.*"},
        for_each={"prefect.resource.id"},
        threshold=1,
        within=timedelta(seconds=silent_s),
    )
    message = (
        "Nothing was heard of this run any more: its process or machine is gone. The next run goes on with its work."
    )
    return AutomationCore(
        name=SILENT,
        description="Marks a run as crashed when its heartbeats stop, so that it holds up no other.",
        tags=["medflow"],
        trigger=trigger,
        actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message, force=False)],
    )


def failed_runs(block_id: UUID) -> AutomationCore:
    """A notification for each run that ended badly."""
    trigger = EventTrigger(
        posture=Posture.Reactive,
        match=RUNS,
        match_related=OURS,
        expect={f"prefect.flow-run.{name}" for name in ("Failed", "Crashed", "TimedOut")},
        for_each={"prefect.resource.id"},
        threshold=1,
    )
    return AutomationCore(
        name=FAILED,
        description="Tells of runs that failed, crashed or took too long.",
        tags=["medflow"],
        trigger=trigger,
        actions=[SendNotification(block_document_id=block_id, subject=SUBJECT, body=BODY)],
    )


def wanted(client: SyncPrefectClient, *, notify: str | None, silent_s: float) -> Iterator[AutomationCore]:
    """The automations to have.

    Raises
    ------
    ConfigurationError
        ``notify`` names no block.
    """
    yield silent_runs(silent_s)
    if notify is not None:
        yield failed_runs(_block(client, notify))


def _block(client: SyncPrefectClient, slug: str) -> UUID:
    kind, slash, name = slug.partition("/")
    if not (kind and slash and name):
        raise ConfigurationError(
            f"--notify takes TYPE/NAME of a notification block, for example slack-webhook/oncall, not {slug!r}"
        )
    try:
        return client.read_block_document_by_name(name=name, block_type_slug=kind).id
    except ObjectNotFound:
        raise ConfigurationError(
            f"Prefect has no block {slug}: make it on the pages (Blocks), or with `prefect block create {kind}`"
        ) from None


def put(client: SyncPrefectClient, automation: AutomationCore) -> str:
    """Create the automation, or make the one of its name equal to it; says which.

    One that somebody switched off on the pages stays off.
    """
    found = client.read_automations_by_name(automation.name)
    if not found:
        client.create_automation(automation)
        return "created"
    now = found[0]
    asked = automation.model_copy(update={"enabled": now.enabled})
    names = {"name", "description", "tags", "trigger", "actions"}
    if _told(AutomationCore.model_validate(now.model_dump()), names) == _told(asked, names):
        return "unchanged"
    client.update_automation(now.id, asked)
    return "updated"


def _told(automation: AutomationCore, names: set[str]) -> dict[str, object]:
    return automation.model_dump(mode="json", include=names)
