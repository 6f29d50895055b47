"""Scores beside those of the nights before: when they are shown, how far apart, and what nobody can read off."""

import numpy as np
import pytest
from sqlalchemy import event

from medflow.flows.drift import ENOUGH, as_rows, drifts
from medflow.store import history
from medflow.store.history import DAY_US
from tests.scored import add_model, add_scores

SINCE = 100 * DAY_US


@pytest.fixture
def engine():
    return "sqlite"


def look(store):
    with store.reading() as connection:
        return drifts(connection, since_us=SINCE)


def fill(store, tonight, nights=()):
    with store.writing() as connection:
        key = add_model(connection)
        for ago, values in enumerate(nights):
            add_scores(connection, key, values, SINCE - 1 - ago * DAY_US)
        add_scores(connection, key, tonight, SINCE)


def draws(seed, count, middle):
    return np.clip(np.random.default_rng(seed).normal(middle, 0.05, count), 0, 1)


def test_nights_alike_are_as_before(store):
    fill(store, draws(0, 200, 0.4), [draws(seed, 200, 0.4) for seed in (1, 2, 3)])

    (found,) = look(store)

    assert (found.cases, len(found.earlier), found.shifted) == (200, 3, False)
    assert sum(found.tonight) == pytest.approx(1)
    assert as_rows([found])[0]["which means"] == "as before"


def test_a_shift_is_noticed(store):
    fill(store, draws(0, 200, 0.45), [draws(seed, 200, 0.4) for seed in (1, 2, 3)])

    (found,) = look(store)

    assert found.shifted
    assert found.gap > found.chance
    assert "shifted" in as_rows([found])[0]["which means"]


def test_fewer_cases_than_enough_are_not_shown_and_it_is_said(store):
    fill(store, [0.5] * (ENOUGH - 1), [[0.5] * 50])

    (found,) = look(store)

    assert (found.shown, found.tonight, found.edges, found.earlier, found.gap) == (False, (), (), (), None)
    assert as_rows([found])[0]["which means"] == "not shown: fewer than 20 cases"


def test_an_earlier_night_of_too_few_cases_is_not_in_the_band(store):
    fill(store, draws(0, 40, 0.4), [draws(1, ENOUGH, 0.4), [0.9] * (ENOUGH - 1)])

    assert len(look(store)[0].earlier) == 1


def test_the_first_night_has_nothing_to_compare_with(store):
    fill(store, draws(0, ENOUGH, 0.4))

    assert "nothing to compare with" in as_rows(look(store))[0]["which means"]


@pytest.mark.parametrize("outlier", [0.0, 0.95, 1.0])
def test_one_patient_far_from_all_others_is_not_seen(store, outlier):
    fill(store, [*np.linspace(0.4, 0.5, 60), outlier])

    (found,) = look(store)

    assert 0.39 <= found.edges[0] <= found.edges[-1] <= 0.53
    assert min(found.tonight) > 1 / 61  # no bin is one case


def test_few_cases_make_few_bins(store):
    fill(store, np.linspace(0, 1, ENOUGH))

    assert len(look(store)[0].tonight) == 4


def test_a_declaration_that_this_version_cannot_read_is_passed_over(store):
    with store.writing() as connection:
        add_scores(connection, add_model(connection, spec={"of": "another version"}), [0.5] * 30, SINCE)

    assert look(store) == []


def test_a_nights_scores_are_found_by_when_they_finished_whatever_else_is_stored(store):
    fill(store, [0.5] * 30)
    plans = []

    with store.reading() as connection:

        def explain(_connection, cursor, statement, parameters, *_):
            if "prediction" in statement and not statement.startswith("EXPLAIN"):
                plans.append(str(cursor.connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()))

        event.listen(connection, "before_cursor_execute", explain)
        drifts(connection, since_us=SINCE)
        history.scored_series(connection, since_us=SINCE, last=6)

    assert len(plans) == 2
    assert all("ix_job_finished (model_id=? AND finished_us>?)" in plan for plan in plans)
