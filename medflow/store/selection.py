"""Which series and studies a model has yet to see, and what a study's inputs are: SQL sifts, the model's rule decides.

SQL conditions leave out what cannot fit; `medflow.series_rule` has the last word, as it has patterns (which the engines
match differently) and a preference. Either way it is one query, whatever is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select

from medflow.plugin import ImagingInput
from medflow.records import DueUnit, Instant, Unit, UnitKind, digest_of
from medflow.series_rule import IMAGE_CLASSES, MOSAIC, SeriesFacts, choose, excluded_classes, fits
from medflow.store.due import not_yet_seen
from medflow.store.imaging_batch import rows_among
from medflow.store.tables import JobRow, ModelRow, SeriesRow, StudyRow

MOMENT = func.coalesce(SeriesRow.acquired_us, SeriesRow.received_us).label("moment")
FACTS = (
    *(SeriesRow.id, SeriesRow.study_id, SeriesRow.uid, SeriesRow.modality, SeriesRow.body_part, SeriesRow.description),
    *(SeriesRow.protocol_name, SeriesRow.image_type, SeriesRow.contrast, SeriesRow.slice_thickness_mm),
    *(SeriesRow.series_number, SeriesRow.instances, SeriesRow.frames, SeriesRow.sop_class_uid, SeriesRow.content),
    *(SeriesRow.revision, SeriesRow.acquired_offset, StudyRow.patient_id, StudyRow.revision.label("study_revision")),
    MOMENT,
)


def series_key(content: str) -> str:
    """The input_key of a series of this content (`content_of`)."""
    return digest_of("series", content)


def study_key(contents: Mapping[str, str]) -> str:
    """The input_key of a study whose inputs have these contents, by the input's name."""
    return digest_of("study", *(part for name in sorted(contents) for part in (name, contents[name])))


def due_series(connection: Connection, spec: ImagingInput, *, as_of: Instant, model_id: int) -> list[DueUnit]:
    """Series that fit ``spec``, belong to a known patient, and are new to the model since they last changed.

    The prediction time is the series' acquisition (else the study's start, else when its first instance was received),
    never the time of the run: scoring the same series again gives the same result identity.
    """
    query = series_query().where(
        _may_fit(spec),
        StudyRow.patient_id.is_not(None),
        as_of.utc_us >= MOMENT.element,
        not_yet_seen(model_id, UnitKind.SERIES, SeriesRow.id, SeriesRow.revision),
    )
    return [
        DueUnit(
            unit=Unit(kind=UnitKind.SERIES, id=series.id),
            revision=series.revision,
            input_key=series_key(series.content),
            prediction_time=series.moment,
        )
        for series in map(facts_of, connection.execute(query.order_by(SeriesRow.id)))
        if fits(spec, series)
    ]


def due_studies(
    connection: Connection, inputs: Sequence[ImagingInput], *, as_of: Instant, model_id: int
) -> list[DueUnit]:
    """Studies of a known patient that have a series for every input that must have one, and are new to the model.

    The prediction time is the latest acquisition among the series chosen. What is acquired later than ``as_of`` is left
    aside; such a study keeps the revision before its own, so that it is looked at again.
    """
    query = series_query().where(
        or_(*map(_may_fit, inputs)),
        StudyRow.patient_id.is_not(None),
        not_yet_seen(model_id, UnitKind.STUDY, StudyRow.id, StudyRow.revision),
        *(StudyRow.id.in_(select(SeriesRow.study_id).where(_may_fit(item))) for item in inputs if not item.optional),
    )
    due = []
    rows = connection.execute(query.order_by(SeriesRow.study_id, SeriesRow.id))
    for study_id, its in groupby(rows, key=lambda row: row.study_id):
        members = list(its)
        known = [facts_of(row) for row in members if row.moment <= as_of.utc_us]
        taken, missing = choose(inputs, known)
        if taken and not missing:
            due.append(
                DueUnit(
                    unit=Unit(kind=UnitKind.STUDY, id=study_id),
                    revision=members[0].study_revision - (len(known) < len(members)),
                    input_key=study_key({name: series.content for name, series in taken.items()}),
                    prediction_time=latest(taken.values()),
                )
            )
    return due


def chosen_series(
    connection: Connection, inputs: Sequence[ImagingInput], studies: Mapping[int, Instant]
) -> dict[int, dict[str, SeriesFacts]]:
    """The series that each study's inputs take of those acquired at the moment given or before, by the input's name.

    At a job's prediction time this is what was selected: that is the latest acquisition among the series chosen, and
    each was preferred to all others. A study without a series for an input that must have one is left out.
    """
    found: dict[int, dict[str, SeriesFacts]] = {}
    rows = rows_among(connection, series_query().where(or_(*map(_may_fit, inputs))), SeriesRow.study_id, studies)
    ordered = sorted(map(facts_of, rows), key=lambda series: (series.study_id, series.id))
    for study_id, its in groupby(ordered, key=lambda series: series.study_id):
        taken, missing = choose(inputs, [series for series in its if series.moment.utc_us <= studies[study_id].utc_us])
        if taken and not missing:
            found[study_id] = taken
    return found


def latest(series: Iterable[SeriesFacts]) -> Instant:
    """The latest acquisition among some series."""
    return max(one.moment for one in series)


def series_query() -> Select[Any]:
    """Every series with what models ask for: see `facts_of`."""
    return select(*FACTS).join(StudyRow, StudyRow.id == SeriesRow.study_id)


def facts_of(row: Any) -> SeriesFacts:
    """What a row of `series_query` says."""
    return SeriesFacts(
        id=row.id,
        study_id=row.study_id,
        uid=row.uid,
        modality=row.modality,
        frames=row.frames,
        instances=row.instances,
        content=row.content or "",
        revision=row.revision,
        moment=Instant(utc_us=row.moment, offset_min=row.acquired_offset or 0),
        has_patient=row.patient_id is not None,
        sop_class_uid=row.sop_class_uid,
        body_part=row.body_part,
        description=row.description,
        protocol_name=row.protocol_name,
        image_type=row.image_type,
        contrast=row.contrast,
        slice_thickness_mm=row.slice_thickness_mm,
        series_number=row.series_number,
    )


def _may_fit(spec: ImagingInput) -> ColumnElement[bool]:
    """SQL condition that holds for every series that fits; for what it cannot tell it holds as well."""
    slices = SeriesRow.instances if spec.dimensions == 2 else SeriesRow.frames
    classes = sorted((frozenset(spec.sop_classes) or IMAGE_CLASSES) - excluded_classes(spec))
    of_class: Any = SeriesRow.sop_class_uid.in_(classes)
    conditions: list[Any] = [
        SeriesRow.modality.in_(spec.modality),
        or_(slices >= max(spec.min_slices, 1), func.upper(SeriesRow.image_type).contains(MOSAIC)),
        of_class if spec.sop_classes else or_(SeriesRow.sop_class_uid.is_(None), of_class),
    ]
    if spec.body_parts:
        wanted = [part.lower() for part in spec.body_parts]
        conditions.append(or_(SeriesRow.body_part.is_(None), func.lower(SeriesRow.body_part).in_(wanted)))
    if spec.contrast is not None:
        conditions.append(SeriesRow.contrast.is_(spec.contrast))
    if spec.slice_thickness_mm is not None:
        conditions.append(SeriesRow.slice_thickness_mm.between(*spec.slice_thickness_mm))
    return and_(*conditions)


# --- for whoever asks why ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class JobNote:
    """What became of one input of a unit: a job of the model, of those that count."""

    id: int
    input_key: str
    state: str
    error_code: str | None


def series_pages(
    connection: Connection, kind: UnitKind, *, size: int, only: int | None = None
) -> Iterator[list[SeriesFacts]]:
    """All series, those stored last first, a page at a time (of studies: whole ones); ``only`` one, or its study."""
    column = SeriesRow.study_id if kind is UnitKind.STUDY else SeriesRow.id
    if only is not None:
        alone = column == select(column).where(SeriesRow.id == only).scalar_subquery()
        yield [facts_of(row) for row in connection.execute(series_query().where(alone).order_by(SeriesRow.id.desc()))]
        return
    ids = select(column).distinct().order_by(column.desc()).limit(size)
    found = connection.execute(ids).scalars().all()
    while found:
        query = series_query().where(column.between(found[-1], found[0]))
        rows = connection.execute(query.order_by(column.desc(), SeriesRow.id.desc()))
        yield [facts_of(row) for row in rows]
        found = connection.execute(ids.where(column < found[-1])).scalars().all()


def job_notes(
    connection: Connection, *, name: str, digest: str, kind: UnitKind, unit_ids: Sequence[int]
) -> dict[int, list[JobNote]]:
    """The jobs of this model for these units that no later one has superseded, the last made first."""
    query = (
        select(JobRow.id, JobRow.unit_id, JobRow.input_key, JobRow.state, JobRow.error_code)
        .join(ModelRow, ModelRow.id == JobRow.model_id)
        .where(ModelRow.name == name, ModelRow.digest == digest, JobRow.unit_kind == str(kind), ~JobRow.superseded)
        .order_by(JobRow.id.desc())
    )
    found: dict[int, list[JobNote]] = {}
    for row in rows_among(connection, query, JobRow.unit_id, unit_ids):
        note = JobNote(id=row.id, input_key=row.input_key, state=row.state, error_code=row.error_code)
        found.setdefault(row.unit_id, []).append(note)
    return found
