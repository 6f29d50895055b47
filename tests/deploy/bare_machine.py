"""A machine without systemd: medflow's units, read and run as plain processes, in order, with what they are given.

The command lines are those of the units to the letter, but for where things lie: the programs are this environment's,
and /var and /etc are below a folder of the test. Users and confinement are left to `systemd-analyze`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path

from medflow.sample import SampleData
from tests.deploy.tools import DEPLOY
from tests.deploy.units import Unit, read_environment, read_unit

SYSTEMD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"  # what a service gets, and nothing else of ours
FILES = ("medflow.env", "prefect-server.env")


@dataclass(kw_only=True)
class BareMachine:
    """Services below ``root``; ``changes`` are what an operator changed in the examples of the environment files."""

    root: Path
    services: list[str]
    changes: Mapping[str, str]
    sample: SampleData
    ports: Mapping[str, str]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)

    def in_order(self) -> list[Unit]:
        """The units as After= has them start."""
        units = {name: read_unit(DEPLOY / "systemd", name) for name in self.services}
        after = {
            name: [other for other in unit.names("Unit", "After") if other in units] for name, unit in units.items()
        }
        return [units[name] for name in TopologicalSorter(after).static_order()]

    def start(self) -> None:
        """Start every service, each when those before it are up."""
        for folder in ("var/lib/medflow", "var/cache/medflow"):  # StateDirectory=, CacheDirectory=
            (self.root / folder).mkdir(parents=True)
        for unit in self.in_order():
            self.start_one(unit)

    def start_one(self, unit: Unit) -> None:
        """Start one as systemd would: a oneshot is waited for, as is what is to run after the start."""
        environment = self.environment(unit)
        commands = [self.here(command) for command in unit.commands("ExecStart", environment)]
        limit = float(unit.last("Service", "TimeoutStartSec", "90"))
        with self.log(unit.name).open("ab") as log:
            if unit.last("Service", "Type") == "oneshot":
                for command in commands:
                    subprocess.run(command, check=True, timeout=limit, **self.process(environment, log))
                return
            (command,) = commands
            self.running[unit.name] = subprocess.Popen(
                command, start_new_session=True, **self.process(environment, log)
            )
            for command in unit.commands("ExecStartPost", environment):
                subprocess.run(self.here(command), check=True, timeout=limit, **self.process(environment, log))

    def stop(self) -> None:
        """Stop what runs, in reverse: SIGTERM to the main process, and no longer than TimeoutStopSec."""
        for unit in reversed(self.in_order()):
            process = self.running.pop(unit.name, None)
            if process is None:
                continue
            process.send_signal(getattr(signal, unit.last("Service", "KillSignal")))
            try:
                self.ended[unit.name] = process.wait(timeout=float(unit.last("Service", "TimeoutStopSec")))
            except subprocess.TimeoutExpired:
                self.ended[unit.name] = -signal.SIGKILL
            finally:
                self.kill(process)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL to whatever is left of a service (KillMode=mixed)."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)

    def environment(self, unit: Unit) -> dict[str, str]:
        """What the service gets: no more than systemd gives it."""
        files = {f"/etc/medflow/{name}": self.file(name) for name in FILES}
        given = {"PATH": SYSTEMD_PATH, "LANG": "C.UTF-8", "HOME": "/var/lib/medflow", **unit.environment(files)}
        return {name: self.moved(value) for name, value in given.items()}

    def file(self, name: str) -> dict[str, str]:
        """An environment file: its example, with what the operator changed."""
        example = read_environment((DEPLOY / "systemd" / f"{name}.example").read_text())
        return {key: self.changes.get(key, value) for key, value in example.items()}

    def by_hand(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the installation as its services are run: what /usr/local/sbin/medflow does."""
        unit = read_unit(DEPLOY / "systemd", "medflow-serve.service")
        environment = self.environment(unit) | more
        return subprocess.run(
            self.here(list(command)), env=environment, cwd=self.root, capture_output=True, text=True, timeout=400
        )

    def log(self, name: str) -> Path:
        """What a service has said."""
        return self.root / f"{name}.log"

    def here(self, command: list[str]) -> list[str]:
        """The command with this environment's programs."""
        programs = str(Path(sys.executable).parent)
        return [self.moved(word.replace("/opt/medflow/bin", programs)) for word in command]

    def moved(self, value: str) -> str:
        """Paths below the test's folder."""
        for path in ("/var/lib/medflow", "/var/cache/medflow"):
            value = value.replace(path, str(self.root) + path)
        return value

    def process(self, environment: Mapping[str, str], log: object) -> dict:
        """How a service's process is made."""
        return {
            "env": dict(environment),
            "cwd": self.root / "var/lib/medflow",
            "stdin": subprocess.DEVNULL,
            "stdout": log,
            "stderr": subprocess.STDOUT,
        }


def wait_for(what: str, happened: Callable[[], bool], *, limit_s: float = 120) -> None:
    """Wait until a callable says yes.

    Raises
    ------
    TimeoutError
        It did not, in time.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if happened():
            return
        time.sleep(0.2)
    raise TimeoutError(f"{what}: not within {limit_s:.0f} s")
