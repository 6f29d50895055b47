"""`medflow plugin new`: a distribution that installs and keeps the contract, to be changed from there."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

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

MODULE = Template('''\
"""$class_name: say here what the model answers, and about whom."""

from collections.abc import Sequence
from datetime import timedelta

import numpy as np

from medflow.plugin import (
    LOINC,
    Case,
    Channel,
    Coding,
    InputNotUsable,
    Measure,
    Model,
    ModelCard,
    ModelSpec,
    Prediction,
    TimeSeriesInput,
    UnitKind,
)

HEART_RATE = Coding(system=LOINC, code="8867-4", display="Heart rate")


class $class_name(Model[np.ndarray]):
    """Averages the heart rate of the first day: replace it with your model."""

    spec = ModelSpec(
        name="$model",
        version="0.1.0",
        title="$class_name",
        unit=UnitKind.ENCOUNTER,
        accepts=(
            TimeSeriesInput(
                channels=(Channel(name="heart rate", codes=(HEART_RATE,), unit="/min", valid_range=(0, 300)),),
                window=timedelta(hours=24),
                step=timedelta(hours=1),
            ),
        ),
        outputs=(
            Measure(
                name="mean",
                code=Coding(system=LOINC, code="41924-2", display="Heart rate 24 hour mean"),
                unit="/min",
                valid_range=(0, 300),
            ),
        ),
        card=ModelCard(
            intended_use="Whom is it for, and who reads its answer?",
            training_data="What was it trained on, and from where?",
            licence="Under which licence may it be used?",
            metrics={"AUROC": "measured how, on whom, by which command?"},
            limits="Where is it known to fail?",
        ),
        batch_size=32,
    )

    def load(self, device: str) -> None:
        """Import torch here, and put the weights on ``device`` (medflow.inference.weights.load_weights)."""

    def prepare(self, case: Case) -> np.ndarray:
        """The hours in which a heart rate was measured, shape (hours,)."""
        hours = case.series.values[:, 0]
        measured = hours[np.isfinite(hours)]
        if not len(measured):
            raise InputNotUsable("no-heart-rate", "no heart rate was measured in the first day")
        return measured

    def predict(self, batch: Sequence[np.ndarray]) -> list[Prediction]:
        """The mean of each case."""
        return [Prediction(values={"mean": float(hours.mean())}) for hours in batch]
''')

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


def write_plugin(folder: Path, name: str) -> list[Path]:
    """Write the distribution ``name`` into ``folder / name``; returns its files.

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
        root / package / "__init__.py": MODULE,
        root / "tests" / "test_contract.py": TEST,
        root / "README.md": README,
    }
    for path, template in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(template.substitute(words))
    return list(files)
