"""`medflow evaluate` as a user runs it: figures, report, plots, and a sentence where there is nothing to say."""

import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from medflow.sample import write_sample
from tests.distributions import environment, medflow
from tests.evaluation.plugin_with_reference import write_heart_plugin
from tests.stays import MRN, Stay, write_stays


def stays(count: int) -> list[Stay]:
    """Higher rates die more often; men and women; several ages."""
    return [
        Stay(
            number=number,
            rate=55 + (number * 37) % 90,
            disposition="exp" if (number * 37) % 90 + (number * 53) % 40 > 75 else "home",
            sex="male" if number % 2 else "female",
            born=f"{1936 + number % 60}-03-01",
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A home with sixty scored stays, its environment, and a table of their outcomes.

    The model says that it was trained on lower heart rates.
    """
    root = tmp_path_factory.mktemp("evaluate")
    env = environment(root / "home", write_heart_plugin(root / "plugins", np.linspace(40, 100, 400)))
    cohort = stays(60)
    labels = root / "returned.csv"
    rows = [(f"{MRN}|M{stay.number:04d}", int(stay.disposition == "exp")) for stay in cohort]
    with labels.open("w", newline="") as file:
        csv.writer(file).writerows([("patient", "outcome"), *rows])
    assert medflow(env, "ingest", "fhir", write_stays(root / "in", cohort)).returncode == 0
    assert medflow(env, "score", "--model", "heart-risk").returncode == 0
    return env, cohort, labels


def test_the_figures_are_those_of_the_cohort(scored):
    env, cohort, labels = scored
    wanted = roc_auc_score([stay.disposition == "exp" for stay in cohort], [stay.risk for stay in cohort])

    by_labels = json.loads(medflow(env, "evaluate", "heart-risk", "--labels", labels, "--json").stdout)
    by_records = json.loads(medflow(env, "evaluate", "heart-risk", "--json").stdout)

    assert by_labels["metrics"] == by_records["metrics"]
    assert by_labels["metrics"]["auroc"]["value"] == pytest.approx(wanted)
    assert by_labels["metrics"]["auroc"]["low"] < wanted < by_labels["metrics"]["auroc"]["high"]
    assert (by_labels["cases"], by_labels["left_out"]) == (60, {})
    assert {group["dimension"] for group in by_labels["groups"]} == {"sex", "age"}
    assert all(group["cases"] >= 10 for group in by_labels["groups"])
    assert all(item["cases"] >= 10 for item in by_labels["calibration"])


def test_a_configured_table_is_named(scored):
    env, _, labels = scored
    named = env | {"MEDFLOW_LABELS": json.dumps({"registry": {"path": str(labels)}})}

    done = medflow(named, "evaluate", "heart-risk", "--labels", "registry")

    assert done.returncode == 0
    assert "heart-risk 1.0.0, death: 60 of 60 cases" in done.stdout
    assert "auroc" in done.stdout


def test_the_report_has_tables_and_plots_and_no_patient(scored, tmp_path):
    env, cohort, labels = scored
    path = tmp_path / "reports" / "heart.md"

    done = medflow(env, "evaluate", "heart-risk", "--labels", labels, "--report", path, "--json")

    text = path.read_text()
    assert done.returncode == 0, done.stderr
    for heading in ("# heart-risk 1.0.0: death", "## Decisions at 0.6", "## By group", "## Calibration", "## Plots"):
        assert heading in text
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert pictures == ["heart-roc.png", "heart-precision-recall.png", "heart-reliability.png", "heart-drift.png"]
    assert all(Image.open(path.with_name(name)).width > 200 for name in pictures)
    for stay in cohort:
        for secret in (f"M{stay.number:04d}", stay.born, MRN):
            assert secret not in text + done.stdout + done.stderr


class Page(HTMLParser):
    """What a page consists of: its tags with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        """Keep it."""
        self.tags.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of each such tag."""
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_report_as_a_page_asks_for_nothing_and_can_be_read_without_seeing_it(scored, tmp_path):
    env, cohort, labels = scored
    path = tmp_path / "reports" / "heart.html"

    done = medflow(env, "evaluate", "heart-risk", "--labels", labels, "--report", path)

    text = path.read_text()
    page = Page(text)
    assert done.returncode == 0, done.stderr
    assert [item.name for item in path.parent.iterdir()] == ["heart.html"]
    assert page.of("html") == [{"lang": "en"}]
    assert len(page.of("img")) == 4
    assert all(str(image["src"]).startswith("data:image/png;base64,") and image["alt"] for image in page.of("img"))
    assert len(page.of("table")) == len(page.of("caption")) >= 6
    assert {cell.get("scope") for cell in page.of("th")} == {"col", "row"}
    assert not {"script", "link", "iframe", "form"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|@import|url\(|\son\w+=", re.sub(r'src="data:[^"]*"', "", text))
    assert "default-src 'none'" in text and "@media print" in text
    assert all(f"M{stay.number:04d}" not in text and stay.born not in text for stay in cohort)


def test_drift_is_shown_before_any_outcome_is_known(scored, tmp_path):
    env, _, _ = scored
    path = tmp_path / "drift.html"

    done = medflow({**env, "COLUMNS": "200"}, "drift", "heart-risk", "--days", 1, "--report", path)

    assert done.returncode == 0, done.stderr
    assert "60 patients beside the 400 of the training: 1 shifted" in done.stdout
    assert re.search(r"HR \(/min\)\W+shifted, higher", done.stdout)
    assert len(Page(path.read_text()).of("img")) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing",), "no model is called 'nothing'; installed:"),
        (("heart-risk", "--labels", "nowhere"), "neither a file nor a name in MEDFLOW_LABELS, which has: none"),
        (("heart-risk", "--labels", "{other}"), "of 60 predictions of death by heart-risk, none has a known outcome"),
        (("heart-risk", "--output", "life"), "it has: death"),
        (("gc",), "no model is called 'gc'"),
    ],
)
def test_what_cannot_be_evaluated_is_a_sentence(scored, tmp_path, words, said):
    env, _, _ = scored
    other = tmp_path / "other.csv"
    other.write_text("encounter,outcome\nelsewhere,1\n")

    done = medflow(env, "evaluate", *(word.format(other=other) for word in words))

    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "elsewhere" not in done.stderr


@pytest.mark.slow
def test_the_mortality_model_on_the_sample_cohort(tmp_path):
    pytest.importorskip("medflow_risk", reason="the plugin medflow-risk is not installed")
    env = environment(tmp_path / "home")
    sample = write_sample(tmp_path / "sample", stays=24)
    medflow(env, "ingest", "fhir", sample.fhir)
    scored = json.loads(medflow(env, "score", "--model", "icu-mortality", "--json").stdout)
    labels = tmp_path / "labels.csv"
    labels.write_text("encounter,outcome\n" + "".join(f"demo-stay-{n:03d},{n % 3 // 2}\n" for n in range(1, 25)))

    found = medflow(env, "evaluate", "icu-mortality", "--labels", labels, "--json")

    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["cases"] == scored["done"] >= 20
