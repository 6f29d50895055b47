"""A real Prefect server on loopback, with a home and a database of its own, that can be killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psycopg
from psycopg import sql

from tests.services import free_port

START_S, STOP_S = 120, 20
SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_V2_ENABLED": "false",  # the newer pages call an outside host when they load
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    # the leases of limits outlive a restart
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}


@dataclass(kw_only=True)
class PrefectServer:
    """Where it listens and what it keeps. ``database_url`` is a PostgreSQL URL of SQLAlchemy's; SQLite where None."""

    port: int
    home: Path
    settings: Mapping[str, str]
    database_url: str | None = None
    auth: str | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def api_url(self) -> str:
        """What PREFECT_API_URL should be."""
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def url(self) -> str:
        """Where a browser finds the pages."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> dict[str, str]:
        """The environment variables of a process that is to use this server."""
        told = {name: SETTINGS[name] for name in ("PREFECT_SERVER_ANALYTICS_ENABLED", "DO_NOT_TRACK")}
        told |= {"PREFECT_API_URL": self.api_url, "PREFECT_HOME": str(self.home / "client")}
        return told | ({"PREFECT_API_AUTH_STRING": self.auth} if self.auth else {})

    @property
    def log(self) -> str:
        """What the server has said so far."""
        return (self.home / "server.out").read_text(errors="replace")

    def start(self) -> None:
        """Start it, or start it again on the same port and database; returns when it answers."""
        assert self._process is None
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.home / "server.out").open("ab") as said:
            self._process = subprocess.Popen(
                command,
                env=self._environment(),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a process group of its own, so that all of it can be killed at once
            )
        self._wait()

    def kill(self) -> None:
        """``kill -9``, of every process it has."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop it as a service manager does."""
        self._end(signal.SIGTERM)

    def dump(self) -> str:
        """Everything in its database, as text."""
        if self.database_url is None:
            with closing(sqlite3.connect(self.home / "prefect.db", timeout=30)) as connection:
                return "\n".join(connection.iterdump())
        with psycopg.connect(self.database_url.replace("+asyncpg", "")) as connection:
            names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
            lines = []
            for (name,) in names.fetchall():
                rows = connection.execute(sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(name)))
                lines += [f"{name}: {row}" for (row,) in rows]
            return "\n".join(lines)

    def _environment(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        own |= {**SETTINGS, "PREFECT_HOME": str(self.home), "PREFECT_API_URL": self.api_url}
        # the first start writes the pages; into site-packages, unless told otherwise
        own["PREFECT_SERVER_UI_STATIC_DIRECTORY"] = str(self.home / "ui")
        if self.database_url is not None:
            own["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = self.database_url
        if self.auth is not None:
            own["PREFECT_SERVER_API_AUTH_STRING"] = self.auth
        return own | dict(self.settings)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        credentials = httpx.BasicAuth(*self.auth.split(":", 1)) if self.auth else None
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"Prefect's server ended with {self._process.returncode}:\n{self.log[-4000:]}")
            try:
                answer = httpx.get(f"{self.api_url}/health", auth=credentials, timeout=5)
                if answer.status_code == 200 and answer.json() is True:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        self.kill()
        raise RuntimeError(f"Prefect's server did not answer within {START_S} s:\n{self.log[-4000:]}")

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=STOP_S)
        except ProcessLookupError:
            process.wait(timeout=STOP_S)


@contextmanager
def prefect_server(
    *, database_url: str | None = None, auth: str | None = None, settings: Mapping[str, str] | None = None
) -> Iterator[PrefectServer]:
    """Start a server on a free port, and stop it at the end of the block.

    Parameters
    ----------
    database_url
        A PostgreSQL database for Prefect alone, as `PostgresServer.url` gives it; SQLite otherwise.
    auth
        ``user:password`` that it is to ask for.
    settings
        PREFECT_* variables of the server, in place of those here.
    """
    home = Path(tempfile.mkdtemp(prefix="medflow-prefect-"))
    (home / "client").mkdir()
    server = PrefectServer(
        port=free_port(),
        home=home,
        settings=dict(settings or {}),
        database_url=database_url.replace("+psycopg", "+asyncpg") if database_url else None,
        auth=auth,
    )
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)
