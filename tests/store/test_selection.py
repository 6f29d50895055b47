"""Which series and studies are due, for which inputs, and for what time: on both engines, as the rule says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from medflow.plugin import ImagingInput
from medflow.records import DueUnit, Instant, UnitKind
from medflow.series_rule import fits
from medflow.store import Store, jobs
from medflow.store.selection import (
    chosen_series,
    due_series,
    due_studies,
    facts_of,
    series_key,
    series_pages,
    series_query,
    study_key,
)
from tests.imaging_objects import CT_IMAGE, LATE, object_of, patients, put

CT = ImagingInput(modality=("CT", "PT"))
PLAIN = ImagingInput(name="plain", modality=("CT",), contrast=False, prefer="best")
LATE_PHASE = ImagingInput(name="late", modality=("CT",), contrast=True, prefer="newest")


def _due(store: Store, spec: ImagingInput = CT, *, as_of: Instant = LATE, model_id: int = 1) -> list[DueUnit]:
    with store.reading() as connection:
        return due_series(connection, spec, as_of=as_of, model_id=model_id)


def _studies(store: Store, *inputs: ImagingInput, as_of: Instant = LATE) -> list[DueUnit]:
    with store.reading() as connection:
        return due_studies(connection, inputs or (PLAIN, LATE_PHASE), as_of=as_of, model_id=1)


def _enqueue(store: Store, due: Sequence[DueUnit]) -> int:
    with store.writing() as connection:
        model = jobs.register_model(connection, name="m", version="1", digest="d", distribution="d", spec={})
        return jobs.enqueue(connection, model, due)


# --- series ------------------------------------------------------------------------------------------------------


def test_due_series_fit_the_input(store: Store) -> None:
    (patient,) = patients(store, "a")
    put(store, [object_of(number) for number in range(3)], patient)

    assert len(_due(store)) == 1
    assert len(_due(store, replace(CT, min_slices=3, body_parts=("CHEST",), sop_classes=(CT_IMAGE,)))) == 1
    for spec in (
        replace(CT, modality=("MR",)),
        replace(CT, min_slices=4),
        replace(CT, body_parts=("HEAD",)),
        replace(CT, sop_classes=("1.2.9",)),
    ):
        assert _due(store, spec) == []


def test_a_series_without_body_part_fits_any(store: Store) -> None:
    (patient,) = patients(store, "a")
    put(store, [object_of(0, body_part=None)], patient)

    assert len(_due(store, replace(CT, body_parts=("HEAD",)))) == 1


def test_frames_count_as_slices(store: Store) -> None:
    (patient,) = patients(store, "a")
    put(store, [object_of(0, frames=40)], patient)

    assert len(_due(store, replace(CT, min_slices=40))) == 1


def test_the_prediction_time_is_the_acquisition_and_stable(store: Store) -> None:
    (patient,) = patients(store, "a")
    put(store, [object_of(0), object_of(1)], patient)

    first, second = _due(store), _due(store, as_of=replace(LATE, utc_us=LATE.utc_us + 5))

    assert first == second
    assert first[0].prediction_time == Instant(utc_us=1_999_999, offset_min=60)
    assert _due(store, as_of=Instant(utc_us=1_999_998)) == []  # it had not been taken yet


def test_without_acquisition_the_study_start_counts_else_the_receipt(store: Store) -> None:
    (patient,) = patients(store, "a")
    started = Instant(utc_us=77, offset_min=-60)
    put(store, [object_of(0, acquired=None, started=started)], patient)
    put(store, [object_of(0, study="1.2", series="1.2.1", acquired=None, sha256="a" * 64)], patient)

    first, second = _due(store)

    assert first.prediction_time == started
    assert second.prediction_time.utc_us > 1_600_000_000_000_000
    assert _due(store)[1] == second


def test_a_series_is_due_again_only_when_it_changes(store: Store) -> None:
    (patient,) = patients(store, "a")
    put(store, [object_of(0)], patient)
    (due,) = _due(store)
    _enqueue(store, [due])
    assert _due(store) == []
    assert len(_due(store, model_id=2)) == 1

    put(store, [object_of(1)], patient)

    (again,) = _due(store)
    assert again.input_key != due.input_key


def test_a_series_is_due_by_description_contrast_and_thickness(store: Store) -> None:
    (patient,) = patients(store, "a")
    said = {"description": "Thorax MPR", "protocol_name": "LungLowDose", "contrast": True, "slice_thickness_mm": 1.5}
    put(store, [object_of(0, **said)], patient)
    put(store, [object_of(0, series="1.1.2", contrast=None)], patient)

    for asked in (
        {"descriptions": ("^thorax",)},
        {"descriptions": ("x", "lowdose$")},
        {"contrast": True},
        {"slice_thickness_mm": (1.5, 1.5)},
    ):
        assert [unit.unit.id for unit in _due(store, replace(CT, **asked))] == [1]
    for asked in (
        {"descriptions": ("abdomen",)},
        {"excluded_descriptions": ("mpr", "mip"), "contrast": True},
        {"contrast": False},
        {"slice_thickness_mm": (2, 5)},
    ):
        assert _due(store, replace(CT, **asked)) == []


def test_scouts_captures_and_what_is_no_image_are_due_for_no_volume(store: Store) -> None:
    (patient,) = patients(store, "a")
    storage = "1.2.840.10008.5.1.4.1.1."
    put(store, [object_of(0, image_type="ORIGINAL\\PRIMARY\\LOCALIZER")], patient)
    put(store, [object_of(0, series="1.1.2", sop_class_uid=f"{storage}7")], patient)
    put(store, [object_of(0, series="1.1.3", sop_class_uid=f"{storage}66.4")], patient)
    put(store, [object_of(0, series="1.1.4", sop_class_uid=f"{storage}88.67")], patient)

    assert _due(store) == []
    assert [unit.unit.id for unit in _due(store, replace(CT, dimensions=2))] == [2]


def test_what_sql_leaves_out_the_rule_would_have_left_out(store: Store) -> None:
    """Whatever is asked and stored, the query gives what the rule says of each series by itself."""
    draw = Random(5)
    (patient,) = patients(store, "a")

    def one_of(*choices: Any) -> Any:
        return draw.choice(choices)

    for number in range(60):
        said: dict[str, Any] = {
            "modality": one_of("CT", "PT", "MR", ""),
            "body_part": one_of("CHEST", "Chest", "HEAD", None),
            "description": one_of("Thorax", "head T1", None),
            "contrast": one_of(True, False, None),
            "slice_thickness_mm": one_of(0.5, 2.0, 5.0, None),
            "frames": one_of(1, 5, 20),
            "sop_class_uid": one_of(CT_IMAGE, "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.66.4"),
            "image_type": one_of("ORIGINAL\\PRIMARY\\AXIAL", "ORIGINAL\\PRIMARY\\LOCALIZER", "M\\MOSAIC", None),
        }
        put(store, [object_of(0, series=f"1.1.{number + 1}", **said)], patient)
    with store.reading() as connection:
        everything = [facts_of(row) for row in connection.execute(series_query())]

    taken = 0
    for _ in range(60):
        asked = replace(
            CT,
            dimensions=one_of(2, 3, 4),
            body_parts=one_of((), ("chest",)),
            descriptions=one_of((), ("t1|tho",)),
            contrast=one_of(None, None, True, False),
            slice_thickness_mm=one_of(None, None, (1.0, 5.0)),
            min_slices=one_of(1, 5),
            sop_classes=one_of((), (CT_IMAGE,), ("1.2.840.10008.5.1.4.1.1.7",)),
        )
        due = {unit.unit.id for unit in _due(store, asked)}
        assert due == {one.id for one in everything if fits(asked, one)}
        taken += len(due)
    assert taken > 100


# --- studies ---------------------------------------------------------------------------------------------------


def _study(store: Store, patient: int | None, *, study: str = "1.1", late: bool = True) -> None:
    """Two series without contrast, the first with thinner slices, and one with contrast between them."""
    put(store, [object_of(n, study=study, series=f"{study}.1", slice_thickness_mm=1.0) for n in (1, 2)], patient)
    put(store, [object_of(0, study=study, series=f"{study}.2", slice_thickness_mm=3.0)], patient)
    if late:
        moment = Instant(utc_us=1_999_999)
        put(store, [object_of(0, study=study, series=f"{study}.3", contrast=True, acquired=moment)], patient)


def test_a_study_is_due_once_every_input_has_its_series(store: Store) -> None:
    (patient,) = patients(store, "a")
    _study(store, patient, late=False)
    _study(store, patient, study="1.2")

    (due,) = _studies(store)

    assert due.unit.id == 2
    assert len(_studies(store, PLAIN, replace(LATE_PHASE, optional=True))) == 2
    assert _studies(store, replace(PLAIN, optional=True), replace(LATE_PHASE, modality=("MR",), optional=True)) != []


def test_a_study_of_nobody_or_of_optional_inputs_only_is_not_due(store: Store) -> None:
    _study(store, None)
    (patient,) = patients(store, "a")
    put(store, [object_of(0, study="1.2", series="1.2.1", modality="MR")], patient)

    assert _studies(store) == []
    assert _studies(store, replace(PLAIN, optional=True)) == []


def test_the_key_is_of_the_series_chosen_and_the_time_the_latest_of_theirs(store: Store) -> None:
    (patient,) = patients(store, "a")
    _study(store, patient)

    (due,) = _studies(store)

    with store.reading() as connection:
        contents = {row.id: row.content for row in connection.execute(series_query())}
        chosen = chosen_series(connection, [PLAIN, LATE_PHASE], {1: due.prediction_time})
    assert due.input_key == study_key({"plain": contents[1], "late": contents[3]})
    assert due.prediction_time == Instant(utc_us=1_999_999)  # the third series is later than the first
    assert {name: one.id for name, one in chosen[1].items()} == {"plain": 1, "late": 3}


def test_the_names_of_inputs_are_part_of_the_key() -> None:
    assert study_key({"a": "x", "b": "y"}) == study_key({"b": "y", "a": "x"})
    assert len({study_key({"a": "x", "b": "y"}), study_key({"a": "y", "b": "x"}), study_key({"a": "x"})}) == 3
    assert study_key({"a": "x"}) != series_key("x")


def test_a_better_series_gives_a_new_key_and_any_other_does_not(store: Store) -> None:
    (patient,) = patients(store, "a")
    _study(store, patient)
    (first,) = _studies(store)
    assert _enqueue(store, [first]) == 1
    assert _studies(store) == []

    put(store, [object_of(0, series="1.1.7", slice_thickness_mm=2.0)], patient)
    (same,) = _studies(store)
    assert same.input_key == first.input_key
    assert _enqueue(store, [same]) == 0
    assert _studies(store) == []  # its revision is noted

    put(store, [object_of(0, series="1.1.8", slice_thickness_mm=0.5)], patient)
    (better,) = _studies(store)
    assert better.input_key != first.input_key
    _enqueue(store, [better])
    with store.reading() as connection:
        live = jobs.list_jobs(connection, states=["ready"])
    assert len(live) == 1  # what waited on the older choice is superseded


def test_what_is_acquired_later_waits_and_is_not_forgotten(store: Store) -> None:
    (patient,) = patients(store, "a")
    _study(store, patient)
    early = Instant(utc_us=1_999_999)  # before the second series was acquired, which the newest would be
    newest = replace(PLAIN, prefer="newest")

    (then,) = _studies(store, newest, as_of=early)
    _enqueue(store, [then])
    (now,) = _studies(store, newest)

    assert (then.prediction_time.utc_us, now.prediction_time.utc_us) == (1_999_998, 2_000_000)
    _enqueue(store, [now])
    assert _studies(store, newest) == []


def test_what_was_chosen_then_is_found_again_when_more_was_acquired(store: Store) -> None:
    (patient,) = patients(store, "a")
    _study(store, patient)
    (due,) = _studies(store)
    put(store, [object_of(0, series="1.1.9", contrast=True, acquired=Instant(utc_us=3_000_000))], patient)

    with store.reading() as connection:
        chosen = chosen_series(connection, [PLAIN, LATE_PHASE], {1: due.prediction_time})

    assert due.input_key == study_key({name: one.content for name, one in chosen[1].items()})


def test_selecting_takes_one_query_whatever_is_stored(store: Store) -> None:
    (patient,) = patients(store, "a")
    for number in range(20):
        _study(store, patient, study=f"1.{number + 1}")
    statements: list[str] = []
    with store.reading() as connection:
        run = connection.execute
        connection.execute = lambda *args, **kw: (statements.append(str(args[0])), run(*args, **kw))[1]  # type: ignore[method-assign]  # counts
        assert len(due_studies(connection, [PLAIN, LATE_PHASE], as_of=LATE, model_id=1)) == 20
        assert len(due_series(connection, CT, as_of=LATE, model_id=1)) == 60

    assert len(statements) == 2


def test_pages_hold_every_series_once_and_studies_whole(store: Store) -> None:
    (patient,) = patients(store, "a")
    for number in range(5):
        _study(store, patient, study=f"1.{number + 1}")
    with store.reading() as connection:
        of_series = [[one.id for one in page] for page in series_pages(connection, UnitKind.SERIES, size=4)]
        of_studies = [[one.study_id for one in page] for page in series_pages(connection, UnitKind.STUDY, size=2)]
        (alone,) = series_pages(connection, UnitKind.STUDY, size=2, only=4)

    assert [one for page in of_series for one in page] == list(range(15, 0, -1))
    assert of_studies == [[5, 5, 5, 4, 4, 4], [3, 3, 3, 2, 2, 2], [1, 1, 1]]
    assert [one.id for one in alone] == [6, 5, 4]
