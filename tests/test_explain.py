"""Explanations on their way from a run's switch to DICOM objects, FHIR, delivery and pictures."""

import io
import threading
from dataclasses import replace

import numpy as np
import orjson
import pytest
from PIL import Image
from pydicom import dcmread

from medflow import pictures, steps
from medflow.config import load_settings
from medflow.drawing import HEAT
from medflow.errors import ConfigurationError, InputNotUsable, PredictionInvalid
from medflow.pictures import picture_of
from medflow.registry import Registry
from medflow.sample import ISSUER_SYSTEMS, write_sample
from medflow.scoring import LoadedModels
from medflow.store import Store, chunks, history, result_objects
from tests.distributions import environment, medflow, write_distribution
from tests.explaining_models import ExplainedTissue, Gradient
from tests.imaging_models import Opacity
from tests.models import GcContent, registered, renamed
from tests.services.dicom3tools import errors_of

VOLUMES, RADIOGRAPHS = 2, 3


class Careless(ExplainedTissue):
    """Explains nothing for the first volume that it is given, and quotes it."""

    spec = replace(ExplainedTissue.spec, name="careless", batch_size=1)
    failed = False

    def explain(self, batch, predictions):
        """Fails once."""
        if not type(self).failed:
            type(self).failed = True
            raise ValueError(f"cannot explain {batch}")
        return super().explain(batch, predictions)


class Letters(GcContent):
    """Explains a sequence as if it were a picture."""

    spec = replace(GcContent.spec, name="letters")

    def explain(self, batch, predictions):
        """A number a base."""
        return [{"gc": np.ones(8, np.float32)} for _ in batch]


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return write_sample(tmp_path_factory.mktemp("sample"), stays=4, odd=False)


def opened(home, sample, *models):
    """A site with the sample's images and sequences, and these models."""
    settings = load_settings(home=home, issuer_systems=dict(ISSUER_SYSTEMS), device="cpu", chunk_size=2)
    found = [registered(model, digest=model.__name__) for model in models]
    registry = Registry(models={model.name: model for model in found}, broken=())
    site = steps.Site(settings=settings, store=Store(settings).open(), registry=registry)
    for kind in ("dicom", "fasta"):
        steps.ingest(site, steps.source_of(kind, [getattr(sample, kind)]))
    return site


@pytest.fixture(scope="module")
def scored(tmp_path_factory, sample):
    """A site that was scored with the switch on, the tally, and the folder that it was delivered to."""
    root = tmp_path_factory.mktemp("explained")
    site = opened(root / "home", sample, ExplainedTissue, Gradient, Opacity)
    tally = steps.score(site, explain=True)
    assert (tally.failed, tally.dead, tally.broken) == (0, 0, {})
    steps.deliver(site, str(root / "out"))
    yield site, tally, root / "out"
    site.store.close()


def jobs_of(site, model):
    """The done jobs of a model."""
    with site.store.reading() as connection:
        query = "SELECT job.id FROM job JOIN model ON model.id = model_id WHERE name = ? AND state = 'done' ORDER BY 1"
        return connection.exec_driver_sql(query, (model,)).scalars().all()


def heat_maps(site, job):
    with site.store.reading() as connection:
        return [item for item in result_objects.of_job(connection, job) if item.kind == "heat-map"]


def links(folder):
    """By Observation: the SOP Instance UIDs of the heat maps that its last line in a folder names."""
    lines = (orjson.loads(line) for line in (folder / "Observation.ndjson").read_bytes().splitlines())
    last = {found["id"]: found for found in lines}
    return {
        found["method"]["text"]: [
            part["valueString"].removeprefix("urn:oid:")
            for item in last.values()
            if item["method"] == found["method"]
            for part in item.get("component", ())
            if part["code"].get("coding", [{}])[0].get("code") == "heat-map"
        ]
        for found in last.values()
    }


# --- a run that explains -----------------------------------------------------------------------------------------


def test_a_run_with_the_switch_explains_what_models_can_explain(scored):
    site, tally, _ = scored

    assert tally.notes == {"explained": VOLUMES + RADIOGRAPHS}
    assert tally.seconds["explain"] > 0
    counts = {model: [len(heat_maps(site, job)) for job in jobs_of(site, model)] for model in site.registry.models}
    assert counts == {"explained-tissue": [1] * VOLUMES, "gradient": [1] * RADIOGRAPHS, "opacity": [0] * RADIOGRAPHS}


def test_each_answer_names_its_heat_map_and_both_are_delivered(scored):
    site, _, out = scored
    made = {
        f"{model}@1.0.0": sorted(item.sop_instance_uid for job in jobs_of(site, model) for item in heat_maps(site, job))
        for model in site.registry.models
    }

    assert {method: sorted(uids) for method, uids in links(out).items()} == made
    files = {dcmread(path).SOPInstanceUID: path for path in (out / "dicom").iterdir()}
    assert {uid for uids in made.values() for uid in uids} <= set(files)


def test_dciodvfy_finds_no_error_in_what_is_delivered(scored, tmp_path):
    _, _, out = scored
    found = {}
    for path in (out / "dicom").iterdir():
        found.setdefault(dcmread(path).SOPClassUID.name, path)

    assert {"Parametric Map Storage", "Secondary Capture Image Storage"} <= set(found)
    for kind in ("Parametric Map Storage", "Secondary Capture Image Storage"):
        assert errors_of(found[kind].read_bytes(), tmp_path) == []


def test_the_numbers_are_those_that_the_model_gave(scored):
    site, _, _ = scored
    (job, *_) = jobs_of(site, "explained-tissue")
    (item,) = heat_maps(site, job)

    made = dcmread(io.BytesIO(site.store.objects.get(item.sha256)))

    values = np.frombuffer(made.FloatPixelData, "<f4")
    said = values[values != np.float32(made.FloatPixelPaddingValue)]
    with site.store.reading() as connection:
        (result,) = history.job_view(connection, job).results
    assert int((said > 0).sum()) == result.voxels  # brighter than the threshold, as the mask
    assert 0 < len(said) < len(values)  # nothing is said of air


# --- what goes wrong ---------------------------------------------------------------------------------------------


def test_an_explanation_that_fails_is_counted_and_its_answer_stands(tmp_path, sample, caplog):
    Careless.failed = False
    site = opened(tmp_path / "home", sample, Careless, Letters)

    tally = steps.score(site, explain=True)

    assert (tally.failed, tally.dead) == (0, 0)
    assert tally.notes["explained"] == VOLUMES - 1
    assert tally.notes["explanation-failed: plugin-error"] == 1
    assert tally.notes["explanation-failed: explanation-malformed"] == len(jobs_of(site, "letters")) > 0
    assert [len(heat_maps(site, job)) for job in jobs_of(site, "careless")] == [0, 1]
    assert "is not explained (plugin-error): the model raised ValueError at test_explain.py:" in caplog.text
    assert "cannot explain" not in caplog.text


def test_whoever_scores_an_asked_chunk_explains_as_the_run_asked(tmp_path, sample):
    site = opened(tmp_path / "home", sample, renamed(ExplainedTissue, "asked"))
    model, loaded = site.registry.get("asked"), LoadedModels(site.settings)
    steps.select(site, model)

    def wake(_name, count):
        for _ in range(count):
            threading.Thread(target=steps.score_asked, args=(site, model, loaded), kwargs={"worker": "w1"}).start()

    with steps.recorded(site, "score") as run:
        assert steps.dispatch(site, run, [model], wake, explain=True) == {}

    assert steps.scored(site, run)["asked"].notes == {"explained": VOLUMES}
    with site.store.reading() as connection:
        assert {chunk.notes.get("explained") for chunk in chunks.of_run(connection, run.id) if chunk.done} == {VOLUMES}


# --- an answer that was given before -----------------------------------------------------------------------------


def test_an_answer_is_explained_afterwards_and_sent_again_with_the_link(tmp_path, sample):
    site = opened(tmp_path / "home", sample, renamed(Gradient, "later"))
    assert steps.score(site).notes == {}
    steps.deliver(site, str(tmp_path / "out"))
    job = jobs_of(site, "later")[1]
    assert links(tmp_path / "out") == {"later@1.0.0": []}

    outputs = steps.explain(site, job)
    again = steps.explain(site, job)

    (item,) = heat_maps(site, job)
    assert outputs == again == ["opacity"]
    assert site.store.objects.get(item.sha256)
    steps.deliver(site, str(tmp_path / "out"))
    assert links(tmp_path / "out") == {"later@1.0.0": [item.sop_instance_uid]}
    assert [path.name for path in (tmp_path / "out" / "dicom").iterdir()] == [f"{item.sop_instance_uid}.dcm"]


def test_what_cannot_be_explained_says_why(scored):
    site, _, _ = scored
    (gradient, *_), (opacity, *_) = jobs_of(site, "gradient"), jobs_of(site, "opacity")
    newer = registered(Gradient, digest="newer")
    other = replace(site, registry=Registry(models={newer.name: newer}, broken=()))

    class Moody(Gradient):
        def predict(self, batch):
            return [replace(item, values={"opacity": 1 - item.values["opacity"]}) for item in super().predict(batch)]

    moody = registered(Moody, digest="Gradient")
    changed = replace(site, registry=Registry(models={moody.name: moody}, broken=()))

    for here, job, error, said in (
        (site, 999, ConfigurationError, "there is no job 999"),
        (site, opacity, ConfigurationError, "opacity explains none of its answers"),
        (other, gradient, ConfigurationError, "another gradient than the one installed"),
        (changed, gradient, PredictionInvalid, "another answer for opacity"),
    ):
        before = heat_maps(site, gradient)
        with pytest.raises(error, match=said):
            steps.explain(here, job)
        assert heat_maps(site, gradient) == before


def test_the_command_line_explains_a_run_or_one_job(tmp_path, sample):
    source = "from tests import explaining_models\n\nclass Tissue(explaining_models.ExplainedTissue):\n    pass\n"
    plugins = write_distribution(tmp_path / "plugins", "tissue-plugin", source, {"explained-tissue": "Tissue"})
    env = environment(tmp_path / "home", plugins)
    medflow(env, "ingest", "dicom", sample.dicom / "ct-1")

    run = medflow(env, "score", "--model", "explained-tissue", "--explain", "--json")
    one = medflow(env, "explain", 1, "--json")
    none = medflow(env, "explain", 2)

    assert orjson.loads(run.stdout)["notes"] == {"explained": 1}, run.stderr
    assert orjson.loads(one.stdout) == {"job": 1, "explained": ["bright"]}
    assert (none.returncode, "there is no job 2" in none.stderr) == (1, True)


# --- pictures ----------------------------------------------------------------------------------------------------


def hot(picture) -> int:
    """How many pixels have the strongest of the heat map's colours."""
    from matplotlib import colormaps

    pixels = np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB")).astype(float)
    strongest = 255 * np.array(colormaps[HEAT](1.0)[:3])
    return int((np.abs(pixels - strongest).max(axis=2) <= 12).sum())


@pytest.mark.parametrize("published", [False, True])
def test_a_picture_shows_the_heat_map_in_colours_with_their_scale(scored, published):
    site, _, _ = scored
    with_map, without = jobs_of(site, "gradient")[0], jobs_of(site, "opacity")[0]

    assert hot(picture_of(site.store, with_map, published=published)) > 20
    assert hot(picture_of(site.store, without, published=published)) == 0


def test_the_scale_has_numbers_only_for_who_asks_on_this_machine():
    from medflow.drawing import figure

    heat = np.linspace(0, 3, 16, dtype=np.float32).reshape(4, 4)
    labels = []
    for numbers in (True, False):
        drawn = figure(3, 3)
        drawn.add_subplot().imshow(heat)
        pictures._scale(drawn, pictures._Over(masks={}, explained="a", heat=heat, numbers=numbers))
        drawn.canvas.draw()
        labels.append([item.get_text() for item in drawn.axes[1].get_yticklabels()])

    assert "1.0" in labels[0]
    assert labels[1] == ["less", "more"]


def test_the_output_whose_heat_map_is_drawn_can_be_chosen(scored):
    site, _, _ = scored
    job = jobs_of(site, "gradient")[0]

    assert hot(picture_of(site.store, job, output="opacity")) > 20
    with pytest.raises(ConfigurationError, match="no heat map of 'other' is kept of this job: there are opacity"):
        picture_of(site.store, job, output="other")


def test_a_heat_map_that_is_gone_says_so(tmp_path, sample):
    site = opened(tmp_path / "home", sample, renamed(Gradient, "gone"))
    steps.score(site, explain=True)
    job = jobs_of(site, "gone")[0]
    (item,) = heat_maps(site, job)
    site.store.objects.path(item.sha256).unlink()

    with pytest.raises(InputNotUsable, match="no longer in the object store"):
        picture_of(site.store, job)
