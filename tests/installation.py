"""medflow as it is deployed, for the tests: flow server and workers as real processes beside a real Prefect server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.distributions import medflow
from tests.services.prefect_server import PrefectServer

FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Installation:
    """Processes of one installation, by name; each is a process group of its own, and writes a log.

    Parameters
    ----------
    folder
        Of the logs.
    server
        The Prefect server that all of them use.
    env
        The environment of every process.
    """

    def __init__(self, folder: Path, server: PrefectServer, env: Mapping[str, str]) -> None:
        self.folder, self.server = folder, server
        self.env = {**env, **server.client}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._http = httpx.Client(base_url=server.api_url, timeout=60)

    @property
    def names(self) -> list[str]:
        """The processes that were started and not ended since."""
        return list(self._processes)

    def run(self, *words: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return medflow(self.env, *words, timeout=timeout)

    def start(self, name: str, *words: object, **settings: str) -> int:
        """Start a command that stays; returns its process id."""
        assert name not in self._processes
        command = [sys.executable, "-m", "medflow.cli", "-v", *map(str, words)]
        with (self.folder / f"{name}.log").open("ab") as said:
            process = subprocess.Popen(
                command,
                env={**self.env, **settings},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes[name] = process
        return process.pid

    def start_worker(self, name: str, *words: object, **settings: str) -> None:
        """Start a worker, and wait until it serves."""
        before = self.log(name).count("is ready")
        self.start(name, "worker", "--name", name, *words, **settings)
        self.until(lambda: self.log(name).count("is ready") > before, f"worker {name}")

    def start_flows(self) -> None:
        """Start the flow server, and wait until it polls."""
        before = self.log("serve").count("started!")
        self.start("serve", "serve", "--name", "serve")
        self.until(lambda: self.log("serve").count("started!") > before, "the flow server")

    def log(self, name: str) -> str:
        """What a process has written; line breaks as the terminal's width would have them are taken out."""
        path = self.folder / f"{name}.log"
        return " ".join(path.read_text(errors="replace").split()) if path.exists() else ""

    def kill(self, name: str) -> None:
        """``kill -9`` of a process and all it has started."""
        process = self._processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=20)

    def stop(self, name: str, *, timeout: float = 60) -> int:
        """Ask a process to stop, as a service manager does; returns its exit status."""
        process = self._processes.pop(name)
        process.terminate()
        try:
            return process.wait(timeout=timeout)
        finally:
            _kill_group(process)

    def close(self) -> None:
        """Kill whatever runs still."""
        for process in self._processes.values():
            _kill_group(process)
            process.wait(timeout=20)
        self._processes.clear()
        self._http.close()

    def trigger(self, deployment: str, **parameters: Any) -> str:
        """Start a run of a deployment ("nightly/nightly") as the pages do; returns its id."""
        found = self._http.get(f"/deployments/name/{deployment}").raise_for_status().json()
        body = {"parameters": parameters}
        made = self._http.post(f"/deployments/{found['id']}/create_flow_run", json=body)
        for _ in range(20):
            if made.status_code != 503:  # Prefect's SQLite is locked for a while after a burst; its clients try again
                break
            time.sleep(1)
            made = self._http.post(f"/deployments/{found['id']}/create_flow_run", json=body)
        return made.raise_for_status().json()["id"]

    def flow_run(self, run_id: str) -> dict[str, Any]:
        """The run as Prefect has it."""
        return self._http.get(f"/flow_runs/{run_id}").raise_for_status().json()

    def cancel(self, run_id: str) -> None:
        """Say of a run that it is over, as a person does whose run has lost its process."""
        state = {"type": "CANCELLED", "message": "its process is gone"}
        self._http.post(f"/flow_runs/{run_id}/set_state", json={"state": state, "force": True}).raise_for_status()

    def ended(self, run_id: str, *, timeout: float = 240) -> dict[str, Any]:
        """Wait until a run has ended; returns it."""
        self.until(lambda: self.flow_run(run_id)["state_type"] in FINAL, f"flow run {run_id}", timeout=timeout)
        return self.flow_run(run_id)

    def until(self, condition: Any, what: str, *, timeout: float = 120) -> None:
        """Wait until a condition holds; the logs are in the error if it does not."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                if condition():
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
        logs = "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))
        raise AssertionError(f"{what} did not come within {timeout} s\n{logs}")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@contextmanager
def installation(folder: Path, server: PrefectServer, env: Mapping[str, str]) -> Iterator[Installation]:
    """An installation whose deployments are registered; everything it started is gone at the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Installation(folder, server, env)
    try:
        done = made.run("deploy")
        assert done.returncode == 0, done.stderr
        yield made
    finally:
        made.close()
