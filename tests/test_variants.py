"""A VCF file on its way: taken in, scored sample by sample, kept with its reasons, and delivered as FHIR."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import orjson
import pysam
import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from medflow import samples, scoring, steps, variant_scores
from medflow.cli.app import app
from medflow.config import load_settings
from medflow.errors import ConfigurationError, InputNotUsable
from medflow.genomics import sample_file
from medflow.inference.results import results_of
from medflow.records import Result
from medflow.registry import Registry
from medflow.store import genomics as stored_genomics
from medflow.store import history
from medflow.store.jobs import list_jobs
from medflow.store.tables import OutboxRow
from medflow.store.units import unit_facts
from medflow.variant_scores import scores_file
from tests.models import registered
from tests.variant_models import GcShift, genome, other_than, vcf


@pytest.fixture
def bases(tmp_path: Path) -> dict[str, str]:
    """The genome that the site of the tests has."""
    return genome(tmp_path / "genome.fa")


@pytest.fixture
def site(local, tmp_path: Path, bases):
    return site_of(local, tmp_path, references={"GRCh38": tmp_path / "genome.fa"})


def site_of(store, tmp_path: Path, **settings) -> steps.Site:
    """An installation with the model of variants; one setting changed, say, and all the rest the same."""
    chosen = load_settings(home=tmp_path / "home", sample_system="urn:samples", **settings)
    registry = Registry(models={"gc-shift": registered(GcShift)}, broken=())
    return steps.Site(settings=chosen, store=store, registry=registry)


def of_others(site: steps.Site, tmp_path: Path) -> steps.Site:
    """The same, where a sheet says that sample one is another patient's."""
    (tmp_path / "sheet.csv").write_text("sample,system,value\none,urn:others,one\n")
    changed = {"sample_system": None, "sample_sheet": tmp_path / "sheet.csv"}
    return replace(site, settings=site.settings.model_copy(update=changed))


def take(site: steps.Site, path: Path):
    tally = steps.ingest(site, steps.source_of("vcf", [path]))
    assert tally.rejected == 0, tally.reasons
    return tally


def view(site: steps.Site, job: int):
    with site.store.reading() as connection:
        found = history.job_view(connection, job)
    assert found is not None
    return found


def dead(site: steps.Site) -> dict[str, str]:
    """Why jobs are dead, by code."""
    with site.store.reading() as connection:
        return {job.error_code or "": job.error or "" for job in list_jobs(connection, states=("dead",))}


def lines(site: steps.Site, result: Result) -> tuple[list[str], list[dict[str, str]]]:
    """The header of a scores file, and its rows by column."""
    text = gzip.decompress(scores_file(site.store, [result])[1]).decode()
    header = [line for line in text.splitlines() if line.startswith("##")]
    columns, *rows = (line.split("\t") for line in text.splitlines() if not line.startswith("##"))
    return header, [dict(zip(columns, row, strict=True)) for row in rows]


def delivered(folder: Path, kind: str) -> list[dict]:
    return [orjson.loads(line) for line in (folder / f"{kind}.ndjson").read_bytes().splitlines()]


def test_each_sample_is_scored_once_and_delivered_with_its_variants(site, tmp_path, bases):
    take(site, vcf(tmp_path / "in.vcf", bases))

    first, second = steps.score(site), steps.score(site)
    sent, again = (steps.deliver(site, str(tmp_path / "out")) for _ in range(2))

    assert (first.selected, first.done, dict(first.notes)) == (2, 2, {})
    assert (second.selected, second.done) == (0, 0)
    assert sent.delivered > 0 and again.delivered == 0
    one = view(site, 1).results[0]
    assert [(item.variant.contig, item.variant.position) for item in one.variants] == [
        (name, at) for name, at in (("chr1", 100), ("chr1", 150), ("chr2", 300))
    ]
    assert one.build == "GRCh38" and one.value == max(item.score for item in one.variants)
    observations = delivered(tmp_path / "out", "Observation")
    positions = [item for item in observations if item["code"].get("coding", [{}])[0].get("code") == "69548-6"]
    assert positions and all(item["subject"]["identifier"]["system"] == "urn:samples" for item in observations)
    document = {"system": "urn:ietf:rfc:3986", "value": "urn:sha256:" + file_digest(site)}
    assert all(document in [ref.get("identifier") for ref in item["derivedFrom"]] for item in observations)


def file_digest(site) -> str:
    with site.store.reading() as connection:
        return stored_genomics.load_samples(connection, [1])[1].sha256


def test_what_is_left_out_is_counted_and_all_scores_are_in_a_file(site, tmp_path, bases):
    take(site, vcf(tmp_path / "in.vcf", bases))
    steps.score(site)

    result = view(site, 1).results[0]
    header, rows = lines(site, result)

    assert result.counts["scored"] == 3 and result.counts["reported"] == 3
    assert result.counts["out-of-scope"] == 1  # the one beside the Ns
    assert sum(result.counts.values()) - result.counts["reported"] >= 5  # and what FILTER refused, by its reason
    assert "##model=gc-shift" in header and "##assembly=GRCh38" in header and "##effect=cpg" in header
    assert [(row["#CHROM"], row["POS"], row["REASON"]) for row in rows] == [
        ("chr1", "100", "."),
        ("chr1", "150", "."),
        ("chr2", "43", "out-of-scope"),
        ("chr2", "300", "."),
    ]
    first = rows[0]
    assert (first["REF"], first["ALT"]) == (bases["chr1"][99], other_than(bases["chr1"][99]))
    assert (first["ZYGOSITY"], abs(float(first["gc"]))) == ("heterozygous", 0.05)
    assert not any(name in "\n".join(header) for name in ("one", "two"))


def test_the_same_scores_are_the_same_bytes_wherever_they_are_made(site, tmp_path, bases):
    take(site, vcf(tmp_path / "in.vcf", bases))
    steps.score(site)
    before = view(site, 1).results[0]

    case = scoring.open_cases(
        site.store, GcShift.spec, [view(site, 1).job], genomes=scoring.GenomeSite.of(site.settings)
    )[0]
    model = GcShift()
    (answer,) = model.predict([model.prepare(case())])
    found = results_of(GcShift.spec, case(), answer)
    (again,) = variant_scores.keep_variant_scores(site.store, registered(GcShift), case.take(), answer, found)

    assert again.scores == before.scores and again == before


def test_other_regions_make_a_new_job_and_those_of_before_take_the_old_one_up_again(site, tmp_path, bases):
    take(site, vcf(tmp_path / "in.vcf", bases))
    steps.score(site)
    bed = tmp_path / "regions.bed"
    bed.write_text("chr1\t90\t110\n")
    inside = site_of(site.store, tmp_path, references=site.settings.references, regions=bed)

    narrowed, same, back = steps.score(inside), steps.score(inside), steps.score(site)

    assert (narrowed.done, same.done, back.done) == (2, 0, 2)
    assert [item.variant.position for item in view(site, 3).results[0].variants] == [100]
    assert (view(site, 1).superseded, view(site, 3).superseded) == (False, True)


def test_regions_by_other_names_than_the_references_are_told_and_no_empty_result(site, tmp_path, bases):
    take(site, vcf(tmp_path / "in.vcf", bases))
    (tmp_path / "regions.bed").write_text("NC_000001.11\t90\t110\n")

    tally = steps.score(
        site_of(site.store, tmp_path, references=site.settings.references, regions=tmp_path / "regions.bed")
    )

    assert dict(tally.reasons) == {"no-regions": 2}
    assert "no contig of the regions" in dead(site)["no-regions"]


def test_another_reference_makes_a_new_job(site, tmp_path, bases):
    take(site, vcf(tmp_path / "in.vcf", bases))
    steps.score(site)
    (tmp_path / "longer.fa").write_text((tmp_path / "genome.fa").read_text() + ">chr3\nACGT\n")

    tally = steps.score(site_of(site.store, tmp_path, references={"GRCh38": tmp_path / "longer.fa"}))

    assert tally.done == 2


@pytest.mark.parametrize("how", ["another", "half of it"])
def test_a_reference_that_is_replaced_while_a_sample_is_read_gives_no_score(site, tmp_path, bases, monkeypatch, how):
    path, reading = tmp_path / "genome.fa", samples.read_variants
    whole = path.read_text()

    def replaced(*args, **options):
        found = reading(*args, **options)
        path.write_text(whole + ">chr3\nACGT\n" if how == "another" else "no FASTA yet")
        if how == "half of it":
            raise InputNotUsable("reference-mismatch", "a REF differs from the reference")
        return found

    take(site, vcf(tmp_path / "in.vcf", bases, samples=("one",)))
    with monkeypatch.context() as patched:
        patched.setattr(samples, "read_variants", replaced)
        tally = steps.score(site)

    assert (tally.failed, tally.dead, dict(tally.reasons)) == (1, 0, {"input-changed": 1})
    if how == "another":
        assert steps.score(site).done == 1


def test_without_a_reference_the_reason_is_told_until_there_is_one(site, tmp_path, bases):
    take(site, vcf(tmp_path / "in.vcf", bases))

    tally = steps.score(site_of(site.store, tmp_path))

    assert dict(tally.reasons) == {"no-reference": 2}
    assert "MEDFLOW_REFERENCES" in dead(site)["no-reference"]
    assert steps.score(site_of(site.store, tmp_path)).selected == 0
    assert steps.score(site).done == 2
    assert dead(site) == {}


def test_a_large_file_is_not_scored_whole_unasked(site, tmp_path, bases, monkeypatch):
    monkeypatch.setattr(stored_genomics, "WHOLE_RECORDS", 5)
    monkeypatch.setattr("medflow.samples.WHOLE_RECORDS", 5)
    take(site, vcf(tmp_path / "in.vcf", bases))

    tally = steps.score(site)

    assert dict(tally.reasons) == {"no-regions": 2}
    assert "MEDFLOW_REGIONS" in dead(site)["no-regions"] and "6 records" in dead(site)["no-regions"]
    assert steps.score(site_of(site.store, tmp_path, references=site.settings.references, regions="all")).done == 2


@pytest.mark.parametrize(("assembly", "note"), [("", "unknown-assembly"), ("GRCh37", "another-assembly")])
def test_samples_that_are_not_on_the_assembly_are_counted_and_not_scored(site, tmp_path, bases, assembly, note):
    text = vcf(tmp_path / "in.vcf", bases, assembly=assembly or "GRCh38").read_text()
    if not assembly:
        text = text.replace(",assembly=GRCh38", "").replace("##reference=GRCh38\n", "")
    (tmp_path / "in.vcf").write_text(text)
    take(site, tmp_path / "in.vcf")

    tally = steps.score(site)

    assert (tally.selected, dict(tally.notes)) == (0, {f"samples-of-{note}": 2})


def test_regions_that_cannot_be_read_stop_this_model_and_no_other(site, tmp_path, bases):
    take(site, vcf(tmp_path / "in.vcf", bases))
    (tmp_path / "bad.bed").write_text("chr1\tx\ty\n")

    tally = steps.score(
        site_of(site.store, tmp_path, references=site.settings.references, regions=tmp_path / "bad.bed")
    )

    assert "MEDFLOW_REGIONS" in tally.broken["gc-shift"]
    assert steps.score(site).done == 2


def test_a_sample_that_turns_out_to_be_another_patients_is_scored_again(local, tmp_path, bases):
    site = site_of(local, tmp_path, references={"GRCh38": tmp_path / "genome.fa"})
    path = vcf(tmp_path / "in.vcf", bases, samples=("one",))
    take(site, path)
    steps.score(site)
    take(of_others(site, tmp_path), path)

    tally = steps.score(site)

    assert tally.done == 1
    assert view(site, 1).superseded and not view(site, 2).superseded


def test_results_stand_while_a_site_is_without_its_reference_but_not_at_another_patients(site, tmp_path, bases):
    path = vcf(tmp_path / "in.vcf", bases, samples=("one",))
    take(site, path)
    steps.score(site)
    bare = site_of(site.store, tmp_path)

    without = steps.score(bare)
    standing = statuses(bare)
    take(of_others(bare, tmp_path), path)

    assert (without.dead, dict(without.notes)) == (1, {})
    assert standing == {"urn:samples": {"preliminary"}}
    assert statuses(bare) == {"urn:samples": {"entered-in-error"}}
    assert steps.score(bare).dead == 1


def test_whatever_was_said_of_another_patient_is_an_error_even_of_a_model_that_is_gone(site, tmp_path, bases):
    path = vcf(tmp_path / "in.vcf", bases, samples=("one",))
    (tmp_path / "regions.bed").write_text("chr1\t90\t110\n")
    take(site, path)
    steps.score(site)
    steps.score(site_of(site.store, tmp_path, references=site.settings.references, regions=tmp_path / "regions.bed"))
    amended = statuses(site)
    without = replace(site, registry=Registry(models={}, broken=()))

    take(of_others(without, tmp_path), path)

    assert amended == {"urn:samples": {"preliminary", "amended"}}
    assert statuses(site) == {"urn:samples": {"entered-in-error"}}


def statuses(site: steps.Site) -> dict[str, set[str]]:
    """The statuses of the Observations of each patient, by the system of their identifier."""
    found: dict[str, set[str]] = {}
    with site.store.reading() as connection:
        for body in connection.scalars(select(OutboxRow.body).where(OutboxRow.type == "Observation")):
            item = orjson.loads(body)
            found.setdefault(item["subject"]["identifier"]["system"], set()).add(item["status"])
    return found


def test_the_model_is_given_windows_and_nothing_else(site, tmp_path, bases):
    take(site, vcf(tmp_path / "in.vcf", bases))
    steps.score(site)

    opener = scoring.open_cases(
        site.store, GcShift.spec, [view(site, 1).job], genomes=scoring.GenomeSite.of(site.settings)
    )[0]
    case = opener()

    assert list(case.inputs) == ["sequence"] and len(case.variants) == 4
    assert len(opener.take().found.variants) == 4


def test_beyond_the_limit_the_highest_scores_are_reported_in_their_order(site, tmp_path, bases, monkeypatch):
    monkeypatch.setattr(variant_scores, "MOST_REPORTED", 2)
    take(site, vcf(tmp_path / "in.vcf", bases))
    steps.score(site)

    result = view(site, 1).results[0]
    _, rows = lines(site, result)

    assert (result.counts["reported"], result.counts["not-reported-beyond-limit"]) == (2, 1)
    scores = sorted((float(row["SCORE"]) for row in rows if row["SCORE"] != "."), reverse=True)
    assert sorted((item.score for item in result.variants), reverse=True) == pytest.approx(scores[:2])
    places = [(item.variant.contig, item.variant.position) for item in result.variants]
    assert places == sorted(places)


def test_a_file_is_named_by_its_bytes_and_its_specimen(site, tmp_path, bases):
    take(site, vcf(tmp_path / "in.vcf", bases))

    with site.store.reading() as connection:
        facts = unit_facts(connection, GcShift.spec.unit, [1])[1]

    assert [(item.type, item.identifier.value) for item in facts.inputs] == [
        ("DocumentReference", f"urn:sha256:{file_digest(site)}")
    ]


def test_it_is_shown_as_tables_and_as_json_and_the_scores_can_be_had(site, tmp_path, bases, monkeypatch):
    take(site, vcf(tmp_path / "in.vcf", bases))
    steps.score(site)
    monkeypatch.setenv("MEDFLOW_HOME", str(site.settings.home))
    monkeypatch.chdir(tmp_path)

    shown, said, written = (
        CliRunner().invoke(app, words) for words in (["show", "1"], ["show", "1", "--json"], ["scores", "1"])
    )

    assert (shown.exit_code, said.exit_code, written.exit_code) == (0, 0, 0), (shown.output, written.output)
    assert "shift of 3 variants, 3 reported" in shown.stdout and "heterozygous" in shown.stdout
    (result,) = orjson.loads(said.stdout)["results"]
    assert result["counts"]["filtered"] == 1
    assert [item["position"] for item in result["variants"]] == [100, 150, 300]
    text = gzip.decompress((tmp_path / "job-1-scores.tsv.gz").read_bytes()).decode()
    assert "\nchr1\t100\t" in text and (tmp_path / "job-1.png").exists()


def test_a_job_without_scores_of_variants_says_so(site, tmp_path, bases):
    take(site, vcf(tmp_path / "in.vcf", bases))
    steps.score(site_of(site.store, tmp_path))

    with pytest.raises(ConfigurationError, match="the job has scores of variants for: none"):
        scores_file(site.store, view(site, 1).results)


@pytest.mark.parametrize("harm", ["missing", "replaced"])
def test_an_index_that_is_not_what_was_stored_costs_no_variant(site, tmp_path, bases, harm, monkeypatch, caplog):
    monkeypatch.setattr(sample_file, "_RECORDS_PER_QUERY", 0)  # so that an index is asked
    pysam.tabix_compress(str(vcf(tmp_path / "in.vcf", bases)), str(tmp_path / "in.vcf.gz"), force=True)
    (tmp_path / "regions.bed").write_text("chr1\t90\t110\n")
    inside = site_of(site.store, tmp_path, references=site.settings.references, regions=tmp_path / "regions.bed")
    take(inside, tmp_path / "in.vcf.gz")
    with site.store.reading() as connection:
        index = site.store.objects.path(stored_genomics.load_samples(connection, [1])[1].index)
    index.chmod(0o600)
    index.unlink() if harm == "missing" else index.write_bytes(index.read_bytes()[::-1])

    steps.score(inside)

    assert view(inside, 1).results[0].counts["scored"] == 1
    assert "index of its file is missing or damaged" in caplog.text
