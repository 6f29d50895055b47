"""What two real nights leave in Prefect: every artifact, its tables and plots, and nothing about a patient.

The first night has no pictures, the second has, and explanations; both are read from Prefect's own database.
"""

import base64
import io
import json
import sqlite3
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from medflow.sample import write_sample
from tests.distributions import environment, medflow, write_distribution
from tests.flows.test_report import tables

pytestmark = pytest.mark.slow

MODELS = """
from tests import explaining_models, imaging_models, models

class BrightTissue(explaining_models.ExplainedTissue):
    spec = imaging_models.BrightTissue.spec

class Opacity(imaging_models.Opacity):
    pass

class FastHeart(imaging_models.FastHeart):
    pass

class GcContent(models.GcContent):
    pass
"""
NAMES = {"bright-tissue": "BrightTissue", "opacity": "Opacity", "fast-heart": "FastHeart", "gc-content": "GcContent"}
CHOSEN = [word for name in NAMES for word in ("--model", name)]
PAGES = {"medflow-ingest", "medflow-score", "medflow-deliver", "medflow-night"}
TABLES = {"medflow-models", "medflow-timings", "medflow-drift"}
PLOTS = {"medflow-throughput", "medflow-nights", "medflow-scores-gc-content"}


@dataclass(frozen=True)
class Artifact:
    """An artifact as it lies in the database."""

    kind: str
    data: Any
    description: str
    size: int

    @property
    def picture(self) -> Image.Image:
        """The image of a data URI."""
        head, _, body = self.data.partition(",")
        assert head == "data:image/png;base64"
        return Image.open(io.BytesIO(base64.b64decode(body)))


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """The sample, and the artifacts by key of a night without and of one with pictures."""
    root = tmp_path_factory.mktemp("nights")
    sample = write_sample(root / "sample", stays=8)
    plugins = write_distribution(root / "plugins", "report-plugin", MODELS, NAMES)
    sources = {
        "records": {"kind": "fhir", "paths": [str(sample.fhir)]},
        "imaging": {"kind": "dicom", "paths": [str(sample.dicom)]},
        "sequences": {"kind": "fasta", "paths": [str(sample.fasta)]},
    }
    artifacts = []
    for pictures in ("false", "true"):
        home = root / pictures
        env = environment(
            home,
            plugins,
            PREFECT_HOME=str(root / f"prefect-{pictures}"),
            MEDFLOW_SOURCES=json.dumps(sources),
            MEDFLOW_ISSUER_SYSTEMS=json.dumps(dict(sample.issuer_systems)),
            MEDFLOW_TARGETS=json.dumps({"chart": str(home / "out")}),
            MEDFLOW_DELIVER_TO="chart",
            MEDFLOW_PICTURES=pictures,
        )
        why = ["--explain"] if pictures == "true" else []
        done = medflow(env, "nightly", *CHOSEN, *why, "--json", timeout=240)
        assert done.returncode == 3, done.stderr  # the sample holds input that must be refused
        artifacts.append((json.loads(done.stdout), read(root / f"prefect-{pictures}" / "prefect.db")))
    return sample, *artifacts


def read(database) -> dict[str, Artifact]:
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT key, type, data, description FROM artifact WHERE key IS NOT NULL").fetchall()
    found = {}
    for key, kind, stored, said in rows:
        data = json.loads(stored)
        found[key] = Artifact(kind, json.loads(data) if kind == "table" else data, said or "", len(stored))
    assert len(found) == len(rows)  # each key once a night
    return found


def test_a_night_leaves_its_pages_tables_and_plots_under_stable_keys(nights):
    _, (_, artifacts), _ = nights

    assert set(artifacts) == PAGES | TABLES | PLOTS
    assert {key for key, item in artifacts.items() if item.kind == "markdown"} == PAGES
    assert {key for key, item in artifacts.items() if item.kind == "table"} == TABLES
    assert {key for key, item in artifacts.items() if item.kind == "image"} == PLOTS


def test_the_page_of_the_night_says_in_its_first_lines_how_it_went(nights):
    _, (counts, artifacts), _ = nights
    page = artifacts["medflow-night"].data

    title, _, first, _, needs = page.splitlines()[:5]

    assert title == "# What the night did"
    assert first.startswith("**Somebody should look, after ")
    assert f"**{counts['ingest']['rejected']} rejected**" in first
    assert f"{counts['score']['done']} cases scored" in first
    assert f"{counts['deliver']['delivered']} resources delivered" in first
    assert needs == "## What needs a person"


def test_the_tables_of_the_night_are_its_counts(nights):
    _, (counts, artifacts), _ = nights

    needs, taken, reasons, models, sent, targets, stages, drift = tables(artifacts["medflow-night"].data)

    assert needs[0]["look"] == "`medflow rejects`"
    for row, name in zip(taken, ["records", "imaging", "sequences", None], strict=True):
        part = counts["ingest"]["sources"][name] if name else counts["ingest"]
        assert [int(row[item]) for item in ("offered", "stored", "unchanged", "rejected")] == [
            part[item] for item in ("offered", "stored", "unchanged", "rejected")
        ]
    assert {row["reason"]: int(row["inputs"]) for row in reasons} == counts["ingest"]["reasons"]
    assert all(row["what it means"] and row["what to do"] for row in reasons)
    assert [row["model"].partition("@")[0] for row in models] == [*sorted(NAMES), "**all**"]
    assert sum(int(row["scored"]) for row in models[:-1]) == int(models[-1]["scored"]) == counts["score"]["done"]
    assert int(sent[0]["delivered"]) == int(targets[0]["has"]) == counts["deliver"]["delivered"]
    assert targets[0]["target"] == "chart"
    assert [row["stage"] for row in stages][:3] == ["ingest", "select", "score"]
    assert {row["model"] for row in drift} == set(NAMES)


def test_the_table_of_models_has_a_row_each(nights):
    _, (counts, artifacts), _ = nights
    rows = {row["model"].partition("@")[0]: row for row in artifacts["medflow-models"].data}

    assert set(rows) == set(NAMES)
    assert sum(row["scored"] for row in rows.values()) == counts["score"]["done"]
    assert sum(row["selected"] for row in rows.values()) == counts["score"]["selected"]


def test_the_stages_take_no_longer_than_the_night(nights):
    _, (counts, artifacts), _ = nights
    stages = {row["stage"]: row for row in artifacts["medflow-timings"].data}

    assert {"ingest", "select", "score", "read", "predict", "commit", "deliver"} <= set(stages)
    assert stages["ingest"]["cases"] == counts["ingest"]["offered"]
    assert stages["score"]["cases"] == counts["score"]["done"] + counts["score"]["dead"]
    wall = sum(stages[name]["wall (s)"] for name in ("ingest", "select", "score", "deliver"))
    assert 0 < wall < 240
    assert all(row["cases/s"] == "" or row["cases/s"] > 0 for row in stages.values())


def test_scores_of_fewer_than_twenty_cases_are_not_drawn_and_it_is_said(nights):
    _, (_, artifacts), _ = nights
    rows = {row["model"]: row for row in artifacts["medflow-drift"].data}

    assert rows["gc-content"]["cases"] >= 20
    for few in set(NAMES) - {"gc-content"}:
        assert rows[few]["which means"] == "not shown: fewer than 20 cases"
        assert f"medflow-scores-{few}" not in artifacts


def test_plots_and_pictures_are_small_png_files(nights):
    _, (_, plain), (_, pictured) = nights

    for artifacts in (plain, pictured):
        for item in artifacts.values():
            assert item.size < 200_000
            if item.kind == "image":
                assert item.picture.format == "PNG"
                assert min(item.picture.size) > 150
                assert not item.picture.text  # no metadata


def test_what_was_explained_is_told_and_shown_where_that_was_asked_for(nights):
    _, (counts, plain), (asked, pictured) = nights

    assert counts["score"]["notes"] == {}
    assert asked["score"]["notes"] == {"explained": 2}
    assert "Noted: explained (2)." in pictured["medflow-night"].data
    assert "explained" not in plain["medflow-night"].data
    hot = [key for key, item in pictured.items() if item.kind == "image" and _is_hot(item.picture)]
    assert [key.rpartition("-")[0] for key in hot] == ["medflow-picture"] * 2


def _is_hot(picture: Image.Image) -> bool:
    """Whether the strongest of the heat map's colours is there, as the scale beside a picture has it."""
    strongest = np.array([252, 255, 164])
    return int((np.abs(np.asarray(picture.convert("RGB")).astype(int) - strongest).max(axis=2) <= 12).sum()) > 20


def test_pictures_come_only_when_they_are_enabled_and_are_titled_by_surrogate_ids(nights):
    _, (_, plain), (_, pictured) = nights
    pictures = {key: item for key, item in pictured.items() if key not in plain}

    assert sorted(pictures) == [f"medflow-picture-{number}" for number in range(1, 6)]  # two volumes, three radiographs
    for item in pictures.values():
        unit, _, model = item.description.partition(" · ")
        assert unit.startswith("series/") and unit.removeprefix("series/").isdigit()
        assert model in ("bright-tissue 1.0.0", "opacity 1.0.0")


def secrets_of(sample) -> set[str]:
    """Every name, identifier, birth date and UID that the sample holds."""
    found: set[str] = set()
    for path in sample.fhir.glob("*.ndjson"):
        for line in path.read_bytes().splitlines():
            try:
                resource = json.loads(line)
            except ValueError:
                continue
            if isinstance(resource, dict):
                found |= _of_resource(resource)
    for entry in json.loads((sample.fhir / "bundle.json").read_text())["entry"]:
        found |= _of_resource(entry["resource"])
    for path in sample.dicom.rglob("*.dcm"):
        header = dcmread(path, stop_before_pixels=True)
        family, *given = str(header.PatientName).split("^")
        found |= {family, *given, header.PatientID, header.PatientBirthDate, header.StudyInstanceUID}
        found |= {header.SeriesInstanceUID, header.SOPInstanceUID, str(header.get("AccessionNumber", ""))}
    return {str(item) for item in found if len(str(item)) > 3}


def _of_resource(resource: dict[str, Any]) -> set[str]:
    found = {item.get("value", "") for item in resource.get("identifier", []) if isinstance(item, dict)}
    if resource.get("resourceType") in ("Patient", "Encounter"):
        found.add(resource.get("id", ""))
    if resource.get("resourceType") == "Patient":
        birth = resource.get("birthDate", "")
        found |= {birth, birth.replace("-", "")}
        for name in resource.get("name", []):
            found |= {name.get("family", ""), *name.get("given", [])}
    return found


def test_no_artifact_holds_anything_about_a_patient(nights):
    sample, *both = nights
    secrets = secrets_of(sample)

    texts = []
    for _, artifacts in both:
        for item in artifacts.values():
            body = item.picture.tobytes().decode("latin-1") if item.kind == "image" else json.dumps(item.data)
            texts.append("\n".join([item.description, body]))
            if item.kind == "image":
                texts.append(base64.b64decode(item.data.partition(",")[2]).decode("latin-1"))

    assert len(secrets) > 40
    assert [secret for secret in secrets if any(secret in text for text in texts)] == []
    assert not any(str(sample.root) in text for text in texts)  # no path either
