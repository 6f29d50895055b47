"""A PostgreSQL server of the tests' own: `initdb` in a temporary folder, durable writes off, gone afterwards."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.services import free_port, missing


@dataclass(frozen=True, kw_only=True, slots=True)
class PostgresServer:
    """Where it listens, and its superuser's password."""

    port: int
    password: str
    control: Sequence[str]  # pg_ctl with the folder
    options: str
    log: Path

    def start(self) -> None:
        """Start it, or start it again; it recovers first if it was killed."""
        _run([*self.control, "-l", str(self.log), "-o", self.options, "start"])

    def kill(self) -> None:
        """``kill -9`` of the server and all that serves its connections."""
        main = int((self.log.parent / "data" / "postmaster.pid").read_text().split()[0])
        family = [int(child) for child in Path(f"/proc/{main}/task/{main}/children").read_text().split()]
        for pid in (main, *family):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while any(Path(f"/proc/{pid}").exists() for pid in (main, *family)):
            time.sleep(0.02)

    def url(self, database: str) -> str:
        """The SQLAlchemy URL of one of its databases."""
        return f"postgresql+psycopg://medflow:{self.password}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str) -> None:
        """Run one statement outside any transaction, as CREATE DATABASE must be."""
        url = f"postgresql://medflow:{self.password}@127.0.0.1:{self.port}/postgres"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[arg-type]  # the tests' own literals


@contextmanager
def postgres_server(*, fsync: bool = False) -> Iterator[PostgresServer]:
    """Start a server, and stop it at the end of the block; skips when its binaries are not installed."""
    binaries = _binaries()
    if binaries is None:
        missing("PostgreSQL's server binaries are not installed: apt-get install postgresql")
    prefix = _as_postgres()
    folder = Path(tempfile.mkdtemp(prefix="medflow-postgres-"))
    try:
        password = secrets.token_hex(8)
        (folder / "password").write_text(password)
        if prefix:
            shutil.chown(folder, "postgres", "postgres")
            shutil.chown(folder / "password", "postgres", "postgres")
        port = free_port()
        data = str(folder / "data")
        _run(
            [*prefix, str(binaries / "initdb"), "-D", data, "-U", "medflow", f"--pwfile={folder / 'password'}"]
            + ["-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", "-N"]
        )
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c max_connections=50"
        options += "" if fsync else " -c fsync=off -c synchronous_commit=off -c full_page_writes=off"
        control = [*prefix, str(binaries / "pg_ctl"), "-D", data, "-w"]
        server = PostgresServer(
            port=port, password=password, control=control, options=options, log=folder / "server.log"
        )
        server.start()
        try:
            yield server
        finally:
            _run([*control, "-m", "immediate", "stop"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path | None:
    # Debian keeps them off the PATH, and what it puts there are wrappers of another cluster manager
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def _as_postgres() -> list[str]:
    """PostgreSQL refuses to run as root: the command prefix that becomes its own user."""
    if os.geteuid() != 0:
        return []
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        missing("PostgreSQL does not run as root, and there is no user postgres")
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]


def _run(command: list[str]) -> None:
    # output to a file, not a pipe: the server inherits it, and a pipe would stay open as long as it runs
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd="/")
        if done.returncode:
            output.seek(0)
            raise RuntimeError(f"{Path(command[-1]).name}: {output.read().decode(errors='replace')[-2000:]}")
