"""Why each sample is given to a model of variants or not: to the same effect as the selection, and by no name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from medflow import steps
from medflow.cli.app import app
from medflow.config import load_settings
from medflow.errors import ConfigurationError, PluginBroken
from medflow.ingest.withdrawing import withdraw_vcf
from medflow.plugin import ModelSpec
from medflow.records import Instant
from medflow.registry import Registry
from medflow.selection import Line
from tests.models import GcContent, registered, renamed
from tests.variant_models import GcShift, genome, vcf

ON_37 = replace(GcShift.spec.accepts[0], assembly="GRCh37")  # type: ignore[type-var]  # a SequenceInput


class Older(GcShift):
    """The same, of GRCh37."""

    spec: ClassVar[ModelSpec] = replace(GcShift.spec, name="older", accepts=(ON_37,))


@pytest.fixture
def bases(tmp_path: Path) -> dict[str, str]:
    return genome(tmp_path / "genome.fa")


@pytest.fixture
def site(local, tmp_path: Path, bases) -> steps.Site:
    """An installation with two models of variants, one of sequences, and a reference for one of the former."""
    models = {model.spec.name: registered(model) for model in (GcShift, Older, GcContent)}
    settings = load_settings(home=tmp_path / "home", references={"GRCh38": tmp_path / "genome.fa"})
    return steps.Site(settings=settings, store=local, registry=Registry(models=models, broken=()))


@pytest.fixture
def taken(site: steps.Site, tmp_path: Path, bases) -> steps.Site:
    """With a file on GRCh38 (sample/1), one on GRCh37 (sample/2) and one that does not tell (sample/3)."""
    for number, assembly in enumerate(("GRCh38", "GRCh37", "none")):
        path = vcf(tmp_path / f"{number}.vcf", bases, samples=("DoeJohn",), assembly=assembly)
        tally = steps.ingest(site, steps.source_of("vcf", [path]))
        assert tally.stored == 1
    return site


def changed(site: steps.Site, **settings: Any) -> steps.Site:
    return replace(site, settings=site.settings.model_copy(update=settings))


def explain(site: steps.Site, model: str = "gc-shift", **options: Any):
    return steps.explain_selection(site, site.registry.get(model), **{"limit": 50, **options})


def verdicts(site: steps.Site, model: str = "gc-shift") -> list[tuple[str, str, list[str], int | None]]:
    return [said(line) for line in explain(site, model).lines]


def said(line: Line) -> tuple[str, str, list[str], int | None]:
    return str(line.unit), line.verdict, [reason.code for reason in line.reasons], line.job


def test_each_sample_says_why_it_is_given_or_not(taken: steps.Site) -> None:
    told = explain(taken)

    assert list(told.rules) == [
        "variants of a sample on GRCh38, that FILTER passed, alleles up to 50 bases: windows of 20, either strand"
    ]
    assert [(str(line.unit), line.verdict, [reason.words for reason in line.reasons]) for line in told.lines] == [
        ("sample/3", "not-taken", ["the header of its file does not tell the assembly"]),
        ("sample/2", "not-taken", ["its file is on GRCh37, the model reads GRCh38"]),
        ("sample/1", "due", ["the next `medflow score` takes it"]),
    ]
    assert dict(told.verdicts) == {"not-taken": 2, "due": 1}
    assert told.reasons == {"assembly-unknown": 1, "another-assembly": 1}


def test_what_is_due_is_what_is_selected_and_explaining_changes_nothing(taken: steps.Site) -> None:
    model = taken.registry.get("gc-shift")

    before = explain(taken).verdicts["due"]
    selected = steps.select(taken, model).selected
    waiting = verdicts(taken)[2]
    steps.score(taken, ["gc-shift"])
    scored = verdicts(taken)[2]

    assert before == selected == 1
    assert waiting == ("sample/1", "waiting", ["waiting"], 1)
    assert scored == ("sample/1", "scored", ["scored"], 1)


def test_a_sample_that_would_be_refused_says_so_before_and_after(taken: steps.Site) -> None:
    before = verdicts(taken, "older")[1]
    steps.score(taken, ["older"])
    after = verdicts(taken, "older")[1]

    assert before == ("sample/2", "refused", ["no-reference"], None)
    assert after == ("sample/2", "refused", ["no-reference"], 1)


def test_of_one_that_was_scored_and_would_be_refused_now_the_result_is_said_to_stand(taken: steps.Site) -> None:
    steps.score(taken, ["gc-shift"])

    line = explain(changed(taken, references={})).lines[2]

    assert said(line) == ("sample/1", "refused", ["no-reference"], None)
    assert line.reasons[0].words.endswith("; what job 1 said stands")


def test_other_regions_make_a_scored_sample_due(taken: steps.Site, tmp_path: Path) -> None:
    steps.score(taken, ["gc-shift"])
    (tmp_path / "regions.bed").write_text("chr1\t90\t110\n")

    line = explain(changed(taken, regions=tmp_path / "regions.bed")).lines[2]

    assert (line.verdict, line.reasons[0].words) == (
        "due",
        "whose it is, the reference or the regions changed after job 1",
    )


def test_a_file_of_the_future_waits(taken: steps.Site) -> None:
    told = explain(taken, as_of=Instant(utc_us=1))

    assert said(told.lines[2]) == ("sample/1", "not-taken", ["later"], None)


def test_all_are_counted_and_some_get_a_line(taken: steps.Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medflow.sample_selection.PAGE", 2)

    told = explain(taken, limit=1)

    assert ([line.unit.id for line in told.lines], told.more, told.verdicts.total()) == ([3], 2, 3)


def test_a_series_is_nothing_to_a_model_of_variants(taken: steps.Site) -> None:
    with pytest.raises(ConfigurationError, match="reads variants of samples"):
        explain(taken, series=1)


def test_the_list_has_every_model_and_one_that_cannot_be_run_leaves_the_others(taken: steps.Site) -> None:
    (line,) = steps.list_samples(taken, limit=1).lines
    bad = changed(taken, references={**taken.settings.references, "GRCh37": Path("nowhere.fa")})
    told = steps.list_samples(bad, limit=50)

    assert list(line.models) == ["gc-shift", "older"]
    assert [list(found.models) for found in told.lines] == [["gc-shift"]] * 3
    assert "nowhere.fa" in told.broken["older"]
    with pytest.raises(PluginBroken):
        explain(bad, "older")


def test_a_sample_that_no_model_is_given_is_noted_once_however_many_models_there_are(taken: steps.Site) -> None:
    both = [registered(model) for model in (GcShift, renamed(GcShift, "again"))]
    alike = replace(taken, registry=Registry(models={model.name: model for model in both}, broken=()))

    of_each = [dict(steps.select(taken, taken.registry.get(name)).notes) for name in ("gc-shift", "older")]

    assert of_each == [{"samples-of-unknown-assembly": 1}] * 2
    assert dict(steps.score(taken, ["gc-shift", "older"]).notes) == {"samples-of-unknown-assembly": 1}
    assert dict(steps.score(alike).notes) == {"samples-of-unknown-assembly": 1, "samples-of-another-assembly": 1}


def test_of_one_file_and_of_none(taken: steps.Site) -> None:
    told = steps.list_samples(taken, limit=50, file="variant_file/2")

    assert ([found.listed.sample.id for found in told.lines], told.more) == ([2], 0)
    with pytest.raises(ConfigurationError, match="no such variant file"):
        steps.list_samples(taken, limit=50, file="9")


def test_a_sample_of_a_withdrawn_file_says_that(taken: steps.Site, monkeypatch: pytest.MonkeyPatch) -> None:
    steps.score(taken, ["gc-shift"])
    withdraw_vcf(taken.store, "variant_file/1")
    monkeypatch.setattr("medflow.cli.samples.here", lambda: taken)

    (line,) = steps.list_samples(taken, limit=50, file="1").lines
    text = CliRunner().invoke(app, ["samples", "--file", "1"]).stdout

    assert said(line.models["gc-shift"]) == ("sample/1", "not-taken", ["withdrawn"], None)
    assert line.listed.received_us and line.listed.withdrawn_us
    assert explain(taken).reasons["withdrawn"] == 1
    assert "not-taken: withdrawn" in text


def test_the_command_names_nobody(taken: steps.Site, monkeypatch: pytest.MonkeyPatch) -> None:
    steps.score(taken, ["gc-shift"])
    monkeypatch.setattr("medflow.cli.samples.here", lambda: taken)
    monkeypatch.setattr("medflow.cli.select.here", lambda: taken)
    words = ["select", "--model", "gc-shift", "--explain"]

    text, few, data, why, made = (
        CliRunner().invoke(app, line)
        for line in (["samples"], ["samples", "--limit", "1"], ["samples", "--json"], words, ["select", "--json"])
    )

    assert "nobody" in text.stdout and "gc-shift scored (job 1)" in text.stdout
    assert "and 2 more (--limit)" in few.stdout
    found = json.loads(data.stdout)
    first = found["samples"][-1]
    assert first.pop("received").endswith("Z") and len(first.pop("sha256")) == 64
    scored = {"verdict": "scored", "job": 1, "reasons": [{"code": "scored", "words": "scored already: job 1 is done"}]}
    assert first["models"]["gc-shift"] == scored
    assert {name: value for name, value in first.items() if name != "models"} == {
        "sample": 1,
        "file": 1,
        "patient": None,
        "linked": None,
        "assembly": "GRCh38",
        "records": 6,
        "withdrawn": None,
    }
    assert (found["more"], found["broken"]) == (0, {})
    assert "in all: 2 not-taken, 1 scored" in why.stdout
    assert json.loads(made.stdout)["notes"] == {"samples-of-unknown-assembly": 1}
    assert not any("DoeJohn" in done.output for done in (text, few, data, why, made))
