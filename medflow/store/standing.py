"""Where things stand, for people, alarms and metrics: a fixed set of queries, each answered from an index.

Their cost grows with what is open (waiting, failed, dead) and with the last day's chunks. What is done is counted
along an index, and the totals since the beginning are summed once and then carried on (`Totals`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Double, and_, case, cast, func, null, or_, select

from medflow.store.chunks import RUNNING
from medflow.store.history import RunLine
from medflow.store.jobs import SECOND_US, is_gone
from medflow.store.outbox import STATES as DELIVERY_STATES
from medflow.store.outbox import fits
from medflow.store.tables import ChunkRow, DeliveryRow, JobRow, ModelRow, OutboxRow, RunRow, TargetRow

HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US
JOB_STATES = ("ready", "leased", "done", "failed", "dead")
RUNS_LOOKED_AT = 2000  # the last so many: what is older is history, not standing
SAMPLED = 10_000  # undelivered resources of a target that are looked at for the oldest
SETTLED_US = 10 * 60 * SECOND_US  # a chunk that ended so long ago is committed, whoever wrote it
KILLED = "killed"  # on record as running, and its process is gone


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One model's jobs by state, when the oldest ready one was made, and how many chunks are asked for or running."""

    model: str
    jobs: Mapping[str, int]
    oldest_ready_us: int | None = None
    chunks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """What one model scored lately: cases of the last hour and day, and the day's seconds by stage."""

    model: str
    hour: int
    day: int
    seconds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetLine:
    """One target: its resources by state, since when the oldest of them waits, how many went in the last hour, day."""

    target: str
    kind: str  # folder | fhir | dicomweb | pacs
    states: Mapping[str, int]
    oldest_us: int | None
    hour: int
    day: int


# --- runs ----------------------------------------------------------------------------------------------------


def last_runs(connection: Connection, *, last: int = RUNS_LOOKED_AT) -> list[RunLine]:
    """The last runs, newest first; a `KILLED` one says so where its process was of this host."""
    return [_run_line(row) for row in connection.execute(_runs().limit(last)).mappings()]


def last_of_source(connection: Connection, source: str) -> tuple[RunLine | None, RunLine | None]:
    """The last run that ingested a configured source, and the last that did so to its end."""
    of_source = _runs().where(RunRow.source == source).limit(1)
    found = (of_source, of_source.where(RunRow.status == "completed"))
    attempt, success = (connection.execute(query).mappings().one_or_none() for query in found)
    return (_run_line(attempt) if attempt else None), (_run_line(success) if success else None)


def last_received(connection: Connection, kinds: Iterable[str]) -> dict[str, RunLine]:
    """By kind of input, the last run that stored anything of it, of the last runs of that kind."""
    found: dict[str, RunLine] = {}
    for kind in kinds:
        query = _runs().where(RunRow.command == f"ingest {kind}").limit(RUNS_LOOKED_AT)
        lines = map(_run_line, connection.execute(query).mappings())
        if line := next((line for line in lines if line.counts.get("stored")), None):
            found[kind] = line
    return found


def _runs() -> Any:
    return select(RunRow.__table__).order_by(RunRow.id.desc())


def _run_line(row: Mapping[Any, Any]) -> RunLine:
    values = {name: row[name] for name in RunLine.__dataclass_fields__}
    if row["status"] == "running" and row["owner"] and is_gone(row["owner"]):
        values["status"] = KILLED
    return RunLine(**values)


# --- scoring -------------------------------------------------------------------------------------------------


def work(connection: Connection) -> list[Work]:
    """Every model's live jobs and open chunks, by the model's name; versions of a model are counted together."""
    names = _model_names(connection)
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    oldest: dict[str, int] = {}
    for state in JOB_STATES:  # one state at a time: each is one stretch of the index
        made = func.min(JobRow.created_us) if state == "ready" else null()
        query = select(JobRow.model_id, func.count(), made).where(JobRow.state == state, ~JobRow.superseded)
        for model_id, count, first_us in connection.execute(query.group_by(JobRow.model_id)):
            name = names[model_id]
            counts[name][state] += count
            if first_us is not None:
                oldest[name] = min(first_us, oldest.get(name, first_us))
    chunks: defaultdict[str, Counter[str]] = defaultdict(Counter)
    query = select(ChunkRow.model_id, ChunkRow.state, func.count()).where(ChunkRow.finished_us.is_(None))
    for model_id, state, count in connection.execute(query.group_by(ChunkRow.model_id, ChunkRow.state)):
        chunks[names[model_id]][state] += count
    return [
        Work(model=name, jobs=counts[name], oldest_ready_us=oldest.get(name), chunks=chunks[name])
        for name in sorted(counts.keys() | chunks.keys())
    ]


def rates(connection: Connection, *, at_us: int) -> list[Rate]:
    """What each model scored in the hour and the day before ``at_us``, chunks that are running included."""
    lately = or_(ChunkRow.finished_us >= at_us - DAY_US, _open_since(at_us - DAY_US))
    cases = ChunkRow.done + ChunkRow.failed + ChunkRow.dead
    fresh = or_(ChunkRow.finished_us >= at_us - HOUR_US, _open_since(at_us - HOUR_US))
    query = select(ChunkRow.model_id, func.sum(case((fresh, cases), else_=0)), func.sum(cases)).where(lately)
    names, hour, day = _model_names(connection), Counter[str](), Counter[str]()
    for model_id, in_hour, in_day in connection.execute(query.group_by(ChunkRow.model_id)):
        hour[names[model_id]] += int(in_hour)
        day[names[model_id]] += int(in_day)
    seconds = _stage_seconds(connection, names, lately)
    return [Rate(model=name, hour=hour[name], day=day[name], seconds=seconds.get(name, {})) for name in sorted(day)]


def _open_since(since_us: int) -> Any:
    return and_(ChunkRow.finished_us.is_(None), ChunkRow.state == RUNNING, ChunkRow.started_us >= since_us)


def _model_names(connection: Connection) -> dict[int, str]:
    return {key: name for key, name in connection.execute(select(ModelRow.id, ModelRow.name))}


def _stage_seconds(connection: Connection, names: Mapping[int, str], which: Any) -> dict[str, dict[str, float]]:
    each = func.json_each_text if connection.dialect.name == "postgresql" else func.json_each
    stage = each(ChunkRow.seconds).table_valued("key", "value", joins_implicitly=True)
    spent = func.sum(cast(stage.c.value, Double))
    query = select(ChunkRow.model_id, stage.c.key, spent).where(which).group_by(ChunkRow.model_id, stage.c.key)
    found: dict[str, dict[str, float]] = {}
    for model_id, key, seconds in connection.execute(query):
        stages = found.setdefault(names[model_id], {})
        stages[key] = stages.get(key, 0.0) + float(seconds)
    return found


class Totals:
    """What was ever scored, by model: cases by how they ended, and seconds by stage.

    The first look sums every chunk; later ones only those that ended since, so that a process that is asked every few
    seconds for years does not get slower. Chunks that may still change are added anew each time.
    """

    def __init__(self) -> None:
        self._until_us = 0
        self._cases: Counter[tuple[str, str]] = Counter()
        self._seconds: Counter[tuple[str, str]] = Counter()

    def look(self, connection: Connection, *, at_us: int) -> tuple[Mapping[tuple[str, str], int], Mapping[Any, float]]:
        """Cases by (model, done | failed | dead), and seconds by (model, stage), up to now."""
        settled_us = max(self._until_us, at_us - SETTLED_US)
        settled = and_(ChunkRow.finished_us > self._until_us, ChunkRow.finished_us <= settled_us)
        cases, seconds = self._sums(connection, settled)
        self._cases.update(cases)
        self._seconds.update(seconds)  # type: ignore[arg-type]  # a Counter adds floats as well
        self._until_us = settled_us
        cases, seconds = self._sums(connection, or_(ChunkRow.finished_us > settled_us, ChunkRow.finished_us.is_(None)))
        return self._cases + cases, self._seconds + seconds

    @staticmethod
    def _sums(connection: Connection, which: Any) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
        names, cases = _model_names(connection), Counter[tuple[str, str]]()
        ends = [getattr(ChunkRow, end) for end in ("done", "failed", "dead")]
        query = select(ChunkRow.model_id, *map(func.sum, ends)).where(which).group_by(ChunkRow.model_id)
        for model_id, *sums in connection.execute(query):
            for end, count in zip(("done", "failed", "dead"), sums, strict=True):
                cases[names[model_id], end] += int(count)
        spent = Counter[tuple[str, str]]()
        for name, stages in _stage_seconds(connection, names, which).items():
            spent.update({(name, stage): value for stage, value in stages.items()})  # type: ignore[dict-item]
        return cases, spent


# --- delivery ------------------------------------------------------------------------------------------------


def deliveries(connection: Connection, *, at_us: int, expected: Mapping[str, str] | None = None) -> list[TargetLine]:
    """Every target that was ever used, and those ``expected`` to be (name to kind).

    ``pending`` includes what is not enrolled yet.
    """
    query = select(TargetRow.name, TargetRow.kind, TargetRow.enrolled)
    known = {name: (kind, last) for name, kind, last in connection.execute(query)}
    for name, kind in (expected or {}).items():
        known.setdefault(name, (kind, 0))
    return [_target_line(connection, name, kind, last, at_us) for name, (kind, last) in sorted(known.items())]


def _target_line(connection: Connection, name: str, kind: str, enrolled: int, at_us: int) -> TargetLine:
    states: dict[str, int] = dict.fromkeys(DELIVERY_STATES, 0)
    oldest: list[int] = []
    mine = DeliveryRow.target == name
    for state in DELIVERY_STATES:
        query = select(func.count()).select_from(DeliveryRow).where(mine, DeliveryRow.state == state)
        states[state] = connection.execute(query).scalar_one()
        if states[state] and state in ("pending", "failed"):
            some = select(DeliveryRow.outbox_id).where(mine, DeliveryRow.state == state).limit(SAMPLED).subquery()
            query = select(func.min(OutboxRow.created_us)).join(some, some.c.outbox_id == OutboxRow.id)
            oldest.append(connection.execute(query).scalar_one())
    if count := _unseen(connection, kind, enrolled, sum(states.values())):
        states["pending"] += count
        unseen = and_(OutboxRow.id > enrolled, fits(kind))
        some = select(OutboxRow.created_us).where(unseen).order_by(OutboxRow.id).limit(SAMPLED).subquery()
        oldest.append(connection.execute(select(func.min(some.c.created_us))).scalar_one())
    hour, day = (
        connection.execute(
            select(func.count())
            .select_from(DeliveryRow)
            .where(mine, DeliveryRow.state == "delivered", DeliveryRow.delivered_us >= at_us - span)
        ).scalar_one()
        for span in (HOUR_US, DAY_US)
    )
    return TargetLine(target=name, kind=kind, states=states, oldest_us=min(oldest, default=None), hour=hour, day=day)


def _unseen(connection: Connection, kind: str, enrolled: int, known: int) -> int:
    """How many resources are not enrolled; where they are many, by what is: their bodies are not read for it."""
    newest = connection.execute(select(func.max(OutboxRow.id))).scalar_one() or 0
    query = select(func.count(OutboxRow.id)).where(fits(kind))
    if newest - enrolled > SAMPLED:
        return connection.execute(query).scalar_one() - known
    return connection.execute(query.where(OutboxRow.id > enrolled)).scalar_one()
