"""medflow in Prefect's pages, as a person meets it: a real browser, server and site; nothing is asked of other hosts.

With SCREENSHOTS=1 in the environment the pictures of docs/images are taken anew.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx
import pytest
from playwright import sync_api as playwright

from medflow.registry import installed
from medflow.sample import write_sample
from tests.distributions import REPOSITORY, environment
from tests.installation import Installation, installation
from tests.services import missing
from tests.services.prefect_server import PrefectServer

expect = playwright.expect

IMAGES = REPOSITORY / "docs" / "images"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",  # as root there is none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
SLOW_MS = 30_000
pytestmark = pytest.mark.slow


@dataclass(kw_only=True)
class Pages:
    """Prefect's pages in a browser. ``asked`` collects the host of every request."""

    page: "playwright.Page"
    url: str
    api: httpx.Client
    asked: set[str] = field(default_factory=set)

    def open(self, path: str) -> None:
        self.page.goto(self.url + path)

    def picture(self, name: str) -> None:
        """Take a picture for the documentation, where that is asked for."""
        self.page.wait_for_timeout(1000)  # what fades in has done so
        if os.environ.get("SCREENSHOTS"):
            IMAGES.mkdir(exist_ok=True)
            self.page.screenshot(path=IMAGES / f"{name}.png")

    def form(self, deployment: str) -> None:
        """Open a deployment from the list, and the form of a custom run."""
        self.open("/deployments")
        self.page.get_by_role("link", name=deployment, exact=True).first.click()
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_text("Custom run").first.click()
        expect(self.page.get_by_role("heading", name="Parameters")).to_be_visible()

    def choices(self, title: str) -> "playwright.Locator":
        """Open a parameter's list by its arrow; gives what it offers."""
        field_ = self.page.locator(".schema-form-property").filter(has=self.page.get_by_text(title, exact=True)).last
        control = field_.locator(".p-select-button__control")
        control.scroll_into_view_if_needed()  # the mouse clicks where it is on the screen
        box = control.bounding_box()
        assert box
        self.page.mouse.click(box["x"] + box["width"] + 7, box["y"] + box["height"] / 2)
        options = self.page.locator(".p-select-option")
        expect(options.first).to_be_visible()
        return options

    def close_list(self) -> None:
        """Close the list that is open."""
        self.page.get_by_role("heading", name="Parameters").click()
        expect(self.page.locator(".p-select-option")).to_have_count(0)

    def submit(self, deployment: str) -> str:
        """Submit the form; gives the id of the run it made."""
        before = self.runs(deployment)
        for _ in range(5):  # Prefect's SQLite may be locked; the page then says that something went wrong
            with self.page.expect_response(re.compile("/create_flow_run$")) as answer:
                self.page.get_by_role("button", name="Submit").click()
            if answer.value.status != 503:
                break
            self.page.wait_for_timeout(2000)
        self.page.wait_for_url(re.compile(r"/deployments/deployment/[0-9a-f-]+(\?tab=Runs)?$"))
        [made] = self.runs(deployment) - before
        return made

    def runs(self, deployment: str) -> set[str]:
        """The runs of a deployment that the clock did not begin."""
        found = self.api.get(f"/deployments/name/{deployment}").raise_for_status().json()
        asked = {"deployments": {"id": {"any_": [found["id"]]}}}
        runs = self.api.post("/flow_runs/filter", json=asked).raise_for_status().json()
        return {run["id"] for run in runs if not run["auto_scheduled"]}

    def watch(self, run_id: str, state: str) -> None:
        """Open a run's page, and see it reach a state without loading the page again."""
        self.open(f"/runs/flow-run/{run_id}")
        expect(self.page.locator(".p-heading, header").get_by_text(state, exact=True).first).to_be_visible(
            timeout=240_000
        )

    def artifact(self, run_id: str, key: str) -> None:
        """From a run's page, open one of its artifacts."""
        self.open(f"/runs/flow-run/{run_id}")
        self.page.locator("#artifacts").click()
        self.page.get_by_text(key, exact=True).last.click()
        self.page.wait_for_url(re.compile("/artifacts/artifact/"))


@pytest.fixture(scope="module")
def site(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation with the sample data, the real plugins, and its flows being served."""
    root = tmp_path_factory.mktemp("site")
    sample = write_sample(root / "sample", stays=8)
    sources = {
        "records": {"kind": "fhir", "paths": [str(sample.fhir)]},
        "imaging": {"kind": "dicom", "paths": [str(sample.dicom)]},
        "sequences": {"kind": "fasta", "paths": [str(sample.fasta)]},
    }
    env = environment(
        root / "home",
        MEDFLOW_SOURCES=json.dumps(sources),
        MEDFLOW_ISSUER_SYSTEMS=json.dumps(dict(sample.issuer_systems)),
        MEDFLOW_TARGETS=json.dumps({"chart": str(root / "out"), "archive": str(root / "archive")}),
        MEDFLOW_DELIVER_TO="chart",
        MEDFLOW_TIMEZONE="Europe/Berlin",
    )
    with installation(root / "logs", prefect_server, env) as running:
        running.start_flows()
        running.ended(running.trigger("ingest/ingest", sources=["sequences"]))
        yield running


@pytest.fixture(scope="module")
def pages(site: Installation, prefect_server: PrefectServer) -> Iterator[Pages]:
    binary = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if binary is None:
        missing("Chromium is not installed: apt-get install chromium")
    with playwright.sync_playwright() as running, httpx.Client(base_url=prefect_server.api_url, timeout=60) as api:
        browser = running.chromium.launch(executable_path=binary, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(SLOW_MS)
        expect.set_options(timeout=SLOW_MS)
        opened = Pages(page=page, url=prefect_server.url, api=api)
        page.on("request", lambda request: opened.asked.add(host_of(request.url)))
        page.on("websocket", lambda socket: opened.asked.add(host_of(socket.url)))
        yield opened
        browser.close()


def host_of(url: str) -> str:
    """The host of an address; of one inside the page (data:, blob:) the page's own."""
    inside = url.startswith(("data:", "blob:http://127.0.0.1:"))
    return "127.0.0.1" if inside else urlsplit(url).hostname or url


def test_the_deployments_are_listed_with_their_tags(pages):
    pages.open("/deployments")

    for name in ("nightly", "ingest", "score", "deliver", "evaluate", "train"):
        expect(pages.page.get_by_role("link", name=name, exact=True).first).to_be_visible()
    expect(pages.page.get_by_text("medflow", exact=True)).to_have_count(6)
    pages.picture("deployments")


def test_the_form_offers_the_installed_models_and_the_configured_targets(pages):
    pages.form("score")

    offered = pages.choices("Models (Optional)").all_inner_texts()
    pages.close_list()
    targets = pages.choices("Deliver to (Optional)").all_inner_texts()
    pages.close_list()

    assert offered == sorted(installed().models)
    assert targets == ["archive", "chart"]


def test_a_wrong_value_is_refused_with_the_reason_beside_it(pages):
    before = pages.runs("score/score")
    pages.form("score")
    pages.page.locator(".flow-run-create-form-v2__header button").click()
    pages.page.get_by_text("Use JSON input").first.click()

    pages.page.locator("textarea.p-code-input__textarea").fill('{\n  "models": ["pneumonia"]\n}')
    pages.page.get_by_role("button", name="Submit").click()

    expect(pages.page.locator(".schema-form-property-errors").first).to_contain_text("'pneumonia' is not one of")
    pages.picture("refused")
    assert pages.runs("score/score") == before


def test_a_model_chosen_in_the_form_is_what_runs(pages):
    pages.form("score")
    pages.choices("Models (Optional)").filter(has_text="splice-site").click()
    pages.close_list()
    pages.choices("Deliver to (Optional)").filter(has_text="archive").click()
    expect(pages.page.locator(".p-select-option")).to_have_count(0)
    pages.picture("form")

    run_id = pages.submit("score/score")
    pages.watch(run_id, "Completed")

    run = pages.api.get(f"/flow_runs/{run_id}").json()
    assert run["parameters"] == {"models": ["splice-site"], "deliver_to": "archive", "explain": False}
    assert re.search(r"score: [1-9]\d* selected, [1-9]\d* done, deliver: .*[1-9]\d* delivered", run["state"]["message"])


@pytest.fixture(scope="module")
def night(pages) -> str:
    """The id of a night that was begun by hand; the pages show its end."""
    pages.form("nightly")
    run_id = pages.submit("nightly/nightly")
    pages.watch(run_id, "CompletedWithProblems")  # the sample holds what must be refused
    return run_id


def test_a_night_begun_by_hand_is_watched_to_its_end(pages, night):
    expect(pages.page.get_by_text(re.compile(r"nightly 20\d\d-\d\d-\d\d \d\d:\d\d UTC")).first).to_be_visible()
    pages.open(f"/runs/flow-run/{night}")
    pages.picture("night-run")


def test_its_page_says_what_the_night_did(pages, night):
    pages.artifact(night, "medflow-night")

    expect(pages.page.get_by_role("heading", name="What the night did")).to_be_visible()
    expect(pages.page.get_by_text(re.compile("Somebody should look")).first).to_be_visible()
    pages.picture("night")


def test_its_timings_are_a_table(pages, night):
    pages.artifact(night, "medflow-timings")

    expect(pages.page.locator("table").get_by_text("predict", exact=True).first).to_be_visible()
    pages.picture("timings")


def test_its_plots_are_drawn(pages, night):
    pages.artifact(night, "medflow-throughput")

    plot = pages.page.locator("img[src^='data:image/png']").first
    expect(plot).to_be_visible()
    assert plot.evaluate("image => image.naturalWidth") > 300
    pages.picture("throughput")


def test_the_list_of_runs_says_what_each_one_was(pages, night):
    pages.open("/runs")

    for name in ("nightly", "score", "ingest"):
        expect(pages.page.get_by_text(re.compile(rf"^{name} 20\d\d-\d\d-\d\d \d\d:\d\d UTC$")).first).to_be_visible()
    expect(pages.page.get_by_text("medflow", exact=True).first).to_be_visible()
    pages.page.get_by_text(re.compile("^ingest 20")).first.scroll_into_view_if_needed()
    pages.picture("runs")


def test_nothing_was_asked_of_another_host(pages):
    assert pages.asked == {"127.0.0.1"}
