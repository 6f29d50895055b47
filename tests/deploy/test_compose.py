"""compose.yaml cannot be started here: it is held against the schema, and resolved by Compose itself."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from medflow.config import Settings
from tests.deploy.tools import DEPLOY, run, tool

FILL_IN = """
for name in POSTGRES MEDFLOW_DB PREFECT_DB PREFECT ORTHANC; do
  sed -i "s/^${name}_PASSWORD=$/&$(openssl rand -hex 24)/" .env
done
"""
SET_HERE = {"MEDFLOW_HOME", "MEDFLOW_RECEIVE_INTO", "MEDFLOW_RECEIVE_HOST", "MEDFLOW_RECEIVE_PORT"}  # by the image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """compose.yaml with a .env made as .env.example says."""
    # Debian's Compose does not know the top-level name yet, which newer ones take the project's name from
    text = "".join(line for line in (DEPLOY / "compose.yaml").open() if not line.startswith("name:"))
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "compose.yaml").write_text(text)
    shutil.copy(DEPLOY / ".env.example", tmp_path / "deploy" / ".env")
    return tmp_path / "deploy"


def fill_in(folder: Path) -> None:
    run("bash", "-c", FILL_IN, cwd=folder)
    env = (folder / ".env").read_text()
    for name in ("MEDFLOW_IN_FOLDER", "MEDFLOW_OUT_FOLDER"):
        env = env.replace(f"\n{name}=\n", f"\n{name}=/srv/{name.lower()}\n")
    (folder / ".env").write_text(env)


def compose(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = tool("docker-compose", "apt-get install docker-compose, or Docker's own")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MEDFLOW_", "PREFECT_"))}
    return subprocess.run([program, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=60)


@pytest.fixture
def resolved(folder: Path) -> dict:
    fill_in(folder)
    done = compose(folder, "-f", "compose.yaml", "config")
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_the_file_is_as_the_compose_specification_says():
    check = tool("check-jsonschema", "pip install check-jsonschema")
    run(check, "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def test_the_example_says_how_passwords_are_made():
    comment = re.sub(r"^#\s*", "", (DEPLOY / ".env.example").read_text(), flags=re.M)

    assert [line.strip() for line in FILL_IN.strip().splitlines()] == [
        line.strip() for line in comment.splitlines() if line.startswith(("for name in", "sed -i", "done"))
    ]


@pytest.mark.parametrize(
    "name",
    [
        "POSTGRES_PASSWORD",
        "MEDFLOW_DB_PASSWORD",
        "PREFECT_DB_PASSWORD",
        "PREFECT_PASSWORD",
        "ORTHANC_PASSWORD",
        "MEDFLOW_IN_FOLDER",
        "MEDFLOW_DELIVER_TO",
    ],
)
def test_nothing_starts_without(folder, name):
    fill_in(folder)
    env = folder / ".env"
    env.write_text(re.sub(rf"^{name}=.*$", f"{name}=", env.read_text(), flags=re.M))

    done = compose(folder, "-f", "compose.yaml", "config")

    assert done.returncode != 0
    assert f"set {name} in .env" in done.stderr


def test_no_password_stands_in_the_files():
    for name, value in re.findall(r"^(\w*(?:PASSWORD|TOKEN|SECRET)\w*)=(.*)$", (DEPLOY / ".env.example").read_text()):
        assert value == "", name
    assert not re.search(r"PASSWORD\w*:-[^}]", (DEPLOY / "compose.yaml").read_text())  # no default either


def test_every_setting_reaches_the_containers_and_is_in_the_example(resolved):
    settings = {f"MEDFLOW_{field.upper()}" for field in Settings.model_fields}
    example = set(re.findall(r"^(?:# )?(MEDFLOW_\w+)=", (DEPLOY / ".env.example").read_text(), re.M))

    for service in ("setup", "serve", "worker", "worker-gpu", "receive", "metrics"):
        assert settings - set(resolved["services"][service]["environment"]) <= SET_HERE, service
    assert settings - example == SET_HERE | {"MEDFLOW_DATABASE_URL"}


def test_every_variable_that_the_file_asks_for_is_in_the_example():
    asked = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    example = set(re.findall(r"^(?:# )?(\w+)=", (DEPLOY / ".env.example").read_text(), re.M))

    assert asked <= example


def test_every_port_is_open_to_this_machine_alone(resolved):
    ports = [port for service in resolved["services"].values() for port in service.get("ports", ())]

    assert len(ports) >= 3
    assert all(str(port).startswith("127.0.0.1:") for port in ports), ports


def test_every_service_of_medflow_is_closed_off_and_can_drain(resolved):
    for name in ("prefect-server", "setup", "serve", "worker", "worker-gpu", "receive", "metrics"):
        service = resolved["services"][name]
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["logging"]["options"]["max-size"], name
        assert name == "setup" or (service["restart"] == "unless-stopped" and service["stop_grace_period"]), name


def test_only_the_prefect_server_is_given_its_database(resolved):
    for name, service in resolved["services"].items():
        knows = any("asyncpg" in str(value) for value in service.get("environment", {}).values())
        assert knows == (name == "prefect-server"), name


def test_every_image_has_an_exact_version(resolved):
    for name, service in resolved["services"].items():
        assert re.search(r":v?\d+\.\d+", service["image"]), name


def test_a_gpu_is_asked_for_in_the_profile_gpu_only(resolved):
    asking = {name: item for name, item in resolved["services"].items() if "deploy" in item}

    assert set(asking) == {"worker-gpu"}
    assert asking["worker-gpu"]["profiles"] == ["gpu"]
    assert asking["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
