"""A radiograph of any size becomes the picture that MedMNIST would have made of it."""

from __future__ import annotations

import numpy as np
import pytest

from medflow.plugin import InputNotUsable
from medflow_monai.pictures import centre_square, small_picture


@pytest.mark.parametrize("factor", [1, 2, 9])
def test_whole_factors_are_block_means(factor):
    full = np.random.default_rng(0).uniform(0, 1, (28 * factor, 28 * factor)).astype(np.float32)
    low, high = np.percentile(full, (0.5, 99.5))
    windowed = ((full - low) / (high - low)).clip(0, 1)

    expected = windowed.reshape(28, factor, 28, factor).mean(axis=(1, 3))

    assert small_picture(full) == pytest.approx(expected, abs=1e-5)


def test_broken_factors_keep_the_mean():
    ramp = np.add.outer(np.arange(101.0), np.arange(101.0))

    found = small_picture(ramp)

    assert found.mean() == pytest.approx(0.5, abs=0.01)
    assert np.all(np.diff(found, axis=0) >= -1e-6)


def test_the_centre_square_is_taken():
    wide = np.zeros((56, 100))
    wide[:, 22:78] = np.random.default_rng(1).uniform(0.2, 1, (56, 56))

    assert np.array_equal(small_picture(wide), small_picture(wide[:, 22:78]))


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [((30, 30), (0, 30), (0, 30)), ((56, 101), (0, 56), (22, 78)), ((61, 40), (10, 50), (0, 40))],
)
def test_the_centre_square_says_which_rows_and_columns_it_is(shape, rows, columns):
    assert centre_square(shape) == (slice(*rows), slice(*columns))


def test_scale_and_offset_of_the_intensities_do_not_matter():
    picture = np.random.default_rng(2).uniform(0, 1, (60, 60))

    assert small_picture(picture * 4095 - 1000) == pytest.approx(small_picture(picture), abs=1e-5)


@pytest.mark.parametrize(
    ("array", "code"),
    [
        (np.ones((27, 200)), "image-too-small"),
        (np.ones((28, 71)), "image-too-long"),
        (np.ones((64, 64)), "image-without-contrast"),
        (np.full((64, 64), np.nan), "image-not-finite"),
    ],
)
def test_what_is_no_radiograph_is_refused(array, code):
    with pytest.raises(InputNotUsable) as refused:
        small_picture(array)

    assert refused.value.code == code
