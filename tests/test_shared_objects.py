"""Several machines, one database, objects in S3: what one takes in, another scores."""

import json
import os
from pathlib import Path

import pytest

from medflow.dicom.seg import read_segmentation
from tests.distributions import environment, medflow, write_distribution
from tests.factories_dicom import volume_of, write_series

BRIGHTNESS = """
from dataclasses import replace
from typing import ClassVar
from medflow.plugin import Case, ImagingInput, Measure, Model, ModelSpec, Prediction, Segment, UnitKind
from tests.imaging_models import LIVER
from tests.models import CARD, GC

class Brightness(Model):
    spec = ModelSpec(
        name="brightness", version="1.0.0", title="Mean intensity", unit=UnitKind.SERIES,
        accepts=(ImagingInput(modality=("CT",), min_slices=3),),
        outputs=(
            Measure(name="mean", code=GC, unit="1", valid_range=(-5000.0, 5000.0)),
            Segment(name="bright", body_site=LIVER, valid_ml=(0.0, 1e6)),
        ),
        card=CARD, batch_size=2,
    )

    def load(self, device):
        pass

    def prepare(self, case):
        return case.image.array

    def predict(self, batch):
        return [Prediction(values={"mean": float(array.mean()), "bright": array > -900}) for array in batch]
"""


@pytest.fixture
def machine(tmp_path, s3, postgres_url):
    """The environment of one more machine: an empty home, the common database and bucket."""
    plugins = write_distribution(tmp_path / "plugins", "bright", BRIGHTNESS, {"brightness": "Brightness"})

    def another(name: str, **settings: str) -> dict[str, str]:
        shared = {"MEDFLOW_DATABASE_URL": postgres_url, "MEDFLOW_OBJECTS": s3.url, "MEDFLOW_ISSUER_SYSTEMS": "{}"}
        identity = {"MEDFLOW_DEFAULT_PATIENT_SYSTEM": "urn:test"}
        return environment(tmp_path / name, plugins, **shared, **identity, **s3.environment, **settings)

    return another


def run(env, *words) -> dict:
    done = medflow(env, *words, "--json")
    assert done.returncode == 0, done.stderr
    assert "Nobody" not in done.stdout + done.stderr
    return json.loads(done.stdout)


def values(folder: Path) -> list[float]:
    lines = [json.loads(line) for path in folder.glob("Observation*.ndjson") for line in path.open()]
    return sorted(line["valueQuantity"]["value"] for line in lines if line["valueQuantity"]["code"] == "1")


def test_what_one_machine_ingests_another_scores_and_a_third_delivers(machine, s3, tmp_path):
    for study in (1, 2, 3):
        write_series(tmp_path / "in" / str(study), volume_of(4, study=study, RescaleIntercept=-1000 * study))

    taken = run(machine("ingesting"), "ingest", "dicom", tmp_path / "in")
    scored = run(machine("scoring"), "score", "--model", "brightness")
    sent = run(machine("delivering"), "deliver", "--to", tmp_path / "out")

    assert (taken["offered"], taken["stored"]) == (12, 12)
    assert len(s3.listed()) == 12 + 3  # a segmentation each
    assert not (tmp_path / "ingesting" / "objects").exists()
    assert (scored["done"], scored["dead"]) == (3, 0), scored
    assert sent
    expected = [2 * (11.5 + 150) - 1000 * study for study in (3, 2, 1)]
    assert values(tmp_path / "out") == pytest.approx(expected)
    files = list((tmp_path / "out" / "dicom").iterdir())
    assert sorted(read_segmentation(file.read_bytes())["bright"].any() for file in files) == [False, False, True]


def test_a_series_larger_than_the_cache_is_scored_all_the_same(machine, tmp_path):
    write_series(tmp_path / "in", volume_of(4, PixelData=bytes(700_000), Rows=700, Columns=500))
    run(machine("ingesting"), "ingest", "dicom", tmp_path / "in")

    scored = run(machine("scoring", MEDFLOW_CACHE_MIB="1"), "score", "--model", "brightness")

    assert scored["done"] == 1, scored


def test_jobs_wait_for_a_bucket_that_is_out_of_reach(machine, s3, tmp_path):
    write_series(tmp_path / "in", volume_of(4))
    run(machine("ingesting"), "ingest", "dicom", tmp_path / "in")

    env = machine("scoring") | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    done = medflow(env, "score", "--model", "brightness", "--json")

    assert json.loads(done.stdout)["failed"] == 1, done.stdout + done.stderr
    assert json.loads(done.stdout)["dead"] == 0
    assert not os.path.exists(tmp_path / "scoring" / "objects")


def test_credentials_that_are_refused_stop_the_run_and_cost_no_job(machine, s3, tmp_path):
    write_series(tmp_path / "in", volume_of(4))
    run(machine("ingesting"), "ingest", "dicom", tmp_path / "in")
    env = machine("scoring")
    without = {name: value for name, value in env.items() if name not in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}

    done = medflow(without, "score", "--model", "brightness")

    assert done.returncode == 1
    assert "AWS_ACCESS_KEY_ID" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert run(env, "score", "--model", "brightness")["done"] == 1
