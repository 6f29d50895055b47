"""The path in process, on both databases: what is selected, what becomes of it, and what is queued for delivery."""

import traceback

import orjson
import pytest

from medflow import answers, replay, scoring, steps
from medflow.errors import InputNotUsable, MedflowError, PluginBroken
from medflow.fhir.write import result_resources
from medflow.registry import BrokenPlugin, RegisteredModel, Registry
from medflow.sample import write_sample
from medflow.store.jobs import lease, list_jobs, predictions, retry_jobs
from tests.models import Choosy, GcContent, registered, renamed


@pytest.fixture
def site(store, settings):
    """A site with the GC model installed; `use` installs others instead."""
    models = {"gc-content": registered(GcContent)}
    return steps.Site(settings=settings, store=store, registry=Registry(models=models, broken=()))


def use(site: steps.Site, *models: RegisteredModel, broken=()) -> steps.Site:
    registry = Registry(models={model.name: model for model in models}, broken=tuple(broken))
    return steps.Site(settings=site.settings, store=site.store, registry=registry)


def take(site: steps.Site, tmp_path, text: str):
    path = tmp_path / "in.fasta"
    path.write_text(text)
    return steps.ingest(site, steps.source_of("fasta", [path]))


def delivered(folder) -> list[dict]:
    return [orjson.loads(line) for line in (folder / "Observation.ndjson").read_bytes().splitlines()]


THREE = ">a patient=urn:t|1\nACGTACGT\n>b patient=urn:t|1\nGGGGCCCC\n>c\nTTTTTTTT\n"


def test_what_is_new_is_scored_once_and_delivered_once(site, tmp_path):
    take(site, tmp_path, THREE)

    first, second = steps.score(site), steps.score(site)
    sent, again = (steps.deliver(site, str(tmp_path / "out")) for _ in range(2))

    assert (first.selected, first.done) == (3, 3)
    assert (second.selected, second.done) == (0, 0)
    assert (sent.delivered, again.delivered) == (3 + 3 + 2, 0)  # results, their provenance, device and card
    values = sorted(item["valueQuantity"]["value"] for item in delivered(tmp_path / "out"))
    assert values == [0.0, 0.5, 1.0]


def test_a_molecular_sequence_is_scored_and_its_result_says_of_which(site, tmp_path):
    path = tmp_path / "in.ndjson"
    sequence = {"resourceType": "MolecularSequence", "id": "s1", "type": "dna", "coordinateSystem": 0}
    sequence |= {"observedSeq": "acgtACGT", "patient": {"reference": "Patient/p1"}}
    protein = {"resourceType": "MolecularSequence", "id": "s2", "type": "aa", "coordinateSystem": 0}
    path.write_bytes(b"\n".join(orjson.dumps(item) for item in (sequence, protein | {"observedSeq": "ACGTACGT"})))

    taken = steps.ingest(site, steps.source_of("fhir", [path]))
    first = steps.score(site)
    path.write_bytes(orjson.dumps(sequence | {"observedSeq": "GGGGCCCC"}))
    steps.ingest(site, steps.source_of("fhir", [path]))
    steps.score(site)
    steps.deliver(site, str(tmp_path / "out"))

    assert (taken.stored, taken.notes["sequence-not-dna"], first.done) == (2, 1, 1)
    found = {item["valueQuantity"]["value"]: item for item in delivered(tmp_path / "out")}
    assert {value: item["status"] for value, item in found.items()} == {0.5: "amended", 1.0: "preliminary"}
    assert found[1.0]["subject"]["reference"] == "Patient/p1"
    assert found[1.0]["derivedFrom"][0]["reference"] == "MolecularSequence/s1"
    assert found[1.0]["derivedFrom"][0]["identifier"]["value"].startswith("urn:sha256:")


def test_only_what_is_new_is_scored(site, tmp_path):
    take(site, tmp_path, THREE)
    steps.score(site)

    take(site, tmp_path, THREE + ">d\nACACACAC\n")

    assert steps.score(site).done == 1


def test_a_sequence_that_is_shorter_than_a_model_reads_is_noted_once_for_all_models(site, tmp_path):
    take(site, tmp_path, ">short\nACGTACG\n>long\nACGTACGT\n")

    scored = steps.score(use(site, registered(GcContent), registered(renamed(GcContent, "again"))))

    assert (scored.done, dict(scored.notes)) == (2, {"sequences-too-short": 1})


def test_a_case_that_fails_is_dead_and_the_others_are_done(site, tmp_path):
    take(site, tmp_path, THREE)
    site = use(site, registered(renamed(Choosy, "choosy")))

    tally = steps.score(site)

    assert (tally.done, tally.dead) == (2, 1)
    assert dict(tally.reasons) == {"plugin-error": 1}
    with site.store.reading() as connection:
        dead = list_jobs(connection, states=("dead",))
    assert [job.error_code for job in dead] == ["plugin-error"]


def test_a_new_version_of_a_model_scores_again_and_the_old_results_are_amended(site, tmp_path):
    take(site, tmp_path, THREE)
    steps.score(site)
    steps.deliver(site, str(tmp_path / "out"))

    newer = use(site, registered(GcContent, digest="d2"))
    tally = steps.score(newer)
    steps.deliver(newer, str(tmp_path / "out"))

    assert tally.done == 3
    last = {item["id"]: item["status"] for item in delivered(tmp_path / "out")}
    assert sorted(last.values()) == ["amended"] * 3 + ["preliminary"] * 3


def test_a_model_that_does_not_load_is_named_and_the_others_run(site, tmp_path):
    class Unloadable(GcContent):
        def load(self, device):
            raise RuntimeError("no such layer")

    take(site, tmp_path, THREE)
    site = use(site, registered(renamed(Unloadable, "a-broken-one")), registered(GcContent))

    tally = steps.score(site)

    assert tally.done == 3
    assert list(tally.broken) == ["a-broken-one"]
    assert "does not load" in tally.broken["a-broken-one"]


def test_a_plugin_that_does_not_import_is_told_with_the_counts(site, tmp_path):
    take(site, tmp_path, THREE)
    site = use(
        site, registered(GcContent), broken=[BrokenPlugin(distribution="x 1", entry_point="x", error="ImportError: y")]
    )

    assert steps.score(site).broken == {"x": "ImportError: y"}
    with pytest.raises(PluginBroken, match="ImportError: y"):
        steps.score(site, ["x"])


def test_an_infrastructure_error_is_tried_again_later(site, tmp_path):
    class Flaky(GcContent):
        broken = True

        def predict(self, batch):
            if Flaky.broken:
                raise ConnectionError("gone")
            return super().predict(batch)

    take(site, tmp_path, THREE)
    site = use(site, registered(renamed(Flaky, "flaky")))

    first = steps.score(site)
    Flaky.broken = False
    with site.store.writing() as connection:
        connection.exec_driver_sql("UPDATE job SET not_before_us = 0")
    second = steps.score(site)

    assert (first.failed, first.done) == (3, 0)
    assert (second.selected, second.done) == (0, 3)


def test_an_interrupted_chunk_gives_its_jobs_back(site, tmp_path):
    class Interrupted(GcContent):
        def predict(self, batch):
            raise KeyboardInterrupt

    take(site, tmp_path, THREE)

    with pytest.raises(KeyboardInterrupt):
        steps.score(use(site, registered(renamed(Interrupted, "gc-content"))))

    with site.store.reading() as connection:
        assert {job.state for job in list_jobs(connection, states=("leased", "ready"))} == {"ready"}


def test_cases_that_other_processes_hold_are_left_to_them_and_noted(site, tmp_path):
    take(site, tmp_path, THREE)
    model = site.registry.get("gc-content")
    steps.select(site, model)
    with site.store.writing() as connection:
        model_id = connection.exec_driver_sql("SELECT id FROM model").scalar()
        lease(connection, model_id, "elsewhere|1|1|a", limit=2, seconds=60, max_attempts=3)

    tally = steps.score(site)

    assert (tally.done, dict(tally.notes)) == (1, {"held-by-others": 2})


def test_a_dead_job_is_scored_after_a_replay(site, tmp_path):
    take(site, tmp_path, ">n\nNACGTACG\n>ok\nACGTACGT\n")
    assert steps.score(site).dead == 1

    assert replay.replay_jobs(site) == 1

    assert steps.score(site).dead == 1  # its data are still what they were
    with site.store.writing() as connection:
        assert retry_jobs(connection, [10_000]) == 0


def test_runs_and_their_counts_are_on_record(site, tmp_path):
    take(site, tmp_path, THREE)
    steps.score(site)

    with site.store.reading() as connection:
        query = "SELECT command, status, actor FROM run ORDER BY id"
        rows = [tuple(row) for row in connection.exec_driver_sql(query)]
    assert [row[:2] for row in rows] == [("ingest fasta", "completed"), ("score", "completed")]
    assert all(row[2] for row in rows)


def test_a_result_that_fhir_cannot_carry_takes_down_its_case_only(site, tmp_path, monkeypatch):
    def picky(context, results):
        if results[0].value == 1.0:
            raise InputNotUsable("no-patient", "nobody to write it to")
        return result_resources(context, results)

    monkeypatch.setattr(answers, "result_resources", picky)
    take(site, tmp_path, THREE)

    tally = steps.score(site)

    assert (tally.done, tally.dead, dict(tally.reasons)) == (2, 1, {"no-patient": 1})


def test_predictions_are_kept_beside_their_jobs(site, tmp_path):
    take(site, tmp_path, THREE)
    steps.score(site)

    with site.store.reading() as connection:
        found = predictions(connection, "gc-content")

    assert [(output, value) for _, output, value, _ in found] == [("gc", 0.5), ("gc", 1.0), ("gc", 0.0)]


def test_a_vcf_refused_for_its_reference_is_never_taken_without_one(site, tmp_path):
    sample = write_sample(tmp_path / "sample", stays=4)
    source = steps.source_of("vcf", [sample.vcf], reference=sample.reference)
    assert steps.ingest(site, source).reasons["ref-mismatch"] == 1

    without = replay.replay_rejects(site)
    again = replay.replay_rejects(site, reference=sample.reference)

    assert (without.offered, without.notes["left-without-reference"]) == (0, 1)
    assert (again.stored, again.reasons["ref-mismatch"]) == (0, 1)


def test_a_defect_is_told_by_its_place_and_never_by_its_text(site, tmp_path, monkeypatch):
    def defective(*_args, **_kwargs):
        raise ValueError("patient MRN-4711 born 1970-01-01")

    take(site, tmp_path, THREE)
    monkeypatch.setattr(scoring, "read_about", defective)

    with pytest.raises(MedflowError, match=r"unforeseen ValueError at test_steps\.py:\d+") as caught:
        steps.score(site)

    assert "4711" not in "".join(traceback.format_exception(caught.value))
    with site.store.reading() as connection:
        assert {job.state for job in list_jobs(connection, states=("leased", "ready"))} == {"ready"}
