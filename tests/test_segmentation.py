"""From a series to the files that a PACS is given: every mask kept, sent and read back as the model drew it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import orjson
import pydicom
import pytest

from medflow import answers, steps
from medflow.config import Settings, load_settings
from medflow.dicom import seg
from medflow.dicom.plan import plan_volume
from medflow.dicom.volume import read_image
from medflow.errors import InputNotUsable
from medflow.plugin import Case, ImagingInput, LabelMask, Mask, Prediction
from medflow.records import ResultObject
from medflow.registry import Registry
from medflow.sample import LABELS
from medflow.sample.imaging import Person, Study, write_ct
from medflow.sample.phantom import draw_anatomy, grid_affine, render
from medflow.segmentations import read_masks
from medflow.store import FolderObjects, Store, history, result_objects
from medflow.store.history import JobView
from tests.distributions import environment, medflow, write_distribution
from tests.factories_dicom import instance_of, volume_of, write_series
from tests.imaging_models import BrightTissue
from tests.models import registered
from tests.seg_readers import by_highdicom, by_pydicom
from tests.services.dicom3tools import errors_of

ORGANS = '''
from dataclasses import replace
from medflow.plugin import Coding, Prediction, Segment, SNOMED
from tests.imaging_models import BrightTissue

SITES = {"liver": ("10200004", 80, 120), "spleen": ("78961009", 120, 160), "left_kidney": ("18639004", 160, 230),
         "right_kidney": ("9846003", 160, 230)}

class Organs(BrightTissue):
    """The four organs of the phantom by their Hounsfield units; kidneys by their side."""

    spec = replace(BrightTissue.spec, name="organs", title="Organs of a phantom", outputs=tuple(
        Segment(name=name, body_site=Coding(system=SNOMED, code=code, display=name), valid_ml=(0, 5000))
        for name, (code, _, _) in SITES.items()))

    def predict(self, batch):
        return [Prediction(values=masks_of(volume)) for volume in batch]

def masks_of(volume):
    masks = {name: (volume >= low) & (volume < high) for name, (_, low, high) in SITES.items()}
    masks["left_kidney"][..., : volume.shape[2] // 2] = False
    masks["right_kidney"][..., volume.shape[2] // 2 :] = False
    return masks
'''


def test_four_organs_of_a_phantom_reach_a_folder_as_one_segmentation(tmp_path: Path) -> None:
    source = _phantom(tmp_path / "ct")
    plugins = write_distribution(tmp_path / "plugins", "organs-plugin", ORGANS, {"organs": "Organs"})
    env, out = environment(tmp_path / "home", plugins), tmp_path / "out"

    for words in (["ingest", "dicom", source], ["score", "--model", "organs"], ["deliver", "--to", out]):
        done = medflow(env, *words, "--json")
        assert done.returncode == 0, done.stderr

    (file,) = (out / "dicom").iterdir()
    data = file.read_bytes()
    assert errors_of(data, tmp_path) == []
    truth, slices = _drawn(source)
    for read in (by_highdicom(data, slices), by_pydicom(data, slices)):
        assert list(read) == list(LABELS)
        for name, mask in truth.items():
            assert mask.any()
            np.testing.assert_array_equal(read[name], mask)
    observations = [json.loads(line) for line in (out / "Observation.ndjson").read_text().splitlines()]
    assert len(observations) == 4
    assert {part["valueString"] for item in observations for part in item["component"] if "valueString" in part} == {
        f"urn:oid:{file.stem}"
    }


def _phantom(folder: Path) -> Path:
    """A CT of four organs on a grid that is turned about the patient's long axis, stacked from the head."""
    rng = np.random.default_rng(3)
    affine = grid_affine((24, 60, 66), (10.0, 6.0, 6.0), "axial", tilt_deg=8, head_first=False)
    hu, _ = render(draw_anatomy(rng), rng, (24, 60, 66), affine)
    person = Person(mrn="P1", family_name="Nobody", given_name="Known", birth_date=date(1950, 1, 2), sex="F")
    taken = datetime(2026, 1, 5, 9, 30, tzinfo=UTC)
    write_ct(folder, Study(key="seg", person=person, taken=taken, description="CT abdomen", number=1), hu, affine)
    return folder


def _drawn(folder: Path) -> tuple[dict[str, np.ndarray], list[tuple[str, int]]]:
    """What the model draws on the series of a folder, computed here, and the slices it lies on."""
    module: dict = {}
    exec(ORGANS, module)  # noqa: S102 - the text above
    instances = [
        instance_of(path, sop_instance_uid=str(pydicom.dcmread(path).SOPInstanceUID)) for path in folder.iterdir()
    ]
    wanted = ImagingInput(modality=("CT",))
    plan = plan_volume(instances, FolderObjects(folder), wanted)
    image = read_image(instances, FolderObjects(folder), wanted)
    return module["masks_of"](image.array), [(item.instance.sop_instance_uid, 0) for item in plan.slices[0]]


@pytest.fixture
def local(settings: Settings) -> Iterator[Store]:
    """A store on SQLite only: for what is not about the database."""
    opened = Store(settings).open()
    yield opened
    opened.close()


# --- beside the device, and what goes wrong ----------------------------------------------------------------------


class Bright(BrightTissue):
    """Bright tissue, and how probable it is."""

    spec = replace(
        BrightTissue.spec,
        outputs=(*BrightTissue.spec.outputs, replace(BrightTissue.spec.outputs[0], name="chance", fractional=True)),
    )

    def predict(self, batch: Sequence[np.ndarray]) -> list[Prediction]:
        """Both masks."""
        chances = [np.clip((volume + 1000) / 1500, 0, 1).astype(np.float32) for volume in batch]
        return [
            Prediction(values={"bright": volume > -900, "chance": chance})
            for volume, chance in zip(batch, chances, strict=True)
        ]


def site_of(store: Store, settings: Settings, model: type[BrightTissue] = Bright) -> steps.Site:
    registry = Registry(models={"bright-tissue": registered(model)}, broken=())
    return steps.Site(settings=settings, store=store, registry=registry)


def take(site: steps.Site, folder: Path, *, series: int = 1, slices: int = 4, in_place: bool = False) -> None:
    paths = write_series(folder, volume_of(slices, series=series))
    tally = steps.ingest(site, steps.source_of("dicom", paths, in_place=in_place))
    assert tally.rejected == 0


def made(site: steps.Site, job_id: int) -> list[ResultObject]:
    with site.store.reading() as connection:
        return result_objects.of_job(connection, job_id)


def view(site: steps.Site, job_id: int) -> JobView:
    with site.store.reading() as connection:
        found = history.job_view(connection, job_id)
    assert found is not None
    return found


def test_a_job_names_the_objects_that_hold_its_masks(store: Store, settings: Settings, tmp_path: Path) -> None:
    site = site_of(store, settings)
    take(site, tmp_path / "in")

    assert steps.score(site).done == 1

    binary, fractional = made(site, 1)
    bright, chance = sorted(view(site, 1).results, key=lambda result: result.output)
    assert (bright.mask, chance.mask) == (binary.sha256, fractional.sha256)
    assert (binary.kind, binary.outputs, fractional.outputs) == ("segmentation", ("bright",), ("chance",))
    assert binary.size == len(store.objects.get(binary.sha256))
    assert bright.voxels and bright.mean is not None and bright.mean > -900
    assert bright.mean_unit == "[hnsf'U]"


def test_masks_are_read_back_for_a_picture(store: Store, settings: Settings, tmp_path: Path) -> None:
    site = site_of(store, settings)
    take(site, tmp_path / "in")
    steps.score(site)
    seen = view(site, 1)

    masks = read_masks(store, Bright.spec, seen.job, seen.results, image="image")

    bright = next(result for result in seen.results if result.output == "bright")
    assert masks["bright"].sum() == bright.voxels
    assert masks["chance"].dtype == np.float32


class Layers(BrightTissue):
    """Three ranges of Hounsfield units, as one array each or as one label map."""

    spec = replace(
        BrightTissue.spec,
        outputs=tuple(replace(BrightTissue.spec.outputs[0], name=name) for name in ("low", "middle", "high")),
    )
    as_labels = True

    def predict(self, batch: Sequence[np.ndarray]) -> list[Prediction]:
        """The masks of each."""
        return [Prediction(values=self.masks(np.digitize(volume, (-1000, -700, -400)))) for volume in batch]

    def masks(self, found: np.ndarray) -> dict[str, Mask]:
        labels = found.astype(np.uint8)
        masks = {item.name: LabelMask(labels=labels, value=value) for value, item in enumerate(self.spec.outputs, 1)}
        return dict(masks) if self.as_labels else {name: np.asarray(mask) for name, mask in masks.items()}


class Booleans(Layers):
    as_labels = False


def test_a_label_map_and_the_booleans_that_it_stands_for_have_the_same_results(tmp_path: Path) -> None:
    found = []
    for model in (Layers, Booleans):
        settings = load_settings(home=tmp_path / model.__name__)
        with closing(Store(settings).open()) as store:
            site = site_of(store, settings, model)
            take(site, tmp_path / f"{model.__name__}-in")
            assert steps.score(site).done == 1
            seen = view(site, 1)
            masks = read_masks(store, model.spec, seen.job, seen.results, image="image")
        results = {item.output: (item.value, item.voxels, item.mean) for item in seen.results}
        found.append((results, masks))

    (of_labels, read), (of_booleans, others) = found
    assert of_labels == of_booleans
    for name, mask in others.items():
        np.testing.assert_array_equal(read[name], mask)
        assert mask.sum() == of_labels[name][1]
    assert sum(mask.any() for mask in others.values()) >= 2


def test_objects_are_made_beside_the_thread_that_drives_the_device(
    local: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, threads = site_of(local, settings), []
    real = answers.keep_segmentations
    monkeypatch.setattr(
        answers, "keep_segmentations", lambda *args: (threads.append(threading.current_thread()), real(*args))[1]
    )
    for series in range(1, 6):
        take(site, tmp_path / str(series), series=series)

    assert steps.score(site).done == 5
    assert len(threads) == 5
    assert threading.main_thread() not in threads


def test_a_case_whose_masks_cannot_be_kept_is_dead_and_the_others_are_done(
    local: Store, settings: Settings, tmp_path: Path
) -> None:
    class Losing(Bright):
        """Loses a source file of the first case while it is at work."""

        def predict(self, batch: Sequence[np.ndarray]) -> list[Prediction]:
            (tmp_path / "1" / "000.dcm").unlink(missing_ok=True)
            return super().predict(batch)

    site = site_of(local, settings, Losing)
    for series in range(1, 4):
        take(site, tmp_path / str(series), series=series, in_place=True)

    tally = steps.score(site)

    assert (tally.done, tally.dead, dict(tally.reasons)) == (2, 1, {"file-missing": 1})


def test_what_a_library_says_of_a_source_stays_out_of_the_record(
    local: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_args: object) -> None:
        raise ValueError("Nobody^Known is no valid name")

    monkeypatch.setattr(seg, "write_segmentations", refusing)
    site = site_of(local, settings)
    take(site, tmp_path / "in")

    assert dict(steps.score(site).reasons) == {"segmentation-failed": 1}
    error = view(site, 1).error
    assert error is not None and "ValueError at test_segmentation.py" in error
    assert "Nobody" not in error


def test_a_late_slice_supersedes_the_mask_that_was_not_sent_yet(
    local: Store, settings: Settings, tmp_path: Path
) -> None:
    site = site_of(local, settings)
    take(site, tmp_path / "in", slices=4)
    steps.score(site)
    steps.deliver(site, str(tmp_path / "early"))
    first = {item.sop_instance_uid for item in made(site, 1)}

    take(site, tmp_path / "more", slices=5)
    steps.score(site)
    for folder in ("early", "late"):
        steps.deliver(site, str(tmp_path / folder))

    second = {item.sop_instance_uid for item in made(site, 2)}
    assert files(tmp_path / "late") == second
    assert files(tmp_path / "early") == first | second
    lines = (tmp_path / "late" / "Observation.ndjson").read_bytes().splitlines()
    assert sorted(orjson.loads(line)["status"] for line in lines) == [
        "amended",
        "amended",
        "preliminary",
        "preliminary",
    ]


def test_a_late_slice_that_makes_the_series_unusable_takes_the_mask_and_its_result_back(
    local: Store, settings: Settings, tmp_path: Path
) -> None:
    class Short(Bright):
        def prepare(self, case: Case) -> np.ndarray:
            if len(case.image.array) > 4:
                raise InputNotUsable("too-long", "more than four slices")
            return super().prepare(case)

    site = site_of(local, settings, Short)
    take(site, tmp_path / "in", slices=4)
    steps.score(site)
    take(site, tmp_path / "more", slices=5)

    tally = steps.score(site)

    assert (tally.dead, tally.notes) == (1, {"withdrawn": 1})
    steps.deliver(site, str(tmp_path / "late"))
    lines = (tmp_path / "late" / "Observation.ndjson").read_bytes().splitlines()
    assert {orjson.loads(line)["status"] for line in lines} == {"entered-in-error"}
    assert not (tmp_path / "late" / "dicom").exists()


def files(folder: Path) -> set[str]:
    return {file.stem for file in (folder / "dicom").iterdir()}


def test_an_answer_out_of_scope_has_no_object(local: Store, settings: Settings, tmp_path: Path) -> None:
    class Silent(Bright):
        def predict(self, batch: Sequence[np.ndarray]) -> list[Prediction]:
            return [Prediction(out_of_scope="no phantom") for _ in batch]

    site = site_of(local, settings, Silent)
    take(site, tmp_path / "in")

    assert steps.score(site).done == 1
    assert made(site, 1) == []
