"""Scoring by others: what a run asks for is scored once, whoever comes, dies, or never hears of it."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from medflow import steps
from medflow.config import Settings
from medflow.dispatch import Dispatch
from medflow.errors import PluginBroken, TransientError, WorkerMissing
from medflow.registry import Registry
from medflow.scoring import LoadedModels
from medflow.store import Store, chunks, workers
from medflow.store import jobs as queue
from tests.models import GcContent, registered, sequences

CASES = 100


@pytest.fixture
def site(store: Store, settings: Settings, tmp_path) -> steps.Site:
    quick = settings.model_copy(update={"chunk_size": 16, "device": "cpu", "workers": 1, "worker_wait_s": 60})
    model = registered(GcContent)
    here = steps.Site(settings=quick, store=store, registry=Registry(models={model.name: model}, broken=()))
    steps.ingest(here, steps.source_of("fasta", [sequences(tmp_path / "some.fasta", CASES)]))
    steps.select(here, model)
    return here


def done(site: steps.Site) -> int:
    with site.store.reading() as connection:
        return queue.count_jobs(connection)["gc-content"].get("done", 0)


def dispatched(site: steps.Site, wake: Callable[[str, int], None], **options) -> tuple[dict, list[chunks.Chunk]]:
    """Have everything scored by whoever ``wake`` calls; what was given up, and the run's chunks."""
    with steps.recorded(site, "score") as run:
        given_up = Dispatch(site.store, site.settings, run.id, wake, announced=True, **options).run(
            list(site.registry.models.values())
        )
    with site.store.reading() as connection:
        return given_up, chunks.of_run(connection, run.id)


def impatient(site: steps.Site) -> steps.Site:
    """The site, where a run waits for a worker for a second only."""
    return replace(site, settings=site.settings.model_copy(update={"worker_wait_s": 1}))


def scorer(site: steps.Site, name: str = "w1") -> Callable[[str, int], None]:
    """A wake that scores each asked chunk in a thread of its own."""
    loaded = LoadedModels(site.settings)

    def wake(model: str, count: int) -> None:
        for _ in range(count):
            target = site.registry.get(model)
            threading.Thread(target=steps.score_asked, args=(site, target, loaded), kwargs={"worker": name}).start()

    return wake


def announce(site: steps.Site, name: str, digest: str | None = None) -> None:
    model = site.registry.get("gc-content")
    with site.store.writing() as connection:
        workers.announce(connection, name, queue.process_owner(), "cpu", {model.name: digest or model.digest})


def test_what_a_run_asks_for_is_scored_by_others_and_accounted_for(site):
    given_up, found = dispatched(site, scorer(site))

    assert given_up == {}
    assert done(site) == CASES == sum(chunk.done for chunk in found)
    assert {chunk.worker for chunk in found if chunk.leased} == {"w1"}


def test_a_call_that_nobody_heard_is_made_again(site):
    scores, calls = scorer(site), []

    def deaf_at_first(model: str, count: int) -> None:
        calls.append(count)
        if len(calls) > 1:
            scores(model, count)

    dispatched(site, deaf_at_first)

    assert len(calls) > 1
    assert done(site) == CASES


def test_calls_that_come_too_often_do_no_harm(site):
    scores = scorer(site)

    _, found = dispatched(site, lambda model, count: scores(model, 3 * count))

    assert done(site) == CASES == sum(chunk.done for chunk in found)


def test_without_a_worker_the_model_is_given_up_and_nothing_stays_asked(site):
    given_up, found = dispatched(impatient(site), lambda _model, _count: None)

    assert isinstance(given_up["gc-content"], WorkerMissing)
    assert "start one" in given_up["gc-content"].message
    assert {chunk.state for chunk in found} == {chunks.LOST}
    assert done(site) == 0


def test_a_worker_with_another_version_is_told_apart_from_none(site):
    announce(site, "w1", digest="0" * 64)

    given_up, _ = dispatched(impatient(site), lambda _model, _count: None)

    assert "another version" in given_up["gc-content"].message


def test_a_prefect_that_takes_no_call_is_waited_for(site):
    scores, failures = scorer(site), [TransientError("away"), TransientError("away")]

    def wake(model: str, count: int) -> None:
        if failures:
            raise failures.pop()
        scores(model, count)

    given_up, _ = dispatched(site, wake)

    assert given_up == {}
    assert done(site) == CASES


class Broken(GcContent):
    spec = replace(GcContent.spec, name="broken")

    def load(self, device: str) -> None:
        raise ValueError("no such layer")


def test_a_model_that_does_not_load_is_given_up_and_its_cases_stay_ready(store, settings, tmp_path):
    model = registered(Broken)
    here = steps.Site(
        settings=settings.model_copy(update={"device": "cpu"}),
        store=store,
        registry=Registry(models={model.name: model}, broken=()),
    )
    steps.ingest(here, steps.source_of("fasta", [sequences(tmp_path / "some.fasta", 5)]))
    steps.select(here, model)

    def wake(name: str, count: int) -> None:
        for _ in range(count):
            with pytest.raises(PluginBroken):
                steps.score_asked(here, model, LoadedModels(here.settings), worker="w1")

    given_up, found = dispatched(here, wake)

    assert isinstance(given_up["broken"], PluginBroken)
    assert "does not load" in given_up["broken"].message
    assert [chunk.state for chunk in found] == [chunks.BROKEN]
    with store.reading() as connection:
        assert queue.count_jobs(connection) == {"broken": {"ready": 5}}


def test_what_a_silent_worker_holds_is_given_to_another(site, monkeypatch):
    """A worker on another host that vanished: its lease is long, but its heartbeat stops."""
    announce(site, "far")
    with site.store.writing() as connection:
        workers.beat(connection, "far", "elsewhere|1|1|x", loaded=(), state="serving")
    scores, seen = scorer(site, "near"), []

    def wake(model: str, count: int) -> None:
        if not seen:
            seen.append(count)
            _take_and_vanish(site, "far")
            monkeypatch.setattr(workers, "SILENT_S", 0)
            count -= 1
        scores(model, count)

    _, found = dispatched(site, wake)

    assert done(site) == CASES
    assert [chunk.worker for chunk in found if chunk.state == chunks.LOST and chunk.worker] == ["far"]


def _take_and_vanish(site: steps.Site, worker: str) -> None:
    owner = "elsewhere|1|1|x"
    model = site.registry.get("gc-content")
    with site.store.writing() as connection:
        model_id = queue.register_model(
            connection, name=model.name, version="1", digest=model.digest, distribution="x", spec={}
        )
        assert chunks.take(connection, model_id, owner, worker, seconds=900)
        assert queue.lease(connection, model_id, owner, limit=16, seconds=900, max_attempts=5)


def test_a_worker_that_is_asked_to_stop_gives_back_what_it_has_not_scored(site):
    loaded, batches = LoadedModels(site.settings), []

    def stopping() -> bool:
        batches.append(time.monotonic())
        return True

    def wake(model: str, count: int) -> None:
        target = site.registry.get(model)
        for _ in range(count):
            tally = steps.score_asked(site, target, loaded, worker="w1", stopping=stopping)
            assert tally.done <= target.spec.batch_size

    given_up, found = dispatched(site, wake)

    assert given_up == {}
    assert done(site) == CASES == sum(chunk.done for chunk in found)
    with site.store.reading() as connection:
        assert all(job.attempts == 1 for job in queue.list_jobs(connection, states=["done"]))
