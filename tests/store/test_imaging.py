"""Studies, series and instances in the store: contradictions refused, series revised, due series found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import select

from medflow.errors import InputRejected, RejectCode
from medflow.plugin import ImagingInput
from medflow.records import DicomObject, DueUnit, Identifier, Instance, Instant, Patient, Series, Study
from medflow.store import Store
from medflow.store.imaging import known_objects, relocate_objects, series_instances, store_objects
from medflow.store.patients import resolve_patients
from medflow.store.selection import due_series
from medflow.store.tables import SeriesRow, StudyRow

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
CT = ImagingInput(modality=("CT", "PT"))
LATE = Instant(utc_us=4_000_000_000_000_000)


def _object(number: int = 0, *, study: str = "1.1", series: str = "1.1.1", **changes: Any) -> DicomObject:
    acquired = Instant(utc_us=2_000_000 - number, offset_min=60)
    fields: dict[str, Any] = {"sha256": f"{number:064d}", "size": 1, "instance_number": number, "acquired": acquired}
    fields |= {"sop_instance_uid": f"{series}.{number}", "sop_class_uid": CT_IMAGE, "transfer_syntax_uid": "1.2.4"}
    levels: dict[str, Any] = {"modality": "CT", "body_part": "Chest", "started": None}
    for name, value in changes.items():
        (levels if name in levels else fields)[name] = value
    return DicomObject(
        patient=Patient(),
        study=Study(study_instance_uid=study, started=levels["started"]),
        series=Series(series_instance_uid=series, modality=levels["modality"], body_part=levels["body_part"]),
        instance=Instance(**fields),
    )


def _patients(store: Store, *names: str) -> list[int]:
    claims = [Patient(identifiers=(Identifier(system="urn:x", value=name),)) for name in names]
    with store.writing() as connection:
        found = resolve_patients(connection, claims)
    assert all(isinstance(one, int) for one in found)
    return found  # type: ignore[return-value]  # checked above


def _put(store: Store, objects: Sequence[DicomObject], patient: int | None = None) -> list[str]:
    with store.writing() as connection:
        outcomes = store_objects(connection, [(item, patient) for item in objects])
    return [str(outcome.code) if isinstance(outcome, InputRejected) else outcome for outcome in outcomes]


def _due(store: Store, spec: ImagingInput = CT, *, as_of: Instant = LATE, model_id: int = 1) -> list[DueUnit]:
    with store.reading() as connection:
        return due_series(connection, spec, as_of=as_of, model_id=model_id)


# --- storing ---------------------------------------------------------------------------------------------------


def test_objects_are_stored_once(store: Store) -> None:
    objects = [_object(number) for number in range(3)]

    assert _put(store, [*objects, objects[0]]) == ["stored", "stored", "stored", "unchanged"]
    assert _put(store, objects) == ["unchanged"] * 3
    assert _put(store, []) == []


def test_instances_come_back_as_they_went_in(store: Store) -> None:
    objects = [_object(3), _object(1, frames=2, path="/x"), _object(7, instance_number=None)]
    _put(store, objects)

    with store.reading() as connection:
        found = series_instances(connection, 1)

    assert found == [objects[1].instance, objects[0].instance, objects[2].instance]


def test_the_series_sums_up_its_instances(store: Store) -> None:
    _put(store, [_object(0), _object(1, frames=5)])

    with store.reading() as connection:
        row = connection.execute(select(SeriesRow.__table__)).one()

    assert (row.instances, row.frames, row.sop_class_uid, row.revision) == (2, 6, CT_IMAGE, 1)
    assert (row.acquired_us, row.acquired_offset) == (1_999_999, 60)


def test_content_depends_on_the_instances_not_on_their_order(store: Store) -> None:
    def contents(series: str, numbers: Sequence[int]) -> str:
        for number in numbers:
            _put(store, [_object(number, series=series)])
        with store.reading() as connection:
            return connection.execute(select(SeriesRow.content).where(SeriesRow.uid == series)).scalar_one()

    assert contents("1.1.1", [1, 2, 3]) == contents("1.1.2", [3, 1, 2]) != contents("1.1.3", [1, 2])


def test_only_series_that_gain_something_are_revised(store: Store) -> None:
    _put(store, [_object(0), _object(0, series="1.1.2")])
    _put(store, [_object(0), _object(1, series="1.1.2")])

    with store.reading() as connection:
        revisions = dict(connection.execute(select(SeriesRow.uid, SeriesRow.revision)).tuples().all())

    assert revisions == {"1.1.1": 1, "1.1.2": 2}


def test_series_of_mixed_kinds_have_no_one_class(store: Store) -> None:
    _put(store, [_object(0), _object(1, sop_class_uid="1.2.9")])

    with store.reading() as connection:
        assert connection.execute(select(SeriesRow.sop_class_uid)).scalar_one() is None


@pytest.mark.parametrize("together", [True, False])
def test_contradictions_are_conflicts_and_change_nothing(store: Store, together: bool) -> None:
    one, other = _patients(store, "a", "b")
    first = [(_object(0), one)]
    wrong = [
        (_object(0, sha256="f" * 64), one),  # the same instance, other bytes
        (_object(1, study="1.9"), one),  # the series is of another study
        (_object(2, series="1.1.7"), other),  # the study is of another patient
    ]
    with store.writing() as connection:
        if not together:
            store_objects(connection, first)
            first = []
        outcomes = store_objects(connection, first + wrong)[len(first) :]
        rows = connection.execute(select(StudyRow.uid, StudyRow.patient_id)).tuples().all()

    assert [getattr(outcome, "code", None) for outcome in outcomes] == [RejectCode.UID_CONFLICT] * 3
    assert list(rows) == [("1.1", one)]


def test_a_study_without_patient_gets_one_from_a_later_object(store: Store) -> None:
    (patient,) = _patients(store, "a")
    _put(store, [_object(0), _object(0, series="1.1.2")])
    assert _due(store) == []

    _put(store, [_object(1)], patient)

    due = {unit.unit.id: unit.revision for unit in _due(store)}
    assert due == {1: 2, 2: 2}  # the sibling series is due too


def test_hundreds_of_instances_take_few_statements(store: Store) -> None:
    statements: list[str] = []
    with store.writing() as connection:
        run = connection.execute
        connection.execute = lambda *args, **kw: (statements.append(str(args[0])), run(*args, **kw))[1]  # type: ignore[method-assign]  # counts
        store_objects(connection, [(_object(number), None) for number in range(1000)])

    assert len(statements) < 15


def test_known_objects_and_where_they_lie(store: Store) -> None:
    _put(store, [_object(1), _object(2, path="/old")])
    digests = [f"{number:064d}" for number in (1, 2, 3)]
    with store.writing() as connection:
        relocate_objects(connection, {digests[1]: "/new"})
        assert known_objects(connection, digests) == {digests[0]: None, digests[1]: "/new"}
