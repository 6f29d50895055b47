"""Real distributions for the tests: a module and its metadata in a folder, found through PYTHONPATH as pip would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def write_distribution(
    folder: Path, name: str, source: str, models: Mapping[str, str], *, group: str = "medflow.models"
) -> Path:
    """A distribution ``name`` 1.0 with one module of that name (dashes as underscores); returns ``folder``."""
    module = name.replace("-", "_")
    metadata = folder / f"{module}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / f"{module}.py").write_text(source)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    points = "\n".join(f"{model} = {module}:{target}" for model, target in models.items())
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{points}\n")
    return folder


def environment(home: Path, *plugins: Path, **settings: str) -> dict[str, str]:
    """The environment of a medflow process with its own home, and with these folders' plugins."""
    path = os.pathsep.join(map(str, (*plugins, REPOSITORY)))
    return {**os.environ, "MEDFLOW_HOME": str(home), "PYTHONPATH": path, "MEDFLOW_DEVICE": "cpu", **settings}


def medflow(env: Mapping[str, str], *words: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    command = [sys.executable, "-m", "medflow.cli", *map(str, words)]
    return subprocess.run(command, env=dict(env), capture_output=True, text=True, timeout=timeout, check=False)
