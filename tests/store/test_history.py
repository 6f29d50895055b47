"""Looking back: runs, chunks and nights, and scores as counts in bins."""

from sqlalchemy import insert

from medflow.store import chunks, history, ledger
from medflow.store.history import DAY_US, TONIGHT
from medflow.store.tables import ChunkRow
from tests.scored import add_model, add_scores

SINCE = 100 * DAY_US


def spreads(store, bins=4, days=30):
    with store.reading() as connection:
        return history.spreads(connection, "gc-content", {"gc": (0.0, 1.0)}, since_us=SINCE, days=days, bins=bins)


def test_scores_are_counted_in_bins_of_their_declared_range(store):
    with store.writing() as connection:
        add_scores(connection, add_model(connection), [0.0, 0.1, 0.249, 0.25, 0.74, 0.75, 1.0], SINCE)

    (tonight,) = spreads(store)

    assert (tonight.night, tonight.counts, tonight.cases) == (TONIGHT, (3, 1, 1, 2), 7)


def test_a_day_before_tonight_is_a_night_of_its_own(store):
    with store.writing() as connection:
        key = add_model(connection)
        add_scores(connection, key, [0.1, 0.9], SINCE + 5)
        add_scores(connection, key, [0.2], SINCE - 1)
        add_scores(connection, key, [0.3], SINCE - DAY_US)
        add_scores(connection, key, [0.4], SINCE - DAY_US - 1)

    assert {item.night: item.cases for item in spreads(store)} == {TONIGHT: 2, 0: 2, 1: 1}


def test_what_is_older_than_the_days_asked_for_is_left_out(store):
    with store.writing() as connection:
        add_scores(connection, add_model(connection), [0.2], SINCE - 3 * DAY_US)

    assert spreads(store, days=2) == []


def test_two_versions_of_a_model_are_spread_together_and_another_model_is_not(store):
    with store.writing() as connection:
        add_scores(connection, add_model(connection), [0.1], SINCE)
        add_scores(connection, add_model(connection, digest="d2", version="2.0.0"), [0.9], SINCE)
        add_scores(connection, add_model(connection, name="other", digest="d3"), [0.5], SINCE)

    assert [item.counts for item in spreads(store)] == [(1, 0, 0, 1)]


def test_models_with_something_scored_are_named_with_their_specs(store):
    with store.writing() as connection:
        add_scores(connection, add_model(connection, spec={"any": 1}), [0.1], SINCE)
        add_scores(connection, add_model(connection, name="idle", digest="d2"), [0.1], SINCE - 1)

    with store.reading() as connection:
        assert history.scored_models(connection, since_us=SINCE) == [("gc-content", "1.0.0", {"any": 1})]


def test_chunks_that_ended_are_listed_with_their_counts_and_summed_by_model(store):
    with store.writing() as connection:
        key = add_model(connection)
        counts = {"leased": 3, "done": 2, "failed": 0, "dead": 1, "reasons": {"odd": 1}, "seconds": {"predict": 0.5}}
        for _ in range(2):
            begun = chunks.begin(connection, None, key, "here", seconds=60)
            chunks.finish(connection, begun, "here", state=chunks.DONE, counts=counts)
        chunks.begin(connection, None, key, "here", seconds=60)  # still at it
        connection.execute(
            insert(ChunkRow).values(model_id=key, state="done", asked_us=1, started_us=1, finished_us=2, done=9)
        )

    with store.reading() as connection:
        found = history.chunks(connection, since_us=3)

    assert [(line.model, line.cases, line.seconds) for line in found] == [("gc-content", 3, {"predict": 0.5})] * 2
    assert history.totals(found) == {"gc-content@1.0.0": {"done": 4, "failed": 0, "dead": 2, "reasons": {"odd": 2}}}


def test_the_last_nights_come_oldest_first_and_other_runs_are_none(store):
    with store.writing() as connection:
        ids = []
        for command in ("nightly", "score", "nightly", "nightly"):
            ids.append(ledger.begin_run(connection, command=command, actor="a", versions={}))
            ledger.finish_run(connection, ids[-1], status="completed", counts={"score": {"done": len(ids)}})

    with store.reading() as connection:
        found = history.nights(connection, last=2)
        began = [line.command for line in history.runs(connection, since_us=0)]

    assert [(line.id, line.counts["score"]["done"]) for line in found] == [(ids[2], 3), (ids[3], 4)]
    assert began == ["nightly", "score", "nightly", "nightly"]


def test_a_job_is_shown_with_its_declaration_and_results(store):
    with store.writing() as connection:
        add_scores(connection, add_model(connection), [0.25], SINCE)
        (job_id,) = connection.exec_driver_sql("SELECT id FROM job").scalars()

    with store.reading() as connection:
        view = history.job_view(connection, job_id)
        absent = history.job_view(connection, job_id + 1)

    assert (view.model, view.state, str(view.job.unit)) == ("gc-content", "done", "sequence/1")
    assert [(result.output, result.value) for result in view.results] == [("gc", 0.25)]
    assert view.spec["name"] == "gc-content"
    assert absent is None


def test_sequences_are_no_series_to_be_pictured(store):
    with store.writing() as connection:
        add_scores(connection, add_model(connection), [0.25], SINCE)
        connection.exec_driver_sql("UPDATE job SET unit_kind = 'series' WHERE id IN (SELECT max(id) FROM job)")
        add_scores(connection, add_model(connection), [0.5], SINCE)

    with store.reading() as connection:
        assert len(history.scored_series(connection, since_us=SINCE, last=6)) == 1
        assert history.scored_series(connection, since_us=SINCE + 1, last=6) == []
