"""From a folder to DICOM SEG and Observations, by commands alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, date, datetime

import highdicom
import numpy as np
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from medflow.cli.app import app
from medflow.errors import ConfigurationError
from medflow.registry import installed
from medflow.sample.imaging import Person, Study, write_ct
from medflow.sample.phantom import grid_affine, phantom
from medflow.store.tables import AuditRow
from medflow_monai import abdomen

SHAPE, SPACING = (40, 64, 64), (6.0, 5.5, 5.5)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command of medflow in a home of its own; gives what it printed."""
    for name in ("MEDFLOW_BUNDLES", "MEDFLOW_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MEDFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MEDFLOW_DEVICE", "cpu")
    monkeypatch.setenv("MEDFLOW_WORKERS", "1")

    def run(*words: object, status: int = 0) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result.stdout

    return run


@pytest.fixture
def organs(zoo, tmp_path):
    """The phantom segmentation that medflow ships, as a bundle of the Zoo's kind: trained weights, four organs."""
    labels = ["background", "liver", "spleen", "kidney_left", "kidney_right"]
    config = zoo.spleen_config()
    config["network_def"] = {
        "_target_": "UNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 5,
        "channels": [8, 16, 32, 64],
        "strides": [2, 2, 2],
        "num_res_units": 1,
        "norm": "batch",
    }
    steps = config["preprocessing"]["transforms"]
    steps[3] |= {"pixdim": [5.0, 5.0, 5.0]}
    steps[4] |= {"a_min": -160, "a_max": 240}
    config["inferer"] |= {"roi_size": [48, 48, 48], "mode": "gaussian"}
    meta = zoo.metadata(
        zoo.tensor("segmentation", num_channels=5, channel_def=dict(enumerate(labels))), name="Abdomen phantom"
    )
    weights = load_file(str(zoo.Path(abdomen.__file__).with_name("abdomen.safetensors")))
    return zoo.write_bundle(tmp_path / "abdomen_ct_segmentation", config, meta, {"model": weights})


def test_a_bundle_segments_what_is_ingested(run, organs, tmp_path):
    made = phantom(np.random.default_rng(5), SHAPE, SPACING)
    person = Person(mrn="P1", family_name="Test", given_name="Anna", birth_date=date(1970, 1, 1), sex="F")
    study = Study(key="e2e", person=person, taken=datetime(2026, 3, 1, tzinfo=UTC), description="CT", number=1)
    write_ct(tmp_path / "in", study, made.hu, grid_affine(SHAPE, SPACING))

    run("bundle", "add", organs, "--name", "abdomen", "--no-trial")
    run("ingest", "dicom", tmp_path / "in")
    scored = json.loads(run("score", "--model", "abdomen", "--json"))
    run("deliver", "--to", tmp_path / "out")

    assert (scored["done"], scored["dead"], scored["failed"]) == (1, 0, 0)
    lines = (tmp_path / "out" / "Observation.ndjson").read_text().splitlines()
    volumes = {
        item["bodySite"]["coding"][0]["code"]: item["valueQuantity"]
        for item in map(json.loads, lines)
        if item["code"]["coding"][0]["code"] == "118565006"
    }
    truth = made.truth_ml
    expected = {
        "10200004": truth["liver"],
        "78961009": truth["spleen"],
        "18639004": truth["left_kidney"],
        "9846003": truth["right_kidney"],
    }
    assert {code: item["code"] for code, item in volumes.items()} == dict.fromkeys(expected, "mL")
    for code, volume in expected.items():
        assert volumes[code]["value"] == pytest.approx(volume, rel=0.1)
    [file] = (tmp_path / "out").rglob("*.dcm")
    found = highdicom.seg.segread(file)
    assert list(found.segment_numbers) == [1, 2, 3, 4]
    codes = {found.get_segment_description(number).segmented_property_type.value for number in found.segment_numbers}
    assert codes == set(expected)


def test_adding_listing_and_removing_are_on_record_and_seen_at_once(run, spleen):
    added = json.loads(run("bundle", "add", spleen, "--no-trial", "--json"))
    assert "spleen-ct-segmentation" in installed().models

    [listed] = json.loads(run("bundle", "list", "--json"))["bundles"]
    assert listed == added | {"state": "ok"}
    assert listed["outputs"] == [{"name": "spleen", "kind": "segment", "codes": {"spleen": "78961009"}}]
    run("bundle", "remove", "spleen-ct-segmentation")

    assert "spleen-ct-segmentation" not in installed().models
    assert json.loads(run("bundle", "list", "--json"))["bundles"] == []
    assert _audited() == [("bundle-add", "spleen-ct-segmentation"), ("bundle-remove", "spleen-ct-segmentation")]


def test_a_name_that_no_model_can_have_is_said_to_be_none(run, spleen):
    with pytest.raises(ConfigurationError, match="'Spleen CT' is no name of a model: lower-case words with dashes"):
        run("bundle", "check", spleen, "--name", "Spleen CT", "--no-trial")


def test_a_folder_that_is_no_bundle_is_refused_before_it_is_copied(run, tmp_path, monkeypatch):
    monkeypatch.setattr("medflow_monai.bundles.adding.Draft", None)
    (tmp_path / "home directory").mkdir()

    with pytest.raises(
        ConfigurationError, match=r"home directory is no MONAI bundle: it has no configs/metadata\.json"
    ):
        run("bundle", "add", tmp_path / "home directory")


def _audited() -> list[tuple[str, str]]:
    from sqlalchemy import select

    from medflow.config import load_settings
    from medflow.steps import open_site

    with open_site(load_settings()).store.reading() as connection:
        rows = connection.execute(select(AuditRow.action, AuditRow.subject).order_by(AuditRow.id)).all()
    return [(action, subject) for action, subject in rows]


def test_a_changed_bundle_is_told_of_by_all_who_list(run, spleen, tmp_path):
    run("bundle", "add", spleen, "--no-trial")
    path = tmp_path / "home/bundles/spleen-ct-segmentation/bundle/configs/inference.json"
    path.chmod(0o644)
    path.write_text(path.read_text() + " ")
    said = "configs/inference.json is not the file that was added"

    assert said in run("bundle", "list", "--json", status=3)
    run("bundle", "add", spleen, "--no-trial", "--replace")
    assert "ok" in run("bundle", "list")


def test_checking_shows_what_a_map_has_to_say(run, spleen):
    path = spleen / "configs/metadata.json"
    path.write_text(path.read_text().replace('"spleen"', '"lesion"'))

    found = json.loads(run("bundle", "check", spleen, "--json", status=3))

    assert found["map"] == {"labels": {"lesion": {"code": "...", "display": "..."}}}
    assert found["ok"] is False
    run("bundle", "check", spleen, status=3)


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_what_cannot_be_checked_is_no_bundle_that_is_wrong(run, tmp_path, words):
    with pytest.raises(ConfigurationError, match="is no folder"):
        run("bundle", "check", tmp_path / "nowhere", *words)


def test_checking_says_what_it_found_and_nothing_of_the_ways_of_monai(spleen, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "medflow.cli", "bundle", "check", spleen],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"MEDFLOW_HOME": str(tmp_path / "home"), "MEDFLOW_DEVICE": "cpu"},
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"of a generated image it gave spleen [0-9.]+ mL", done.stdout)


def test_a_model_that_is_no_bundle_keeps_its_name(run, spleen):
    with pytest.raises(ConfigurationError, match="a model that is no bundle is called abdomen-phantom-ct"):
        run("bundle", "add", spleen, "--name", "abdomen-phantom-ct", "--no-trial")


def test_a_bundle_keeps_the_contract(check_model, added, spleen):
    check_model(added(spleen))


def test_listing_bundles_imports_nothing_heavy(run, spleen):
    run("bundle", "add", spleen, "--no-trial")
    code = (
        "import sys; from medflow.registry import installed; names = list(installed().models); "
        "assert 'spleen-ct-segmentation' in names, names; "
        "print([name for name in ('torch', 'monai') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stdout.strip() == "[]", done.stderr
