"""What came to be known after a score was given changes neither it nor what explains it; what was known then does."""

import shutil
from dataclasses import replace
from datetime import timedelta

import orjson
import pytest

from medflow import steps
from medflow.config import load_settings
from medflow.errors import InputNotUsable
from medflow.registry import Registry
from medflow.store import Store, history
from tests.explaining_models import LinearStay
from tests.models import registered
from tests.ward import COMA, RATE, UREA, patient, stay, value

FIRST = (patient("p2", "M2"), stay(of="p2"), *(value(f"r{hour}", hour, 90, RATE, of="p2") for hour in range(3)))
FIRST += (value("c1", 1, 9, COMA, of="p2"), value("u1", 1, 40, UREA, of="p2"))


class FourHours(LinearStay):
    """The first four hours."""

    series = replace(LinearStay.spec.accepts[0], window=timedelta(hours=4), step=timedelta(hours=1))
    spec = replace(LinearStay.spec, name="four-hours", accepts=(series,))


def site_at(home):
    settings = load_settings(home=home, device="cpu")
    model = registered(FourHours)
    registry = Registry(models={model.name: model}, broken=())
    return steps.Site(settings=settings, store=Store(settings).open(), registry=registry)


def ingest(site, *resources):
    """Each in an ingest of its own, those of patient q1 from the laboratory, which knows people by other ids."""
    path = site.settings.home / "in.ndjson"
    for item in resources:
        path.write_bytes(orjson.dumps(item))
        of_laboratory = "q1" in (item["id"], item.get("subject", {}).get("reference", "").rpartition("/")[2])
        tally = steps.ingest(laboratory(site) if of_laboratory else site, steps.source_of("fhir", [path]))
        assert tally.rejected == 0


def laboratory(site):
    return replace(site, settings=site.settings.model_copy(update={"source": "laboratory"}))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A home in which the stay was scored, not explained, after its first four hours."""
    home = tmp_path_factory.mktemp("first")
    site = site_at(home)
    ingest(site, *FIRST)
    assert steps.score(site).done == 1
    site.store.close()
    return home


@pytest.fixture
def site(first, tmp_path):
    found = site_at(shutil.copytree(first, tmp_path / "home"))
    yield found
    found.store.close()


def sent(site):
    """Status, version and basis of the assessments in the outbox, the first first."""
    with site.store.reading() as connection:
        query = "SELECT body, version FROM outbox WHERE type = 'RiskAssessment' ORDER BY id"
        rows = [(orjson.loads(row.body), row.version) for row in connection.exec_driver_sql(query)]
    return [(item["status"], version, [one["reference"] for one in item["basis"][1:-1]]) for item, version in rows]


def result_of(site, job=1):
    with site.store.reading() as connection:
        view = history.job_view(connection, job)
    assert view is not None
    return view.results[0]


LATER = {
    "a measurement that was issued later": [value("late", 2, 200, RATE, of="p2", issued=4.01)],
    "a measurement after the window": [value("after", 4, 200, RATE, of="p2")],
    "a correction that was issued later": [value("r2", 2, 200, RATE, of="p2", issued=9, version=2)],
    "the end of the encounter": [stay(of="p2", end=30, version=2)],
    "another record of the same person": [patient("q1", "M2")],
    "a measurement in another encounter": [value("other", 2, 200, RATE, of="p2", visit="e2")],
    "a later measurement of who turns out to be the same person": [
        value("other", 2, 200, RATE, of="q1", visit=None, issued=5),
        patient("q1", "M2"),
    ],
}


@pytest.mark.parametrize("event", LATER)
def test_what_came_later_changes_no_score_and_sends_nothing(site, event):
    before, given = sent(site), result_of(site)

    ingest(site, *LATER[event])
    steps.score(site, explain=True)

    assert sent(site) == before
    assert result_of(site) == given


def test_what_came_later_is_no_part_of_an_explanation_that_is_asked_for_then(site, first, tmp_path):
    at_once = site_at(shutil.copytree(first, tmp_path / "at-once"))
    steps.explain(at_once, 1)

    for resources in LATER.values():
        ingest(site, *resources)
    steps.explain(site, 1)

    assert result_of(site) == result_of(at_once)
    assert "Observation/r2" in {item.basis for item in result_of(site).contributions}
    assert sent(site) == sent(at_once)


EARLIER = {
    "a measurement that was sent late": [value("slow", 3, 150, RATE, of="p2")],
    "a measurement of who turns out to be the same person": [
        value("other", 3, 150, RATE, of="q1", visit=None),
        patient("q1", "M2"),
    ],
    "a correction that was known in time": [value("r2", 2, 150, RATE, of="p2", issued=3, version=2)],
    "a value that was entered in error": [value("r2", 2, of="p2", issued=9, version=2, status="entered-in-error")],
}


@pytest.mark.parametrize("event", EARLIER)
def test_an_answer_is_not_explained_by_records_that_it_was_not_made_of(site, event):
    before, given = sent(site), result_of(site)
    ingest(site, *EARLIER[event])

    with pytest.raises(InputNotUsable, match="changed after the job was made") as refused:
        steps.explain(site, 1)

    assert refused.value.code == "input-changed"
    assert (sent(site), result_of(site)) == (before, given)


@pytest.mark.parametrize("event", EARLIER)
def test_what_was_known_then_and_came_late_supersedes_the_answer_with_its_own_explanation(site, event):
    ingest(site, *EARLIER[event])
    steps.score(site, explain=True)

    (old, new) = sent(site)
    assert (old[0], new[0]) == ("amended", "preliminary")
    assert ("Observation/r2" in new[2]) is (event == "a correction that was known in time")
    assert result_of(site).contributions == () and result_of(site, 2).contributions


def test_an_older_version_that_comes_after_a_later_correction_counts_as_what_was_known(tmp_path):
    site = site_at(tmp_path / "home")
    *others, last = (
        (item for item in FIRST if item["id"] != "r2"),
        value("r2", 2, 200, RATE, of="p2", issued=9, version=2),
    )
    ingest(site, *others[0], last)
    steps.score(site, explain=True)
    assert "Observation/r2" not in sent(site)[0][2]

    ingest(site, value("r2", 2, 90, RATE, of="p2"))
    steps.score(site, explain=True)

    assert [status for status, *_ in sent(site)] == ["amended", "preliminary"]
    plain = site_at(tmp_path / "plain")
    ingest(plain, *FIRST)
    steps.score(plain, explain=True)
    assert result_of(site, 2) == result_of(plain)


def test_another_start_of_the_encounter_is_another_window_and_supersedes(site):
    moved = stay(of="p2", version=2)
    moved["period"]["start"] = "2026-03-01T00:30:00+00:00"
    ingest(site, moved)

    with pytest.raises(InputNotUsable, match="changed after the job was made"):
        steps.explain(site, 1)
    steps.score(site, explain=True)

    assert [status for status, *_ in sent(site)] == ["amended", "preliminary"]


def test_an_answer_of_a_patient_who_is_named_otherwise_here_is_not_sent_twice(site):
    before = sent(site)
    ingest(site, patient("q1", "M2"))

    with pytest.raises(InputNotUsable, match="named otherwise") as refused:
        steps.explain(laboratory(site), 1)

    assert refused.value.code == "patient-changed"
    assert sent(site) == before


def test_an_answer_that_is_withdrawn_while_it_is_explained_stays_withdrawn(tmp_path):
    class Slow(FourHours):
        spec = replace(FourHours.spec, name="slow")

        def explain(self, batch, predictions):
            ingest(site, *(value(item["id"], 0, of="p2", version=2, status="entered-in-error") for item in FIRST[2:]))
            assert steps.score(site).notes == {"withdrawn": 1}
            return super().explain(batch, predictions)

    site = replace(site_at(tmp_path / "home"), registry=Registry(models={"slow": registered(Slow)}, broken=()))
    ingest(site, *FIRST)
    steps.score(site)

    with pytest.raises(InputNotUsable, match="withdrawn meanwhile"):
        steps.explain(site, 1)

    assert [status for status, *_ in sent(site)] == ["entered-in-error"]


def test_no_measurement_is_named_of_records_that_changed_while_a_model_was_at_work(tmp_path):
    class Slow(FourHours):
        spec = replace(FourHours.spec, name="slow")

        def explain(self, batch, predictions):
            ingest(site, value("slow", 3, 150, RATE, of="p2"))
            return super().explain(batch, predictions)

    site = replace(site_at(tmp_path / "home"), registry=Registry(models={"slow": registered(Slow)}, broken=()))
    ingest(site, *FIRST)

    assert steps.score(site, explain=True).notes == {"explained": 1}

    assert sent(site)[0][2] == []
    assert result_of(site).contributions
