"""Pictures of what a model saw and said, from the stored sample, without its plugin."""

import io
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medflow import pictures, steps
from medflow.config import load_settings
from medflow.drawing import COLOURS, MAX_PNG
from medflow.errors import ConfigurationError, InputNotUsable
from medflow.pictures import picture_of
from medflow.records import Result
from medflow.registry import Registry, load_spec
from medflow.sample import ISSUER_SYSTEMS, write_sample
from medflow.segmentations import read_masks
from medflow.sequence_picture import LETTERS
from medflow.store import Store, history
from tests.factories_dicom import to_bytes, volume_of
from tests.imaging_models import BrightTissue, FastHeart, Nothing, Opacity
from tests.models import GcContent, registered, renamed


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A sample that was scored by models of every kind of input."""
    root = tmp_path_factory.mktemp("pictures")
    sample = write_sample(root / "sample", stays=4, odd=False)
    settings = load_settings(home=root / "home", issuer_systems=dict(ISSUER_SYSTEMS), device="cpu")
    used = (BrightTissue, Opacity, FastHeart, GcContent, renamed(Nothing, "nothing"))
    found = [registered(model, digest=model.__name__) for model in used]
    registry = Registry(models={model.name: model for model in found}, broken=())
    site = steps.Site(settings=settings, store=Store(settings).open(), registry=registry)
    for kind in ("fhir", "dicom", "fasta"):
        steps.ingest(site, steps.source_of(kind, [getattr(sample, kind)]))
    tally = steps.score(site)
    assert (tally.failed, tally.dead, tally.broken) == (0, 0, {})
    yield site
    site.store.close()


def job_of(site, model: str, place: int = 0) -> int:
    """A done job of a model."""
    with site.store.reading() as connection:
        query = "SELECT job.id FROM job JOIN model ON model.id = model_id WHERE name = ? AND state = 'done' ORDER BY 1"
        return connection.exec_driver_sql(query, (model,)).scalars().all()[place]


def pixels(png: bytes) -> np.ndarray:
    assert len(png) <= MAX_PNG
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def coloured(image: np.ndarray, colour: str) -> int:
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return int((np.abs(image - wanted).max(axis=2) <= 8).sum())


def test_a_volume_is_shown_with_the_outline_of_what_was_found(site):
    found, nothing = (
        picture_of(site.store, job_of(site, "bright-tissue")),
        picture_of(site.store, job_of(site, "nothing")),
    )

    assert found.title.startswith("series/")
    assert found.title.endswith(" · bright-tissue 1.0.0")
    assert found.answer.startswith("bright ")
    assert coloured(pixels(found.png), COLOURS[1]) > 500
    # what is left is the legend's line
    assert coloured(pixels(nothing.png), COLOURS[1]) < 200


def test_the_mask_that_is_drawn_is_the_one_that_was_predicted(site):
    with site.store.reading() as connection:
        view = history.job_view(connection, job_of(site, "bright-tissue"))
    (result,) = view.results

    mask = read_masks(site.store, load_spec(view.spec), view.job, view.results, image="image")["bright"]

    assert int(mask.sum()) == result.voxels
    assert mask.shape == (40, 64, 64)


def test_the_slices_go_through_the_middle_of_what_was_found():
    mask = np.zeros((10, 12, 14), bool)
    mask[6:9, 2:5, 10:13] = True
    mask[7, 3, 11] = True

    assert pictures._centre(mask.shape, pictures._Over(masks={"a": mask})) in {
        (z, y, x) for z in (6, 7, 8) for y in (2, 3, 4) for x in (10, 11, 12)
    }
    assert pictures._centre((10, 12, 14), pictures._Over(masks={})) == (5, 6, 7)


def test_without_a_mask_they_go_through_the_middle_of_what_explains():
    heat = np.full((10, 12, 14), np.nan, np.float32)
    heat[:5] = -9.0  # spoke against
    heat[2, 3, 4] = 5.0
    masks = {"nothing": np.zeros(heat.shape, bool)}

    assert pictures._centre(heat.shape, pictures._Over(masks=masks, explained="a", heat=heat)) == (2, 3, 4)


def test_a_radiograph_is_shown_with_its_class(site):
    picture = picture_of(site.store, job_of(site, "opacity"))

    assert re.fullmatch(r"opaque 0\.\d\d: (positive|negative|indeterminate)", picture.answer)
    image = pixels(picture.png)
    grey = (np.ptp(image, axis=2) == 0) & (image[..., 0] > 20) & (image[..., 0] < 235)
    assert grey.mean() > 0.3


def test_a_stay_is_shown_as_the_channels_that_were_measured(site):
    picture = picture_of(site.store, job_of(site, "fast-heart"))

    assert picture.title.startswith("encounter/")
    assert picture.answer.startswith("fast-heart ")
    assert coloured(pixels(picture.png), COLOURS[0]) > 50


def test_a_sequence_is_shown_as_its_letters(site):
    picture = picture_of(site.store, job_of(site, "gc-content"))

    assert picture.title.startswith("sequence/")
    image = pixels(picture.png)
    assert sum(coloured(image, colour) for colour in LETTERS.values()) > 20


def test_a_job_that_is_not_there_is_named(site):
    with pytest.raises(ConfigurationError, match="there is no job 999999"):
        picture_of(site.store, 999_999)


def test_pixels_that_are_gone_say_so(site, tmp_path):
    copy = load_settings(home=tmp_path / "home")
    shutil.copytree(site.settings.home, copy.home)
    shutil.rmtree(copy.home / "objects")

    with pytest.raises(InputNotUsable, match="no longer where it was stored"):
        picture_of(Store(copy).open(), job_of(site, "bright-tissue"))


@pytest.mark.parametrize(("said", "published"), [("YES", False), ("NO", True), (None, True)])
def test_pixels_with_text_burned_in_are_not_published(tmp_path, said, published):
    slices = volume_of(4, **({"BurnedInAnnotation": said} if said else {}))
    for number, item in enumerate(slices):
        (tmp_path / f"{number}.dcm").write_bytes(to_bytes(item))
    settings = load_settings(home=tmp_path / "home", device="cpu", default_patient_system="urn:test")
    registry = Registry(models={"bright-tissue": registered(BrightTissue)}, broken=())
    site = steps.Site(settings=settings, store=Store(settings).open(), registry=registry)
    steps.ingest(site, steps.source_of("dicom", sorted(tmp_path.glob("*.dcm"))))
    assert steps.score(site).done == 1

    assert picture_of(site.store, 1).png  # shown to who asks on this machine
    if published:
        assert picture_of(site.store, 1, published=True).png
    else:
        with pytest.raises(InputNotUsable, match="text burned in"):
            picture_of(site.store, 1, published=True)


@pytest.mark.parametrize(("chance", "said"), [(0.45, "0.45: positive"), (0.3, "0.30: negative")])
def test_a_probability_is_read_by_the_threshold_and_not_by_what_is_more_probable(site, chance, said):
    spec = replace(Opacity.spec, outputs=(replace(Opacity.spec.outputs[0], threshold=0.4, indeterminate=0.0),))
    with site.store.reading() as connection:
        view = history.job_view(connection, job_of(site, "opacity"))
    result = replace(view.results[0], value=chance, probabilities=(1 - chance, chance))

    assert pictures.answer(spec, replace(view, results=(result,))) == f"opaque {said}"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (13590.0, "13590"),
        (1234567.8, "1234568"),
        (1000.0, "1000"),
        (0.0, "0"),
        (9.99996, "10"),
        (-12.3456, "-12.35"),
        (0.00001234, "0.00001234"),
    ],
)
def test_a_number_is_said_without_an_exponent(value, said):
    assert pictures.plain(value) == said


def test_a_volume_is_said_in_millilitres_without_an_exponent():
    output = BrightTissue.spec.outputs[0]

    assert pictures.said_of(output, Result(output=output.name, value=13590.0)) == f"{output.name} 13590 mL"


def test_a_case_without_a_result_is_shown_as_it_stands(site):
    with site.store.reading() as connection:
        view = history.job_view(connection, job_of(site, "gc-content"))

    assert pictures.answer(GcContent.spec, replace(view, results=(), state="dead")) == "not scored: dead"


def test_a_published_picture_names_its_class_but_no_measured_value(site):
    with site.store.reading() as connection:
        volume, radiograph = (history.job_view(connection, job_of(site, name)) for name in ("bright-tissue", "opacity"))

    assert pictures._classes(BrightTissue.spec, volume) == ""
    assert pictures._classes(Opacity.spec, radiograph) == pictures.answer(Opacity.spec, radiograph)
    assert picture_of(site.store, volume.job.id, published=True).png != picture_of(site.store, volume.job.id).png
