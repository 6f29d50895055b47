"""What is shipped: wheels that work away from the tree, with everything in them that running needs."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))


def build_wheel(project: Path, folder: Path) -> Path:
    """Build from a copy: setuptools leaves build/ beside the sources, and would ship what lay in an old one."""
    source = folder / "source"
    leave = shutil.ignore_patterns(".*", "venv", "build", "*.egg-info", "__pycache__", "node_modules", "tests")
    shutil.copytree(project, source, ignore=leave, symlinks=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", folder / "wheel", source], check=True)
    [wheel] = (folder / "wheel").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked by pip into a folder; everything it depends on comes from the running environment."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run(command, check=True)
    return target


@pytest.fixture
def run_installed(installed: Path, tmp_path: Path):
    def run(*arguments: str | Path) -> str:
        environment = {**os.environ, "PYTHONPATH": str(installed), "MEDFLOW_HOME": str(tmp_path / "home")}
        done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_wheel_has_every_package_of_the_tree(wheel: Path) -> None:
    packaged = {name for name in ZipFile(wheel).namelist() if name.endswith(".py")}
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "medflow").rglob("*.py")}
    for mapped in ("deploy", "flows"):
        expected |= {f"medflow/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / mapped).rglob("*.py")}
    assert packaged == expected


def test_the_wheel_has_what_is_not_python(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    assert {
        "medflow/py.typed",
        "medflow/store/migrations/script.py.mako",
        "medflow/evaluation/report.html.jinja",
    } <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    data = [path for path in (ROOT / "medflow").rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}]
    assert {path.relative_to(ROOT).as_posix() for path in data} <= names


def test_of_deploy_the_wheel_has_what_the_command_reads(wheel: Path) -> None:
    shipped = {name for name in ZipFile(wheel).namelist() if name.startswith("medflow/deploy/")}
    templates = {f"medflow/deploy/work-pools/{path.name}" for path in (ROOT / "deploy/work-pools").glob("*.json")}
    assert shipped == {"medflow/deploy/__init__.py", "medflow/deploy/prefect.yaml"} | templates


def test_nothing_but_medflow_is_at_the_top_level(wheel: Path) -> None:
    top = {name.split("/")[0] for name in ZipFile(wheel).namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"medflow"}


def test_the_installed_command_runs_away_from_the_tree(run_installed, installed: Path) -> None:
    command = installed / "bin" / "medflow"
    assert "nightly" in run_installed(command, "--help")
    assert "models" in json.loads(run_installed(command, "models", "--json"))


def test_the_installed_flows_are_those_of_the_wheel(run_installed, installed: Path) -> None:
    code = "import medflow.flows.nightly as module; print(module.__file__, callable(module.nightly))"
    assert run_installed(sys.executable, "-c", code).split() == [
        str(installed / "medflow" / "flows" / "nightly.py"),
        "True",
    ]


def test_the_installed_migrations_make_a_database(run_installed, installed: Path, tmp_path: Path) -> None:
    run_installed(installed / "bin" / "medflow", "db", "upgrade")
    assert (tmp_path / "home" / "medflow.db").stat().st_size > 0


def test_the_three_plugins_are_there() -> None:
    assert [path.name for path in PLUGINS] == ["medflow-genomics", "medflow-monai", "medflow-risk"]


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_wheel_has_its_weights_and_model_card(plugin: Path, tmp_path: Path) -> None:
    archive = ZipFile(build_wheel(plugin, tmp_path))
    files = {entry.filename: entry.file_size for entry in archive.infolist()}
    weights = {name: size for name, size in files.items() if name.endswith((".safetensors", ".npz"))}
    assert weights
    assert all(size < 5_000_000 for size in weights.values())
    assert any(name.lower().endswith(".md") and "card" in name.lower() for name in files)
    [entry_points] = [name for name in files if name.endswith("entry_points.txt")]
    assert "[medflow.models]" in archive.read(entry_points).decode()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {normal(item.name): str(item.specifier) for item in requirements}


def normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


@pytest.mark.parametrize("project", [ROOT, *PLUGINS], ids=lambda path: path.name)
def test_every_dependency_is_pinned_inside_its_declared_range(project: Path) -> None:
    declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"]
    for requirement in map(Requirement, declared):
        if normal(requirement.name) == "medflow":
            continue
        pin = pins()[normal(requirement.name)]
        assert pin.startswith("=="), requirement.name
        assert requirement.specifier.contains(pin.removeprefix("=="), prereleases=True), requirement.name


def test_every_tool_of_the_gate_is_pinned() -> None:
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    tools = [line for line in lines if line and not line.startswith(("#", "-"))]
    assert {normal(Requirement(line).name) for line in tools} <= pins().keys()
