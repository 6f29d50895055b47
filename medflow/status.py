"""Where an installation stands: one account for `medflow status`, its alarms, and the metrics.

Sources and targets are called by their configured names here. One that was named by its address or folder alone gets a
name made of a hash, so that neither a path nor a credential reaches a metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from medflow.config import Settings
from medflow.connections.endpoints import AnyTarget
from medflow.errors import ConfigurationError
from medflow.records import Instant, digest_of
from medflow.store import Connection, Store, connections, ledger, standing, watermarks, workers
from medflow.store.connections import ConnectionLine
from medflow.store.history import RunLine
from medflow.store.ledger import now_us
from medflow.store.standing import Rate, TargetLine, Work
from medflow.store.watermarks import MarkLine
from medflow.store.workers import Worker

KINDS = ("dicom", "fhir", "vcf", "fasta")
DEFAULT = "default"  # what a default target is called that has no name of its own
MAX_AGE_HOURS = 26.0  # a night, and two hours for it to take
HOUR_US = standing.HOUR_US
FORGOTTEN_US = 7 * standing.DAY_US  # after which a server that nobody configured is no longer listed


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceLine:
    """One configured source: the last run that ingested it, and the last that did so to its end.

    ``marks`` say how far it was read, where it is a server.
    """

    name: str
    kind: str
    attempt: RunLine | None
    success: RunLine | None
    marks: Sequence[MarkLine] = ()

    @property
    def read_us(self) -> int | None:
        """Until when all of it was read; None: nothing was to its end, or it is no server."""
        until = [mark.until_us for mark in self.marks]
        return min((at_us for at_us in until if at_us is not None), default=None) if None not in until else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One target by a name that may be shown. ``watched``: it is configured, so what it lacks is somebody's problem."""

    name: str
    watched: bool
    line: TargetLine


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A server that inputs come from, or a server or folder that results go to, and how it answered last.

    ``name`` may be shown anywhere. ``watched``: it is configured, so that its silence is somebody's problem.
    """

    name: str
    watched: bool
    line: ConnectionLine

    @property
    def up(self) -> bool:
        """It did what it was asked when it was last asked."""
        return self.line.failing_since_us is None


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Everything at one moment, from one snapshot of the store."""

    at_us: int
    sources: Sequence[SourceLine]
    received: Mapping[str, RunLine]
    work: Sequence[Work]
    rates: Sequence[Rate]
    targets: Sequence[Target]
    links: Sequence[Link]
    rejects: Mapping[str, int]
    workers: Sequence[Worker]
    workers_wanted: bool
    runs: Sequence[RunLine]

    def age_s(self, then_us: int | None) -> float | None:
        """Seconds since a moment; None since never."""
        return None if then_us is None else max(0.0, (self.at_us - then_us) / 1e6)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something that a person has to look at; ``code`` and ``name`` are for machines."""

    code: str
    name: str
    message: str


def look(store: Store, settings: Settings) -> Standing:
    """How everything stands now."""
    with store.reading() as connection:
        return look_from(connection, settings)


def look_from(connection: Connection, settings: Settings) -> Standing:
    """How everything stands in the snapshot that this connection reads."""
    at_us = now_us()
    marks = watermarks.standing(connection)
    sources = [
        SourceLine(
            name=name,
            kind=source.kind,
            attempt=attempt,
            success=success,
            marks=_current(mark for mark in marks if mark.source == name),
        )
        for name, source in sorted(settings.sources.items())
        for attempt, success in [standing.last_of_source(connection, name)]
    ]
    names = _target_names(settings)
    defaults = [target for name in _defaults(settings) if (target := _configured(settings, name)) is not None]
    expected = {target.public: target.kind for target in defaults}
    lines = standing.deliveries(connection, at_us=at_us, expected=expected)
    return Standing(
        at_us=at_us,
        sources=sources,
        received=standing.last_received(connection, KINDS),
        work=standing.work(connection),
        rates=standing.rates(connection, at_us=at_us),
        targets=[
            Target(name=names.get(line.target) or _safe_name(line), watched=line.target in names, line=line)
            for line in lines
        ],
        links=look_at_links(connection, settings),
        rejects=ledger.count_rejects(connection),
        workers=workers.listed(connection),
        workers_wanted=settings.executor == "workers",
        runs=standing.last_runs(connection),
    )


def _current(marks: Iterable[MarkLine]) -> list[MarkLine]:
    """Without those that were left behind when a source came to be asked for something else."""
    listed = list(marks)
    newest_us = max((mark.updated_us for mark in listed), default=0)
    return [mark for mark in listed if mark.updated_us > newest_us - FORGOTTEN_US]


def _target_names(settings: Settings) -> dict[str, str]:
    """What targets are called, by the names that the store has them under."""
    wanted = [(name, DEFAULT) for name in _defaults(settings)]
    wanted += [(name, name) for name in settings.targets]  # the name of one that has one comes after, and holds
    found = ((_configured(settings, target), name) for target, name in wanted)
    return {target.public: name for target, name in found if target is not None}


def _defaults(settings: Settings) -> Sequence[str]:
    try:
        return settings.default_targets
    except ConfigurationError:  # a delivery will say so
        return ()


def _configured(settings: Settings, target: str) -> AnyTarget | None:
    try:
        return settings.target(target)
    except ConfigurationError:  # a delivery to it will say so
        return None


def look_at_links(connection: Connection, settings: Settings) -> list[Link]:
    """How every server and folder answered last that is configured, or was used in the last week."""
    names = {connections.SOURCE: {name: name for name in settings.sources}, connections.TARGET: _target_names(settings)}
    found = [
        Link(
            name=names[line.role].get(line.name) or f"unnamed-{digest_of(line.name)[:8]}",
            watched=line.name in names[line.role],
            line=line,
        )
        for line in connections.standing(connection)
    ]
    since_us = now_us() - FORGOTTEN_US
    return [link for link in found if link.watched or max(link.line.ok_us or 0, link.line.failed_us or 0) > since_us]


def _safe_name(line: TargetLine) -> str:
    """A name for an address or a folder that tells neither its path nor more than its host."""
    host = urlsplit(line.target).hostname if "://" in line.target else None
    return f"{host or line.kind}-{digest_of(line.target)[:8]}"


# --- what needs a person -------------------------------------------------------------------------------------


def problems(found: Standing, *, max_age_hours: float = MAX_AGE_HOURS, max_dead: int = 0) -> list[Problem]:
    """What needs a person; empty is well. Up to ``max_dead`` dead cases of a model are put up with."""
    return [
        *_silent_servers(found),
        *_stale_sources(found, max_age_hours),
        *_broken_models(found),
        *_dead_jobs(found, max_dead),
        *_late_targets(found, max_age_hours),
        *_workers_missing(found),
    ]


def _silent_servers(found: Standing) -> Iterator[Problem]:
    for link in found.links:
        if link.watched and not link.up:
            yield Problem(code=f"{link.line.role}-fails", name=link.name, message=said_of(found, link, link.name))


def said_of(found: Standing, link: Link, name: str) -> str:
    """What is wrong with a connection that fails, since when and how often, and what comes of it."""
    line = link.line
    times = "once" if line.failures == 1 else f"{line.failures} times in a row"
    if line.role == connections.SOURCE:
        then = "the next run reads on where this one stopped"
    else:
        then = "the next run sends what waits"
    since = said_age(found.age_s(line.failing_since_us))
    error = (line.error or "").removesuffix(", then run the same command again")  # here it is said in other words
    return f"{line.role} {name} has failed for {since} ({times}): {error}; once it is mended, {then}"


def _stale_sources(found: Standing, max_age_hours: float) -> Iterator[Problem]:
    for source in found.sources:
        age_s = found.age_s(source.success.finished_us if source.success else None)
        if age_s is None:
            yield Problem(code="stale-source", name=source.name, message=f"{source.name} was never ingested")
        elif age_s > max_age_hours * 3600:
            said = f"{source.name} was last ingested {said_age(age_s)} ago"
            yield Problem(code="stale-source", name=source.name, message=said)


def _broken_models(found: Standing) -> Iterator[Problem]:
    """Models that the last finished scoring could not run: its cases wait, and no count of jobs tells of it."""
    last = next((run for run in found.runs if run.command == "score" and run.counts), None)
    if last is None:
        return
    for name, error in last.counts.get("broken", {}).items():
        said = f"{name} could not be run {said_age(found.age_s(last.started_us))} ago: {error}"
        yield Problem(code="broken-model", name=name, message=said)


def _dead_jobs(found: Standing, max_dead: int) -> Iterator[Problem]:
    for model in found.work:
        if (dead := model.jobs.get("dead", 0)) > max_dead:
            said = f"{dead} cases of {model.model} cannot be scored: see `medflow jobs`"
            yield Problem(code="dead-jobs", name=model.model, message=said)


def _late_targets(found: Standing, max_age_hours: float) -> Iterator[Problem]:
    for target in found.targets:
        if not target.watched:
            continue
        if dead := target.line.states["dead"]:
            said = f"{dead} results were refused by {target.name} for good: see `medflow retry deliveries`"
            yield Problem(code="dead-deliveries", name=target.name, message=said)
        age_s = found.age_s(target.line.oldest_us)
        if age_s is not None and age_s > max_age_hours * 3600:
            said = f"a result has waited {said_age(age_s)} for {target.name}"
            yield Problem(code="undelivered", name=target.name, message=said)


def _workers_missing(found: Standing) -> Iterator[Problem]:
    if found.workers_wanted and not any(worker.alive and worker.state == workers.SERVING for worker in found.workers):
        yield Problem(code="no-worker", name="", message="no worker is there to score: start `medflow worker`")


def said_age(seconds: float | None) -> str:
    """An age as people say it: 45 s, 12 min, 5 h, 3 days."""
    if seconds is None:
        return "never"
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} days"


# --- for machines --------------------------------------------------------------------------------------------


def as_json(found: Standing, *, last: int = 10) -> dict[str, Any]:
    """The account as ``medflow status --json`` prints it."""
    return {
        "at": _iso(found.at_us),
        "jobs": {model.model: {state: n for state, n in model.jobs.items() if n} for model in found.work},
        "outbox": {target.line.target: dict(target.line.states) for target in found.targets},
        "rejects": dict(found.rejects),
        "sources": {source.name: _source_json(found, source) for source in found.sources},
        "received": {
            kind: {"at": _iso(line.finished_us), "stored": line.counts.get("stored", 0)}
            for kind, line in found.received.items()
        },
        "backlog": {model.model: _backlog_json(found, model) for model in found.work},
        "rates": {rate.model: _rate_json(rate) for rate in found.rates},
        "targets": {target.name: _target_json(found, target) for target in found.targets},
        "connections": [_link_json(found, link) for link in found.links],
        "workers": [_worker_json(found, worker) for worker in found.workers],
        "runs": [_run_json(line) for line in found.runs[:last]],
    }


def _source_json(found: Standing, source: SourceLine) -> dict[str, Any]:
    success = source.success
    age_s = found.age_s(success.finished_us if success else None)
    return {
        "kind": source.kind,
        "success": _iso(success.finished_us) if success else None,
        "age_s": None if age_s is None else round(age_s),
        "brought": _counts(success),
        "attempt": _iso(source.attempt.started_us) if source.attempt else None,
        "attempt_status": source.attempt.status if source.attempt else None,
        "read_until": {mark.kind: _iso(mark.until_us) for mark in source.marks},
    }


def _backlog_json(found: Standing, model: Work) -> dict[str, Any]:
    age_s = found.age_s(model.oldest_ready_us)
    waiting = {state: model.jobs.get(state, 0) for state in ("ready", "leased", "failed")}
    return {**waiting, "oldest_ready_s": None if age_s is None else round(age_s), "chunks": dict(model.chunks)}


def _rate_json(rate: Rate) -> dict[str, Any]:
    return {
        "last_hour": rate.hour,
        "last_day": rate.day,
        "per_hour_over_day": round(rate.day / 24, 1),
        "ms_per_case": per_case_ms(rate),
    }


def per_case_ms(rate: Rate) -> dict[str, float]:
    """Milliseconds by stage that a case of this model took, over the last day."""
    return {stage: round(1000 * spent / rate.day, 3) for stage, spent in sorted(rate.seconds.items()) if rate.day}


def _target_json(found: Standing, target: Target) -> dict[str, Any]:
    age_s = found.age_s(target.line.oldest_us)
    return {
        **target.line.states,
        "watched": target.watched,
        "oldest_s": None if age_s is None else round(age_s),
        "last_hour": target.line.hour,
        "last_day": target.line.day,
    }


def _link_json(found: Standing, link: Link) -> dict[str, Any]:
    failing_s = found.age_s(link.line.failing_since_us)
    return {
        "role": link.line.role,
        "name": link.name,
        "address": link.line.name,
        "watched": link.watched,
        "up": link.up,
        "answered": _iso(link.line.ok_us),
        "failing_since": _iso(link.line.failing_since_us),
        "failing_s": None if failing_s is None else round(failing_s),
        "failures": link.line.failures,
        "error": link.line.error,
    }


def _worker_json(found: Standing, worker: Worker) -> dict[str, Any]:
    return {
        "name": worker.name,
        "device": worker.device,
        "models": sorted(worker.models),
        "loaded": sorted(worker.loaded),
        "seen_s": round(found.age_s(worker.seen_us) or 0.0),
        "state": worker_state(worker),
    }


def worker_state(worker: Worker) -> str:
    """Serving, draining, or gone: not heard of for a minute, or its process has ended."""
    return worker.state if worker.alive else "gone"


def _run_json(line: RunLine) -> dict[str, Any]:
    row = {"id": line.id, "command": line.command, "source": line.source, "status": line.status}
    return {**row, "started": _iso(line.started_us), "finished": _iso(line.finished_us)}


def _counts(line: RunLine | None) -> dict[str, int]:
    names = ("offered", "stored", "unchanged", "rejected")
    return {name: line.counts[name] for name in names if name in line.counts} if line else {}


def _iso(at_us: int | None) -> str | None:
    if at_us is None:
        return None
    return Instant(utc_us=at_us // 1_000_000 * 1_000_000).datetime().isoformat().replace("+00:00", "Z")
