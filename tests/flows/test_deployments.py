"""`medflow deploy` at a real Prefect server: what is registered, what forms refuse, and what becomes of the runs."""

import json
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

from medflow import __version__
from medflow.errors import ConfigurationError
from medflow.flows import deployments
from medflow.registry import installed
from tests.distributions import REPOSITORY, environment, medflow, write_distribution
from tests.installation import Installation, installation
from tests.services.prefect_server import PrefectServer, prefect_server

MODELS = """
import os
import time
from dataclasses import replace
from tests import models

class GcContent(models.GcContent):
    pass

class SlowGc(models.GcContent):
    spec = replace(models.GcContent.spec, name="slow-gc", title="GC content, slowly")

    def predict(self, batch):
        while os.path.exists(os.environ["TESTS_GATE"]):
            time.sleep(0.1)
        return super().predict(batch)
"""
ZONE = "Europe/Berlin"
NIGHTLY = "nightly/nightly"
T = TypeVar("T")
KINDS = ("nightly", "ingest", "score", "deliver", "evaluate", "train")


class Pages:
    """What Prefect's pages would be told of."""

    def __init__(self, server: PrefectServer) -> None:
        self.http = httpx.Client(base_url=server.api_url, timeout=60)

    def deployment(self, name: str) -> dict:
        return self.http.get(f"/deployments/name/{name}").raise_for_status().json()

    def runs(self, name: str) -> list[dict]:
        wanted = {"deployments": {"id": {"any_": [self.deployment(name)["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return self.http.post("/flow_runs/filter", json=wanted).raise_for_status().json()

    def asked(self, name: str, **parameters: object) -> httpx.Response:
        """Ask for a run; one that is made is taken back at once. A database that is busy is asked again."""
        found = self.deployment(name)
        for _ in range(5):
            answer = self.http.post(f"/deployments/{found['id']}/create_flow_run", json={"parameters": parameters})
            if answer.status_code != 503:
                break
            time.sleep(1)
        if answer.is_success:
            self.http.delete(f"/flow_runs/{answer.json()['id']}").raise_for_status()
        return answer

    def automations(self) -> dict[str, dict]:
        found = self.http.post("/automations/filter", json={}).raise_for_status().json()
        return {item["name"]: item for item in found}


@pytest.fixture
def pages(prefect_server: PrefectServer) -> Pages:
    return Pages(prefect_server)


@pytest.fixture(scope="module")
def env(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a site with two sources, a target and a slow model, at the session's Prefect server."""
    root = tmp_path_factory.mktemp("site")
    plugins = write_distribution(root / "plugins", "two-gc", MODELS, {"gc-content": "GcContent", "slow-gc": "SlowGc"})
    (root / "in").mkdir()
    (root / "in" / "some.fasta").write_text(">one\nACGTACGT\n>two\nGGGGCCCC\n")
    paths = {"kind": "fasta", "paths": [str(root / "in")]}
    return environment(
        root / "home",
        plugins,
        **prefect_server.client,
        MEDFLOW_SOURCES=json.dumps({"sequences": paths, "more-sequences": paths}),
        MEDFLOW_TARGETS=json.dumps({"chart": str(root / "out")}),
        MEDFLOW_DELIVER_TO="chart",
        MEDFLOW_TIMEZONE=ZONE,
        TESTS_GATE=str(root / "gate"),
    )


@pytest.fixture(scope="module")
def first(env: dict[str, str]) -> dict:
    """What the first `medflow deploy` said."""
    return deploy(env)


def deploy(env: dict[str, str], *words: object) -> dict:
    done = medflow(env, "deploy", "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def statuses(told: dict) -> set[str]:
    return {item["status"] for item in (told["work_pool"], *told["deployments"], *told["automations"])}


# --- what is registered ------------------------------------------------------------------------------------------


def test_every_kind_of_run_has_a_deployment_with_its_tags_version_and_pool(first, pages):
    found = {item["name"]: pages.deployment(item["name"]) for item in first["deployments"]}

    assert set(found) == {f"{kind}/{kind}" for kind in KINDS}
    for kind in KINDS:
        deployment = found[f"{kind}/{kind}"]
        assert deployment["tags"] == ["medflow", kind]
        assert deployment["version"] == __version__
        assert deployment["work_pool_name"] == "medflow"
        assert deployment["description"]
        assert deployment["enforce_parameter_schema"] is True
        assert deployment["path"] is None and not deployment["pull_steps"]  # no folder: the package is installed


def test_of_nights_there_is_one_at_a_time_and_a_second_is_cancelled(first, pages):
    found = {kind: pages.deployment(f"{kind}/{kind}") for kind in KINDS}

    limits = {kind: (item["global_concurrency_limit"] or {}).get("limit") for kind, item in found.items()}
    assert limits == {"nightly": 1, "ingest": 1, "score": None, "deliver": 1, "evaluate": 1, "train": 1}
    assert found["nightly"]["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert found["ingest"]["concurrency_options"]["collision_strategy"] == "ENQUEUE"


def test_deploying_again_changes_nothing(first, env, pages):
    before = pages.deployment(NIGHTLY)["updated"]

    again = deploy(env)

    assert statuses(again) == {"unchanged"}
    assert pages.deployment(NIGHTLY)["updated"] == before


def test_another_time_is_taken_over_and_a_schedule_switched_off_stays_off(first, env, pages):
    found = pages.deployment(NIGHTLY)
    [schedule] = found["schedules"]
    pages.http.patch(f"/deployments/{found['id']}/schedules/{schedule['id']}", json={"active": False})

    told = deploy(env, "--cron", "30 3 * * *", "--timezone", "Asia/Tokyo")

    assert {item["name"]: item["status"] for item in told["deployments"]}[NIGHTLY] == "updated"
    [schedule] = pages.deployment(NIGHTLY)["schedules"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("30 3 * * *", "Asia/Tokyo")
    assert schedule["active"] is False
    pages.http.patch(f"/deployments/{found['id']}/schedules/{schedule['id']}", json={"active": True})
    assert {item["name"]: item["status"] for item in deploy(env)["deployments"]}[NIGHTLY] == "updated"


def test_nights_are_scheduled_in_the_hospitals_zone(first, env, pages):
    """An SQLAlchemy that Prefect does not agree with would make no runs, and say nothing."""
    deploy(env)

    found = wait(lambda: pages.runs(NIGHTLY), 30)

    starts = [run["expected_start_time"] for run in found if run["state_type"] == "SCHEDULED"]
    assert starts
    assert all(start[11:16] in ("00:00", "01:00") for start in starts)  # UTC: two o'clock, in summer and in winter


def test_the_file_serves_prefects_own_command_as_well(first, env, pages, tmp_path):
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file"]

    done = subprocess.run(
        [*command, REPOSITORY / "deploy" / "prefect.yaml"], cwd=tmp_path, env=env, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout + done.stderr
    listed = yaml.safe_load((REPOSITORY / "deploy" / "prefect.yaml").read_text())["deployments"]
    assert [item["name"] for item in listed] == list(KINDS)
    for item in listed:
        found = pages.deployment(f"{item['name']}/{item['name']}")
        assert (found["entrypoint"], found["tags"]) == (item["entrypoint"], item["tags"])
    assert "updated" in statuses(deploy(env))  # its forms knew no models


def test_another_pool_may_be_named_and_has_the_type_asked_for(first, env, pages):
    told = deploy(env, "--pool", "machines", "--pool-type", "process")

    assert told["work_pool"] == {"name": "machines", "type": "process", "status": "created"}
    assert pages.deployment(NIGHTLY)["work_pool_name"] == "machines"
    assert deploy(env)["work_pool"]["status"] == "unchanged"
    assert pages.deployment(NIGHTLY)["work_pool_name"] == "medflow"


def test_a_pool_whose_jobs_ask_for_a_gpu_is_one_of_kubernetes(first, env, pages):
    told = deploy(env, "--pool", "devices", "--pool-type", "kubernetes-gpu")

    assert told["work_pool"] == {"name": "devices", "type": "kubernetes", "status": "created"}
    assert deploy(env, "--pool", "devices", "--pool-type", "kubernetes-gpu")["work_pool"]["status"] == "unchanged"
    assert deploy(env)["work_pool"]["name"] == "medflow"


# --- the forms ---------------------------------------------------------------------------------------------------


def test_the_form_offers_what_is_installed_and_configured(first, pages):
    shown = pages.deployment(NIGHTLY)["parameter_openapi_schema"]["properties"]

    assert {"gc-content", "slow-gc", "icu-mortality"} <= set(shown["models"]["items"]["enum"])
    assert "slow-gc: GC content, slowly (1.0.0)" in shown["models"]["description"]
    assert shown["sources"]["items"]["enum"] == ["more-sequences", "sequences"]
    assert shown["target"]["enum"] == ["chart"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_title_and_a_description(first, pages, kind):
    shown = pages.deployment(f"{kind}/{kind}")["parameter_openapi_schema"]["properties"]

    assert shown
    assert all(item["title"] and item["title"][0].isupper() and item["description"] for item in shown.values())


def test_no_path_reaches_prefect(first, env, pages):
    told = json.dumps([pages.deployment(f"{kind}/{kind}") for kind in KINDS])

    assert str(Path(env["MEDFLOW_HOME"]).parent) not in told


@pytest.mark.parametrize(
    ("deployment", "parameters", "said"),
    [
        ("score/score", {"models": ["no-such-model"]}, "'no-such-model' is not one of"),
        ("score/score", {"models": "gc-content"}, "is not of type 'array'"),
        ("score/score", {"models": ["gc-content", "gc-content"]}, "non-unique"),
        ("score/score", {"as_of": "2026-01-31T06:00:00"}, "does not match"),
        ("score/score", {"deliver_to": "/etc"}, "is not one of"),
        ("ingest/ingest", {"sources": ["pacs"]}, "is not one of"),
        ("deliver/deliver", {"target": "http://127.0.0.1/fhir"}, "is not one of"),
        ("evaluate/evaluate", {}, "required"),
        ("train/train", {"model": "splice-site"}, "'splice-site' is not one of"),  # it cannot be trained
        ("train/train", {"model": "icu-mortality", "cohort": "nobody"}, "is not one of"),
        ("train/train", {"model": "icu-mortality", "trials": -1}, "is less than the minimum"),
    ],
)
def test_a_run_with_a_wrong_parameter_is_refused_before_it_is_one(first, pages, deployment, parameters, said):
    answer = pages.asked(deployment, **parameters)

    assert answer.status_code == 409
    assert said in answer.json()["detail"]


@pytest.mark.parametrize(
    ("deployment", "parameters"),
    [
        ("nightly/nightly", {}),
        ("nightly/nightly", {"sources": [], "models": []}),
        ("score/score", {"models": ["gc-content"], "as_of": "2026-01-31T06:00:00+01:00", "deliver_to": "chart"}),
        ("score/score", {"as_of": "2026-01-31T06:00:00.000Z"}),
        ("evaluate/evaluate", {"model": "icu-mortality"}),
        ("train/train", {"model": "icu-mortality", "cohort": "all", "trials": 5, "sampler": "random", "seed": 1}),
    ],
)
def test_a_run_with_right_parameters_is_made(first, pages, deployment, parameters):
    assert pages.asked(deployment, **parameters).status_code == 201


# --- what goes wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [("", "set PREFECT_API_URL"), ("http://127.0.0.1:1/api", "http://127.0.0.1:1/api cannot be reached")],
)
def test_a_server_that_is_not_there_is_one_sentence(env, url, said):
    done = medflow(env | {"PREFECT_API_URL": url}, "deploy")

    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cron": "every night"}, "'every night' is not a cron line"),
        ({"timezone": "Berlin"}, "'Berlin' is not an IANA time zone"),
        ({"notify": "slack-webhook/nobody"}, "Prefect has no block slack-webhook/nobody"),
        ({"notify": "somebody"}, "TYPE/NAME"),
        ({"pool_type": "process"}, "the work pool medflow is of type medflow"),
        ({"pool_type": "cloud"}, "none of medflow, process, docker, kubernetes"),
    ],
)
def test_a_wrong_option_is_named_and_changes_nothing(first, prefect_server, settings, pages, options, said):
    before = pages.deployment(NIGHTLY)["updated"]

    with temporary_settings({PREFECT_API_URL: prefect_server.api_url}):
        with pytest.raises(ConfigurationError, match=re.escape(said)):
            deployments.deploy(settings, installed(), deployments.Options(**options))

    assert pages.deployment(NIGHTLY)["updated"] == before


def test_wrong_credentials_are_said_to_be_wrong_and_right_ones_are_taken(env):
    with prefect_server(auth="medflow:secret-word") as guarded:
        at = {**env, "PREFECT_API_URL": guarded.api_url}

        without = medflow(at, "deploy")
        wrong = medflow(at | {"PREFECT_API_AUTH_STRING": "medflow:guessed"}, "deploy")
        right = medflow(at | {"PREFECT_API_AUTH_STRING": "medflow:secret-word"}, "deploy")

    assert (without.returncode, wrong.returncode, right.returncode) == (1, 1, 0), right.stderr
    for done in (without, wrong):
        assert "refuses the credentials (401): set PREFECT_API_AUTH_STRING" in done.stderr
        assert "guessed" not in done.stderr + done.stdout


def test_an_old_server_is_named_with_its_version(env):
    with answering({"/api/admin/version": b'"3.1.4"'}) as (url, _):
        done = medflow(env | {"PREFECT_API_URL": f"{url}/api"}, "deploy")

    assert done.returncode == 1
    assert "version 3.1.4, which is older than 3.8" in done.stderr


# --- runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(env, first, prefect_server, tmp_path_factory) -> Iterator[Installation]:
    """The installation, with flows being served."""
    with installation(tmp_path_factory.mktemp("logs"), prefect_server, env) as running:
        running.start_flows()
        yield running


@pytest.mark.slow
def test_a_night_that_the_clock_began_runs_to_its_end(site, env, pages):
    deploy(env, "--cron", "* * * * *")
    try:
        begun = wait(lambda: [run for run in pages.runs(NIGHTLY) if run["auto_scheduled"] and run["start_time"]], 90)
        ended = site.ended(begun[0]["id"])
    finally:
        deploy(env)

    assert ended["state_type"] == "COMPLETED", ended["state"]
    assert ended["name"].startswith("nightly 20")
    assert set(ended["tags"]) >= {"medflow", "nightly"}


def test_a_run_that_failed_is_told_to_whom_it_may_concern(site, env, pages):
    with answering({"/told": b"{}"}) as (url, sent):
        code = f"""
from prefect.blocks.notifications import CustomWebhookNotificationBlock
told = {{"subject": "{{{{subject}}}}", "body": "{{{{body}}}}"}}
CustomWebhookNotificationBlock(name="test", url="{url}/told", json_data=told).save("oncall", overwrite=True)
"""
        subprocess.run([sys.executable, "-c", code], env=env, check=True)
        told = deploy(env, "--notify", "custom-webhook/oncall")

        ended, heard = heard_of_a_failure(site, sent)

    assert {item["name"]: item["status"] for item in told["automations"]}["medflow: a run failed"] == "created"
    assert ended["state_type"] == "FAILED"
    assert heard["subject"] == "medflow: evaluate Failed"
    assert ended["name"] in heard["body"]
    assert f"/runs/flow-run/{ended['id']}" in heard["body"]


def heard_of_a_failure(site: Installation, sent: deque[bytes]) -> tuple[dict, dict]:
    """A run that failed, and what was sent of it.

    Prefect drops an action for which its SQLite is busy, and tries it never again: then another run fails.
    """
    failed: list[dict] = []
    while not sent:
        assert len(failed) < 3, f"nothing was told of three runs that failed\n{site.server.log[-5000:]}"
        failed.append(site.ended(site.trigger("evaluate/evaluate", model="gc-content")))  # nothing is known of outcomes
        with suppress(AssertionError):
            wait(lambda: len(sent), 60)
    heard = json.loads(sent.popleft())
    return next(run for run in failed if run["id"] in heard["body"]), heard


@pytest.mark.slow
def test_a_night_whose_machine_is_gone_is_crashed_and_holds_up_no_other(site, env, pages):
    gate = Path(env["TESTS_GATE"])
    gate.touch()
    (gate.parent / "in" / "new.fasta").write_text(">three\nACCTACCT\n")  # or the night has nothing to wait for
    deploy(env, "--silent-after", 60)
    lost = site.trigger(NIGHTLY)
    wait(lambda: site.flow_run(lost)["state_type"] == "RUNNING", 60)

    second = site.ended(site.trigger(NIGHTLY))
    site.kill("serve")
    crashed = site.ended(lost, timeout=180)
    gate.unlink()
    site.start_flows()
    third = site.ended(site.trigger(NIGHTLY))

    assert second["state_type"] == "CANCELLED"
    assert (crashed["state_type"], crashed["state"]["message"].split(":")[0]) == (
        "CRASHED",
        "Nothing was heard of this run any more",
    )
    assert third["state_type"] == "COMPLETED", third["state"]
    deploy(env)


# --- edges -------------------------------------------------------------------------------------------------------


@contextmanager
def answering(answers: dict[str, bytes]) -> Iterator[tuple[str, deque[bytes]]]:
    """An HTTP server with fixed answers; gives its address, and the bodies it is sent."""
    sent: deque[bytes] = deque()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            sent.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            self._answer()

        def _answer(self) -> None:
            body = answers.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body or b"{}")))
            self.end_headers()
            self.wfile.write(body or b"{}")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        server.server_close()


def wait(condition: Callable[[], T], seconds: float) -> T:
    """What the condition gives, once it gives something."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"nothing within {seconds} s"
        time.sleep(0.3)
    return found
