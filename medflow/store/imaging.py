"""Studies, series and instances: stored in bulk, contradictions refused, and the series that a model has yet to see."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, or_, select, text, update

from medflow.errors import InputRejected, RejectCode
from medflow.plugin import ImagingInput
from medflow.records import DicomObject, DueUnit, Instance, Instant, Unit, UnitKind, digest_of
from medflow.store.due import not_yet_seen
from medflow.store.ledger import now_us
from medflow.store.tables import InstanceRow, SeriesRow, StudyRow

CHUNK = 4000  # parameters in one IN list
IMAGING_LOCK = 0x6D656470  # advisory lock of PostgreSQL: one writer at a time decides what a UID means

Outcome = str | InputRejected


def known_objects(connection: Connection, digests: Iterable[str]) -> dict[str, str | None]:
    """Which of these SHA-256 are stored already, each with the path of its file where it was taken in place."""
    query = select(InstanceRow.sha256, InstanceRow.path)
    return {row.sha256: row.path for row in _in(connection, query, InstanceRow.sha256, digests)}


def relocate_objects(connection: Connection, paths: Mapping[str, str | None]) -> None:
    """Note where the files of these SHA-256 lie now: a path, or None for the object store."""
    if paths:
        table = InstanceRow.__table__
        statement = update(table).where(table.c.sha256 == bindparam("digest")).values(path=bindparam("where"))  # type: ignore[arg-type]  # a Table
        connection.execute(statement, [{"digest": digest, "where": path} for digest, path in paths.items()])


def lock_imaging(connection: Connection) -> None:
    """Let one writer of imaging in at a time, until the transaction ends; SQLite does so by itself.

    To be taken before patients are resolved, so that all writers of imaging take their locks in one order.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": IMAGING_LOCK})


def store_objects(connection: Connection, items: Sequence[tuple[DicomObject, int | None]]) -> list[Outcome]:
    """Store DICOM objects, each with the surrogate id of its patient (None: it names nobody).

    The series that gained an instance get new counts, content and revision. A study without a patient gets the
    patient of a later object of that study.

    Returns
    -------
    list
        For each item, in order: "stored"; "unchanged" when the same bytes are stored already; or the `InputRejected`
        (UID_CONFLICT) when its UIDs contradict what is stored. A rejected item changes nothing.
    """
    if not items:
        return []
    lock_imaging(connection)
    batch = _Batch.of(connection, [item for item, _ in items])
    outcomes = [batch.settle(item, patient_id) for item, patient_id in items]
    batch.write(connection)
    return outcomes


def series_instances(connection: Connection, series_id: int) -> list[Instance]:
    """The instances of a series, by instance number and UID."""
    query = select(InstanceRow.__table__).where(InstanceRow.series_id == series_id)
    instances = [
        Instance(
            sop_instance_uid=row.uid,
            sop_class_uid=row.sop_class_uid,
            transfer_syntax_uid=row.transfer_syntax_uid,
            sha256=row.sha256,
            size=row.size,
            instance_number=row.instance_number,
            rows=row.rows,
            columns=row.columns,
            frames=row.frames,
            acquired=_instant(row.acquired_us, row.acquired_offset),
            path=row.path,
        )
        for row in connection.execute(query)
    ]
    return sorted(
        instances, key=lambda item: (item.instance_number is None, item.instance_number, item.sop_instance_uid)
    )


def due_series(connection: Connection, spec: ImagingInput, *, as_of: Instant, model_id: int) -> list[DueUnit]:
    """Series that fit ``spec``, belong to a known patient, and are new to the model since they last changed.

    The prediction time is the series' acquisition (else the study's start, else when its first instance was received),
    never the time of the run: scoring the same series again gives the same result identity.
    """
    moment = func.coalesce(SeriesRow.acquired_us, SeriesRow.received_us)
    slices = SeriesRow.frames if spec.dimensions == 3 else SeriesRow.instances
    query = (
        select(SeriesRow.id, SeriesRow.revision, SeriesRow.content, moment.label("moment"), SeriesRow.acquired_offset)
        .join(StudyRow, StudyRow.id == SeriesRow.study_id)
        .where(
            SeriesRow.modality.in_(spec.modality),
            StudyRow.patient_id.is_not(None),
            slices >= max(spec.min_slices, 1),
            moment <= as_of.utc_us,
            not_yet_seen(model_id, UnitKind.SERIES, SeriesRow.id, SeriesRow.revision),
        )
        .order_by(SeriesRow.id)
    )
    if spec.sop_classes:
        query = query.where(SeriesRow.sop_class_uid.in_(spec.sop_classes))
    if spec.body_parts:
        wanted = [part.lower() for part in spec.body_parts]
        query = query.where(or_(SeriesRow.body_part.is_(None), func.lower(SeriesRow.body_part).in_(wanted)))
    return [
        DueUnit(
            unit=Unit(kind=UnitKind.SERIES, id=row.id),
            revision=row.revision,
            input_key=digest_of("series", row.content),
            prediction_time=Instant(utc_us=row.moment, offset_min=row.acquired_offset or 0),
        )
        for row in connection.execute(query)
    ]


# --- settling a batch against what is stored -------------------------------------------------------------------


@dataclass(kw_only=True, slots=True, eq=False)
class _Study:
    patient_id: int | None
    id: int = 0
    new: DicomObject | None = None  # the object that made it
    gained: bool = False  # a patient, in this batch


@dataclass(kw_only=True, slots=True, eq=False)
class _Series:
    study: _Study
    id: int = 0
    new: DicomObject | None = None


@dataclass(kw_only=True, slots=True)
class _Batch:
    """What is known of the UIDs that a batch names, and what the batch adds."""

    studies: dict[str, _Study]
    series: dict[str, _Series]
    instances: dict[str, str]  # UID -> SHA-256
    added: list[tuple[Instance, _Series]] = field(default_factory=list)

    @classmethod
    def of(cls, connection: Connection, items: Sequence[DicomObject]) -> _Batch:
        """Everything stored under the UIDs that ``items`` name."""
        query = select(InstanceRow.uid, InstanceRow.sha256)
        uids = {item.instance.sop_instance_uid for item in items}
        instances = {row.uid: row.sha256 for row in _in(connection, query, InstanceRow.uid, uids)}

        query = select(SeriesRow.id, SeriesRow.uid, StudyRow.uid.label("study_uid")).join(
            StudyRow, StudyRow.id == SeriesRow.study_id
        )
        rows = list(_in(connection, query, SeriesRow.uid, {item.series.series_instance_uid for item in items}))

        query = select(StudyRow.id, StudyRow.uid, StudyRow.patient_id)
        uids = {item.study.study_instance_uid for item in items} | {row.study_uid for row in rows}
        found = _in(connection, query, StudyRow.uid, uids)
        studies = {row.uid: _Study(id=row.id, patient_id=row.patient_id) for row in found}
        series = {row.uid: _Series(id=row.id, study=studies[row.study_uid]) for row in rows}
        return cls(studies=studies, series=series, instances=instances)

    def settle(self, item: DicomObject, patient_id: int | None) -> Outcome:
        """Decide about one object, and remember it for those after it."""
        uid = item.instance.sop_instance_uid
        if (stored := self.instances.get(uid)) is not None:
            if stored == item.instance.sha256:
                return "unchanged"
            return _conflict("an object with this SOPInstanceUID and other content is stored already")
        study = self.studies.get(item.study.study_instance_uid)
        series = self.series.get(item.series.series_instance_uid)
        if series is not None and series.study is not study:
            return _conflict("its SeriesInstanceUID is stored as a series of another study")
        if study is not None and None not in (patient_id, study.patient_id) and patient_id != study.patient_id:
            return _conflict("its StudyInstanceUID is stored as a study of another patient")
        if study is None:
            study = self.studies[item.study.study_instance_uid] = _Study(patient_id=patient_id, new=item)
        if study.patient_id is None and patient_id is not None:
            study.patient_id, study.gained = patient_id, True
        if series is None:
            series = self.series[item.series.series_instance_uid] = _Series(study=study, new=item)
        self.instances[uid] = item.instance.sha256
        self.added.append((item.instance, series))
        return "stored"

    def write(self, connection: Connection) -> None:
        """Insert what is new, level by level, then bring the touched series up to date."""
        if not self.added:
            return
        _insert(connection, StudyRow, self.studies, _study_values)
        _insert(connection, SeriesRow, self.series, _series_values)
        connection.execute(insert(InstanceRow), [_instance_values(item, series.id) for item, series in self.added])
        gained = [study.id for study in self.studies.values() if study.gained and study.new is None]
        if gained:
            table = StudyRow.__table__
            statement = update(table).where(table.c.id == bindparam("study")).values(patient_id=bindparam("patient"))  # type: ignore[arg-type]  # a Table
            patients = {study.id: study.patient_id for study in self.studies.values()}
            connection.execute(statement, [{"study": one, "patient": patients[one]} for one in gained])
        touched = {series.id for _, series in self.added}
        siblings = {row.id for row in _in(connection, select(SeriesRow.id), SeriesRow.study_id, gained)}
        _recompute(connection, touched)
        for chunk in _chunks(sorted(siblings - touched)):
            statement = update(SeriesRow).where(SeriesRow.id.in_(chunk)).values(revision=SeriesRow.revision + 1)
            connection.execute(statement)


def _insert(connection: Connection, table: Any, by_uid: Mapping[str, Any], values: Callable[[Any, int], dict]) -> None:
    """Insert those of ``by_uid`` that are new, and set their ids."""
    new = {uid: item for uid, item in by_uid.items() if item.new is not None}
    if new:
        received = now_us()
        connection.execute(insert(table), [values(item, received) for item in new.values()])
        for row in _in(connection, select(table.id, table.uid), table.uid, new):
            new[row.uid].id = row.id


def _study_values(study: _Study, _received: int) -> dict[str, Any]:
    assert study.new is not None  # noqa: S101 - only new ones are inserted
    record = study.new.study
    return {
        "uid": record.study_instance_uid,
        "patient_id": study.patient_id,
        "accession_number": record.accession_number,
        "description": record.description,
        "started_us": record.started.utc_us if record.started else None,
        "started_offset": record.started.offset_min if record.started else None,
    }


def _series_values(series: _Series, received: int) -> dict[str, Any]:
    assert series.new is not None  # noqa: S101 - only new ones are inserted
    record = series.new.series
    return {
        "uid": record.series_instance_uid,
        "study_id": series.study.id,
        "modality": record.modality,
        "body_part": record.body_part,
        "description": record.description,
        "series_number": record.series_number,
        "frame_of_reference_uid": record.frame_of_reference_uid,
        "laterality": record.laterality,
        "received_us": received,
    }


def _instance_values(item: Instance, series_id: int) -> dict[str, Any]:
    return {
        "uid": item.sop_instance_uid,
        "series_id": series_id,
        "sop_class_uid": item.sop_class_uid,
        "transfer_syntax_uid": item.transfer_syntax_uid,
        "sha256": item.sha256,
        "size": item.size,
        "instance_number": item.instance_number,
        "rows": item.rows,
        "columns": item.columns,
        "frames": item.frames,
        "acquired_us": item.acquired.utc_us if item.acquired else None,
        "acquired_offset": item.acquired.offset_min if item.acquired else None,
        "path": item.path,
    }


def _recompute(connection: Connection, series_ids: Iterable[int]) -> None:
    """Counts, content, SOP class and acquisition of series from their instances; each gets a new revision."""
    ids = sorted(series_ids)
    query = select(SeriesRow.id, StudyRow.started_us, StudyRow.started_offset).join(
        StudyRow, StudyRow.id == SeriesRow.study_id
    )
    started = {row.id: (row.started_us, row.started_offset) for row in _in(connection, query, SeriesRow.id, ids)}
    members: dict[int, list[Any]] = defaultdict(list)
    query = select(
        InstanceRow.series_id,
        InstanceRow.sha256,
        InstanceRow.sop_class_uid,
        InstanceRow.frames,
        InstanceRow.acquired_us,
        InstanceRow.acquired_offset,
    )
    for row in _in(connection, query, InstanceRow.series_id, ids):
        members[row.series_id].append(row)
    rows = []
    for series_id, its in members.items():
        classes = {row.sop_class_uid for row in its}
        times = [(row.acquired_us, row.acquired_offset) for row in its if row.acquired_us is not None]
        acquired_us, acquired_offset = min(times, default=started[series_id])
        rows.append(
            {
                "series": series_id,
                "instances": len(its),
                "frames": sum(row.frames for row in its),
                "content": digest_of(*sorted(row.sha256 for row in its)),
                "sop_class_uid": classes.pop() if len(classes) == 1 else None,
                "acquired_us": acquired_us,
                "acquired_offset": acquired_offset,
            }
        )
    table = SeriesRow.__table__
    names = [name for name in rows[0] if name != "series"]
    changes = {name: bindparam(f"new_{name}") for name in names}
    statement = update(table).where(table.c.id == bindparam("series")).values(revision=table.c.revision + 1, **changes)  # type: ignore[arg-type]  # a Table
    connection.execute(
        statement, [{"series": row["series"], **{f"new_{name}": row[name] for name in names}} for row in rows]
    )


def _position(item: Instance) -> tuple[bool, int, str]:
    return item.instance_number is None, item.instance_number or 0, item.sop_instance_uid


def _conflict(reason: str) -> InputRejected:
    return InputRejected(RejectCode.UID_CONFLICT, reason)


def _instant(utc_us: int | None, offset: int | None) -> Instant | None:
    return None if utc_us is None else Instant(utc_us=utc_us, offset_min=offset or 0)


def _in(connection: Connection, query: Any, column: Any, values: Iterable[Any]) -> Iterator[Any]:
    """Rows of ``query`` whose ``column`` is among ``values``, however many these are."""
    for chunk in _chunks(sorted(set(values))):
        yield from connection.execute(query.where(column.in_(chunk)))


def _chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]
