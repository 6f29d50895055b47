"""Results that no longer stand: another takes their place, or what they were made of was taken back.

A result that a later one replaces is superseded: amended, or entered in error where the later one is of another
patient. The others here are those that nothing replaces: the encounter shows nothing any more, or never was; or its
data changed, and the new job was refused because of them. A value that is corrected later, or that only came late,
takes nothing back: the result was right at its time.

`corrections` marks the results that a value which was taken back may have gone into (`TAKEN_BACK`). The next selection
compares what such a result was made of with what its prediction time shows now: the mark is removed, or becomes `LOST`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Row, Select, and_, case, exists, func, or_, select, update

from medflow.plugin import TimeSeriesInput
from medflow.records import Instant, Outgoing, UnitKind
from medflow.store import jobs, outbox
from medflow.store.jobs import IN_LIST, LOST, TAKEN_BACK
from medflow.store.ledger import record_audit
from medflow.store.tables import EncounterRow, JobRow, ModelRow, OutboxRow, PatientRow
from medflow.store.timeseries import REVISION, VOID_ENCOUNTER, input_keys

PENDING = ("ready", "leased", "failed")
STATUS = "entered-in-error"
TAKEN_AT_ONCE = 20  # units of which all that was said is held in memory: of a sample it may be thousands of resources
_UNITS = select(JobRow.id, JobRow.unit_kind, JobRow.unit_id)
_ENVELOPES = select(OutboxRow.job_id, OutboxRow.envelope).distinct()


def supersede_older(connection: Connection, done: Mapping[int, Sequence[Outgoing]]) -> None:
    """Let what jobs have to say, by their id, take the place of earlier results of the same units and models."""
    older = jobs.supersede_older(connection, list(done))
    if not older:
        return
    misfiled = _misfiled(connection, older, done)
    outbox.supersede(connection, [job_id for job_id in older if job_id not in misfiled], "amended")
    outbox.supersede(connection, sorted(misfiled), STATUS)


def _misfiled(connection: Connection, older: Sequence[int], done: Mapping[int, Sequence[Outgoing]]) -> set[int]:
    """The jobs whose results are filed under a patient that is not their unit's any more."""
    unit_of = {row.id: (row.unit_kind, row.unit_id) for row in _rows(connection, _UNITS, JobRow.id, [*older, *done])}
    filed = {unit_of[job_id]: items[0].envelope for job_id, items in done.items()}
    return {
        row.job_id
        for row in _rows(connection, _ENVELOPES, OutboxRow.job_id, older)
        if _of_patient(row) and row.envelope != filed[unit_of[row.job_id]]
    }


def _of_patient(row: Row[Any]) -> bool:
    return row.envelope.startswith("patient/")


def _rows(connection: Connection, query: Select[Any], column: Any, ids: Sequence[int]) -> Iterator[Any]:
    for part in _parts(ids):
        yield from connection.execute(query.where(column.in_(part)))


def withdraw(connection: Connection, job_ids: Sequence[int], run_id: int | None) -> int:
    """Take back the results of these jobs, of those that are done and live; returns how many."""
    count = 0
    for ids in _parts(job_ids):
        live = JobRow.id.in_(ids), JobRow.state == "done", ~JobRow.superseded
        gone = connection.execute(update(JobRow).where(*live).values(superseded=True).returning(JobRow.id))
        withdrawn = sorted(gone.scalars())
        if withdrawn:
            outbox.supersede(connection, withdrawn, STATUS)
        for job_id in withdrawn:
            record_audit(connection, run_id, "withdraw", f"job {job_id}")
        count += len(withdrawn)
    return count


def take_from_patients(connection: Connection, kind: UnitKind, unit_ids: Sequence[int]) -> None:
    """Take back whatever was said of these units' patients, by any model: they turned out to be other patients'.

    As `take_back`, apart from what was said of nobody.
    """
    for ids in _parts(unit_ids):
        _let_go(connection, kind, ids)
        done = _done(connection, kind, ids)
        filed = {row.job_id for row in _rows(connection, _ENVELOPES, OutboxRow.job_id, done) if _of_patient(row)}
        _never_right(connection, sorted(filed), None)


def take_back(connection: Connection, kind: UnitKind, unit_ids: Sequence[int], run_id: int | None) -> tuple[int, int]:
    """Take back whatever was said of these units, by any model: they should never have been scored.

    What was amended meanwhile is entered in error too: it would still be read as having been right at its time. Jobs
    that wait are let go of, so that what is being scored now is not committed any more.
    Returns how many results stood, and how many jobs were let go of.
    """
    let_go = sum(_let_go(connection, kind, ids) for ids in _parts(unit_ids))
    parts = (unit_ids[start : start + TAKEN_AT_ONCE] for start in range(0, len(unit_ids), TAKEN_AT_ONCE))
    results = sum(_never_right(connection, _done(connection, kind, ids), run_id) for ids in parts)
    return results, let_go


def _let_go(connection: Connection, kind: UnitKind, ids: Sequence[int]) -> int:
    """First of all: it waits for what another process is just committing, which is among the results then."""
    waiting = JobRow.unit_kind == str(kind), JobRow.unit_id.in_(ids), JobRow.state != "done", ~JobRow.superseded
    connection.execute(select(JobRow.id).where(*waiting).order_by(JobRow.id).with_for_update())  # as `jobs.held` does
    return connection.execute(update(JobRow).where(*waiting).values(superseded=True)).rowcount


def _done(connection: Connection, kind: UnitKind, ids: Sequence[int]) -> Sequence[int]:
    mine = JobRow.unit_kind == str(kind), JobRow.unit_id.in_(ids)
    return connection.scalars(select(JobRow.id).where(*mine, JobRow.state == "done").order_by(JobRow.id)).all()


def _never_right(connection: Connection, job_ids: Sequence[int], run_id: int | None) -> int:
    """Take back the results of these jobs, those of before that were amended as well; returns how many stood."""
    count = withdraw(connection, job_ids, run_id)
    for some in _parts(job_ids):
        outbox.supersede(connection, some, STATUS)
    return count


def contradicted(connection: Connection, job_ids: Sequence[int]) -> list[int]:
    """The live results that jobs which their data made dead tell to be wrong.

    Those of the same unit and prediction time that were made of other data; and those that are `LOST`, whatever their
    time. What another version of the model was given is comparable only of a series: its content is the input. A sample
    stays what it is, whatever reference it is read with: its result is wrong only where it was another patient's.
    """
    found: list[int] = []
    old, dead = JobRow.__table__.alias("old"), JobRow.__table__.alias("dead")
    old_model, dead_model = ModelRow.__table__.alias("old_model"), ModelRow.__table__.alias("dead_model")
    comparable = or_(old.c.model_id == dead.c.model_id, old.c.unit_kind == str(UnitKind.SERIES))
    other_data = and_(
        old.c.prediction_time_us == dead.c.prediction_time_us,
        old.c.input_key != dead.c.input_key,
        comparable,
        or_(old.c.unit_kind != str(UnitKind.SAMPLE), old.c.unit_revision < dead.c.unit_revision),
    )
    for ids in _parts(job_ids):
        query = (
            select(old.c.id)
            .join(old_model, old_model.c.id == old.c.model_id)
            .join(dead_model, dead_model.c.name == old_model.c.name)
            .join(
                dead,
                and_(
                    dead.c.model_id == dead_model.c.id,
                    dead.c.unit_kind == old.c.unit_kind,
                    dead.c.unit_id == old.c.unit_id,
                ),
            )
            .where(dead.c.id.in_(ids), dead.c.state == "dead", ~dead.c.superseded)
            .where(old.c.state == "done", ~old.c.superseded, or_(other_data, old.c.unit_revision == LOST))
        )
        found += connection.execute(query.distinct()).scalars()
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdicts:
    """Which results (by job) are to be taken back, which are lost but about to be replaced, which stand after all."""

    model_id: int
    withdrawn: Sequence[int]
    lost: Mapping[int, int]  # with the encounter
    standing: Mapping[int, int]  # with the encounter's present revision


@dataclass(frozen=True, kw_only=True, slots=True)
class _Doubtful:
    job_id: int
    encounter_id: int
    moment: Instant
    input_key: str
    own: bool  # of this very version of the model
    marked: bool
    void: bool
    pending: bool
    revision: int


def judge(connection: Connection, spec: TimeSeriesInput, model_id: int) -> Verdicts:
    """Judge the live results of a model whose encounter is void, or changed so that they may have lost their ground.

    To be called when the selection has made its jobs: a result that one of them is about to replace is left to it.
    """
    doubtful = list(_doubtful(connection, spec, model_id))
    comparable = [item for item in doubtful if item.own and not item.void]
    # anchored at admission the window is the encounter's, whatever the moment: one for all of them is one query
    now = max((item.moment for item in comparable), default=Instant(utc_us=0))
    admission = spec.anchor == "admission"
    units = [(item.encounter_id, now if admission else item.moment) for item in comparable]
    keys = {item.job_id: key for item, key in zip(comparable, input_keys(connection, spec, units), strict=True)}
    withdrawn: list[int] = []
    lost, standing = {}, {}
    for item in doubtful:
        key = keys.get(item.job_id)
        if item.marked and key == item.input_key:
            standing[item.job_id] = item.revision
        elif item.void or (not item.pending and (item.marked or key is None)):
            withdrawn.append(item.job_id)
        elif item.marked:
            lost[item.job_id] = item.encounter_id
    return Verdicts(model_id=model_id, withdrawn=withdrawn, lost=lost, standing=standing)


def carry_out(connection: Connection, verdicts: Verdicts, run_id: int | None) -> int:
    """Take back what is withdrawn, and note the rest for later; returns how many were taken back.

    What was about to be replaced when it was judged is taken back too if the job that should replace it has been
    refused since: its refusal did not find the note yet.
    """
    replaced = _pending(connection, verdicts.model_id, sorted(set(verdicts.lost.values())))
    withdrawn = [*verdicts.withdrawn]
    withdrawn += [job_id for job_id, encounter_id in verdicts.lost.items() if encounter_id not in replaced]
    for ids in _parts(list(verdicts.lost)):
        connection.execute(update(JobRow).where(JobRow.id.in_(ids)).values(unit_revision=LOST))
    for job_id, revision in verdicts.standing.items():
        same = select(EncounterRow.id).join(PatientRow, PatientRow.id == EncounterRow.patient_id)
        same = same.where(EncounterRow.id == JobRow.unit_id, REVISION.in_((revision,)))  # else it may be marked again
        still = same.correlate(JobRow).exists()
        connection.execute(update(JobRow).where(JobRow.id == job_id, still).values(unit_revision=revision))
    return withdraw(connection, withdrawn, run_id)


def _pending(connection: Connection, model_id: int, encounter_ids: Sequence[int]) -> set[int]:
    """Those of the encounters that have a job still to end, which cannot end before this transaction does."""
    found: set[int] = set()
    for ids in _parts(encounter_ids):
        query = select(JobRow.unit_id).where(_still_to_end(JobRow.__table__, model_id), JobRow.unit_id.in_(ids))
        found.update(connection.scalars(query.order_by(JobRow.id).with_for_update()))  # in the order of `jobs.held`
    return found


def _still_to_end(jobs: FromClause, model_id: int) -> ColumnElement[bool]:
    of_model = and_(jobs.c.model_id == model_id, jobs.c.unit_kind == str(UnitKind.ENCOUNTER))
    return and_(of_model, jobs.c.state.in_(PENDING), ~jobs.c.superseded)


def _doubtful(connection: Connection, spec: TimeSeriesInput, model_id: int) -> Iterator[_Doubtful]:
    others = JobRow.__table__.alias("others")
    pending = exists(select(others.c.id).where(_still_to_end(others, model_id), others.c.unit_id == JobRow.unit_id))
    void = or_(EncounterRow.status.is_(None), EncounterRow.status.in_(VOID_ENCOUNTER))  # None: it was deleted
    marked = JobRow.unit_revision.in_((TAKEN_BACK, LOST))
    ground = or_(void, marked)
    revision = func.coalesce(REVISION, -1)  # its patient is not known any more
    if spec.anchor == "admission":
        ground = or_(ground, and_(JobRow.model_id == model_id, JobRow.unit_revision != revision))
    name = select(ModelRow.name).where(ModelRow.id == model_id).scalar_subquery()
    query = (
        select(JobRow.id, JobRow.model_id, JobRow.unit_id, JobRow.prediction_time_us, JobRow.prediction_time_offset)
        .add_columns(JobRow.input_key, revision.label("revision"))
        .add_columns(*(case((one, 1), else_=0).label(label) for one, label in ((marked, "marked"), (void, "void"))))
        .add_columns(case((pending, 1), else_=0).label("pending"))
        .join(EncounterRow, EncounterRow.id == JobRow.unit_id)
        .outerjoin(PatientRow, PatientRow.id == EncounterRow.patient_id)
        .where(JobRow.model_id.in_(select(ModelRow.id).where(ModelRow.name == name)))
        .where(JobRow.unit_kind == str(UnitKind.ENCOUNTER), JobRow.state == "done", ~JobRow.superseded, ground)
        .order_by(JobRow.id)
    )
    for row in connection.execute(query):
        yield _Doubtful(
            job_id=row.id,
            encounter_id=row.unit_id,
            moment=Instant(utc_us=row.prediction_time_us, offset_min=row.prediction_time_offset),
            input_key=row.input_key,
            own=row.model_id == model_id,
            marked=bool(row.marked),
            void=bool(row.void),
            pending=bool(row.pending),
            revision=row.revision,
        )


def _parts(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + IN_LIST] for start in range(0, len(ids), IN_LIST))
