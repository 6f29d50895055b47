"""Studies, series and instances in the store: contradictions refused, revisions raised, in any order the same."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import pytest
from sqlalchemy import select

from medflow.errors import RejectCode
from medflow.records import Instant, UnitKind
from medflow.store import Store
from medflow.store.imaging import known_objects, relocate_objects, series_instances, store_objects
from medflow.store.outcomes import unit_names
from medflow.store.tables import SeriesRow, StudyRow
from medflow.store.units import unit_facts
from tests.imaging_objects import CT_IMAGE, object_of, patients, put

# --- storing ---------------------------------------------------------------------------------------------------


def test_objects_are_stored_once(store: Store) -> None:
    objects = [object_of(number) for number in range(3)]

    assert put(store, [*objects, objects[0]]) == ["stored", "stored", "stored", "unchanged"]
    assert put(store, objects) == ["unchanged"] * 3
    assert put(store, []) == []


def test_instances_come_back_as_they_went_in(store: Store) -> None:
    objects = [object_of(3), object_of(1, frames=2, path="/x"), object_of(7, instance_number=None)]
    put(store, objects)

    with store.reading() as connection:
        found = series_instances(connection, 1)

    assert found == [objects[1].instance, objects[0].instance, objects[2].instance]


def test_the_series_sums_up_its_instances(store: Store) -> None:
    put(store, [object_of(0), object_of(1, frames=5)])

    with store.reading() as connection:
        row = connection.execute(select(SeriesRow.__table__)).one()

    assert (row.instances, row.frames, row.sop_class_uid, row.revision) == (2, 6, CT_IMAGE, 1)
    assert (row.acquired_us, row.acquired_offset) == (1_999_999, 60)


def test_content_depends_on_the_instances_not_on_their_order(store: Store) -> None:
    def contents(series: str, numbers: Sequence[int]) -> str | None:
        for number in numbers:
            put(store, [object_of(number, series=series)])
        with store.reading() as connection:
            return connection.execute(select(SeriesRow.content).where(SeriesRow.uid == series)).scalar_one()

    assert contents("1.1.1", [1, 2, 3]) == contents("1.1.2", [3, 1, 2]) != contents("1.1.3", [1, 2])


def test_only_series_that_gain_something_are_revised(store: Store) -> None:
    put(store, [object_of(0), object_of(0, series="1.1.2")])
    put(store, [object_of(0), object_of(1, series="1.1.2")])

    with store.reading() as connection:
        revisions = dict(connection.execute(select(SeriesRow.uid, SeriesRow.revision)).tuples().all())

    assert revisions == {"1.1.1": 1, "1.1.2": 2}


def test_series_of_mixed_kinds_have_no_one_class(store: Store) -> None:
    put(store, [object_of(0), object_of(1, sop_class_uid="1.2.9")])

    with store.reading() as connection:
        assert connection.execute(select(SeriesRow.sop_class_uid)).scalar_one() is None


@pytest.mark.parametrize("together", [True, False])
def test_contradictions_are_conflicts_and_change_nothing(store: Store, together: bool) -> None:
    one, other = patients(store, "a", "b")
    first = [(object_of(0), one)]
    wrong = [
        (object_of(0, sha256="f" * 64), one),  # the same instance, other bytes
        (object_of(1, study="1.9"), one),  # the series is of another study
        (object_of(2, series="1.1.7"), other),  # the study is of another patient
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
    (patient,) = patients(store, "a")
    put(store, [object_of(0), object_of(0, series="1.1.2")])

    put(store, [object_of(1)], patient)

    with store.reading() as connection:
        assert connection.execute(select(StudyRow.patient_id)).scalar_one() == patient
        revisions = connection.execute(select(SeriesRow.revision).order_by(SeriesRow.id)).scalars().all()
    assert revisions == [2, 2]  # the sibling series is due too


def test_hundreds_of_instances_take_few_statements(store: Store) -> None:
    statements: list[str] = []
    with store.writing() as connection:
        run = connection.execute
        connection.execute = lambda *args, **kw: (statements.append(str(args[0])), run(*args, **kw))[1]  # type: ignore[method-assign]  # counts
        store_objects(connection, [(object_of(number), None) for number in range(1000)])

    assert len(statements) < 15


def test_known_objects_and_where_they_lie(store: Store) -> None:
    put(store, [object_of(1), object_of(2, path="/old")])
    digests = [f"{number:064d}" for number in (1, 2, 3)]
    with store.writing() as connection:
        relocate_objects(connection, {digests[1]: "/new"})
        assert known_objects(connection, digests) == {digests[0]: None, digests[1]: "/new"}


# --- what objects say of their series --------------------------------------------------------------------------


DIFFERING = (
    {
        "description": "b",
        "protocol_name": "x",
        "image_type": "ORIGINAL\\PRIMARY\\LOCALIZER",
        "slice_thickness_mm": 5.0,
        "series_number": 2,
    },
    {"description": "a", "contrast": True, "image_type": "ORIGINAL\\PRIMARY\\M", "body_part": "Abdomen"},
    {"description": None, "slice_thickness_mm": 1.25, "image_type": None, "started": Instant(utc_us=5)},
)


@pytest.mark.parametrize("together", [True, False])
def test_a_series_is_the_same_in_whatever_order_its_objects_arrive(store: Store, together: bool) -> None:
    for number, order in enumerate(permutations(enumerate(DIFFERING))):
        uid = f"1.{number + 2}"
        objects = [object_of(place, study=uid, series=f"{uid}.1", **changes) for place, changes in order]
        for part in [objects] if together else [[one] for one in objects]:
            assert put(store, part) == ["stored"] * len(part)

    names = ("description", "protocol_name", "image_type", "contrast", "slice_thickness_mm", "body_part")
    with store.reading() as connection:
        columns = [getattr(SeriesRow, name) for name in (*names, "series_number", "acquired_us")]
        rows = set(connection.execute(select(*columns, StudyRow.started_us).join(StudyRow)).tuples())
    assert rows == {("a", "x", "ORIGINAL\\PRIMARY\\M", True, 1.25, "Abdomen", 2, 1_999_998, 5)}


def test_an_earlier_start_of_the_study_holds_for_its_other_series(store: Store) -> None:
    put(store, [object_of(0, acquired=None, started=Instant(utc_us=9))])

    put(store, [object_of(1, series="1.1.2", acquired=None, started=Instant(utc_us=4))])

    with store.reading() as connection:
        assert connection.execute(select(SeriesRow.acquired_us)).scalars().all() == [4, 4]


def test_what_was_not_kept_of_earlier_objects_stays_unknown(store: Store) -> None:
    put(store, [object_of(0, contrast=None)])  # as a series taken in before contrast was kept

    def contrast() -> bool | None:
        with store.reading() as connection:
            return connection.execute(select(SeriesRow.contrast)).scalar_one()

    put(store, [object_of(1)])
    assert contrast() is None
    put(store, [object_of(2, contrast=True)])
    assert contrast() is True


def test_a_study_is_revised_with_any_of_its_series_and_no_other_is(store: Store) -> None:
    put(store, [object_of(0), object_of(0, study="1.2", series="1.2.1")])

    put(store, [object_of(0), object_of(1), object_of(2)])

    with store.reading() as connection:
        assert dict(connection.execute(select(StudyRow.uid, StudyRow.revision)).tuples().all()) == {"1.1": 2, "1.2": 1}


def test_label_tables_name_series_and_studies_by_uid(store: Store) -> None:
    put(store, [object_of(0), object_of(0, study="1.2", series="1.2.1")])

    with store.reading() as connection:
        assert unit_names(connection, UnitKind.STUDY, [1, 2]) == [("", "1.1", 1), ("", "1.2", 2)]
        assert unit_names(connection, UnitKind.SERIES, [2]) == [("", "1.2.1", 2)]


def test_a_study_is_a_unit_with_its_patient_and_its_name_in_fhir(store: Store) -> None:
    (patient,) = patients(store, "a")
    put(store, [object_of(0)], patient)

    with store.reading() as connection:
        facts = unit_facts(connection, UnitKind.STUDY, [1])[1]

    assert facts.patient_id == patient
    assert [(item.type, item.identifier.value) for item in facts.inputs if item.identifier] == [
        ("ImagingStudy", "urn:oid:1.1")
    ]
