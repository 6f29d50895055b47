"""Looking back: runs, chunks and nights, and scores as counts in bins."""

from sqlalchemy import insert

from medflow.records import DueUnit, Instant, Result, Unit, UnitKind
from medflow.store import chunks, history, jobs, ledger
from medflow.store.history import DAY_US, TONIGHT
from medflow.store.tables import ChunkRow, JobRow

SINCE = 100 * DAY_US


def model(connection, name="gc-content", digest="d1", version="1.0.0"):
    return jobs.register_model(
        connection, name=name, version=version, digest=digest, distribution="test 1", spec={"name": name}
    )


def score(connection, model_id, values, finished_us, output="gc"):
    """Jobs of one model that were done at one moment, one for each value."""
    first = connection.exec_driver_sql("SELECT count(*) FROM job").scalar()
    for number in range(first + 1, first + 1 + len(values)):
        unit = Unit(kind=UnitKind.SEQUENCE, id=number)
        due = DueUnit(unit=unit, revision=1, input_key=f"key-{number}", prediction_time=Instant(utc_us=1))
        jobs.enqueue(connection, model_id, [due])
    leased = jobs.lease(connection, model_id, "here", limit=len(values), seconds=60, max_attempts=3)
    results = [Result(output=output, value=value) for value in values]
    jobs.complete(connection, {job.id: [result] for job, result in zip(leased, results, strict=True)})
    update = JobRow.__table__.update().where(JobRow.id.in_([job.id for job in leased]))
    connection.execute(update.values(finished_us=finished_us))


def spreads(store, bins=4, days=30):
    with store.reading() as connection:
        return history.spreads(connection, "gc-content", {"gc": (0.0, 1.0)}, since_us=SINCE, days=days, bins=bins)


def test_scores_are_counted_in_bins_of_their_declared_range(store):
    with store.writing() as connection:
        score(connection, model(connection), [0.0, 0.1, 0.249, 0.25, 0.74, 0.75, 1.0], SINCE)

    (tonight,) = spreads(store)

    assert (tonight.night, tonight.counts, tonight.cases) == (TONIGHT, (3, 1, 1, 2), 7)


def test_a_day_before_tonight_is_a_night_of_its_own(store):
    with store.writing() as connection:
        key = model(connection)
        score(connection, key, [0.1, 0.9], SINCE + 5)
        score(connection, key, [0.2], SINCE - 1)
        score(connection, key, [0.3], SINCE - DAY_US)
        score(connection, key, [0.4], SINCE - DAY_US - 1)

    assert {item.night: item.cases for item in spreads(store)} == {TONIGHT: 2, 0: 2, 1: 1}


def test_what_is_older_than_the_days_asked_for_is_left_out(store):
    with store.writing() as connection:
        score(connection, model(connection), [0.2], SINCE - 3 * DAY_US)

    assert spreads(store, days=2) == []


def test_two_versions_of_a_model_are_spread_together_and_another_model_is_not(store):
    with store.writing() as connection:
        score(connection, model(connection), [0.1], SINCE)
        score(connection, model(connection, digest="d2", version="2.0.0"), [0.9], SINCE)
        score(connection, model(connection, name="other", digest="d3"), [0.5], SINCE)

    assert [item.counts for item in spreads(store)] == [(1, 0, 0, 1)]


def test_models_with_something_scored_are_named_with_their_specs(store):
    with store.writing() as connection:
        score(connection, model(connection), [0.1], SINCE)
        score(connection, model(connection, name="idle", digest="d2"), [0.1], SINCE - 1)

    with store.reading() as connection:
        assert history.scored_models(connection, since_us=SINCE) == [("gc-content", "1.0.0", {"name": "gc-content"})]


def test_chunks_that_ended_are_listed_with_their_counts_and_summed_by_model(store):
    with store.writing() as connection:
        key = model(connection)
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
