"""dcmtk's programs, as strangers that send: pynetdicom installs scripts of the same names beside Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.services import missing


def program(name: str) -> str:
    """The path of one of dcmtk's programs."""
    own = Path(sys.executable).parent
    path = os.pathsep.join(item for item in os.environ["PATH"].split(os.pathsep) if Path(item) != own)
    found = shutil.which(name, path=path)
    if found is None:
        missing(f"dcmtk's {name} is not installed: apt-get install dcmtk")
    return found


def run(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run one of dcmtk's programs to its end."""
    return subprocess.run([program(name), *map(str, words)], capture_output=True, text=True, timeout=120)
