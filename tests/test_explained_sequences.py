"""Why a sequence has its class: from --explain to the components of the Observation and what `medflow show` draws."""

import io
import math
from dataclasses import replace

import numpy as np
import orjson
import pytest
from PIL import Image
from typer.testing import CliRunner

from medflow import steps
from medflow.cli.app import app
from medflow.config import load_settings
from medflow.contributions import positions_of
from medflow.drawing import COLOURS
from medflow.errors import ConfigurationError
from medflow.pictures import picture_of
from medflow.plugin import SequenceAttribution
from medflow.records import CalledVariant, Mutagenesis, Result, VariantScore
from medflow.registry import Registry
from medflow.sequence_picture import MOST_VARIANTS, carried, draw_mutagenesis, draw_variants
from medflow.store import Store, history
from tests.explaining_models import LinearSite
from tests.models import registered

DONOR, NEITHER = "CAGGTAAG", "TTTTTTTT"


class NoTime(LinearSite):
    """Explains what is off its sequence: a column for each class instead of each base."""

    def explain(self, batch, predictions):
        return [{"site": SequenceAttribution(values=np.zeros((8, 2), np.float32), of="donor")} for _ in batch]


@pytest.fixture
def scored(tmp_path):
    """Two sequences of patients, scored and explained by a model: its site, and a way to have another model do it."""

    def run(model=LinearSite, *, explain=True):
        settings = load_settings(home=tmp_path / "home", device="cpu")
        registry = Registry(models={"linear-site": registered(model)}, broken=())
        site = steps.Site(settings=settings, store=Store(settings).open(), registry=registry)
        fasta = tmp_path / "two.fasta"
        fasta.write_text(f">s1 patient=urn:test|1\n{DONOR}\n>s2 patient=urn:test|2\n{NEITHER}\n")
        steps.ingest(site, steps.source_of("fasta", [fasta]))
        return site, steps.score(site, explain=explain)

    return run


def result_of(site, job=1):
    with site.store.reading() as connection:
        view = history.job_view(connection, job)
    assert view is not None
    return view.results[0]


def observation_of(site, tmp_path, job=1):
    """The Observation as it is delivered."""
    steps.deliver(site, str(tmp_path / "out"))
    (line,) = [
        item
        for item in map(orjson.loads, (tmp_path / "out" / "Observation.ndjson").read_bytes().splitlines())
        if item["subject"]["identifier"]["value"] == str(job)
    ]
    return line


def test_what_is_told_is_the_substitution_that_changes_most_at_each_top_position(scored):
    site, tally = scored()

    assert (tally.done, dict(tally.notes)) == (2, {"explained": 2})
    result = result_of(site)
    told = [(item.kind, item.name, item.value) for item in result.contributions]
    assert told == [
        ("position", "4G>A", -3.0),
        ("position", "5T>A", -2.0),
        ("position", "3G>A", -1.0),
        ("position", "6A>C", -0.75),
        ("position", "2A>C", -0.5),
    ]
    assert result.contributions[0].share == pytest.approx(3 / sum(LinearSite.gains), abs=1e-3)
    assert result.mutagenesis is not None and result.mutagenesis.of == "donor"
    assert result.mutagenesis.changes[3] == (-3.0, -3.0, 0.0, -3.0)


def test_the_class_that_is_explained_is_the_one_that_was_given(scored):
    site, _ = scored()

    result = result_of(site, 2)

    assert result.mutagenesis is not None and result.mutagenesis.of == "none"
    assert [(item.name, item.value) for item in result.contributions][:2] == [("4T>G", -3.0), ("5T>A", 2.0)]


def test_the_observation_has_a_component_for_each_top_position_and_says_it_in_words(scored, tmp_path):
    site, _ = scored()

    found = observation_of(site, tmp_path)

    parts = [part for part in found["component"] if part["code"].get("coding", [{}])[0].get("code") == "top-position"]
    first = parts[0]
    assert len(parts) == 5
    assert first["code"]["coding"][0]["system"] == "urn:medflow:observation-component"
    assert first["code"]["text"] == "top positions: 4G>A in the window read, change of log-odds of donor"
    assert first["valueQuantity"]["value"] == -3.0
    assert found["note"][-1]["text"] == "Would speak against it: 4G>A, 5T>A, 3G>A, 6A>C, 2A>C."


def test_an_observation_that_nobody_asked_why_of_has_none(scored, tmp_path):
    site, _ = scored(explain=False)

    found = observation_of(site, tmp_path)

    assert "top-position" not in orjson.dumps(found).decode()
    assert "note" not in found


def test_an_answer_given_before_is_explained_without_another_id(scored, tmp_path):
    site, _ = scored(explain=False)
    before = observation_of(site, tmp_path)["id"]

    assert steps.explain(site, 1) == ["site"]

    assert result_of(site).contributions[0].name == "4G>A"
    with site.store.reading() as connection:
        sent = connection.exec_driver_sql("SELECT fhir_id FROM outbox WHERE type = 'Observation' AND version = 2")
        assert sent.scalars().all() == [before]


def test_an_explanation_off_the_sequence_costs_no_answer(scored):
    site, tally = scored(NoTime)

    assert (tally.done, dict(tally.notes)) == (2, {"explanation-failed: explanation-malformed": 2})
    assert result_of(site).contributions == () and result_of(site).mutagenesis is None


def test_show_draws_the_letters_as_high_as_they_carry_the_answer(scored, tmp_path, monkeypatch):
    site, _ = scored()
    plain = picture_of(site.store, 2, output=None)
    found = picture_of(site.store, 1, output="site")
    monkeypatch.setenv("MEDFLOW_HOME", str(site.settings.home))
    monkeypatch.setenv("COLUMNS", "120")

    ended = CliRunner().invoke(app, ["show", "1", "--to", str(tmp_path / "site.png")])

    assert ended.exit_code == 0, ended.output
    assert "top positions of site" in ended.output and "log-odds of donor" in ended.output and "4G>A" in ended.output
    for picture in (plain, found):
        image = np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB")).astype(int)
        wanted = [int(COLOURS[1][place : place + 2], 16) for place in (1, 3, 5)]
        green = int((np.abs(image - wanted).max(axis=2) <= 8).sum())
        assert (green > 500) == (picture is found)  # the G of a donor, of which the other sequence has none
    with pytest.raises(ConfigurationError, match="no explanation of 'other'"):
        picture_of(site.store, 1, output="other")


def test_what_a_base_carries_is_the_mean_over_what_could_stand_instead():
    changes = np.array([[0.0, -1.0, -2.0, -3.0], [4.0, 4.0, 4.0, 4.0]])

    assert carried("AN", changes).tolist() == [2.0, -4.0]


def test_a_base_that_nothing_changes_is_not_told_and_an_unknown_one_is():
    changes = ((0.0, 0.0, 0.0, 0.0), (0.5, -0.5, 0.25, 0.0), (0.0, 0.0, 0.0, 0.0))

    (found,) = positions_of("ANT", Mutagenesis(of="donor", changes=changes))

    assert (found.name, found.value, found.share) == ("2N>A", 0.5, 1.0)


@pytest.mark.parametrize("length", [1, 120, 400])
def test_sequences_of_any_length_are_drawn(length):
    bases = ("ACGTN" * length)[:length]
    changes = tuple((0.0, math.sin(place), 0.25, -0.5) for place in range(length))
    kept = Mutagenesis(of="donor", changes=changes)
    result = Result(output="site", contributions=positions_of(bases, kept), mutagenesis=kept)

    drawn = draw_mutagenesis(bases, result, scale="log-odds of donor", job_id=7)

    letters, rows, bars = drawn.axes[:3]
    assert letters.get_xlim() == (0.5, length + 0.5) == rows.get_xlim()
    assert "job 7" in letters.get_title() and len(bars.patches) == min(5, length)
    drawn.savefig(io.BytesIO())


def test_the_variants_that_are_reported_are_drawn_by_their_scores():
    scores = tuple(
        VariantScore(
            variant=CalledVariant(contig="chr1", position=place + 1, ref="A", alt="G"), score=place / 64, effects=()
        )
        for place in range(MOST_VARIANTS + 5)
    )

    drawn = draw_variants([replace(Result(output="effect"), variants=scores)])

    (axes,) = drawn.axes
    widths = [patch.get_width() for patch in axes.patches]
    assert widths == sorted((item.score for item in scores), reverse=True)[:MOST_VARIANTS]
    assert axes.get_xlabel() == f"score; the first {MOST_VARIANTS} of {MOST_VARIANTS + 5} reported"
