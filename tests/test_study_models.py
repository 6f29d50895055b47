"""Models of studies, from files to results: each input takes its series, and nothing is scored under a wrong key."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import orjson
import pytest
from pydicom import dcmread
from pydicom.uid import ComputedRadiographyImageStorage

from medflow import steps
from medflow.config import Settings
from medflow.errors import InputNotUsable
from medflow.inference.resident import LoadedModels
from medflow.inputs import image_instances, open_cases
from medflow.pictures import picture_of
from medflow.plugin import Case, Image, Model, ModelSpec, Prediction, Segment
from medflow.registry import Registry
from medflow.store import Store, history, jobs, result_objects
from medflow.store.jobs import Job
from medflow.testing import check_model
from tests.factories_dicom import slice_of, volume_of, write_series
from tests.imaging_models import LIVER, BrightTissue, Enhancement
from tests.models import registered

AGENT: dict[str, Any] = {"ContrastBolusAgent": "Iohexol"}


class Bright(Model[np.ndarray]):
    """Marks what is bright in the late volume of a study."""

    spec: ClassVar[ModelSpec] = replace(
        Enhancement.spec,
        name="bright",
        outputs=(Segment(name="bright", body_site=LIVER, valid_ml=(0.0, 1e6), of="late"),),
    )

    def load(self, device: str) -> None:
        """Nothing to load."""

    def prepare(self, case: Case) -> np.ndarray:
        """The late volume."""
        late = case.inputs["late"]
        assert isinstance(late, Image)
        return late.array

    def predict(self, batch: Sequence[np.ndarray]) -> list[Prediction]:
        """Its brighter half."""
        return [Prediction(values={"bright": volume > np.median(volume)}) for volume in batch]


@pytest.fixture
def engine() -> str:
    """Selection is tested on both; what follows it does not differ."""
    return "sqlite"


@pytest.fixture
def site(store: Store, settings: Settings) -> steps.Site:
    """A site with one model of studies."""
    return steps.Site(settings=settings, store=store, registry=_registry())


def _registry() -> Registry:
    return Registry(models={"enhancement": registered(Enhancement)}, broken=())


def _take(site: steps.Site, folder: Path, datasets: list[Any]) -> None:
    write_series(folder, datasets)
    assert steps.ingest(site, steps.source_of("dicom", [folder])).rejected == 0


def _phases(site: steps.Site, tmp_path: Path) -> None:
    """A study with a volume without agent, and one with it that is 500 HU brighter."""
    _take(site, tmp_path / "plain", volume_of(4, series=1, SliceThickness=2))
    _take(site, tmp_path / "late", volume_of(4, series=2, RescaleIntercept=-500, **AGENT))


def _film(**elements: Any) -> Any:
    return slice_of(0, series=5, Modality="CR", SOPClassUID=ComputedRadiographyImageStorage, **elements)


def _value(site: steps.Site) -> float | None:
    with site.store.reading() as connection:
        ((_, _, value, _),) = jobs.predictions(connection, "enhancement")
    return value


def _leased(site: steps.Site) -> Job:
    model = site.registry.get("enhancement")
    assert steps.select(site, model).selected == 1
    with site.store.writing() as connection:
        number = jobs.register_model(
            connection, name=model.name, version="1.0.0", digest=model.digest, distribution="", spec={}
        )
        (job,) = jobs.lease(connection, number, "host|1|1|a", limit=9, seconds=60, max_attempts=3)
    return job


def test_a_study_is_scored_by_its_named_series(site: steps.Site, tmp_path: Path) -> None:
    _phases(site, tmp_path)

    tally, again = steps.score(site), steps.score(site)

    assert (tally.selected, tally.done, again.selected) == (1, 1, 0)
    assert _value(site) == 500.0


def test_a_study_without_all_that_must_be_there_waits(site: steps.Site, tmp_path: Path) -> None:
    _take(site, tmp_path / "late", volume_of(4, series=2, **AGENT))
    assert steps.score(site).selected == 0

    _take(site, tmp_path / "plain", volume_of(4, series=1))
    assert steps.score(site).done == 1


def test_an_optional_input_is_in_the_case_when_it_is_there(site: steps.Site, tmp_path: Path) -> None:
    _phases(site, tmp_path)
    steps.score(site)

    _take(site, tmp_path / "film", [_film()])
    tally = steps.score(site)

    assert (tally.selected, tally.done) == (1, 1)
    assert _value(site) == 1500.0


def test_a_better_series_that_comes_later_supersedes_the_result(site: steps.Site, tmp_path: Path) -> None:
    _phases(site, tmp_path)
    steps.score(site)
    steps.deliver(site, str(tmp_path / "out"))
    _take(site, tmp_path / "thin", volume_of(4, series=3, SliceThickness=1, RescaleIntercept=-1100))

    assert steps.score(site).done == 1
    steps.deliver(site, str(tmp_path / "out"))

    assert _value(site) == 600.0
    lines = [orjson.loads(line) for line in (tmp_path / "out" / "Observation.ndjson").read_bytes().splitlines()]
    assert sorted({item["id"]: item["status"] for item in lines}.values()) == ["amended", "preliminary"]


def test_a_result_names_the_study_and_the_series_chosen(site: steps.Site, tmp_path: Path) -> None:
    _phases(site, tmp_path)
    _take(site, tmp_path / "thick", volume_of(4, series=3, SliceThickness=5))
    steps.score(site)

    steps.deliver(site, str(tmp_path / "out"))

    observation = orjson.loads((tmp_path / "out" / "Observation.ndjson").read_bytes().splitlines()[0])
    (study,) = observation["derivedFrom"]
    plain, late = slice_of(series=1), slice_of(series=2)
    assert study["identifier"]["value"] == f"urn:oid:{plain.StudyInstanceUID}"
    assert study["display"] == (
        f"plain: series urn:oid:{plain.SeriesInstanceUID}; late: series urn:oid:{late.SeriesInstanceUID}"
    )
    assert observation["effectiveDateTime"] == "2024-01-02T10:15:00+01:00"


def test_what_came_in_after_the_selection_is_not_scored_under_its_key(site: steps.Site, tmp_path: Path) -> None:
    _phases(site, tmp_path)
    job = _leased(site)
    with site.store.reading() as connection:
        found = image_instances(connection, Enhancement.spec, job)
    assert {name: len(its) for name, its in found.items()} == {"plain": 4, "late": 4}

    _take(site, tmp_path / "more", [slice_of(4, series=1, SliceThickness=2)])

    with site.store.reading() as connection, pytest.raises(InputNotUsable, match="changed after the job") as caught:
        image_instances(connection, Enhancement.spec, job)
    assert caught.value.code == "input-changed"
    with pytest.raises(InputNotUsable, match="changed after the job"):
        open_cases(site.store, Enhancement.spec, [job])[0]()


def test_a_case_has_each_image_under_its_name(site: steps.Site, tmp_path: Path) -> None:
    _phases(site, tmp_path)
    _take(site, tmp_path / "film", [_film()])

    case = open_cases(site.store, Enhancement.spec, [_leased(site)])[0]()

    shapes = {name: image.array.shape for name, image in case.inputs.items() if isinstance(image, Image)}
    assert shapes == {"plain": (4, 6, 4), "late": (4, 6, 4), "film": (6, 4)}


def test_an_image_that_cannot_be_used_is_named(site: steps.Site, tmp_path: Path) -> None:
    _phases(site, tmp_path)
    gap = [slice_of(number, series=4, **AGENT) for number in (0, 1, 2, 3, 9)]
    for dataset in gap:
        dataset.AcquisitionTime = "120000"
    _take(site, tmp_path / "gap", gap)

    tally = steps.score(site)

    assert tally.dead == 1
    with site.store.reading() as connection:
        (line,) = jobs.list_jobs(connection, states=["dead"])
    assert line.error is not None and line.error.startswith("late: ")


def test_a_series_that_grows_between_selection_and_scoring_is_scored_whole_in_the_end(
    site: steps.Site, tmp_path: Path
) -> None:
    """Of a model of series as well."""
    site = steps.Site(
        settings=site.settings,
        store=site.store,
        registry=Registry(models={"bright-tissue": registered(BrightTissue)}, broken=()),
    )
    model = site.registry.get("bright-tissue")
    _take(site, tmp_path / "first", volume_of(4))
    steps.select(site, model)
    _take(site, tmp_path / "more", [slice_of(4)])

    with closing(LoadedModels(site.settings)) as loaded:
        early = steps.score_chunk(site, model, loaded)
    late = steps.score(site)

    assert (early.dead, dict(early.reasons)) == (1, {"input-changed": 1})
    assert (late.selected, late.done) == (1, 1)
    with site.store.reading() as connection:
        assert jobs.list_jobs(connection, states=["dead"]) == []


def test_a_study_is_shown_and_reported(site: steps.Site, tmp_path: Path) -> None:
    _phases(site, tmp_path)
    steps.score(site)
    with site.store.reading() as connection:
        (job,) = history.scored_series(connection, since_us=0, last=5)

    picture = picture_of(site.store, job, published=True)

    assert picture.title.startswith("study/1 ")
    assert picture.png.startswith(b"\x89PNG")


def test_a_mask_lies_on_the_image_that_it_is_of(site: steps.Site, tmp_path: Path) -> None:
    _take(site, tmp_path / "plain", volume_of(4, series=1))
    _take(site, tmp_path / "late", volume_of(6, series=2, **AGENT))
    site = steps.Site(
        settings=site.settings, store=site.store, registry=Registry(models={"bright": registered(Bright)}, broken=())
    )

    assert steps.score(site).done == 1

    with site.store.reading() as connection:
        (job,) = history.scored_series(connection, since_us=0, last=5)
        (made,) = result_objects.of_job(connection, job)
    mask = dcmread(BytesIO(site.store.objects.get(made.sha256)))
    assert mask.ReferencedSeriesSequence[0].SeriesInstanceUID == slice_of(series=2).SeriesInstanceUID
    assert picture_of(site.store, job).answer.startswith("bright ")


def test_the_conformance_kit_makes_cases_of_a_study() -> None:
    failed = [check for check in check_model(Enhancement) if not check.passed]

    assert failed == []
