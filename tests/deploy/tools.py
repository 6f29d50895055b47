"""The tools that check what cannot be run here, each found or said to be missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.services import missing

DEPLOY = Path(__file__).parents[2] / "deploy"


def tool(name: str, install: str) -> str:
    """Where a program is: beside this Python, or in PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    return found or missing(f"{name} is not installed: {install}")


def run(*command: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """What a program says on stdout; its failure is the test's, with all that it said."""
    done = subprocess.run(
        [str(word) for word in command],
        env=dict(env) if env is not None else None,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
