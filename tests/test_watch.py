"""`medflow status` and `medflow metrics` as people, cron and Prometheus meet them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.distributions import environment, medflow, write_distribution
from tests.services.fault_proxy import answering, http_proxy
from tests.services.faulty_fhir import faulty_fhir

GC = "from tests import models\n\nclass GcContent(models.GcContent):\n    pass\n"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    plugins = write_distribution(tmp_path / "plugins", "gc-plugin", GC, {"gc-content": "GcContent"})
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "in.fasta").write_text(">one\nACGTACGT\n>two\nGGGGCCCC\n")
    sources = {"lab": {"kind": "fasta", "paths": [str(tmp_path / "in")]}}
    targets = {"archive": str(tmp_path / "out")}
    return {
        **environment(tmp_path / "home", plugins),
        "MEDFLOW_SOURCES": json.dumps(sources),
        "MEDFLOW_TARGETS": json.dumps(targets),
        "MEDFLOW_DELIVER_TO": "archive",
    }


@pytest.fixture
def after_a_night(env: dict[str, str]) -> dict[str, str]:
    night(env)
    return env


def night(env: dict[str, str]) -> None:
    """What the nightly flow does, without Prefect."""
    code = (
        "from medflow import steps; from medflow.config import load_settings; "
        "site = steps.open_site(load_settings()); "
        "[steps.ingest(site, source, name=name) for name, source in site.settings.sources.items()]; "
        "steps.score(site, ['gc-content']); steps.deliver(site)"
    )
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=300)


def test_status_tells_of_sources_backlog_rates_targets_and_runs(after_a_night: dict[str, str]) -> None:
    shown = medflow(after_a_night, "status")
    found = json.loads(medflow(after_a_night, "status", "--json").stdout)

    assert shown.returncode == 0, shown.stderr
    for word in ("lab", "gc-content", "archive", "ingest fasta", "completed"):
        assert word in shown.stdout
    assert {"jobs", "outbox", "rejects"} <= set(found)
    assert found["jobs"]["gc-content"]["done"] == 2
    assert next(iter(found["outbox"].values()))["pending"] == 0
    assert found["sources"]["lab"]["brought"]["stored"] == 2
    assert found["sources"]["lab"]["age_s"] < 600
    assert found["received"]["fasta"]["stored"] == 2
    assert found["rates"]["gc-content"]["last_hour"] == 2
    assert found["rates"]["gc-content"]["ms_per_case"]
    assert found["targets"]["archive"]["last_hour"] == found["targets"]["archive"]["delivered"] > 0
    assert {run["status"] for run in found["runs"]} == {"completed"}
    assert found["problems"] == []


def test_check_is_quiet_after_a_good_night(after_a_night: dict[str, str]) -> None:
    done = medflow(after_a_night, "status", "--check")

    assert (done.returncode, done.stdout) == (0, "OK\n")


def test_check_names_a_source_that_was_never_ingested_or_is_too_old(env: dict[str, str]) -> None:
    never = medflow(env, "status", "--check")
    night(env)
    old = medflow(env, "status", "--check", "--max-age", "0")

    assert (never.returncode, never.stdout) == (3, "PROBLEM: lab was never ingested\n")
    assert old.returncode == 3
    assert "lab was last ingested" in old.stdout


def test_check_names_what_is_dead_until_that_is_put_up_with(after_a_night: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "n.fasta").write_text(">n\nNACGTACG\n")
    medflow(after_a_night, "ingest", "fasta", tmp_path / "n.fasta")
    medflow(after_a_night, "score", "--model", "gc-content")

    strict = medflow(after_a_night, "status", "--check", "--json")
    lenient = medflow(after_a_night, "status", "--check", "--max-dead", "1")

    assert strict.returncode == 3
    assert [(item["code"], item["name"]) for item in json.loads(strict.stdout)["problems"]] == [
        ("dead-jobs", "gc-content")
    ]
    assert lenient.returncode == 0, lenient.stdout


def test_check_wants_a_worker_only_where_workers_score(after_a_night: dict[str, str]) -> None:
    done = medflow({**after_a_night, "MEDFLOW_EXECUTOR": "workers"}, "status", "--check")

    assert (done.returncode, done.stdout) == (3, "PROBLEM: no worker is there to score: start `medflow worker`\n")


def test_check_names_a_result_that_waits_too_long(after_a_night: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "more.fasta").write_text(">three\nACGTACGG\n")
    medflow(after_a_night, "ingest", "fasta", tmp_path / "more.fasta")
    medflow(after_a_night, "score", "--model", "gc-content")

    done = medflow({**after_a_night, "MEDFLOW_SOURCES": "{}"}, "status", "--check", "--max-age", "0")

    assert done.returncode == 3
    assert "a result has waited" in done.stdout and "for archive" in done.stdout


def test_metrics_once_are_text_for_a_file(after_a_night: dict[str, str]) -> None:
    done = medflow(after_a_night, "metrics", "--once")

    assert (done.returncode, done.stderr) == (0, "")
    assert "medflow_jobs" in {family.name for family in text_string_to_metric_families(done.stdout)}


def test_metrics_are_served_until_asked_to_stop(env: dict[str, str]) -> None:
    command = [sys.executable, "-m", "medflow.cli", "metrics", "--port", "0"]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = process.stderr.readline().split()[-1]

        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode()
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=30) == 0
    assert "medflow_up 1.0" in text


def test_check_says_what_is_wrong_with_a_target_until_it_takes_results(after_a_night: dict[str, str]) -> None:
    with faulty_fhir() as server:
        with http_proxy(server.url) as (proxy, url):
            env = {**after_a_night, "MEDFLOW_TARGETS": json.dumps({"archive": url})}
            with proxy.failing(answering(401)):
                refused = medflow(env, "deliver", "--to", "archive")
                during = medflow(env, "status", "--check")
            sent = medflow(env, "deliver", "--to", "archive")
            after = medflow(env, "status", "--check")

    assert refused.returncode == 1
    assert during.returncode == 3
    assert "target archive has failed for" in during.stdout and "wants other credentials (HTTP 401)" in during.stdout
    assert sent.returncode == 0, sent.stderr
    assert (after.returncode, after.stdout) == (0, "OK\n")
