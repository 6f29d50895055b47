"""A batch of DICOM objects settled against what is stored: each taken or refused, then written level by level.

What the objects of one series say of it may differ. What is kept does not depend on the order in which they arrive:
contrast if any of them had it; the least slice thickness; an ImageType that is no scout's before one that is; of other
values that differ the one that sorts first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from medflow.errors import InputRejected, RejectCode
from medflow.records import DicomObject, Instance, Instant, Series, Study, digest_of
from medflow.series_rule import is_scout
from medflow.store.ledger import now_us
from medflow.store.tables import InstanceRow, SeriesRow, StudyRow

CHUNK = 4000  # parameters in one IN list

Outcome = str | InputRejected
SERIES_COLUMNS = {  # a series' attributes in SQL, by the record's names
    "modality": SeriesRow.modality,
    "body_part": SeriesRow.body_part,
    "description": SeriesRow.description,
    "protocol_name": SeriesRow.protocol_name,
    "image_type": SeriesRow.image_type,
    "contrast": SeriesRow.contrast,
    "slice_thickness_mm": SeriesRow.slice_thickness_mm,
    "series_number": SeriesRow.series_number,
    "frame_of_reference_uid": SeriesRow.frame_of_reference_uid,
    "laterality": SeriesRow.laterality,
}


def content_of(digests: Iterable[str]) -> str:
    """What identifies a series' content, whatever the order: a digest over its instances' SHA-256."""
    return digest_of(*sorted(digests))


def joined_series(one: Series, other: Series) -> Series:
    """What two objects, or a stored series and another object, say of their series together; in any order the same."""
    kept = {name: _first(getattr(one, name), getattr(other, name)) for name in SERIES_COLUMNS}
    types = [item for item in (one.image_type, other.image_type) if item is not None]
    kept["image_type"] = min(types, key=lambda item: (is_scout(item), item), default=None)
    kept["contrast"] = (
        True if one.contrast or other.contrast else None if None in (one.contrast, other.contrast) else False
    )
    return Series(series_instance_uid=one.series_instance_uid, **{**kept, "modality": kept["modality"] or ""})


def joined_study(one: Study, other: Study) -> Study:
    """What two objects say of their study together: the earliest start; of texts the one that sorts first."""
    return Study(
        study_instance_uid=one.study_instance_uid,
        accession_number=_first(one.accession_number, other.accession_number),
        description=_first(one.description, other.description),
        started=_first(one.started, other.started),
    )


def _first(one: Any, other: Any) -> Any:
    """The lesser of two values; one that is not there, or blank, gives way."""
    stated = [value for value in (one, other) if value is not None and value != ""]
    return min(stated, default=None)


@dataclass(kw_only=True, slots=True, eq=False)
class _Study:
    patient_id: int | None
    said: Study
    id: int = 0
    new: bool = False
    changed: bool = False  # in this batch
    concerns_all: bool = False  # it changed in what its other series go by as well: its patient, its start


@dataclass(kw_only=True, slots=True, eq=False)
class _Series:
    study: _Study
    said: Series
    id: int = 0
    new: bool = False


@dataclass(kw_only=True, slots=True)
class Batch:
    """What is known of the UIDs that a batch names, and what the batch adds."""

    studies: dict[str, _Study]
    series: dict[str, _Series]
    instances: dict[str, str]  # UID -> SHA-256
    added: list[tuple[Instance, _Series]] = field(default_factory=list)

    @classmethod
    def of(cls, connection: Connection, items: Sequence[DicomObject]) -> Batch:
        """Everything stored under the UIDs that ``items`` name."""
        query = select(InstanceRow.uid, InstanceRow.sha256)
        uids = {item.instance.sop_instance_uid for item in items}
        instances = {row.uid: row.sha256 for row in rows_among(connection, query, InstanceRow.uid, uids)}

        query = select(SeriesRow.id, SeriesRow.uid, StudyRow.uid.label("study_uid"), *SERIES_COLUMNS.values()).join(
            StudyRow, StudyRow.id == SeriesRow.study_id
        )
        uids = {item.series.series_instance_uid for item in items}
        rows = list(rows_among(connection, query, SeriesRow.uid, uids))

        uids = {item.study.study_instance_uid for item in items} | {row.study_uid for row in rows}
        found = rows_among(connection, select(StudyRow.__table__), StudyRow.uid, uids)
        studies = {row.uid: _Study(id=row.id, patient_id=row.patient_id, said=_study_of(row)) for row in found}
        series = {row.uid: _Series(id=row.id, study=studies[row.study_uid], said=_series_of(row)) for row in rows}
        return cls(studies=studies, series=series, instances=instances)

    def settle(self, item: DicomObject, patient_id: int | None) -> Outcome:
        """Decide about one object, and remember it for those after it."""
        uid = item.instance.sop_instance_uid
        if (stored := self.instances.get(uid)) is not None:
            if stored == item.instance.sha256:
                return "unchanged"
            return _conflict("an object with this SOPInstanceUID and another data set is stored already")
        study = self.studies.get(item.study.study_instance_uid)
        series = self.series.get(item.series.series_instance_uid)
        if series is not None and series.study is not study:
            return _conflict("its SeriesInstanceUID is stored as a series of another study")
        if study is not None and None not in (patient_id, study.patient_id) and patient_id != study.patient_id:
            return _conflict("its StudyInstanceUID is stored as a study of another patient")
        if study is None:
            study = _Study(patient_id=patient_id, said=item.study, new=True)
            self.studies[item.study.study_instance_uid] = study
        if study.patient_id is None and patient_id is not None:
            study.patient_id, study.changed, study.concerns_all = patient_id, True, True
        if (together := joined_study(study.said, item.study)) != study.said:
            study.concerns_all = study.concerns_all or together.started != study.said.started
            study.said, study.changed = together, True
        if series is None:
            series = _Series(study=study, said=item.series, new=True)
            self.series[item.series.series_instance_uid] = series
        series.said = joined_series(series.said, item.series)
        self.instances[uid] = item.instance.sha256
        self.added.append((item.instance, series))
        return "stored"

    def write(self, connection: Connection) -> None:
        """Insert what is new, level by level, then bring the touched series and studies up to date."""
        if not self.added:
            return
        _insert(connection, StudyRow, self.studies, _study_values)
        _insert(connection, SeriesRow, self.series, _series_values)
        connection.execute(insert(InstanceRow), [_instance_values(item, series.id) for item, series in self.added])
        changed = [study for study in self.studies.values() if study.changed and not study.new]
        _update(connection, StudyRow, [{"id": study.id, **_study_values(study, 0)} for study in changed])
        touched = {series.id: series.said for _, series in self.added}
        concerned = [study.id for study in changed if study.concerns_all]
        siblings = {row.id for row in rows_among(connection, select(SeriesRow.id), SeriesRow.study_id, concerned)}
        _bring_up_to_date(connection, touched, sorted(siblings - set(touched)))
        for chunk in chunks(sorted({series.study.id for _, series in self.added})):
            connection.execute(update(StudyRow).where(StudyRow.id.in_(chunk)).values(revision=StudyRow.revision + 1))


def _study_of(row: Any) -> Study:
    return Study(
        study_instance_uid=row.uid,
        accession_number=row.accession_number,
        description=row.description,
        started=instant(row.started_us, row.started_offset),
    )


def _series_of(row: Any) -> Series:
    return Series(series_instance_uid=row.uid, **{name: getattr(row, name) for name in SERIES_COLUMNS})


def _insert(connection: Connection, table: Any, by_uid: Mapping[str, Any], values: Callable[[Any, int], dict]) -> None:
    """Insert those of ``by_uid`` that are new, and set their ids."""
    new = {uid: item for uid, item in by_uid.items() if item.new}
    if new:
        received = now_us()
        connection.execute(insert(table), [{"uid": uid, **values(item, received)} for uid, item in new.items()])
        for row in rows_among(connection, select(table.id, table.uid), table.uid, new):
            new[row.uid].id = row.id


def _study_values(study: _Study, _received: int) -> dict[str, Any]:
    return {
        "patient_id": study.patient_id,
        "accession_number": study.said.accession_number,
        "description": study.said.description,
        "started_us": study.said.started.utc_us if study.said.started else None,
        "started_offset": study.said.started.offset_min if study.said.started else None,
    }


def _series_values(series: _Series, received: int) -> dict[str, Any]:
    return {"study_id": series.study.id, "received_us": received, **_said(series.said)}


def _said(series: Series) -> dict[str, Any]:
    return {name: getattr(series, name) for name in SERIES_COLUMNS}


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


def _bring_up_to_date(connection: Connection, touched: Mapping[int, Series], siblings: Sequence[int]) -> None:
    """What series sum up of their instances, and of those touched what their objects say; each gets a new revision."""
    sums = _sums(connection, [*touched, *siblings])
    bump = {"revision": SeriesRow.__table__.c.revision + 1}
    said = [{"id": one, **sums[one], **_said(series)} for one, series in touched.items()]
    _update(connection, SeriesRow, said, also=bump)
    _update(connection, SeriesRow, [{"id": one, **sums[one]} for one in siblings], also=bump)


def _sums(connection: Connection, series_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Counts, content, SOP class and acquisition of series, from their instances and their study's start."""
    query = select(SeriesRow.id, StudyRow.started_us, StudyRow.started_offset).join(
        StudyRow, StudyRow.id == SeriesRow.study_id
    )
    found = rows_among(connection, query, SeriesRow.id, series_ids)
    started = {row.id: (row.started_us, row.started_offset) for row in found}
    members: dict[int, list[Any]] = defaultdict(list)
    query = select(
        InstanceRow.series_id,
        InstanceRow.sha256,
        InstanceRow.sop_class_uid,
        InstanceRow.frames,
        InstanceRow.acquired_us,
        InstanceRow.acquired_offset,
    )
    for row in rows_among(connection, query, InstanceRow.series_id, series_ids):
        members[row.series_id].append(row)
    return {series_id: _sum(its, started[series_id]) for series_id, its in members.items()}


def _sum(instances: Sequence[Any], started: tuple[int | None, int | None]) -> dict[str, Any]:
    classes = {row.sop_class_uid for row in instances}
    times = [(row.acquired_us, row.acquired_offset) for row in instances if row.acquired_us is not None]
    acquired_us, acquired_offset = min(times, default=started)
    return {
        "instances": len(instances),
        "frames": sum(row.frames for row in instances),
        "content": content_of(row.sha256 for row in instances),
        "sop_class_uid": classes.pop() if len(classes) == 1 else None,
        "acquired_us": acquired_us,
        "acquired_offset": acquired_offset,
    }


def _update(connection: Connection, row: Any, values: Sequence[Mapping[str, Any]], *, also: Any = None) -> None:
    """Set the columns named, row by row by its id, in one statement."""
    if values:
        table = row.__table__
        names = [name for name in values[0] if name != "id"]
        changes = {name: bindparam(f"new_{name}") for name in names}
        statement = update(table).where(table.c.id == bindparam("row")).values(**changes, **(also or {}))
        connection.execute(
            statement, [{"row": one["id"], **{f"new_{name}": one[name] for name in names}} for one in values]
        )


def _conflict(reason: str) -> InputRejected:
    return InputRejected(RejectCode.UID_CONFLICT, reason)


def instant(utc_us: int | None, offset: int | None) -> Instant | None:
    """A time as it is stored; None where there is none."""
    return None if utc_us is None else Instant(utc_us=utc_us, offset_min=offset or 0)


def rows_among(connection: Connection, query: Any, column: Any, values: Iterable[Any]) -> Iterator[Any]:
    """Rows of ``query`` whose ``column`` is among ``values``, however many these are."""
    for chunk in chunks(sorted(set(values))):
        yield from connection.execute(query.where(column.in_(chunk)))


def chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Parts of a list that fit one statement."""
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]
