"""`medflow withdraw vcf` and `medflow ingest vcf --replaces`: from the file of a laboratory to what its chart says."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

import orjson
import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from medflow import steps
from medflow.cli.app import app
from medflow.config import load_settings
from medflow.errors import ConfigurationError
from medflow.ingest import withdrawing
from medflow.ingest.genomics import ingest_vcf
from medflow.ingest.withdrawing import replace_vcf, withdraw_vcf
from medflow.registry import Registry
from medflow.store.ledger import list_rejects
from medflow.store.tables import RunRow, VariantFileRow
from tests.models import registered
from tests.variant_models import GcShift, genome, vcf


@pytest.fixture
def bases(tmp_path: Path) -> dict[str, str]:
    return genome(tmp_path / "genome.fa")


@pytest.fixture
def site(local, tmp_path: Path, bases) -> steps.Site:
    chosen = load_settings(
        home=tmp_path / "home", sample_system="urn:samples", references={"GRCh38": tmp_path / "genome.fa"}
    )
    return steps.Site(
        settings=chosen, store=local, registry=Registry(models={"gc-shift": registered(GcShift)}, broken=())
    )


@pytest.fixture
def old(site, tmp_path, bases) -> Path:
    """A file of two samples that was taken in."""
    path = vcf(tmp_path / "old.vcf", bases)
    ingest_vcf(site.store, site.settings, [path])
    return path


@pytest.fixture
def delivered(site, old, tmp_path) -> list[dict]:
    """What it gave, once it was scored."""
    steps.score(site)
    return send(site, tmp_path)


@pytest.fixture
def new(old: Path, tmp_path: Path) -> Path:
    """The same with one call corrected: sample one does not carry the first variant."""
    return write(tmp_path / "new.vcf", old.read_text().replace("\tGT\t0/1\t1/1\n", "\tGT\t0/0\t1/1\n", 1))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def send(site: steps.Site, tmp_path: Path) -> list[dict]:
    """Every Observation that is sent now, all versions of it."""
    folder = tmp_path / "out"
    before = len(lines(folder))
    steps.deliver(site, str(folder))
    return lines(folder)[before:]


def lines(folder: Path) -> list[dict]:
    path = folder / "Observation.ndjson"
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def standing(site: steps.Site) -> list[bool]:
    with site.store.reading() as connection:
        moments = connection.scalars(select(VariantFileRow.withdrawn_us).order_by(VariantFileRow.id))
        return [moment is None for moment in moments]


def swap(site: steps.Site, new: Path, name: str, **options):
    return replace_vcf(site.store, site.settings, new, name, **options)


# --- withdraw ----------------------------------------------------------------------------------------------------


def test_what_was_delivered_is_sent_once_more_as_entered_in_error(site, old, delivered, tmp_path) -> None:
    taken = withdraw_vcf(site.store, str(old))
    scored, told, again = steps.score(site), send(site, tmp_path), send(site, tmp_path)

    assert (taken.samples, taken.results, taken.jobs, scored.selected) == (2, 2, 0, 0)
    assert {item["id"] for item in told} == {item["id"] for item in delivered} and len(told) == len(delivered)
    assert {item["status"] for item in told} == {"entered-in-error"}
    assert again == []


def test_a_file_is_named_by_its_id_its_digest_or_itself(site, old) -> None:
    digest = sha256(old.read_bytes()).hexdigest()

    for name in ("variant_file/1", "1", digest, digest.upper(), str(old)):
        withdraw_vcf(site.store, name)
        assert standing(site) == [False]
        ingest_vcf(site.store, site.settings, [old], restore=True)


def test_a_file_that_is_not_stored_is_refused_without_its_name(site, old, tmp_path) -> None:
    for name in ("variant_file/9", "9", "0" * 64, "nowhere.vcf", str(tmp_path / "genome.fa"), str(tmp_path)):
        with pytest.raises(ConfigurationError, match="medflow samples") as refused:
            withdraw_vcf(site.store, name)
        assert not {"nowhere", "genome"} & set(refused.value.message.replace(".", " ").split())

    assert standing(site) == [True]


def test_one_that_was_withdrawn_is_not_withdrawn_again(site, old) -> None:
    withdraw_vcf(site.store, "1")

    with pytest.raises(ConfigurationError, match="variant_file/1 was withdrawn already"):
        withdraw_vcf(site.store, str(old))


def test_offered_again_it_is_unchanged_and_stays_withdrawn(site, old, tmp_path) -> None:
    withdraw_vcf(site.store, "1")
    wrong = write(tmp_path / "wrong.fa", f">chr1\n{'A' * 400}\n>chr2\n{'A' * 400}\n")

    for reference in (None, wrong):
        tally = ingest_vcf(site.store, site.settings, [old], reference=reference)
        assert (tally.offered, tally.unchanged, dict(tally.notes)) == (1, 1, {"was-withdrawn": 1})
    assert standing(site) == [False] and steps.score(site).selected == 0


def test_it_is_taken_in_again_when_that_is_asked_for(site, old, delivered, tmp_path) -> None:
    withdraw_vcf(site.store, "1")
    send(site, tmp_path)

    tally = ingest_vcf(site.store, site.settings, [old], restore=True)
    scored, told = steps.score(site), send(site, tmp_path)

    assert (tally.stored, dict(tally.notes)) == (1, {"restored": 1})
    assert scored.done == 2 and {item["status"] for item in told} == {"preliminary"}
    assert ingest_vcf(site.store, site.settings, [old], restore=True).unchanged == 1
    withdraw_vcf(site.store, "1")
    assert {item["status"] for item in send(site, tmp_path)} == {"entered-in-error"}


def test_restored_its_samples_are_asked_about_as_they_were_when_it_was_withdrawn(site, tmp_path, bases) -> None:
    path = vcf(tmp_path / "in.vcf", bases)
    sheet = write(tmp_path / "sheet.csv", "sample,system,value\none,urn:mrn,1\n")
    bare = site.settings.model_copy(update={"sample_system": None})
    ingest_vcf(site.store, bare, [path], samples=sheet)
    withdraw_vcf(site.store, "1")

    left = ingest_vcf(site.store, bare, [path])
    tally = ingest_vcf(site.store, bare, [path], restore=True)

    assert left.rejected == 0
    assert (tally.offered, tally.stored, dict(tally.reasons)) == (2, 1, {"sample-unknown": 1})
    with site.store.reading() as connection:
        assert [item.code for item in list_rejects(connection)] == ["sample-unknown"]


# --- replace -----------------------------------------------------------------------------------------------------


def test_a_corrected_file_takes_the_place_of_the_old_one(site, old, new, delivered, tmp_path) -> None:
    tally = swap(site, new, str(old))
    scored = steps.score(site)
    by_status: dict[str, set[str]] = {}
    for item in send(site, tmp_path):
        by_status.setdefault(item["status"], set()).add(item["derivedFrom"][-1]["identifier"]["value"][-64:])

    assert (tally.stored, dict(tally.notes), tally.broken) == (1, {"replaced": 1, "results-taken-back": 2}, {})
    assert standing(site) == [False, True] and scored.done == 2
    assert by_status == {
        "entered-in-error": {sha256(old.read_bytes()).hexdigest()},
        "preliminary": {sha256(new.read_bytes()).hexdigest()},
    }


def test_one_that_the_night_took_already_replaces_it_as_well(site, old, new) -> None:
    ingest_vcf(site.store, site.settings, [new])

    tally = swap(site, new, "1")

    assert (tally.unchanged, tally.notes["replaced"]) == (1, 1)
    assert standing(site) == [False, True]


def test_samples_that_the_new_one_has_not_or_gives_to_others_are_counted(site, old, new, tmp_path, bases) -> None:
    fewer = vcf(tmp_path / "fewer.vcf", bases, samples=("one",))
    sheet = write(tmp_path / "sheet.csv", "sample,system,value\none,urn:others,1\n")
    moved = replace(site, settings=site.settings.model_copy(update={"sample_system": None}))

    tally = swap(moved, fewer, "1", samples=sheet)

    assert dict(tally.notes) == {
        "replaced": 1,
        "samples-not-in-the-new-file": 1,
        "samples-of-another-patient-now": 1,
    }


@pytest.mark.parametrize("wrong", ["record", "sample", "gone"])
def test_the_old_one_stands_where_the_new_one_is_not_taken_whole(site, old, new, tmp_path, wrong) -> None:
    options = {}
    if wrong == "record":
        write(new, new.read_text() + "chr2\tx\n")
    elif wrong == "sample":
        site = replace(site, settings=site.settings.model_copy(update={"sample_system": None}))
        options = {"samples": write(tmp_path / "sheet.csv", "sample,system,value\none,urn:samples,one\n")}
    else:
        new.unlink()

    tally = swap(site, new, "1", **options)

    assert tally.rejected == 1 and "variant_file/1 stands" in tally.broken["replaces"]
    assert standing(site)[0] and "replaced" not in tally.notes


def test_the_old_one_stands_where_the_new_one_would_take_a_sample_from_its_patient(site, old, new) -> None:
    bare = replace(site, settings=site.settings.model_copy(update={"sample_system": None}))

    tally, again = swap(bare, new, "1"), swap(site, new, "1")

    assert "2 of its samples have a patient, and none in the new file" in tally.broken["replaces"]
    assert (again.broken, standing(site)) == ({}, [False, True])


def test_whatever_breaks_off_in_between_both_stand_and_the_same_again_goes_on(site, old, new, monkeypatch) -> None:
    def killed(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(withdrawing, "withdraw_file", killed)
        swap(site, new, "1")
    between = standing(site)

    assert (between, swap(site, new, "1").notes["replaced"], standing(site)) == ([True, True], 1, [False, True])


def test_what_cannot_replace_it_is_refused_before_anything_is_taken(site, old, new, tmp_path) -> None:
    folder = tmp_path / "several"
    folder.mkdir()
    for name in "ab":
        write(folder / f"{name}.vcf", new.read_text())

    for path, name, why in (
        (new, "7", "no such variant file"),
        (old, "1", "is variant_file/1 itself"),
        (folder, "1", "one VCF file"),
    ):
        with pytest.raises(ConfigurationError, match=why):
            swap(site, path, name)
    assert standing(site) == [True]


def test_a_withdrawn_file_replaces_another_only_when_it_is_to_be_restored(site, old, new) -> None:
    swap(site, new, "1")

    with pytest.raises(ConfigurationError, match="variant_file/1.*--restore"):
        swap(site, old, "2")
    with pytest.raises(ConfigurationError, match="variant_file/1 was withdrawn already"):
        swap(site, new, "1")
    tally = swap(site, old, "2", restore=True)

    assert (tally.notes["restored"], tally.notes["replaced"], standing(site)) == (1, 1, [True, False])


def test_the_new_one_may_come_in_an_archive_of_its_own(site, old, new, tmp_path) -> None:
    with ZipFile(tmp_path / "new.zip", "w") as archive:
        archive.write(new, "new.vcf")

    assert swap(site, tmp_path / "new.zip", "1").notes["replaced"] == 1


# --- the commands ------------------------------------------------------------------------------------------------


def test_the_commands_print_counts_and_are_on_record(site, old, new, monkeypatch) -> None:
    monkeypatch.setenv("MEDFLOW_HOME", str(site.settings.home))
    monkeypatch.setenv("MEDFLOW_SAMPLE_SYSTEM", "urn:samples")
    packed = new.with_suffix(".vcf.gz")
    packed.write_bytes(gzip.compress(new.read_bytes()))

    swapped, said, same = (
        CliRunner().invoke(app, [str(word) for word in words])
        for words in (
            ["ingest", "vcf", packed, "--replaces", old],
            ["withdraw", "vcf", "variant_file/2", "--json"],
            ["ingest", "vcf", packed, "--json"],
        )
    )

    assert [item.exit_code for item in (swapped, said, same)] == [0, 0, 0], swapped.output
    assert "1 replaced" in swapped.stdout
    assert json.loads(said.stdout) == {"samples": 2, "results": 0, "jobs": 0}
    assert json.loads(same.stdout)["notes"] == {"was-withdrawn": 1}
    with site.store.reading() as connection:
        runs = connection.execute(select(RunRow.command, RunRow.status).order_by(RunRow.id.desc()).limit(3)).all()
    assert runs == [("ingest vcf", "completed"), ("withdraw vcf", "completed"), ("ingest vcf", "completed")]


def test_a_new_file_that_is_not_taken_ends_the_command_as_a_reject_does(site, old, new, monkeypatch) -> None:
    monkeypatch.setenv("MEDFLOW_HOME", str(site.settings.home))
    write(new, new.read_text() + "chr2\tx\n")

    ended = CliRunner().invoke(app, ["ingest", "vcf", str(new), "--replaces", "1"])

    assert ended.exit_code == 3 and "variant_file/1 stands" in ended.stdout
