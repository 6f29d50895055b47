"""dcmtk's programs, as strangers: pynetdicom installs scripts of the same names beside any Python."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.services import free_port, missing
from tests.services.orthanc import loopback_only

SCRIPT = b"#!"


def program(name: str) -> str:
    """The path of one of dcmtk's programs: the first in PATH that is no script of some Python environment."""
    found = (shutil.which(name, path=folder) for folder in os.environ["PATH"].split(os.pathsep))
    program = next((path for path in found if path and Path(path).read_bytes()[:2] != SCRIPT), None)
    if program is None:
        missing(f"dcmtk's {name} is not installed: apt-get install dcmtk")
    return program


def run(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run one of dcmtk's programs to its end."""
    return subprocess.run([program(name), *map(str, words)], capture_output=True, text=True, timeout=120)


@dataclass(frozen=True, kw_only=True)
class Listening:
    """A running program of dcmtk's; ``folder`` has its objects. ``peer_port`` is where it finds the one it knows."""

    address: str
    folder: Path
    process: subprocess.Popen[bytes]
    peer_port: int = 0

    def keep(self, *files: Path) -> None:
        """Have an archive take files, by dcmtk's own program for that."""
        copies = [shutil.copy(file, self.folder / f"{number:04d}.dcm") for number, file in enumerate(files)]
        run("dcmqridx", self.folder, *copies).check_returncode()

    def objects(self) -> list[Path]:
        """The files there are."""
        return sorted(path for path in self.folder.iterdir() if path.suffix == ".dcm")

    def kill(self) -> None:
        """End it and all of its processes at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=20)


@contextmanager
def dcmqrscp(folder: Path, *words: object, knows: str = "MEDFLOW") -> Iterator[Listening]:
    """An archive called DCMTK, which takes associations from ``knows`` only, and moves objects to it only."""
    port, peer, kept = free_port(), free_port(), folder / "kept"
    kept.mkdir(parents=True)
    configuration = folder / "dcmqrscp.cfg"
    configuration.write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 131072\nMaxAssociations = 16\n"
        f"HostTable BEGIN\nus = ({knows}, 127.0.0.1, {peer})\nHostTable END\n"
        "VendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nDCMTK {kept} RW (200, 1024mb) us\nAETable END\n"
    )
    with _running(folder, port, "dcmqrscp", "--config", configuration, "--disable-host-lookup", *words) as process:
        yield Listening(address=f"DCMTK@127.0.0.1:{port}", folder=kept, process=process, peer_port=peer)


@contextmanager
def storescp(folder: Path, *words: object) -> Iterator[Listening]:
    """A receiver called STORESCP, that writes what it is sent bit by bit, as files ``<SOP Instance UID>.dcm``."""
    port, kept = free_port(), folder / "kept"
    kept.mkdir(parents=True)
    options = ("--bit-preserving", "--filename-extension", ".dcm", "--output-directory", kept, "-aet", "STORESCP")
    with _running(folder, port, "storescp", *options, *words, port) as process:
        yield Listening(address=f"STORESCP@127.0.0.1:{port}", folder=kept, process=process)


@contextmanager
def _running(folder: Path, port: int, name: str, *words: object) -> Iterator[subprocess.Popen[bytes]]:
    """A server of dcmtk's, with a process group of its own and on the loopback only."""
    environment = {**os.environ, "TCP_NODELAY": "1", "LD_PRELOAD": str(loopback_only(folder))}
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [program(name), *map(str, words)], env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait(port, process)
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=20)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError("the program of dcmtk did not start: see its log in the test's folder")
