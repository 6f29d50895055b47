"""What answers: a version trained here once it is promoted, until another is; and never other weights in silence."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import orjson
import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from medflow import promotion, scoring, steps, trained
from medflow.cli import models as cli
from medflow.errors import ConfigurationError, PluginBroken, UnknownModel
from medflow.flows import worker as worker_module
from medflow.inputs import due_units
from medflow.records import Instant
from medflow.registry import Registry, dump_spec
from medflow.scoring import LoadedModels
from medflow.store import Store, chunks, jobs, ledger, workers
from medflow.store import trained as versions
from tests.trainable import WEIGHTS, leaning, train

ON_SQLITE = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)  # what no SQL decides
THREE = ">a patient=urn:t|1\nACGTACGT\n>b patient=urn:t|1\nGGGGCCCC\n>c patient=urn:t|2\nTTTTTTTT\n"
NOW = Instant(utc_us=ledger.now_us() + 3_600_000_000)


@pytest.fixture
def installed() -> Registry:
    return Registry(models={"leaning": leaning()}, broken=())


@pytest.fixture
def site(store, settings, tmp_path, installed) -> steps.Site:
    """A site with three sequences and the model as its plugin brings it."""
    here = steps.Site(settings=settings.model_copy(update={"device": "cpu"}), store=store, registry=installed)
    path = tmp_path / "three.fasta"
    path.write_text(THREE)
    steps.ingest(here, steps.source_of("fasta", [path]))
    return here


def now_served(site: steps.Site, installed: Registry) -> steps.Site:
    return replace(site, registry=trained.served(site.store, site.settings, installed))


def promote(site: steps.Site, installed: Registry, version: str | None, **options) -> promotion.Promotion:
    return promotion.promote(site.store, site.settings, installed, "leaning", version, **options)


def values(site: steps.Site) -> list[float]:
    with site.store.reading() as connection:
        return sorted(value or 0.0 for _, _, value, _ in jobs.predictions(connection, "leaning"))


def test_a_candidate_answers_nothing_until_it_is_promoted_and_then_every_case_again(site, installed, tmp_path):
    steps.score(site)
    version = train(site.store, 0.5)
    before = steps.score(now_served(site, installed))

    promote(site, installed, version)
    after = steps.score(now_served(site, installed))

    assert (before.selected, after.done) == (0, 3)
    assert values(site) == [0.0, 0.25, 0.5]
    assert now_served(site, installed).registry.get("leaning").spec.version == version


def test_results_of_the_version_before_are_amended_and_stand_again_after_going_back(site, installed, tmp_path):
    def statuses(served: steps.Site) -> list[tuple[float, str]]:
        steps.deliver(served, str(tmp_path / "out"))
        lines = [orjson.loads(line) for line in (tmp_path / "out" / "Observation.ndjson").read_bytes().splitlines()]
        last = {line["id"]: line for line in lines}
        return sorted((line["valueQuantity"]["value"], line["status"]) for line in last.values())

    steps.score(site)
    promote(site, installed, train(site.store, 0.5))
    steps.score(now_served(site, installed))
    promoted = statuses(site)
    promote(site, installed, None)
    back = steps.score(now_served(site, installed))

    assert (0.5, "amended") in promoted and (0.5, "preliminary") in promoted and (1.0, "amended") in promoted
    assert back.done == 3
    assert values(site) == [0.0, 0.5, 1.0]
    assert [status for value, status in statuses(site) if value == 1.0] == ["preliminary"]
    assert [status for value, status in statuses(site) if value == 0.25] == ["amended"]


def test_what_the_version_before_left_waiting_is_let_go(site, installed):
    steps.select(site, site.registry.get("leaning"), as_of=NOW)

    made = promote(site, installed, train(site.store))

    assert made.let_go == 3
    with site.store.reading() as connection:
        assert jobs.count_jobs(connection) == {}


def test_what_the_version_before_is_scoring_meanwhile_takes_no_place(site, installed):
    first = site.registry.get("leaning")
    steps.select(site, first, as_of=NOW)

    class Meanwhile(LoadedModels):
        def using(self, model):
            promote(site, installed, version)
            return super().using(model)

    version = train(site.store)
    tally = steps.score_chunk(site, first, Meanwhile(site.settings))

    assert (tally.leased, tally.done) == (3, 0)
    assert values(site) == []
    assert steps.score(now_served(site, installed)).done == 3


def test_a_version_promoted_while_another_selects_is_not_answered_over(site, installed, monkeypatch):
    first, version = site.registry.get("leaning"), train(site.store)

    def slowly(*arguments, **options):
        promote(site, installed, version)
        return due_units(*arguments, **options)

    monkeypatch.setattr(scoring, "due_units", slowly)
    with pytest.raises(PluginBroken, match="was promoted meanwhile"):
        steps.select(site, first, as_of=NOW)

    with site.store.reading() as connection:
        assert jobs.count_jobs(connection) == {}


@ON_SQLITE
def test_of_two_who_promote_at_once_the_second_is_told_to_look_again(site, installed, monkeypatch):
    one, other = train(site.store, 0.5), train(site.store, 0.75)

    def slowly(row, served):
        monkeypatch.undo()
        promote(site, installed, one)

    monkeypatch.setattr(promotion, "_refuse_worse", slowly)
    with pytest.raises(ConfigurationError, match="was promoted meanwhile"):
        promote(site, installed, other)

    assert now_served(site, installed).registry.get("leaning").spec.version == one


@ON_SQLITE
def test_a_process_that_has_not_heard_of_a_promotion_selects_nothing(site, installed):
    promote(site, installed, train(site.store))

    with pytest.raises(PluginBroken, match="was promoted meanwhile"):
        steps.select(site, site.registry.get("leaning"))


@ON_SQLITE
def test_weights_of_another_training_have_another_digest(site, installed):
    digests = set()
    for factor in (0.5, 0.25):
        promote(site, installed, train(site.store, factor))
        digests.add(now_served(site, installed).registry.get("leaning").digest)

    assert len(digests) == 2
    assert site.registry.get("leaning").digest not in digests


@ON_SQLITE
@pytest.mark.parametrize("harm", ["damaged", "missing"])
def test_files_that_are_damaged_or_missing_here_are_fetched_again(site, installed, harm):
    promote(site, installed, train(site.store, 0.5))
    served = now_served(site, installed)
    folder = served.registry.get("leaning").folder
    assert folder is not None and (folder / WEIGHTS).is_file()
    if harm == "damaged":
        (folder / WEIGHTS).write_bytes(b"0")
    else:
        shutil.rmtree(folder)

    steps.score(served)

    assert values(site) == [0.0, 0.25, 0.5]


def broken(site: steps.Site, installed: Registry) -> str:
    """Why the model cannot answer; nothing is scored with anything else."""
    served = now_served(site, installed)
    assert "leaning" not in served.registry.models
    tally = steps.score(served)
    assert (tally.done, list(tally.broken)) == (0, ["leaning"])
    assert "medflow models promote leaning installed" in tally.broken["leaning"]
    return tally.broken["leaning"]


@ON_SQLITE
def test_a_promoted_version_of_a_plugin_that_was_updated_is_broken(site, installed):
    promote(site, installed, train(site.store))
    newer = Registry(models={"leaning": leaning(version="1.2.0")}, broken=())

    assert "from version 1.1.0, and 1.2.0 is installed now" in broken(site, newer)


@ON_SQLITE
def test_a_promoted_version_whose_plugin_is_gone_is_broken(site, installed):
    promote(site, installed, train(site.store))

    assert "is not installed" in broken(site, Registry(models={}, broken=()))


@ON_SQLITE
def test_a_promoted_version_with_a_declaration_of_another_medflow_is_broken(site, installed):
    version = train(site.store)
    promote(site, installed, version)
    with site.store.writing() as connection:
        row = versions.one(connection, "leaning", version)
        spec = orjson.dumps({**row.spec, "unit": "galaxy"}).decode()
        connection.exec_driver_sql(f"UPDATE trained_model SET spec = '{spec}'")

    assert "cannot be served by this version of medflow (a stored model spec" in broken(site, installed)


@ON_SQLITE
def test_a_promoted_version_whose_files_are_gone_is_broken_until_they_are_back(site, installed):
    promote(site, installed, train(site.store))
    with site.store.reading() as connection:
        digest = versions.promoted(connection)[0].files[WEIGHTS]
    data = site.store.objects.get(digest)
    folder = now_served(site, installed).registry.get("leaning").folder
    trained._last = None  # as in a new process
    shutil.rmtree(folder)
    site.store.objects.remove(digest)

    assert "missing from the object store" in broken(site, installed)
    site.store.objects.put(data)
    assert "leaning" in now_served(site, installed).registry.models


@ON_SQLITE
def test_a_version_whose_object_is_damaged_is_not_promoted(site, installed):
    version = train(site.store)
    with site.store.reading() as connection:
        digest = versions.one(connection, "leaning", version).files[WEIGHTS]
    site.store.objects.path(digest).write_bytes(b"0")

    with pytest.raises(PluginBroken, match="or damaged there"):
        promote(site, installed, version)

    assert now_served(site, installed).registry is installed


@ON_SQLITE
@pytest.mark.parametrize("name", ["../factor.safetensors", "/tmp/factor.safetensors"])
def test_a_version_that_names_a_file_outside_its_own_folder_is_not_promoted(site, installed, name):
    version = train(site.store)
    with site.store.writing() as connection:
        row = versions.one(connection, "leaning", version)
        spec = orjson.dumps({**row.spec, "weights": [{**row.spec["weights"][0], "file": name}]}).decode()
        connection.exec_driver_sql(f"UPDATE trained_model SET spec = '{spec}'")

    with pytest.raises(PluginBroken, match="names a file outside its own folder"):
        promote(site, installed, version)


def measured(auroc: float, ece: float, beside: str) -> dict[str, object]:
    served = {"version": beside, "test": {"auroc": 0.80, "ece": 0.030}}
    return {"test": {"auroc": auroc, "ece": ece}, "served": served}


@ON_SQLITE
@pytest.mark.parametrize(("auroc", "ece"), [(0.79, 0.01), (0.9, 0.04)])
def test_a_version_that_was_measured_worse_is_promoted_only_by_somebody_who_says_so(site, installed, auroc, ece):
    version = train(site.store, metrics=measured(auroc, ece, "1.1.0"))

    with pytest.raises(ConfigurationError, match=r"measured worse than 1\.1\.0 .*--worse"):
        promote(site, installed, version)

    assert promote(site, installed, version, worse=True).after == version


@ON_SQLITE
def test_a_version_that_was_measured_beside_another_than_is_served_is_not_compared_with_it(site, installed):
    first = train(site.store)
    second = train(site.store, metrics=measured(0.7, 0.2, "1.1.0"))
    promote(site, installed, first)

    assert promote(site, installed, second).before == first


@ON_SQLITE
def test_a_model_and_a_version_that_are_not_there_are_answered_with_those_that_are(site, installed):
    with pytest.raises(UnknownModel, match="installed: leaning"):
        promotion.promote(site.store, site.settings, installed, "nothing", "1")
    with pytest.raises(ConfigurationError, match="no version of leaning was trained here"):
        promote(site, installed, "1")
    version = train(site.store)
    with pytest.raises(ConfigurationError, match=version.replace("+", r"\+") + ".*'installed'"):
        promote(site, installed, "1")


def test_who_decided_is_on_record(site, installed):
    version = train(site.store)
    with steps.recorded(site, versions.DECIDING) as run:
        promote(site, installed, version, run_id=run.id)

    with site.store.reading() as connection:
        (decision,) = versions.decisions(connection, "leaning")
    assert decision.action == "promote" and decision.actor
    assert (decision.detail["before"], decision.detail["after"]) == ("1.1.0", version)


@ON_SQLITE
def test_the_files_of_a_removed_candidate_go_and_those_of_others_stay(site, installed):
    kept, gone = train(site.store, 0.5), train(site.store, 0.25)
    with site.store.reading() as connection:
        files = {name: versions.one(connection, "leaning", name).files for name in (kept, gone)}

    assert promotion.remove(site.store, "leaning", gone) == 1  # the card's words are those of the other's

    assert files[gone][WEIGHTS] not in site.store.objects
    assert all(digest in site.store.objects for digest in files[kept].values())


@ON_SQLITE
def test_files_come_from_an_object_store_that_machines_share(store, settings, installed, s3, tmp_path):
    settings = settings.model_copy(update={"objects": s3.url})
    here = steps.Site(settings=settings, store=Store(settings).open(), registry=installed)
    version = train(here.store, 0.5)
    promote(here, installed, version)

    elsewhere = settings.model_copy(update={"home": tmp_path / "another", "database_url": SecretStr(settings.url)})
    another = trained.served(Store(elsewhere).open(), elsewhere, installed).get("leaning")

    assert another.spec.version == version
    assert another.factory().folder == another.folder == tmp_path / "another" / "models" / another.digest
    assert (another.folder / WEIGHTS).is_file()


@ON_SQLITE
def test_a_running_worker_takes_up_what_is_promoted_with_its_next_chunk_and_says_so(site, installed, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(steps, "installed", lambda: installed)
    monkeypatch.setattr(worker_module, "installed", lambda: installed)
    worker = worker_module.Worker(site, name="w1")

    def asked() -> list[float]:
        served = now_served(site, installed)
        model = served.registry.get("leaning")
        steps.select(served, model)
        with steps.recorded(served, "score") as run, site.store.writing() as connection:
            chunks.ask(connection, run.id, model_id(connection), 1, seconds=60)
        worker.score("leaning")
        return values(site)

    def model_id(connection) -> int:
        return connection.exec_driver_sql("SELECT max(id) FROM model").scalar()

    with site.store.writing() as connection:
        workers.announce(connection, "w1", worker.owner, "cpu", {"leaning": installed.get("leaning").digest})
    before = asked()
    promote(site, installed, train(site.store, 0.5))
    after = asked()

    assert (before, after) == ([0.0, 0.5, 1.0], [0.0, 0.25, 0.5])
    with site.store.reading() as connection:
        assert workers.served(connection)["leaning"] == {now_served(site, installed).registry.get("leaning").digest}
    assert worker.loaded.names() == ["leaning"]


@ON_SQLITE
def test_a_worker_that_has_not_heard_of_a_promotion_is_not_asked(site, installed):
    stale = installed.get("leaning")
    with site.store.writing() as connection:
        jobs.register_model(
            connection, name="leaning", version="1.1.0", digest="old", distribution="x", spec=dump_spec(stale.spec)
        )
        workers.announce(connection, "w1", jobs.process_owner(), "cpu", {"leaning": "old"})
    assert steps.with_workers(site).registry.get("leaning").digest == "old"

    promote(site, installed, train(site.store))

    served = now_served(site, installed)
    assert steps.with_workers(served).registry.get("leaning") == served.registry.get("leaning")


@ON_SQLITE
def test_a_flow_without_the_plugin_has_a_promoted_version_scored_by_workers_that_serve_it(site, installed):
    promote(site, installed, train(site.store))
    theirs = now_served(site, installed).registry.get("leaning")
    with site.store.writing() as connection:
        workers.announce(connection, "w1", jobs.process_owner(), "cpu", {"leaning": theirs.digest})
    here = now_served(site, Registry(models={}, broken=()))

    found = steps.with_workers(here).registry

    assert [plugin.entry_point for plugin in here.registry.broken] == ["leaning"]
    assert (found.get("leaning").digest, found.broken) == (theirs.digest, ())


@ON_SQLITE
def test_at_a_terminal_versions_are_listed_read_promoted_and_removed(site, installed, monkeypatch):
    first, second = train(site.store, 0.5), train(site.store, 0.25)
    for module in (steps, cli):
        monkeypatch.setattr(module, "installed", lambda: installed)

    def run(*words: str) -> str:
        done = CliRunner().invoke(cli.app, words, env={"MEDFLOW_HOME": str(site.settings.home)}, catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    promoted = run("promote", "leaning", first)
    listed = json.loads(run("versions", "leaning", "--json"))
    (model,) = json.loads(run("--json"))["models"]
    with pytest.raises(ConfigurationError, match="is promoted"):
        run("remove", "leaning", first)
    removed = json.loads(run("remove", "leaning", second, "--json"))

    assert f"1.1.0 answered until now, {first} from now on" in " ".join(promoted.split())
    states = {line["version"]: (line["state"], bool(line["promoted_by"])) for line in listed["versions"]}
    assert states == {first: ("promoted", True), second: ("candidate", False)}
    assert (listed["served"], listed["installed"], listed["versions"][0]["figures"]["auroc"]) == (first, "1.1.0", 0.8)
    assert (model["version"], model["installed_version"], model["trained_here"]) == (first, "1.1.0", True)
    assert "Fitted to 12 sequences." in run("card", "leaning")
    assert "leaning 1.1.0, from tests 1" in run("card", "leaning", "installed")
    assert removed == {"model": "leaning", "removed": second, "files": 1}
