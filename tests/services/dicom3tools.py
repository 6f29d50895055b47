"""dciodvfy of dicom3tools: whether an object keeps to its IOD, said by a program that shares no code with ours."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.services import missing


def errors_of(data: bytes, folder: Path) -> list[str]:
    """What dciodvfy calls an error in a DICOM file; ``folder`` is for the file."""
    program = shutil.which("dciodvfy")
    if program is None:
        missing("dicom3tools' dciodvfy is not installed: apt-get install dicom3tools")
    path = folder / "object.dcm"
    path.write_bytes(data)
    done = subprocess.run([program, "-new", str(path)], capture_output=True, text=True, timeout=120)
    assert done.stderr.strip(), "it said nothing, not even the kind of object"
    return [line for line in done.stderr.splitlines() if line.startswith("Error")]
