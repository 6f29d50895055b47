"""A training end to end, on a store with stays enough: what is kept of it, how it was measured, and what is refused."""

import json
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256

import pytest

from medflow import steps
from medflow.config import LabelTable, load_settings
from medflow.errors import ConfigurationError, PluginBroken, UnknownModel
from medflow.evaluation.input_drift import from_json
from medflow.registry import Registry
from medflow.store import Store, trained
from medflow.trained import as_registered
from medflow.training import dataset, run, study
from medflow.training.asked import Asked
from medflow.training.search import seed_of
from tests.distributions import environment, medflow, write_distribution
from tests.stays import MRN, VISIT, HeartRisk, write_stays
from tests.trained_stays import WEIGHTS, HeartFit, registered, registry, series_of, stays

STAYS = stays()
PATIENTS = len({stay.patient for stay in STAYS})


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A store of 240 stays, and the model as its plugin brings it."""
    folder = tmp_path_factory.mktemp("train")
    settings = load_settings(home=folder / "home", device="cpu", cohorts={"old": {"max_age": 200, "min_age": 1}})
    store = Store(settings).open()
    made = steps.Site(settings=settings, store=store, registry=registry(registered(HeartFit)))
    assert steps.ingest(made, steps.source_of("fhir", [write_stays(folder / "in", STAYS)])).rejected == 0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(steps, "installed", lambda: made.registry)
        yield made
    store.close()


def train(site: steps.Site, *, served=None, installed: Registry | None = None, name="heart-fit", **asked):
    return run.train(site.store, site.settings, installed or site.registry, name, Asked(**asked), served=served)


SAID: list[tuple[str, int, int | None]] = []


@pytest.fixture(scope="module")
def first(site):
    """The version that a first training gave, beside the one that is served."""
    SAID.clear()
    return steps.train(
        site, "heart-fit", Asked(cohort="old", trials=3, seed=7), progress=lambda *told: SAID.append(told)
    )


def kept(site, version):
    with site.store.reading() as connection:
        return trained.one(connection, "heart-fit", version)


def test_it_is_a_candidate_with_weights_card_metrics_and_what_it_was_made_of(site, first):
    row = kept(site, first.spec.version)

    assert re.fullmatch(r"1\.2\.0\+trained\.\d+", row.version)
    assert (row.state, row.base_version, row.seed) == ("candidate", "1.2.0", 7)
    assert set(row.hyperparameters) == {"rate", "epochs", "start"}
    assert (row.cohort["name"], row.cohort["asked"]) == ("old", {"min_age": 1, "max_age": 200})
    assert (row.cohort["cases"], row.cohort["patients"], row.cohort["left_out"]) == (len(STAYS), PATIENTS, {})
    assert row.metrics["test"]["auroc"]["low"] < row.metrics["test"]["auroc"]["value"] > 0.8
    assert row.metrics["served"]["version"] == "1.2.0"
    for name, digest in row.files.items():
        assert sha256(site.store.objects.get(digest)).hexdigest() == digest, name
    assert {WEIGHTS, trained.CARD, "reference.json", "learning-curve.png", "reliability.png"} <= set(row.files)
    reference = from_json(json.loads(site.store.objects.get(row.files["reference.json"])), series_of(HeartFit))
    assert reference.cases == sum(first.cohort.parts[name].patients for name in ("training", "validation"))
    assert (row.spec["version"], row.spec["outputs"][0]["threshold"]) == (row.version, 0.4)


def test_no_patient_is_in_two_parts(first):
    parts = first.cohort.parts

    assert sum(part.patients for part in parts.values()) == PATIENTS
    assert sum(part.cases for part in parts.values()) == len(STAYS)


def test_nothing_of_it_is_left_and_nothing_was_served(site, first):
    with site.store.reading() as connection:
        assert trained.promoted(connection) == []
    assert list((site.settings.home / study.FOLDER).iterdir()) == []


def test_better_than_a_model_that_knows_nothing_is_said_with_its_interval(first):
    assert first.served is not None and first.served.gain is not None
    assert first.served.evaluation.metrics["auroc"].value == pytest.approx(0.5)
    low, high = first.served.gain.interval or (0, 0)
    assert 0 < low < first.served.gain.value < high


def test_the_card_tells_whoever_decides_and_names_no_patient(site, first):
    text = first.card

    assert site.store.objects.get(kept(site, first.spec.version).files[trained.CARD]).decode() == text
    for words in (
        "medflow models promote heart-fit 1.2.0+trained.",
        "stays of patients of 1 years or more, of patients of 200 years or less",
        f"| test | {first.cohort.parts['test'].cases} |",
        "served now (1.2.0)",
        "is not known here",
        "## By group",
        "| epochs | ",
        "seed 7",
        "hearts only",
        "![Learning curve](learning-curve.png)",
        "![Reliability](reliability.png)",
        first.weights_sha256[WEIGHTS],
        ", tests 1, medflow ",
    ):
        assert words in text
    for group in first.test.groups:
        assert group.cases >= 10
    for secret in (MRN, VISIT, "M0003", "V0003", STAYS[3].born, "2026-01-0"):
        assert secret not in text + json.dumps(first.as_json()) + json.dumps(first.counts())


def test_what_went_on_was_told(first):
    begun = [words for words, _, total in SAID if total is not None]

    assert begun == ["cohort", "reading", "training", "measuring", "keeping"]
    assert sum(count for words, count, _ in SAID if words.startswith("trial ")) == 3
    assert sum(count for words, count, _ in SAID if words == "reading") == len(STAYS)


def test_it_is_on_record_who_trained_what_and_when(site, first):
    with sqlite3.connect(site.settings.home / "medflow.db") as database:
        action, subject, detail = database.execute(
            "SELECT action, subject, detail FROM audit WHERE action = 'train' ORDER BY id LIMIT 1"
        ).fetchone()
        status, counts = database.execute("SELECT status, counts FROM run WHERE command = 'train'").fetchone()
    assert (subject, json.loads(detail)["version"]) == ("model heart-fit", first.spec.version)
    assert (status, json.loads(counts)["cases"]) == ("completed", len(STAYS))


def test_cut_off_and_gone_on_with_it_is_the_same_and_is_served_as_it_was_measured(site, first, monkeypatch):
    """The same seed asks the same test patients, so that the first version, once served, is measured again."""

    class CutOff(BaseException):
        pass

    def cut_off(*_arguments, **_options):
        raise CutOff

    asked = {"cohort": "old", "trials": 3, "seed": 7}
    served = as_registered(site.store, site.settings, site.registry.get("heart-fit"), kept(site, first.spec.version))
    with monkeypatch.context() as patched, pytest.raises(CutOff):
        patched.setattr(run, "evaluation_of", cut_off)
        train(site, **asked)
    monkeypatch.setattr(dataset, "_read", cut_off)  # what was read and fitted is not again
    monkeypatch.setattr(HeartFit, "fit", cut_off)

    again = train(site, served=served, **asked)

    assert again.weights_sha256 == first.weights_sha256
    assert again.spec.version != first.spec.version
    assert again.served is not None and again.served.evaluation.version == first.spec.version
    assert again.served.evaluation.metrics == again.test.metrics == first.test.metrics
    assert again.served.evaluation.confusion == first.test.confusion


def test_labels_that_a_person_made_are_learnt_in_the_place_of_the_records(site, tmp_path):
    path = tmp_path / "returned.csv"
    path.write_text("encounter,outcome\n" + "".join(f"e{stay.number},{int(stay.rate < 90)}\n" for stay in STAYS))
    series = series_of(HeartFit)
    other = registered(HeartFit, accepts=(replace(series, window=series.window * 2),))

    found = train(site, labels=LabelTable(path=path), served=other)

    assert found.cohort.as_json()["outcomes"] == "labels"
    assert found.test.metrics["auroc"].value == pytest.approx(1.0)
    assert found.served is None
    assert "Not compared with the version served: it takes other inputs." in found.card


class Unanswering(HeartFit):
    """Can be fitted, and not be asked."""

    def predict(self, batch):
        """As a plugin with a defect would."""
        raise ValueError("the heart rate of patient 12 is 300")


def test_data_of_patients_do_not_stay_where_a_training_failed(site):
    broken = registry(registered(Unanswering))

    with pytest.raises(PluginBroken, match="has no answer for any validation case"):
        train(site, installed=broken, seed=11)

    (folder,) = (site.settings.home / study.FOLDER).iterdir()
    assert not [path for path in folder.iterdir() if path.suffix == ".npy"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    study.remove(folder)


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"name": "heart-risk"}, ConfigurationError, "installed models that have: heart-fit$"),
        ({"name": "nothing"}, UnknownModel, "no model is called 'nothing'"),
        ({"cohort": "nobody"}, ConfigurationError, "MEDFLOW_COHORTS has: all, old"),
        ({"output": "life"}, ConfigurationError, "heart-fit has no risk called 'life'; it has: death"),
        ({"trials": -1}, ConfigurationError, "the number of trials is 0"),
        ({"sampler": "grid"}, ConfigurationError, "'grid' is none of random, bayesian"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_words(site, asked, error, said):
    installed = registry(registered(HeartFit), registered(HeartRisk))

    with pytest.raises(error, match=said):
        train(site, installed=installed, **asked)


def test_too_few_outcomes_are_refused_before_anything_is_read(site, tmp_path):
    path = tmp_path / "few.csv"
    path.write_text("encounter,outcome\n" + "".join(f"e{number},{number % 2}\n" for number in range(30)))

    with pytest.raises(ConfigurationError, match="15 patients have the outcome and 15 have not: .* need 63"):
        train(site, labels=LabelTable(path=path))


def test_killed_it_goes_on_where_it_was(site, tmp_path):
    """kill -9 in the third trial; the same command again ends as it would have, and fits only what was not fitted."""
    fits = tmp_path / "fits"
    source = "from tests import trained_stays\n\nclass HeartFit(trained_stays.HeartFit):\n    pass\n"
    plugin = write_distribution(tmp_path / "plugins", "heartfit", source, {"heart-fit": "HeartFit"})
    env = environment(site.settings.home, plugin, MEDFLOW_TESTS_FITS=str(fits), MEDFLOW_DEVICE="cpu")
    words = ("train", "heart-fit", "--cohort", "all", "--trials", "4", "--sampler", "random", "--seed", "9", "--json")
    third = str(seed_of(9, 2))

    slowly = subprocess.Popen(
        [sys.executable, "-m", "medflow.cli", *words],
        env=env | {"MEDFLOW_TESTS_EPOCH_S": "0.05"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (fits.exists() and third in fits.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(slowly.pid, signal.SIGKILL)
    slowly.wait()
    before = fits.read_text().splitlines()
    done = medflow(env, *words)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    after = [line.split()[0] for line in fits.read_text().splitlines()[len(before) :]]
    assert third in {line.split()[0] for line in before}
    assert list(dict.fromkeys(after)) == [third, str(seed_of(9, 3))]
    assert found["trials"]["complete"] + found["trials"]["stopped"] == 4
    assert found["weights"] == train(site, trials=4, sampler="random", seed=9).weights_sha256
