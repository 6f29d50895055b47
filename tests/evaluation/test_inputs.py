"""What predictions were made from, read again beside the reference that a model brings; on both databases."""

import importlib
from dataclasses import replace

import numpy as np
import pytest

from medflow import steps
from medflow.errors import ConfigurationError, PluginBroken
from medflow.evaluation import inputs
from medflow.evaluation.inputs import input_drift
from medflow.flows import drift as night
from medflow.flows import pages
from medflow.registry import Registry
from medflow.store.outcomes import Moment
from tests.evaluation.plugin_with_reference import write_heart_plugin
from tests.evaluation.test_run import labelled, registered
from tests.stays import HeartRisk, Stay, write_stays

TRAINED_ON = np.linspace(60, 140, 400)
ON_SQLITE = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)  # what no SQL decides


def cohort(count: int, *, low: float = 60, high: float = 140) -> list[Stay]:
    rates = np.linspace(low, high, count)
    return [Stay(number=number, rate=float(rate), disposition="home") for number, rate in enumerate(rates)]


@pytest.fixture
def model(tmp_path, monkeypatch):
    name = f"heart_{tmp_path.name}".replace("-", "_")
    monkeypatch.syspath_prepend(write_heart_plugin(tmp_path / "plugin", TRAINED_ON, name=name))
    importlib.invalidate_caches()
    return registered(importlib.import_module(name).HeartRisk)


@pytest.fixture
def site(store, settings, model) -> steps.Site:
    return steps.Site(settings=settings, store=store, registry=Registry(models={"heart-risk": model}, broken=()))


def scored(site: steps.Site, folder, stays: list[Stay]) -> steps.Site:
    steps.ingest(site, steps.source_of("fhir", [write_stays(folder / "in", stays)]))
    assert steps.score(site, ["heart-risk"]).done == len(stays)
    return site


def test_inputs_as_in_the_training_have_not_drifted(site, tmp_path):
    found = steps.input_drift(scored(site, tmp_path, cohort(40)), "heart-risk", since_us=0)

    assert (found.trained_on, found.asked, found.cases, found.unusable) == (400, 40, 40, 0)
    assert [(item.name, item.verdict) for item in found.columns] == [("HR", "steady")]
    assert found.columns[0].psi == pytest.approx(0, abs=0.05)


def test_inputs_that_moved_are_seen_without_any_outcome(site, tmp_path):
    found = steps.input_drift(scored(site, tmp_path, cohort(30, low=120)), "heart-risk", since_us=0)

    assert found.verdict == found.as_json()["verdict"] == "shifted"
    assert (found.columns[0].direction, found.columns[0].missing_now) == ("higher", 0.0)


def test_an_evaluation_tells_the_drift_of_its_inputs(site, tmp_path):
    stays = cohort(30, low=120)
    labels = labelled(tmp_path, "encounter", lambda stay: f"e{stay.number}", stays)

    found = steps.evaluate(scored(site, tmp_path, stays), "heart-risk", labels=labels)

    assert found.inputs is not None and found.inputs_unknown is None
    assert found.as_json()["input_drift"]["verdict"] == "shifted"
    assert found.as_json()["input_drift"]["columns"][0]["values"]["psi"] > 1


@ON_SQLITE
def test_an_input_is_what_it_was_at_its_prediction_time(site, tmp_path):
    site = scored(site, tmp_path, cohort(20))
    later = [replace(stay, rate=500.0) for stay in cohort(20)]
    path = write_stays(tmp_path / "later", later)
    path.write_text(
        path.read_text().replace('"id":"o', '"id":"later-o').replace("2026-01-01T00:10:00Z", "2026-01-01T02:00:00Z")
    )
    steps.ingest(site, steps.source_of("fhir", [path]))

    found = steps.input_drift(site, "heart-risk", since_us=0)

    assert [item.verdict for item in found.columns] == ["steady"]


@ON_SQLITE
def test_reading_in_parts_changes_nothing_and_of_many_some_are_drawn(site, tmp_path, monkeypatch):
    scored(site, tmp_path, cohort(40))
    whole = steps.input_drift(site, "heart-risk", since_us=0)
    monkeypatch.setattr(inputs, "AT_ONCE", 7)

    assert steps.input_drift(site, "heart-risk", since_us=0) == whole
    assert steps.input_drift(site, "heart-risk", since_us=0, most=15).cases == 15


@ON_SQLITE
def test_of_a_patient_one_case_counts(site, tmp_path, model):
    site = scored(site, tmp_path, [replace(stay, patient=stay.number % 12) for stay in cohort(36)])

    assert steps.input_drift(site, "heart-risk", since_us=0).cases == 12
    with site.store.reading() as connection:
        few = [Moment(unit_id=unit, time_us=1_767_229_200_000_000) for unit in range(1, 10)] * 3
        with pytest.raises(ConfigurationError, match="for 10 patients or more: there are predictions of 9"):
            input_drift(connection, model, few)


@ON_SQLITE
def test_what_cannot_be_read_as_it_was_is_counted(site, tmp_path, model):
    site = scored(site, tmp_path, cohort(20))
    times = [1_767_229_200_000_000] * 12 + [0] * 8  # at 0 there was nothing

    with site.store.reading() as connection:
        moments = [Moment(unit_id=unit, time_us=time) for unit, time in enumerate(times, 1)]
        found = input_drift(connection, model, moments)

    assert (found.cases, found.unusable) == (12, 8)


@ON_SQLITE
def test_only_what_was_answered_since_then_counts(site, tmp_path):
    site = scored(site, tmp_path, cohort(20))

    with pytest.raises(ConfigurationError, match="there are predictions of 0"):
        steps.input_drift(site, "heart-risk", since_us=4_000_000_000_000_000)


@ON_SQLITE
def test_a_model_without_a_reference_is_evaluated_and_that_is_said(store, settings, tmp_path):
    site = steps.Site(
        settings=settings,
        store=store,
        registry=Registry(models={"heart-risk": registered(HeartRisk)}, broken=()),
    )
    stays = cohort(20)
    site = scored(site, tmp_path, stays)
    labels = labelled(tmp_path, "encounter", lambda stay: f"e{stay.number}", stays)

    found = steps.evaluate(site, "heart-risk", labels=labels)

    assert found.inputs is None
    assert "brings no reference of the inputs that it was trained on" in (found.inputs_unknown or "")
    with pytest.raises(ConfigurationError, match="brings no reference"):
        steps.input_drift(site, "heart-risk", since_us=0)


@ON_SQLITE
def test_a_nights_report_names_the_inputs_that_moved(site, tmp_path):
    site = scored(site, tmp_path, cohort(30, low=120))

    found = night.input_drifts(site, ["heart-risk", "gone"], since_us=0)

    assert night.input_rows(found) == [{"model": "heart-risk", "cases": 30, "inputs": 1, "which means": "HR shifted"}]
    assert "| heart-risk | 30 | 1 | HR shifted |" in pages.inputs(found)
    assert night.input_drifts(site, ["heart-risk"], since_us=4_000_000_000_000_000) == {}
    assert pages.inputs({}) == ""


@ON_SQLITE
def test_an_altered_reference_is_refused(site, tmp_path):
    site = scored(site, tmp_path, cohort(20))
    (path,) = (tmp_path / "plugin").glob("*/reference.json")
    path.write_text(path.read_text().replace("400", "401"))

    with pytest.raises(PluginBroken, match="SHA-256"):
        steps.input_drift(site, "heart-risk", since_us=0)
