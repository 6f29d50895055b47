"""Cases for the two models, and the models loaded once."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from medflow.plugin import Case, Image, Unit, UnitKind
from medflow.sample.imaging import chest
from medflow_monai.abdomen import AbdomenPhantomCT
from medflow_monai.xray import PneumoniaXray


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def case_of():
    """Make a case of an array, with or without an affine (array indices x, y, z to LPS mm)."""

    def make(array: np.ndarray, affine: np.ndarray | None = None, *, modality: str = "CT") -> Case:
        spacing = None if affine is None else tuple(np.linalg.norm(affine[:3, :3], axis=0)[::-1].tolist())
        image = Image(array=array.astype(np.float32), spacing_mm=spacing, affine=affine, modality=modality)
        moment = datetime(2026, 3, 1, tzinfo=UTC)
        return Case(unit=Unit(kind=UnitKind.SERIES, id=1), prediction_time=moment, inputs={"image": image})

    return make


@pytest.fixture
def chest_cases(case_of):
    """Six chest-like pictures, from clear to cloudy."""
    pictures = [chest(np.random.default_rng(seed), opacity=seed / 5) * 4095 for seed in range(6)]
    return [case_of(picture, modality="DX") for picture in pictures]


@pytest.fixture(scope="session")
def xray():
    model = PneumoniaXray()
    model.load("cpu")
    return model


@pytest.fixture(scope="session")
def abdomen():
    model = AbdomenPhantomCT()
    model.load("cpu")
    return model
