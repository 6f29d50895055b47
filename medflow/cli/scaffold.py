"""`medflow plugin new`: a distribution that installs and keeps the contract, to be changed from there."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from medflow.cli.scaffold_models import MODULES, Start
from medflow.errors import ConfigurationError

PYPROJECT = Template("""\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$distribution"
version = "0.1.0"
description = "A medflow model"
requires-python = ">=3.11"
dependencies = ["medflow", "numpy"]

[project.entry-points."medflow.models"]
$model = "$package:$class_name"

[tool.setuptools]
packages = ["$package"]
""")

TEST = Template("""\
from $package import $class_name


def test_contract(check_model):
    check_model($class_name)
""")

README = Template("""\
# $distribution

    pip install -e .
    medflow models                       # it is listed
    medflow plugin check $distribution
    pytest                               # the same checks, and your own
""")


def write_plugin(folder: Path, name: str, start: Start = Start.TIME_SERIES) -> list[Path]:
    """Write the distribution ``name`` into ``folder / name``, with a model of that kind; returns its files.

    Raises
    ------
    ConfigurationError
        The name cannot be a distribution's, or the folder is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ConfigurationError(
            f"{name!r} is no distribution name: lower-case words with dashes, for example spleen-ct"
        )
    root = folder / name
    if root.exists():
        raise ConfigurationError(f"{root} is there already: choose another name or folder")
    package = name.replace("-", "_")
    words = {
        "distribution": name,
        "package": package,
        "model": name.removeprefix("medflow-"),
        "class_name": "".join(part.capitalize() for part in name.removeprefix("medflow-").split("-")),
    }
    files = {
        root / "pyproject.toml": PYPROJECT,
        root / package / "__init__.py": MODULES[start],
        root / "tests" / "test_contract.py": TEST,
        root / "README.md": README,
    }
    for path, template in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(template.substitute(words))
    return list(files)
