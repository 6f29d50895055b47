"""The worked example of the documentation does what the page says of it."""

from dataclasses import replace

import numpy as np
import pytest

from medflow.errors import InputNotUsable
from medflow.inference.results import results_of
from medflow.plugin import Case, Image
from medflow.testing import sample_cases
from tests.example_imaging import LowAttenuation

SHAPE, SPACING_MM = (64, 48, 64), (4.0, 5.0, 5.0)


def breath(lungs_hu: float, spot_hu: float) -> Image:
    """Two ellipsoid lungs with a ball of another density in one, in a body in air (z, y, x)."""
    z, y, x = (np.indices(SHAPE).T * SPACING_MM).T - np.array([126.0, 117.5, 157.5])[:, None, None, None]
    array = np.where((x / 140) ** 2 + (y / 100) ** 2 < 1, 30.0, -1000.0)
    for side in (-70, 70):
        array[((x - side) / 45) ** 2 + (y / 65) ** 2 + (z / 100) ** 2 < 1] = lungs_hu
    array[(x - 70) ** 2 + y**2 + z**2 < 25**2] = spot_hu
    affine = np.diag([5.0, 5.0, 4.0, 1.0])
    return Image(array=array.astype(np.float32), spacing_mm=SPACING_MM, affine=affine, modality="CT")


@pytest.fixture
def cases() -> list[Case]:
    made = sample_cases(LowAttenuation.spec, 2)
    densities = [((-860, -975), (-700, -900)), ((-840, -840), (-720, -720))]
    return [
        replace(case, inputs={"inspiration": breath(*one), "expiration": breath(*two)})
        for case, (one, two) in zip(made, densities, strict=True)
    ]


def test_it_keeps_the_contract(check_model, cases):
    check_model(LowAttenuation, cases)


def test_volumes_are_those_of_the_bodies_drawn(cases):
    model = LowAttenuation()

    ill, well = (results_of(model.spec, case, model.predict([model.prepare(case)])[0]) for case in cases)

    lungs, emphysema, trapped = (result.value for result in ill)
    assert lungs == pytest.approx(2 * 4 / 3 * np.pi * 45 * 65 * 100 / 1000, rel=0.05)
    assert emphysema == trapped == pytest.approx(4 / 3 * np.pi * 25**3 / 1000, rel=0.1)
    assert [result.value for result in well[1:]] == [0, 0]


def test_a_picture_without_lungs_is_refused():
    [case, _] = sample_cases(LowAttenuation.spec, 2)

    with pytest.raises(InputNotUsable, match="too little air"):
        LowAttenuation().prepare(case)
