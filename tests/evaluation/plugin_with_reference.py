"""A plugin whose model brings a reference of the inputs that it was trained on: a real package, in a folder."""

from __future__ import annotations

import json
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import numpy as np

from medflow.evaluation.input_drift import reference_of
from medflow.plugin import TimeSeriesInput
from tests.distributions import write_distribution
from tests.stays import HeartRisk

SOURCE = """
from dataclasses import replace
from medflow.plugin import Weights
from tests import stays

class HeartRisk(stays.HeartRisk):
    spec = replace(stays.HeartRisk.spec, reference=Weights(file="reference.json", sha256="{sha256}"))
"""


def heart_reference(rates: np.ndarray) -> bytes:
    """The reference of a cohort with these heart rates, as `HeartRisk` reads them."""
    (series,) = HeartRisk.spec.accepts
    assert isinstance(series, TimeSeriesInput) and series.window == timedelta(hours=1)
    values = rates.astype(np.float32).reshape(-1, 1, 1)
    return json.dumps(reference_of(values, np.empty((len(values), 0), np.float32), series)).encode()


def write_heart_plugin(folder: Path, rates: np.ndarray, *, name: str = "heart") -> Path:
    """A distribution of `HeartRisk` with this reference; returns the folder to put on the path."""
    data = heart_reference(rates)
    write_distribution(folder, name, "", {"heart-risk": "HeartRisk"})
    (folder / f"{name}.py").unlink()
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(SOURCE.format(sha256=sha256(data).hexdigest()))
    (folder / name / "reference.json").write_bytes(data)
    return folder
