"""Results that no longer stand, and that nothing replaces, are entered in error; those right at their time stay."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import orjson
import pytest

from medflow import replay, scoring, steps
from medflow.inputs import due_units
from medflow.records import Instant
from medflow.registry import Registry
from medflow.store import withdrawal
from tests.models import registered
from tests.test_nights import LastDay, Ward, admitted, counts, pulse, stay
from tests.ward import ADMITTED, UREA, patient, value
from tests.ward import stay as encounter

NOW = Instant.of(ADMITTED + timedelta(days=30))


class FirstDay(LastDay):
    """The mean pulse of the first day, of two values at least."""

    spec = replace(
        LastDay.spec,
        name="first-day",
        accepts=(replace(LastDay.spec.accepts[0], anchor="admission", window=timedelta(hours=24), min_measurements=2),),
    )


def ward_of(model, store, settings, folder) -> Ward:
    found = registered(model)
    return Ward(
        steps.Site(settings=settings, store=store, registry=Registry(models={found.name: found}, broken=())), folder
    )


@pytest.fixture
def admission(store, settings, tmp_path: Path) -> Ward:
    """A stay with two values, scored once its first day had passed."""
    ward = ward_of(FirstDay, store, settings, tmp_path)
    ward.take(patient("p1", "M1"), encounter(end=40), value("a", 1, 60), value("b", 2, 80), value("other", 3, 40, UREA))
    assert steps.score(ward.site).done == 1
    return ward


@pytest.fixture
def ward(store, settings, tmp_path: Path) -> Ward:
    return ward_of(LastDay, store, settings, tmp_path)


def sent(ward: Ward) -> list[tuple[str, float]]:
    """Status and risk of what the folder was sent, the last of each id, in the order of their first."""
    return [(status, risk) for _, status, risk in assessments(ward)]


def assessments(ward: Ward) -> list[tuple[str, str, float]]:
    steps.deliver(ward.site, str(ward.folder / "out"))
    last = {}
    for line in (ward.folder / "out" / "RiskAssessment.ndjson").read_bytes().splitlines():
        found = orjson.loads(line)
        last[found["id"]] = found
    return [
        (item["occurrenceDateTime"], item["status"], item["prediction"][0]["probabilityRange"]["high"]["value"])
        for item in last.values()
    ]


def gone(name: str, **changes) -> dict:
    return value(name, 1, version=2, issued=100, status="entered-in-error", **changes)


def states(ward: Ward) -> list[str]:
    with ward.site.store.reading() as connection:
        return list(connection.exec_driver_sql("SELECT state FROM job ORDER BY id").scalars())


def audits(ward: Ward) -> list[str]:
    with ward.site.store.reading() as connection:
        query = "SELECT subject FROM audit WHERE action = 'withdraw' AND run_id IS NOT NULL ORDER BY id"
        return list(connection.exec_driver_sql(query).scalars())


# --- anchored at admission -------------------------------------------------------------------------------------


def test_a_stay_whose_values_were_all_taken_back_shows_no_result(admission: Ward) -> None:
    assert sent(admission) == [("preliminary", 70.0)]
    admission.take(gone("a"), gone("b"))

    tally = steps.score(admission.site)

    assert (tally.selected, tally.notes) == (0, {"withdrawn": 1})
    assert sent(admission) == [("entered-in-error", 70.0)]
    assert audits(admission) == ["job 1"]
    assert steps.score(admission.site).notes == {}


def test_every_resource_of_a_withdrawn_result_that_has_a_status_says_so(admission: Ward) -> None:
    admission.take(gone("a"), gone("b"))
    steps.score(admission.site)

    with admission.site.store.reading() as connection:
        rows = connection.exec_driver_sql("SELECT body FROM outbox WHERE job_id = 1").scalars()
        resources = [orjson.loads(body) for body in rows]
    statuses = {item["resourceType"]: item["status"] for item in resources if "status" in item}
    assert statuses == {"RiskAssessment": "entered-in-error", "Observation": "entered-in-error"}


UNUSABLE = {
    "too few are left": gone("a"),
    "a correction known in time has a unit that is refused": value("a", 1, 60, version=2, unit="mg"),
}


@pytest.mark.parametrize("event", UNUSABLE)
def test_a_result_whose_input_turned_out_to_be_unusable_is_entered_in_error(admission: Ward, event: str) -> None:
    admission.take(UNUSABLE[event])

    tally = steps.score(admission.site)

    assert (tally.dead, dict(tally.reasons), tally.notes) == (1, {"too-few-measurements": 1}, {"withdrawn": 1})
    assert sent(admission) == [("entered-in-error", 70.0)]
    assert audits(admission) == ["job 1"]


def test_a_good_input_after_a_withdrawal_is_scored_and_the_same_one_gives_the_same_result(
    admission: Ward,
) -> None:
    admission.take(gone("a"))
    steps.score(admission.site)
    admission.take(value("a", 1, 60, version=3))

    assert steps.score(admission.site).done == 1
    assert sent(admission) == [("preliminary", 70.0)]

    admission.take(gone("a") | {"meta": {"versionId": "4"}})
    steps.score(admission.site)
    admission.take(value("c", 5, 100))
    assert steps.score(admission.site).done == 1
    assert sent(admission) == [("entered-in-error", 70.0), ("preliminary", 90.0)]


def test_what_is_retried_after_a_withdrawal_is_refused_again_and_changes_nothing(admission: Ward) -> None:
    admission.take(gone("a"))
    steps.score(admission.site)

    assert replay.replay_jobs(admission.site) == 1
    tally = steps.score(admission.site)

    assert (tally.dead, tally.notes) == (1, {})
    assert sent(admission) == [("entered-in-error", 70.0)]


@pytest.mark.parametrize("status", ["entered-in-error", "cancelled"])
def test_a_stay_that_never_was_has_no_result(admission: Ward, status: str) -> None:
    admission.take(encounter(end=40, version=2) | {"status": status})

    assert steps.score(admission.site).notes == {"withdrawn": 1}
    assert sent(admission) == [("entered-in-error", 70.0)]


STANDS = {
    "a correction that was issued later": value("a", 1, 100, version=2, issued=100),
    "another value that the model does not read was taken back": gone("other", channel=UREA),
    "a value after the window was taken back": gone("late"),
    "a refusal of a later version of the stay": encounter(end=41, version=2),
}


@pytest.mark.parametrize("event", STANDS)
def test_a_result_stands_that_its_time_still_shows(admission: Ward, event: str) -> None:
    admission.take(value("late", 50, 100))
    steps.score(admission.site)
    admission.take(STANDS[event])

    tally = steps.score(admission.site)

    assert (tally.selected, tally.notes) == (0, {})
    assert sent(admission) == [("preliminary", 70.0)]


# --- anchored at the prediction time -----------------------------------------------------------------------------


def taken_back(number: int, at: str) -> dict:
    return pulse(number, at, 40.0, issued="03-01T12:00", status="entered-in-error")


def test_a_night_made_of_what_was_taken_back_is_entered_in_error_where_nothing_replaces_it(ward: Ward) -> None:
    admitted(ward, (1, 2))
    ward.night(1)
    ward.take(*stay(2, ended="2026-03-01T10:00:00+01:00"))
    ward.take(taken_back(1, "02-28T20:00"), taken_back(2, "02-28T20:00"))

    tally = ward.night(2)

    assert (tally.selected, tally.notes) == (0, {"withdrawn": 2})
    assert {status for _, status, _ in assessments(ward)} == {"entered-in-error"}


def test_a_night_made_of_another_patients_value_is_entered_in_error(ward: Ward) -> None:
    admitted(ward, (1, 2))
    ward.night(1)
    ward.take(*stay(1, ended="2026-03-01T10:00:00+01:00"))
    theirs = pulse(1, "02-28T20:00", 40.0, issued="03-01T12:00")
    ward.take(theirs | {"subject": {"reference": "Patient/p2"}, "encounter": {"reference": "Encounter/e2"}})

    assert ward.night(2).notes == {"withdrawn": 1}
    assert [status for _, status, _ in ward.assessments(1)] == ["entered-in-error"]


def test_a_night_of_which_a_part_was_taken_back_is_entered_in_error_after_the_stay(ward: Ward) -> None:
    admitted(ward, (1,))
    ward.take(pulse(1, "02-28T21:00", 60.0))
    ward.night(1)
    ward.take(*stay(1, ended="2026-03-01T10:00:00+01:00"), taken_back(1, "02-28T20:00"))

    assert ward.night(2).notes == {"withdrawn": 1}
    assert sent(ward) == [("entered-in-error", 50.0)]


def test_a_night_made_of_what_was_taken_back_falls_when_the_next_one_is_refused(ward: Ward) -> None:
    admitted(ward, (1,))
    ward.take(pulse(1, "02-28T20:30", 60.0))
    ward.night(1)
    ward.take(taken_back(1, "02-28T20:00"))

    tally = ward.night(4)

    assert (tally.dead, tally.notes) == (1, {"withdrawn": 1})
    assert sent(ward) == [("entered-in-error", 50.0)]


def test_a_night_falls_too_when_the_next_one_is_refused_between_two_steps_of_the_selection(
    ward: Ward, monkeypatch
) -> None:
    admitted(ward, (1,))
    ward.take(pulse(1, "02-28T20:30", 60.0))
    ward.night(1)
    ward.take(taken_back(1, "02-28T20:00"))
    judge = withdrawal.judge

    def slowly(*arguments):
        verdicts = judge(*arguments)
        deadline = time.monotonic() + 30
        while states(ward) != ["done", "dead"] and time.monotonic() < deadline:
            time.sleep(0.01)
        return replace(verdicts, withdrawn=(), lost={1: 1})  # what it says while the new job waits

    monkeypatch.setattr(withdrawal, "judge", slowly)
    tally = ward.night(4)

    assert (tally.dead, tally.notes) == (1, {"withdrawn": 1})
    assert sent(ward) == [("entered-in-error", 50.0)]


def test_a_night_made_of_what_was_taken_back_is_amended_where_the_next_one_is_answered(ward: Ward) -> None:
    admitted(ward, (1,))
    ward.take(pulse(1, "03-01T02:00", 60.0))
    ward.night(1)
    ward.take(taken_back(1, "02-28T20:00"))

    tally = ward.night(2)

    assert (counts(tally), tally.notes) == ((1, 1), {})
    assert sent(ward) == [("amended", 50.0), ("preliminary", 60.0)]


def test_a_withdrawn_night_stays_so_when_the_same_input_is_scored_again_and_superseded_later(ward: Ward) -> None:
    admitted(ward, (1,))
    ward.night(1)
    ward.take(taken_back(1, "02-28T20:00"))
    ward.score("2026-03-01T04:00:00+01:00")
    ward.take(pulse(1, "02-28T20:00", 40.0))
    ward.score("2026-03-01T05:00:00+01:00")
    again = sent(ward)
    ward.take(pulse(1, "03-01T05:30", 60.0))
    ward.score("2026-03-01T06:00:00+01:00")

    assert again == [("entered-in-error", 40.0), ("preliminary", 40.0)]
    assert sent(ward) == [("entered-in-error", 40.0), ("amended", 40.0), ("preliminary", 50.0)]


def test_what_is_taken_back_while_a_selection_is_at_work_is_not_forgotten(ward: Ward, monkeypatch) -> None:
    admitted(ward, (1,))
    ward.night(1)
    ward.take(*stay(1, ended="2026-03-01T10:00:00+01:00"))

    def slowly(*arguments, **options):
        found = due_units(*arguments, **options)
        monkeypatch.undo()
        ward.take(taken_back(1, "02-28T20:00"))
        return found

    monkeypatch.setattr(scoring, "due_units", slowly)
    ward.score("2026-03-01T04:00:00+01:00")

    ward.night(2)
    assert sent(ward) == [("entered-in-error", 40.0)]


LATER = {
    "a correction issued later": pulse(1, "02-28T20:00", 90.0, issued="03-01T12:00"),
    "a value that came late": pulse(1, "02-28T23:00", 90.0),
    "a value of another day taken back": pulse(1, "03-01T05:00", 1.0, issued="03-01T12:00", status="entered-in-error"),
}


@pytest.mark.parametrize("event", LATER)
def test_a_night_that_was_right_at_its_time_stays_though_the_stay_has_ended(ward: Ward, event: str) -> None:
    admitted(ward, (1,))
    ward.night(1)
    ward.take(*stay(1, ended="2026-03-01T10:00:00+01:00"), pulse(1, "03-01T05:00", 80.0))
    ward.take(LATER[event])

    assert ward.night(2).notes == {}
    assert sent(ward) == [("preliminary", 40.0)]


def test_an_older_version_of_the_model_falls_with_what_was_taken_back(ward: Ward) -> None:
    class Next(LastDay):
        spec = replace(LastDay.spec, version="2.0.0")

    admitted(ward, (1,))
    ward.night(1)
    ward.take(*stay(1, ended="2026-03-01T10:00:00+01:00"), taken_back(1, "02-28T20:00"))
    ward.site = replace(ward.site, registry=Registry(models={"last-day": registered(Next, digest="d2")}, broken=()))

    assert ward.night(2).notes == {"withdrawn": 1}
    assert sent(ward) == [("entered-in-error", 40.0)]


def test_a_newer_version_that_asks_for_more_leaves_the_older_ones_result(admission: Ward) -> None:
    class Stricter(FirstDay):
        spec = replace(FirstDay.spec, version="2.0.0", accepts=(replace(FirstDay.spec.accepts[0], min_measurements=5),))

    admission.site = replace(
        admission.site, registry=Registry(models={"first-day": registered(Stricter, digest="d2")}, broken=())
    )

    tally = steps.score(admission.site)

    assert (tally.dead, tally.notes) == (1, {})
    assert sent(admission) == [("preliminary", 70.0)]
