"""Metrics: what is exposed, how it is served, and that alerts and dashboard ask for nothing else."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from medflow import steps
from medflow.config import Settings, load_settings
from medflow.errors import ConfigurationError
from medflow.metrics import exposition, start_metrics
from medflow.registry import Registry
from medflow.store import Store, workers
from tests import models

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy/prometheus/medflow.rules.yaml"
DASHBOARD = ROOT / "deploy/grafana/medflow.json"
METRIC = re.compile(r"\bmedflow_\w+\b")
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} twice"
            found[key] = sample.value
    return found


def of(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def configured(settings: Settings, tmp_path: Path) -> Settings:
    """The same store, with a source, a target by name and one by its address."""
    fasta = tmp_path / "secret-folder" / "in.fasta"
    fasta.parent.mkdir()
    fasta.write_text(">one\nACGTACGT\n>two\nGGGGCCCC\n>n\nNGGGCCCC\n>bad\nAC!GT\n")
    return load_settings(
        home=settings.home,
        database_url=settings.database_url,
        device="cpu",
        sources={"lab": {"kind": "fasta", "paths": [str(fasta)]}, "idle": {"kind": "fhir", "paths": [str(tmp_path)]}},
        targets={"archive": str(tmp_path / "out")},
        deliver_to="http://user:password@fhir.example/secret-path",
    )


def night(store: Store, settings: Settings) -> steps.Site:
    """One night with a real model, delivered to the archive and to a folder that nobody configured."""
    gc = models.registered(models.GcContent)
    site = steps.Site(settings=settings, store=store, registry=Registry(models={"gc-content": gc}, broken=()))
    steps.ingest(site, settings.sources["lab"], name="lab")
    steps.score(site)
    steps.deliver(site, "archive")
    steps.deliver(site, str(settings.home / "elsewhere"))
    return site


def test_a_night_can_be_read_from_the_metrics(store: Store, settings: Settings, tmp_path: Path) -> None:
    settings = configured(settings, tmp_path)
    night(store, settings)
    with store.writing() as connection:
        workers.announce(connection, "host/cpu", "elsewhere|1|1|x", "cpu", {"gc-content": "d1"})

    found = parsed(exposition(store, settings))

    assert of(found, "medflow_up") == 1
    assert 0 <= of(found, "medflow_source_age_seconds", source="lab") < 600
    assert of(found, "medflow_source_age_seconds", source="idle") == float("inf")
    assert of(found, "medflow_source_inputs", source="lab", outcome="stored") == 3
    assert of(found, "medflow_jobs", model="gc-content", state="done") == 2
    assert of(found, "medflow_jobs", model="gc-content", state="dead") == 1
    assert of(found, "medflow_scored_cases_total", model="gc-content") == 2
    assert of(found, "medflow_unscored_cases_total", model="gc-content", end="dead") == 1
    assert of(found, "medflow_stage_seconds_total", model="gc-content", stage="read") > 0
    assert of(found, "medflow_deliveries", target="archive", state="pending") == 0
    assert of(found, "medflow_delivered", target="archive") > 0
    assert of(found, "medflow_undelivered_age_seconds", target="archive") == 0
    assert of(found, "medflow_undelivered_age_seconds", target="default") > 0
    assert of(found, "medflow_rejects", code="invalid-sequence") == 1
    assert of(found, "medflow_worker_up", worker="host/cpu", device="cpu") == 1
    assert of(found, "medflow_runs", command="score", status="completed") == 1


def test_labels_are_names_and_no_paths_or_addresses(store: Store, settings: Settings, tmp_path: Path) -> None:
    settings = configured(settings, tmp_path)
    night(store, settings)

    text = exposition(store, settings)

    for word in ("secret", "password", "example", "elsewhere", str(tmp_path), "in.fasta", "://"):
        assert word not in text


def test_alerts_and_dashboard_ask_for_nothing_that_is_not_there(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "home")
    text = exposition(Store(settings).open(), settings)
    there = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    dashboard = json.loads(DASHBOARD.read_text())
    asked = [query["expr"] for panel in dashboard["panels"] for query in panel["targets"]]
    asked += [rule["expr"] for rule in rules()]

    mentioned = {name for expression in asked for name in METRIC.findall(expression)}

    assert mentioned - there == set()
    assert there - mentioned <= {"medflow_source_attempt_age_seconds"}


def rules() -> list[dict[str, object]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_every_alert_has_what_prometheus_wants_of_it() -> None:
    document = yaml.safe_load(RULES.read_text())

    assert set(document) == {"groups"}
    assert all(set(group) == {"name", "rules"} for group in document["groups"])
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert (
            {"alert", "expr", "labels", "annotations"} <= set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        )
        assert re.fullmatch(r"\d+[smhd]", str(rule.get("for", "1s")))
        assert rule["labels"]["severity"] in ("info", "warning", "critical")  # type: ignore[index]
        assert set(rule["annotations"]) == {"summary", "description"}  # type: ignore[call-overload]
        expression = str(rule["expr"])
        assert all(expression.count(left) == expression.count(right) for left, right in ("()", "[]", "{}"))


def test_every_panel_has_a_place_of_its_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]

    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)


# --- over HTTP -----------------------------------------------------------------------------------------------


@pytest.fixture
def served(store: Store, settings: Settings) -> Iterator[tuple[str, Store]]:
    running = start_metrics(store, settings, port=0)
    yield f"http://{running.host}:{running.port}/metrics", store
    running.close()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


def test_each_scrape_sees_what_is_there_now(served: tuple[str, Store]) -> None:
    url, store = served
    before = parsed(get(url))
    with store.writing() as connection:
        workers.announce(connection, "w", "elsewhere|1|1|x", "cpu", {})

    after = parsed(get(url))

    assert ("medflow_worker_up", frozenset({("worker", "w"), ("device", "cpu")})) not in before
    assert of(after, "medflow_worker_up", worker="w", device="cpu") == 1
    assert ("process_resident_memory_bytes", frozenset()) in after


def test_a_store_that_does_not_answer_is_said_and_the_rest_left_out(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path, database_url="postgresql://medflow:secret-word@127.0.0.1:1/medflow")

    text = exposition(Store(settings), settings)

    assert [(name, value) for (name, _), value in parsed(text).items()] == [("medflow_up", 0)]


def test_a_client_that_says_nothing_holds_up_nobody(served: tuple[str, Store]) -> None:
    url, _ = served
    host, port = url.removeprefix("http://").removesuffix("/metrics").split(":")
    with socket.create_connection((host, int(port)), timeout=5):
        started = time.monotonic()
        get(url)

    assert time.monotonic() - started < 10


def test_a_port_that_is_taken_is_a_sentence(served: tuple[str, Store], settings: Settings) -> None:
    url, store = served

    with pytest.raises(ConfigurationError, match="choose another --port"):
        start_metrics(store, settings, port=int(url.removesuffix("/metrics").rpartition(":")[2]))
