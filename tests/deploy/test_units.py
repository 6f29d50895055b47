"""The systemd units: what systemd itself says of them, and what the installer leaves."""

import os
import re
import shutil
import stat
import sys
from pathlib import Path

import pytest

from tests.deploy.tools import DEPLOY, run, tool
from tests.deploy.units import read_environment, read_unit

SYSTEMD = DEPLOY / "systemd"
SERVICES = [
    "medflow-prefect-server.service",
    "medflow-setup.service",
    "medflow-serve.service",
    "medflow-worker@cpu.service",
    "medflow-worker@cuda:0.service",
    "medflow-receive.service",
    "medflow-metrics.service",
]
LONG = [name for name in SERVICES if name != "medflow-setup.service"]
BACKUP = ["medflow-backup.service"]
EXPOSURE = 2.0  # of 10, as `systemd-analyze security` counts; a service without any of this has 9.6


@pytest.fixture
def analyze(tmp_path: Path):
    """`systemd-analyze` on a copy of the units, their programs replaced by one that is there."""
    program = tool("systemd-analyze", "apt-get install systemd")
    shutil.copytree(SYSTEMD, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("*.service"):
        path.write_text(re.sub(r"/(?:opt/medflow/bin|usr/local/lib/medflow)/[\w.]+", "/bin/true", path.read_text()))
    for name in SERVICES:
        if "@" in name:
            shutil.copy(tmp_path / "medflow-worker@.service", tmp_path / name)
    env = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:", "SYSTEMD_LOG_LEVEL": "warning"}

    def call(*words: object) -> str:
        return run(program, *words, env=env)

    call.folder = tmp_path
    return call


# `verify` takes what follows a colon for an alias, so not the worker of cuda:0
@pytest.mark.parametrize(
    "name", [*(name for name in SERVICES if ":" not in name), *BACKUP, "medflow-backup.timer", "medflow.target"]
)
def test_systemd_takes_the_unit(analyze, name):
    analyze("verify", "--man=no", analyze.folder / name)


@pytest.mark.parametrize("name", [*SERVICES, *BACKUP])
def test_a_service_is_shut_in(analyze, name):
    said = analyze("security", "--offline=yes", analyze.folder / name)

    assert float(re.search(r"exposure level for \S+: (\d+\.\d+)", said)[1]) <= EXPOSURE


def test_the_target_wants_every_service_but_the_workers():
    target = read_unit(SYSTEMD, "medflow.target")

    assert set(target.names("Unit", "Wants")) == {name for name in SERVICES if "@" not in name}


@pytest.mark.parametrize("name", LONG)
def test_a_service_that_stays_comes_back_and_may_drain(name):
    unit = read_unit(SYSTEMD, name)

    assert unit.last("Service", "Restart") == "always"
    assert unit.last("Unit", "StartLimitIntervalSec") == "0"  # however long the database is away
    assert unit.last("Service", "KillSignal") == "SIGTERM"
    assert float(unit.last("Service", "TimeoutStopSec")) >= 10


def test_only_the_prefect_server_is_given_its_database():
    for name in SERVICES:
        files = read_unit(SYSTEMD, name).all("Service", "EnvironmentFile")
        assert ("/etc/medflow/prefect-server.env" in files) == (name == "medflow-prefect-server.service"), name


@pytest.mark.parametrize("name", SERVICES)
def test_every_variable_of_a_command_is_in_the_examples(name):
    unit = read_unit(SYSTEMD, name)
    files = {
        f"/etc/medflow/{file}": read_environment((SYSTEMD / f"{file}.example").read_text())
        for file in ("medflow.env", "prefect-server.env")
    }

    assert unit.commands("ExecStart", unit.environment(files))


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """What install.sh leaves below a folder; pip is a stand-in that makes an environment of nothing."""
    python = tmp_path / "python3"
    python.write_text(
        f"""#!/bin/sh
[ "$1" = -c ] && exec {sys.executable} "$@"
mkdir -p "$3/bin" && printf '#!/bin/sh\\necho "$@" >>{tmp_path}/pip.log\\n' >"$3/bin/pip" && chmod +x "$3/bin/pip"
"""
    )
    python.chmod(0o755)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in ("medflow", "medflow_monai", "medflow_risk", "medflow_genomics"):
        (wheels / f"{name}-0.1.0-py3-none-any.whl").touch()
    env = {**os.environ, "DESTDIR": str(tmp_path / "root"), "PYTHON": str(python)}
    run(SYSTEMD / "install.sh", wheels, env=env)
    return tmp_path


def test_the_installer_puts_everything_in_its_place(installed):
    root = installed / "root"

    assert (root / "etc/systemd/system/medflow-serve.service").is_file()
    assert (root / "etc/systemd/system/medflow-.service.d/10-common.conf").is_file()
    assert os.access(root / "usr/local/sbin/medflow", os.X_OK)
    assert os.access(root / "usr/local/lib/medflow/backup.sh", os.X_OK)
    assert (root / "usr/local/lib/medflow/postgres/url.sh").is_file()
    assert "medflow-0.1.0-py3-none-any.whl[dask,s3]" in (installed / "pip.log").read_text()
    assert "medflow_risk-0.1.0-py3-none-any.whl" in (installed / "pip.log").read_text()


def test_the_installer_makes_secrets_that_only_root_can_read(installed):
    folder = installed / "root/etc/medflow"
    own = read_environment((folder / "medflow.env").read_text())
    server = read_environment((folder / "prefect-server.env").read_text())

    assert stat.S_IMODE((folder / "medflow.env").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "prefect-server.env").stat().st_mode) == 0o600
    assert re.search(r":[0-9a-f]{48}@127", own["MEDFLOW_DATABASE_URL"])
    assert re.search(r":[0-9a-f]{48}@127", server["PREFECT_SERVER_DATABASE_CONNECTION_URL"])
    assert own["PREFECT_API_AUTH_STRING"] == server["PREFECT_SERVER_API_AUTH_STRING"]  # one password, in both
    assert own["MEDFLOW_DATABASE_URL"].split(":")[2][:48] not in (folder / "prefect-server.env").read_text()


def test_installing_again_keeps_the_settings(installed):
    file = installed / "root/etc/medflow/medflow.env"
    before = file.read_text()
    env = {**os.environ, "DESTDIR": str(installed / "root"), "PYTHON": str(installed / "python3")}

    run(SYSTEMD / "install.sh", installed / "wheels", env=env)

    assert file.read_text() == before
    assert (installed / "root/opt/medflow.before").is_dir()  # to go back to


def test_an_installation_that_fails_leaves_the_one_before(installed):
    (installed / "root/opt/medflow/mark").touch()
    python = (installed / "python3").read_text().replace("echo ", "exit 1; echo ")
    (installed / "python3").write_text(python)
    env = {**os.environ, "DESTDIR": str(installed / "root"), "PYTHON": str(installed / "python3")}

    with pytest.raises(AssertionError, match="what was there before is untouched"):
        run(SYSTEMD / "install.sh", installed / "wheels", env=env)

    assert (installed / "root/opt/medflow/mark").exists()
