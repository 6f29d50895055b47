"""Why a stay has its risk: from --explain to what a reader of FHIR finds, what `medflow show` draws, and back."""

import io
import shutil
from collections import defaultdict
from dataclasses import replace
from datetime import datetime

import numpy as np
import orjson
import pytest
from PIL import Image

from medflow import steps
from medflow.config import load_settings
from medflow.errors import ConfigurationError
from medflow.pictures import picture_of
from medflow.plugin import Channel, Coding
from medflow.registry import Registry
from medflow.sample import write_sample
from medflow.stay_picture import LOWERED, RAISED
from medflow.store import Store, history
from tests.distributions import environment, medflow, write_distribution
from tests.explaining_models import LinearStay
from tests.models import registered, renamed

CHANNELS = {"heart rate": "8867-4", "coma score": "9269-2", "urea": "3094-0", "lactate": "2524-7"}
PLUGIN = "from tests import explaining_models\n\nclass LinearStay(explaining_models.LinearStay):\n    pass\n"
STAYS = 4


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return write_sample(tmp_path_factory.mktemp("sample"), stays=STAYS, odd=False)


def lines(folder, kind):
    """The last line of each resource in a delivered folder, by id."""
    found = map(orjson.loads, (folder / f"{kind}.ndjson").read_bytes().splitlines())
    return {item["id"]: item for item in found}


@pytest.fixture(scope="module")
def ingested(tmp_path_factory, sample):
    """A home with the sample's stays, to be copied."""
    home = tmp_path_factory.mktemp("ingested")
    site = site_at(home)
    steps.ingest(site, steps.source_of("fhir", [sample.fhir]))
    site.store.close()
    return home


def site_at(home, *models):
    settings = load_settings(home=home, device="cpu", chunk_size=STAYS)
    found = [registered(model, digest=model.__name__) for model in models]
    registry = Registry(models={model.name: model for model in found}, broken=())
    return steps.Site(settings=settings, store=Store(settings).open(), registry=registry)


def opened(home, ingested, *models):
    """A site of its own with the stays and these models."""
    return site_at(shutil.copytree(ingested, home), *models)


def views(site):
    with site.store.reading() as connection:
        found = connection.exec_driver_sql("SELECT id FROM job WHERE state = 'done' ORDER BY id").scalars().all()
        return [history.job_view(connection, job) for job in found]


# --- the whole way, as people walk it ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def delivered(tmp_path_factory, sample):
    """What the command line leaves of stays that were scored with the switch on."""
    root = tmp_path_factory.mktemp("cli")
    plugins = write_distribution(root / "plugins", "stay-plugin", PLUGIN, {"linear-stay": "LinearStay"})
    env = environment(root / "home", plugins)
    for words in (("ingest", "fhir", sample.fhir), ("deliver", "--to", root / "out")):
        if words[0] == "deliver":
            done = medflow(env, "score", "--model", "linear-stay", "--explain", "--json")
            assert orjson.loads(done.stdout)["notes"] == {"explained": STAYS}, done.stderr
        assert medflow(env, *words).returncode == 0
    return env, root / "out"


def test_a_risk_assessment_names_what_moved_it_in_words_without_a_value(delivered):
    _, out = delivered

    notes = [item["note"][-1]["text"] for item in lines(out, "RiskAssessment").values()]

    assert len(notes) == STAYS
    known = {*CHANNELS, "age", "height", "lactate (not measured)"}
    for note in notes:
        named = [part.partition(": ")[2].split(", ") for part in note.rstrip(".").split(". ")]
        assert {name for names in named for name in names} <= known
        assert not any(letter.isdigit() for letter in note)


def test_its_basis_are_the_last_measurements_that_were_known_at_the_prediction_time(delivered, ingested):
    _, out = delivered
    of_stay = defaultdict(list)
    with site_at(ingested).store.reading() as connection:
        stored = connection.exec_driver_sql("SELECT raw FROM fhir_resource WHERE type = 'Observation'").scalars()
        for item in map(orjson.loads, stored):
            of_stay[item["encounter"]["reference"]].append(item)

    for assessment in lines(out, "RiskAssessment").values():
        mirror = lines(out, "Observation")[assessment["basis"][-1]["reference"].removeprefix("Observation/")]
        moment = datetime.fromisoformat(assessment["occurrenceDateTime"])
        last = {}
        for item in of_stay[assessment["encounter"]["reference"]]:
            (code,) = (coding["code"] for coding in item["code"]["coding"])
            if datetime.fromisoformat(item["issued"]) <= moment > datetime.fromisoformat(item["effectiveDateTime"]):
                last[code] = max(last.get(code, ("", "")), (item["effectiveDateTime"], f"Observation/{item['id']}"))
        parts = [part for part in mirror["component"] if part["code"]["coding"][0]["code"] == "contribution"]
        told = [part["code"]["text"].removeprefix("contribution of ").partition(",")[0] for part in parts]
        expected = [last[CHANNELS[name]][1] for name in told if name in CHANNELS]
        assert expected
        assert [item["reference"] for item in assessment["basis"][1:-1]] == expected
        assert [item["reference"] for item in mirror["derivedFrom"]] == expected


def test_the_components_add_up_to_the_odds(delivered):
    env, out = delivered
    mirrors = [item for item in lines(out, "Observation").values() if "component" in item]

    for mirror in mirrors:
        told = sum(part["valueQuantity"]["value"] for part in mirror["component"][1:])
        chance = mirror["valueQuantity"]["value"] / 100
        assert told == pytest.approx(np.log(chance / (1 - chance)), abs=0.6)  # what hardly matters is not told


def test_show_tells_what_moved_an_answer_and_draws_it(delivered, tmp_path):
    env, _ = delivered

    done = medflow(env, "show", 1, "--to", tmp_path / "stay.png")

    assert done.returncode == 0, done.stderr
    assert "what moved death" in done.stdout and "log-odds" in done.stdout
    assert any(name in done.stdout for name in CHANNELS)
    drawn = np.asarray(Image.open(tmp_path / "stay.png").convert("RGB")).astype(int)
    for sign, colour in (("│ +", RAISED), ("│ -", LOWERED)):
        wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
        bars = (np.abs(drawn - wanted).max(axis=2) <= 8).sum()
        assert bool(bars > 500) == (sign in done.stdout)


# --- what is kept, and when it is paid for -------------------------------------------------------------------------


def test_nothing_is_explained_nor_looked_up_unless_it_is_asked_for(tmp_path, ingested, monkeypatch):
    site = opened(tmp_path / "home", ingested, renamed(LinearStay, "plain"))
    monkeypatch.setattr("medflow.evidence.last_measurements", lambda *_: pytest.fail("looked up"))
    before = LinearStay.explained

    assert steps.score(site).notes == {}

    assert LinearStay.explained == before
    assert [view.results[0].contributions for view in views(site)] == [()] * STAYS


def test_an_answer_is_explained_afterwards_as_a_run_would_have_and_sent_again(tmp_path, ingested):
    later, at_once = (opened(tmp_path / name, ingested, renamed(LinearStay, "later")) for name in ("one", "two"))
    steps.score(later)
    steps.deliver(later, str(tmp_path / "out"))
    before = lines(tmp_path / "out", "RiskAssessment")

    assert steps.explain(later, views(later)[0].job.id) == ["death"]

    steps.score(at_once, explain=True)
    assert views(later)[0].results == views(at_once)[0].results
    assert views(later)[1].results[0].contributions == ()
    steps.deliver(later, str(tmp_path / "out"))
    after = lines(tmp_path / "out", "RiskAssessment")
    assert before.keys() == after.keys()
    changed = [key for key in after if after[key] != before[key]]
    assert len(changed) == 1 and len(after[changed[0]]["note"]) == 2
    size = (tmp_path / "out" / "RiskAssessment.ndjson").stat().st_size
    steps.explain(later, views(later)[0].job.id)
    steps.deliver(later, str(tmp_path / "out"))
    assert (tmp_path / "out" / "RiskAssessment.ndjson").stat().st_size == size  # the same again is no change


def test_an_explanation_that_fails_costs_no_answer(tmp_path, ingested, monkeypatch, caplog):
    class Infinite(LinearStay):
        spec = replace(LinearStay.spec, name="infinite")

        def explain(self, batch, predictions):
            return [
                {"death": replace(item["death"], statics=item["death"].statics / 0)}
                for item in super().explain(batch, predictions)
            ]

    odd_code = Channel(name="odd", codes=(Coding(system="urn:test", code=" of blanks "),), unit="1")

    class Unwritable(LinearStay):
        wanted = replace(LinearStay.spec.accepts[0], channels=(*LinearStay.spec.accepts[0].channels[:3], odd_code))
        spec = replace(LinearStay.spec, name="unwritable", accepts=(wanted,))
        absence = (0.0, 0.0, 0.0, 40.0)

    with np.errstate(all="ignore"):
        site = opened(tmp_path / "home", ingested, Infinite, Unwritable)
        tally = steps.score(site, explain=True)

    assert (tally.done, tally.failed, tally.dead) == (2 * STAYS, 0, 0)
    assert tally.notes == {
        "explanation-failed: explanation-malformed": STAYS,
        "explanation-failed: invalid-resource": STAYS,
    }
    assert {view.results[0].contributions for view in views(site)} == {()}


def test_a_look_up_that_fails_costs_no_answer_and_quotes_nothing(tmp_path, ingested, monkeypatch, caplog):
    def fails(*_):
        raise ValueError("Observation/of-somebody")

    monkeypatch.setattr("medflow.evidence.last_measurements", fails)
    site = opened(tmp_path / "home", ingested, renamed(LinearStay, "alone"))

    tally = steps.score(site, explain=True)

    assert (tally.done, tally.notes) == (STAYS, {"explanation-failed: unforeseen": STAYS})
    assert "of-somebody" not in caplog.text


def test_the_output_whose_explanation_is_drawn_can_be_chosen(tmp_path, ingested):
    site = opened(tmp_path / "home", ingested, renamed(LinearStay, "chosen"))
    steps.score(site, explain=True)
    job = views(site)[0].job.id

    picture = picture_of(site.store, job, output="death")

    assert picture.explained is not None and picture.explained.contributions
    assert Image.open(io.BytesIO(picture.png)).format == "PNG"
    with pytest.raises(ConfigurationError, match="no explanation of 'other' is kept of this job: there are death"):
        picture_of(site.store, job, output="other")
