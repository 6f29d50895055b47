"""The command line as people and scripts meet it: what it prints, what it leaves, and its exit status."""

import json
import sys
from pathlib import Path

import pytest

from medflow.cli.output import show_table
from tests.distributions import environment, medflow, write_distribution

GC = "from tests import models\n\nclass GcContent(models.GcContent):\n    pass\n"


@pytest.fixture
def env(tmp_path):
    plugins = write_distribution(tmp_path / "plugins", "gc-plugin", GC, {"gc-content": "GcContent"})
    return environment(tmp_path / "home", plugins)


@pytest.fixture
def fasta(tmp_path) -> Path:
    path = tmp_path / "in.fasta"
    path.write_text(">one\nACGTACGT\n>two\nGGGGCCCC\n>bad\nAC!GT\n")
    return path


def test_the_path_in_three_commands(env, fasta, tmp_path):
    taken = medflow(env, "ingest", "fasta", fasta, "--json")
    scored = medflow(env, "score", "--model", "gc-content", "--json")
    sent = medflow(env, "deliver", "--to", tmp_path / "out", "--json")

    assert taken.returncode == 3  # one was rejected
    counts = json.loads(taken.stdout)
    assert counts | {"notes": {}} == {
        "offered": 3,
        "stored": 2,
        "unchanged": 0,
        "rejected": 1,
        "reasons": {"invalid-sequence": 1},
        "notes": {},
    }
    assert scored.returncode == 0
    assert {name: json.loads(scored.stdout)[name] for name in ("selected", "done", "failed", "dead")} == {
        "selected": 2,
        "done": 2,
        "failed": 0,
        "dead": 0,
    }
    assert sent.returncode == 0
    assert {"pending", "delivered", "failed"} <= set(json.loads(sent.stdout))
    observations = [json.loads(line) for line in (tmp_path / "out" / "Observation.ndjson").read_text().splitlines()]
    assert sorted(item["valueQuantity"]["value"] for item in observations) == [0.5, 1.0]


def test_running_it_all_again_does_nothing(env, fasta, tmp_path):
    for _ in range(2):
        taken = json.loads(medflow(env, "ingest", "fasta", fasta, "--json").stdout)
        scored = json.loads(medflow(env, "score", "--model", "gc-content", "--json").stdout)
        sent = json.loads(medflow(env, "deliver", "--to", tmp_path / "out", "--json").stdout)

    assert (taken["stored"], taken["unchanged"]) == (0, 2)
    assert (scored["selected"], scored["done"]) == (0, 0)
    assert sent["delivered"] == 0


def test_models_lists_what_is_installed_and_what_is_broken(env, tmp_path):
    write_distribution(tmp_path / "more", "broken-plugin", "import no_such_package", {"broken": "Model"})
    env["PYTHONPATH"] = f"{tmp_path / 'more'}:{env['PYTHONPATH']}"

    listed = medflow(env, "models", "--json")

    found = json.loads(listed.stdout)
    assert listed.returncode == 3
    model = next(item for item in found["models"] if item["name"] == "gc-content")
    assert model["inputs"] == ["8 bases of ACGT"]
    assert model["outputs"] == ["gc (measure)"]
    assert model["distribution"] == "gc-plugin 1.0"
    assert len(model["digest"]) == 64
    assert "no_such_package" in found["broken"][0]["error"]


def test_a_unit_in_brackets_is_no_markup_of_a_table(capsys):
    show_table(("input",), [("pH ([pH])",)])

    assert "pH ([pH])" in capsys.readouterr().out


def test_an_unknown_model_names_those_that_are_installed(env):
    done = medflow(env, "score", "--model", "nothing")

    assert done.returncode == 1
    assert "no model is called 'nothing'; installed:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_without_a_schema_says_what_to_run(env, tmp_path):
    env["MEDFLOW_DATABASE_URL"] = f"sqlite:///{tmp_path / 'own.db'}"

    refused = medflow(env, "status")
    upgraded = medflow(env, "db", "upgrade")

    assert refused.returncode == 1
    assert "run `medflow db upgrade`" in refused.stderr
    assert upgraded.returncode == 0
    assert medflow(env, "status").returncode == 0


def test_a_database_that_does_not_answer_is_a_sentence(env):
    env["MEDFLOW_DATABASE_URL"] = "postgresql://medflow:secret-word@127.0.0.1:1/medflow"

    done = medflow(env, "status")

    assert done.returncode == 1
    assert "database did not answer" in done.stderr
    assert "secret-word" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MEDFLOW_TIMEZONE", "Nowhere/Town", "MEDFLOW_TIMEZONE"),
        ("MEDFLOW_CHUNK_SIZE", "many", "MEDFLOW_CHUNK_SIZE"),
        ("MEDFLOW_DATABASE_URL", "not a url", "MEDFLOW_DATABASE_URL"),
        ("MEDFLOW_DEVICE", "cuda:9", "this machine has"),
    ],
)
def test_a_wrong_setting_is_named(env, name, value, said):
    env[name] = value

    done = medflow(env, "score", "--model", "gc-content")

    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_deliver_without_a_target_says_how_to_name_one(env):
    done = medflow(env, "deliver")

    assert done.returncode == 1
    assert "MEDFLOW_DELIVER_TO" in done.stderr


def test_a_night_of_a_source_that_is_not_configured_does_not_begin(env):
    done = medflow(env, "nightly", "--source", "nosuch")

    assert done.returncode == 1
    assert done.stderr == "medflow: no source is called 'nosuch'; MEDFLOW_SOURCES has: none\n"


def test_a_wrong_word_is_a_usage_error(env):
    assert medflow(env, "scoer").returncode == 2


def test_rejects_are_listed_and_settled_by_a_replay(env, fasta):
    medflow(env, "ingest", "fasta", fasta)
    listed = json.loads(medflow(env, "rejects", "--json").stdout)
    assert [(item["kind"], item["code"]) for item in listed] == [("fasta", "invalid-sequence")]

    again = medflow(env, "retry", "rejects", "--json")

    assert json.loads(again.stdout)["rejected"] == 1
    assert again.returncode == 3
    listed = json.loads(medflow(env, "rejects", "--json").stdout)
    assert [item["seen"] for item in listed] == [2]


def test_dead_jobs_are_listed_and_replayed(env, tmp_path):
    path = tmp_path / "n.fasta"
    path.write_text(">n\nNACGTACG\n")
    medflow(env, "ingest", "fasta", path)

    scored = medflow(env, "score", "--model", "gc-content", "--json")
    listed = json.loads(medflow(env, "jobs", "--json").stdout)
    retried = medflow(env, "retry", "jobs", "--json")

    assert (scored.returncode, json.loads(scored.stdout)["dead"]) == (3, 1)
    assert (listed[0]["state"], listed[0]["code"]) == ("dead", "unknown-base")
    assert json.loads(retried.stdout) == {"ready": 1}


def test_a_state_that_no_job_has_is_refused_with_those_there_are(env):
    done = medflow(env, "jobs", "--state", "done", "--state", "nonsense")

    assert (done.returncode, done.stdout) == (1, "")
    assert "no job is nonsense: the states are ready, leased, done, failed, dead" in done.stderr


def test_a_home_that_cannot_be_written_is_a_sentence(env, tmp_path):
    (tmp_path / "file").touch()
    env["MEDFLOW_HOME"] = str(tmp_path / "file" / "home")

    done = medflow(env, "status")

    assert done.returncode == 1
    assert "choose a folder that can be written" in done.stderr


def test_looking_things_up_imports_nothing_that_takes_long(env):
    code = (
        "import sys\nfrom medflow.cli.app import app\n"
        "heavy = {'torch', 'prefect', 'pydicom', 'highdicom', 'nibabel', 'alembic'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_a_new_plugin_keeps_the_contract_as_it_is_written(env, tmp_path):
    written = medflow(env, "plugin", "new", "spleen-ct", "--in", tmp_path)
    assert written.returncode == 0
    source = (tmp_path / "spleen-ct" / "spleen_ct" / "__init__.py").read_text()
    write_distribution(tmp_path / "installed", "spleen-ct", source, {"spleen-ct": "SpleenCt"})
    env["PYTHONPATH"] = f"{tmp_path / 'installed'}:{env['PYTHONPATH']}"

    checked = medflow(env, "plugin", "check", "spleen-ct", "--json")

    assert json.loads(checked.stdout)["passed"], checked.stdout
    assert medflow(env, "plugin", "new", "spleen-ct", "--in", tmp_path).returncode == 1
