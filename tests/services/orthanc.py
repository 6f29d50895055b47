"""Orthanc, a PACS that nobody here wrote: DICOMweb and DIMSE, on the loopback only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.services import free_port, missing

DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
INSTALL = "apt-get install orthanc orthanc-dicomweb gcc"
SHIM = Path(__file__).with_name("bindlo.c")  # Orthanc binds to every interface, whatever its configuration says
PASSWORD = "medflow-tests"


@dataclass(frozen=True, kw_only=True)
class Orthanc:
    """A running server. ``modality_port`` is where it finds the application MEDFLOW, for C-MOVE and commitment.

    ``storage`` is the folder that has its files.
    """

    url: str
    dicom_port: int
    modality_port: int
    storage: Path

    @property
    def dicomweb(self) -> str:
        """Base URL of its DICOMweb services."""
        return f"{self.url}/dicom-web"

    @property
    def address(self) -> str:
        """Its DICOM address."""
        return f"ORTHANC@127.0.0.1:{self.dicom_port}"

    def empty(self) -> None:
        """Forget every patient."""
        with httpx.Client(timeout=30, verify=False) as client:  # no authorities to be read for plain HTTP
            for patient in client.get(f"{self.url}/patients").json():
                client.delete(f"{self.url}/patients/{patient}").raise_for_status()

    def upload(self, *files: Path) -> None:
        """Give it files by its own REST interface."""
        with httpx.Client(timeout=30, verify=False) as client:
            for file in files:
                client.post(f"{self.url}/instances", content=file.read_bytes()).raise_for_status()


@contextmanager
def orthanc(folder: Path, *, password: bool = False, **options: Any) -> Iterator[Orthanc]:
    """Start one that keeps its files in ``folder``; with ``password`` it wants ``medflow`` and PASSWORD over HTTP."""
    program = shutil.which("Orthanc")
    if program is None or not DICOMWEB.exists():
        missing(f"Orthanc with its DICOMweb plugin is not installed: {INSTALL}")
    shim = loopback_only(folder)
    http, dicom, modality = free_port(), free_port(), free_port()
    config = {
        "Name": "medflow tests",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(DICOMWEB)],
        "HttpPort": http,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": password,
        "RegisteredUsers": {"medflow": PASSWORD},
        "DicomAet": "ORTHANC",
        "DicomPort": dicom,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "DicomModalities": {"medflow": ["MEDFLOW", "127.0.0.1", modality]},
        "StableAge": 1,
        "MaximumStorageCacheSize": 0,  # a file that is gone is gone
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "Host": f"127.0.0.1:{http}", "Ssl": False},
        **options,
    }
    (folder / "orthanc.json").write_text(json.dumps(config))
    log = (folder / "orthanc.log").open("wb")
    process = subprocess.Popen(
        [program, str(folder / "orthanc.json")],
        env={**os.environ, "TCP_NODELAY": "1", "LD_PRELOAD": str(shim)},
        stdout=log,
        stderr=log,
    )
    try:
        url = f"http://127.0.0.1:{http}"
        _wait(url, process, folder)
        yield Orthanc(url=url, dicom_port=dicom, modality_port=modality, storage=folder / "storage")
    finally:
        process.terminate()
        process.wait(timeout=20)
        log.close()


def _wait(url: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/system", timeout=2).status_code in (200, 401):
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise RuntimeError(f"Orthanc did not start: {(folder / 'orthanc.log').read_text()[-2000:]}")


def loopback_only(folder: Path) -> Path:
    """A library to preload, with which a server listens at the loopback whatever it asks for."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        missing(f"no C compiler for the library that keeps Orthanc on the loopback: {INSTALL}")
    library = folder / "bindlo.so"
    subprocess.run([compiler, "-O2", "-fPIC", "-shared", "-o", library, SHIM, "-ldl"], check=True)
    return library
