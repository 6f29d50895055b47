"""The README and docs/ are true: their commands run, what they show comes, and their tables are complete.

Blocks marked ``console`` are run, page by page and top to bottom, by bash in an empty folder with a home of its own.
A block's commands start with ``$``; they must succeed, or its last one must end with the status of ``console exit=3``.
Each line shown under a command must be among what that block printed - spaces and figures apart, ``...`` left out.
Blocks marked otherwise (``sh``, ``text``, ``python``) are not run. ``<!-- before: COMMAND -->`` prepares a page.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from medflow.config import Settings
from medflow.errors import RejectCode
from medflow.plugin import Model, ModelSpec

ROOT = Path(__file__).parents[1]
PLUGINS = sorted((ROOT / "plugins").glob("*/README.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *PLUGINS]
BLOCK = re.compile(r"^```console(?: exit=(?P<status>\d+))?\n(?P<body>.*?)^```$", re.M | re.S)
BEFORE = re.compile(r"^<!-- before: (?P<script>.*?) -->$", re.M)
QUOTED = re.compile(r"<!-- file: (?P<path>\S+) -->\n+```\w*\n(?P<body>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\((?!https?:|mailto:)(?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def shape(line: str) -> str:
    """A line without what may differ from run to run: figures and the number of spaces."""
    return " ".join(re.sub(r"\d+", "0", line).split())


def run_block(script: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", "set -eo pipefail\n" + script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text())], ids=name)
def test_the_commands_of_a_page_do_what_it_says(page: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MEDFLOW_", "PREFECT_API"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MEDFLOW_HOME": str(tmp_path / "home"),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "COLUMNS": "120",
        "TREE": str(ROOT),  # for what prepares a page, never for its commands
    }
    work = tmp_path / "work"
    work.mkdir()
    for before in BEFORE.finditer(page.read_text()):
        done = run_block(before["script"], work, environment)
        assert done.returncode == 0, done.stdout
    for block in BLOCK.finditer(page.read_text()):
        body = block["body"].replace("\\\n", "")
        commands = [line[2:] for line in body.splitlines() if line.startswith("$ ")]
        shown = [line for line in body.splitlines() if not line.startswith("$ ") and shape(line) not in ("", "...")]
        done = run_block("\n".join(commands), work, environment)
        line = page.read_text()[: block.start()].count("\n") + 1
        assert done.returncode == int(block["status"] or 0), f"{name(page)}:{line}\n{done.stdout}"
        printed = {shape(line) for line in done.stdout.splitlines()}
        missing = [line for line in shown if shape(line) not in printed]
        assert not missing, f"{name(page)}:{line} shows {missing}, but this came:\n{done.stdout}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.finditer(re.sub(r"```.*?```", "", page.read_text(), flags=re.S)):
        target = (page.parent / link["path"]).resolve() if link["path"] else page
        if not target.exists() or (link["anchor"] and link["anchor"] not in anchors(target)):
            broken.append(link.group())
    assert not broken


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [page for page in PAGES if QUOTED.search(page.read_text())], ids=name)
def test_the_files_a_page_quotes_are_as_quoted(page: Path) -> None:
    for quoted in QUOTED.finditer(page.read_text()):
        assert (ROOT / quoted["path"]).read_text().strip() == quoted["body"].strip(), quoted["path"]


def rows(page: str) -> set[str]:
    """What stands in backticks in the first column of a page's tables."""
    return set(re.findall(r"^\| `([^`]+)` \|", (ROOT / page).read_text(), re.M))


def test_every_reject_code_has_its_advice() -> None:
    assert {str(code) for code in RejectCode} == {row for row in rows("docs/users/rejects.md") if row.islower()}


def test_every_reason_that_a_case_is_refused_for_is_explained() -> None:
    raised = re.compile(r"(?:InputNotUsable|PredictionInvalid|CaseError)\(\s*\"([a-z-]+)\"")
    sources = [
        path
        for name in ("dicom", "fhir", "genomics", "inference", "store")
        for path in (ROOT / "medflow" / name).rglob("*.py")
    ]
    codes = {
        code
        for path in [*sources, ROOT / "medflow/inputs.py", ROOT / "medflow/samples.py"]
        for code in raised.findall(path.read_text())
    }
    pages = "".join((ROOT / f"docs/users/{name}.md").read_text() for name in ("score", "explain", "genomes"))
    assert {code for code in codes if not re.search(rf"`(explanation-failed: )?{code}`", pages)} == set()


def test_every_setting_is_documented() -> None:
    settings = {f"MEDFLOW_{field.upper()}" for field in Settings.model_fields}
    assert settings == {row for row in rows("docs/operators/configuration.md") if row.startswith("MEDFLOW_")}


def test_the_contract_page_names_every_field_of_a_spec_and_every_method_of_a_model() -> None:
    page = (ROOT / "docs/plugins/contract.md").read_text()
    fields = set(ModelSpec.__dataclass_fields__)
    methods = {method for method in vars(Model) if callable(getattr(Model, method)) and not method.startswith("_")}
    assert {word for word in fields | methods if f"`{word}`" not in page} == set()


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page not in reached:
            reached.add(page)
            links = LINK.finditer(page.read_text())
            ahead += [path for link in links if (path := (page.parent / link["path"]).resolve()).suffix == ".md"]
    assert set(PAGES) <= reached
