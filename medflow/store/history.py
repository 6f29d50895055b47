"""What runs did, for whoever looks back: runs and their chunks, nights side by side, how scores were spread, one job.

Where many scores are asked for, each leaves here as a count in a bin of its output's declared range, not as a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Integer, case, cast, func, select

from medflow.records import Instant, Result, Unit, UnitKind
from medflow.store.jobs import Job
from medflow.store.predictions import result_of
from medflow.store.tables import ChunkRow, JobRow, ModelRow, PredictionRow, RunRow

DAY_US = 86_400_000_000
NIGHTLY = "nightly"  # the command under which a whole night is on record
TONIGHT = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLine:
    """One run as it is on record. ``finished_us`` is None while it runs, and of one that was killed."""

    id: int
    command: str
    source: str | None
    started_us: int
    finished_us: int | None
    status: str
    counts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkLine:
    """One scored chunk: its model, when, how many cases ended how, and its seconds by stage."""

    model: str
    version: str
    state: str
    asked_us: int
    started_us: int
    finished_us: int
    done: int = 0
    failed: int = 0
    dead: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def cases(self) -> int:
        """How many cases ended, whichever way."""
        return self.done + self.failed + self.dead


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """How one output's values of one night fall into equal bins of ``low`` to ``high``."""

    output: str
    night: int
    low: float
    high: float
    counts: tuple[int, ...]

    @property
    def cases(self) -> int:
        """How many values there are."""
        return sum(self.counts)


def runs(connection: Connection, *, since_us: int) -> list[RunLine]:
    """The runs that began at ``since_us`` or later, oldest first."""
    query = select(RunRow.__table__).where(RunRow.started_us >= since_us).order_by(RunRow.id)
    return [_run_line(row) for row in connection.execute(query).mappings()]


def nights(connection: Connection, *, last: int) -> list[RunLine]:
    """The last nights that are on record, oldest first."""
    query = select(RunRow.__table__).where(RunRow.command == NIGHTLY).order_by(RunRow.id.desc()).limit(last)
    return [_run_line(row) for row in connection.execute(query).mappings()][::-1]


def _run_line(row: Mapping[Any, Any]) -> RunLine:
    return RunLine(**{name: row[name] for name in RunLine.__dataclass_fields__})


def chunks(connection: Connection, *, since_us: int) -> list[ChunkLine]:
    """The chunks that were begun at ``since_us`` or later and have ended, in the order they ended."""
    query = (
        select(ChunkRow, ModelRow.name.label("model"), ModelRow.version.label("version"))
        .join(ModelRow, ModelRow.id == ChunkRow.model_id)
        .with_only_columns(
            ModelRow.name.label("model"),
            ModelRow.version.label("version"),
            ChunkRow.state,
            ChunkRow.asked_us,
            ChunkRow.started_us,
            ChunkRow.finished_us,
            ChunkRow.done,
            ChunkRow.failed,
            ChunkRow.dead,
            ChunkRow.reasons,
            ChunkRow.seconds,
        )
        .where(ChunkRow.finished_us >= since_us, ChunkRow.started_us >= since_us)
        .order_by(ChunkRow.finished_us, ChunkRow.id)
    )
    return [ChunkLine(**row) for row in connection.execute(query).mappings()]


def scored_models(connection: Connection, *, since_us: int) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, version, spec) of the models with cases done at ``since_us`` or later, in name order."""
    scored = select(JobRow.id).where(
        JobRow.model_id == ModelRow.id, JobRow.finished_us >= since_us, JobRow.state == "done"
    )
    query = select(ModelRow.name, ModelRow.version, ModelRow.spec).where(scored.exists())
    found = connection.execute(query.order_by(ModelRow.name, ModelRow.id))
    return [(row.name, row.version, row.spec) for row in found]


def spreads(
    connection: Connection,
    model: str,
    ranges: Mapping[str, tuple[float, float]],
    *,
    since_us: int,
    days: int,
    bins: int,
) -> list[Spread]:
    """How a model's outputs are spread, tonight (since ``since_us``) and on each of the ``days`` days before it.

    ``ranges`` are the declared ranges, by output. `Spread.night` is TONIGHT, or how many whole days earlier: 0 is the
    day that ended at ``since_us``. All versions of the model count alike, so that a new version's shift shows.
    """
    found: list[Spread] = []
    for output, (low, high) in ranges.items():
        counted = _binned(connection, model, output, (low, high), since_us, days, bins)
        for night in sorted(counted):
            counts = tuple(counted[night].get(place, 0) for place in range(bins))
            found.append(Spread(output=output, night=night, low=low, high=high, counts=counts))
    return found


def _binned(
    connection: Connection,
    model: str,
    output: str,
    span: tuple[float, float],
    since_us: int,
    days: int,
    bins: int,
) -> dict[int, dict[int, int]]:
    low, high = span
    versions = connection.execute(select(ModelRow.id).where(ModelRow.name == model)).scalars().all()
    position: Any = (PredictionRow.value - low) * (bins / (high - low))
    if connection.dialect.name == "postgresql":
        position = func.floor(position)  # its cast rounds where SQLite's cuts off
    place = cast(position, Integer)
    place = case((place >= bins, bins - 1), (place < 0, 0), else_=place).label("place")
    earlier = (since_us - 1 - JobRow.finished_us) // DAY_US
    night = case((JobRow.finished_us >= since_us, TONIGHT), else_=earlier).label("night")
    query = (
        select(night, place, func.count().label("cases"))
        .join(PredictionRow, PredictionRow.job_id == JobRow.id)
        .where(JobRow.model_id.in_(versions), JobRow.finished_us >= since_us - days * DAY_US, JobRow.state == "done")
        .where(PredictionRow.output == output, PredictionRow.value.is_not(None))
        .group_by("night", "place")  # by label: PostgreSQL takes an expression with parameters for another one
    )
    counted: dict[int, dict[int, int]] = {}
    for row in connection.execute(query):
        counted.setdefault(int(row.night), {})[int(row.place)] = int(row.cases)
    return counted


@dataclass(frozen=True, kw_only=True, slots=True)
class JobView:
    """One job with its model's stored declaration and its results: what is needed to show it."""

    job: Job
    model: str
    version: str
    digest: str
    spec: Mapping[str, Any]
    state: str
    superseded: bool
    error: str | None
    results: tuple[Result, ...]


def job_view(connection: Connection, job_id: int) -> JobView | None:
    """The job of this id, superseded or not; None when there is none."""
    query = select(JobRow, ModelRow).join(ModelRow, ModelRow.id == JobRow.model_id).where(JobRow.id == job_id)
    columns = (ModelRow.name, ModelRow.version, ModelRow.digest, ModelRow.spec, JobRow.__table__)
    row = connection.execute(query.with_only_columns(*columns)).one_or_none()
    if row is None:
        return None
    found = connection.execute(select(PredictionRow.__table__).where(PredictionRow.job_id == job_id))
    results = tuple(map(result_of, found))
    job = Job(
        id=row.id,
        unit=Unit(kind=UnitKind(row.unit_kind), id=row.unit_id),
        revision=row.unit_revision,
        input_key=row.input_key,
        prediction_time=Instant(utc_us=row.prediction_time_us, offset_min=row.prediction_time_offset),
        attempts=row.attempts,
    )
    return JobView(
        job=job,
        model=row.name,
        version=row.version,
        digest=row.digest,
        spec=row.spec,
        state=row.state,
        superseded=row.superseded,
        error=row.error,
        results=results,
    )


def scored_series(connection: Connection, *, since_us: int, last: int) -> list[int]:
    """The ids of the jobs that scored a picture or volume since then, the last ones, oldest first."""
    query = (
        select(JobRow.id)
        .where(JobRow.model_id.in_(select(ModelRow.id)))  # the index begins with the model
        .where(JobRow.finished_us >= since_us, JobRow.unit_kind.in_((str(UnitKind.SERIES), str(UnitKind.STUDY))))
        .where(select(PredictionRow.job_id).where(PredictionRow.job_id == JobRow.id).exists())
        .order_by(JobRow.finished_us.desc(), JobRow.id.desc())
        .limit(last)
    )
    return sorted(connection.execute(query).scalars())


def totals(lines: Sequence[ChunkLine]) -> dict[str, dict[str, Any]]:
    """Counts by ``model@version`` over these chunks."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        counts = found.setdefault(f"{line.model}@{line.version}", {"done": 0, "failed": 0, "dead": 0, "reasons": {}})
        for name in ("done", "failed", "dead"):
            counts[name] += getattr(line, name)
        for code, count in line.reasons.items():
            counts["reasons"][code] = counts["reasons"].get(code, 0) + count
    return found
