"""dcmtk's programs, as strangers that send: pynetdicom installs scripts of the same names beside any Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.services import missing

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
