"""From a radiograph of any size to the 28 x 28 grey picture that the classifier was trained on."""

from __future__ import annotations

import numpy as np

from medflow.plugin import InputNotUsable

EDGE = 28  # pixels
_MAX_ASPECT = 2.5
_WINDOW_PERCENTILES = (0.5, 99.5)


def small_picture(array: np.ndarray) -> np.ndarray:
    """The centre square of a radiograph (rows, columns), averaged down to (28, 28) float32 in 0..1.

    This is what MedMNIST did to its sources - a centre crop by the short edge, then a resize - but with an intensity
    window between two percentiles, because radiographs in DICOM have no common scale.

    Raises
    ------
    InputNotUsable
        It is smaller than 28 pixels, too elongated for a chest, without contrast, or holds values that are no numbers.
    """
    rows, columns = array.shape
    short, long = sorted(array.shape)
    if short < EDGE:
        raise InputNotUsable("image-too-small", f"{rows} x {columns} pixels; the model needs {EDGE} x {EDGE} at least")
    if long > _MAX_ASPECT * short:
        raise InputNotUsable("image-too-long", f"{rows} x {columns} pixels is too elongated for a chest radiograph")
    if not np.isfinite(array).all():
        raise InputNotUsable("image-not-finite", "the image has pixels that are no numbers")
    square = array[centre_square((rows, columns))].astype(np.float32)
    low, high = np.percentile(square, _WINDOW_PERCENTILES)
    if high <= low:
        raise InputNotUsable("image-without-contrast", "the image has one value nearly everywhere")
    weights = _area_weights(short)
    return np.clip(weights @ ((square - low) / (high - low)).clip(0, 1) @ weights.T, 0, 1).astype(np.float32)


def centre_square(shape: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns of the largest square in the middle of a picture (rows, columns): what the model sees."""
    short = min(shape)
    top, left = ((size - short) // 2 for size in shape)
    return slice(top, top + short), slice(left, left + short)


def _area_weights(size: int) -> np.ndarray:
    """Matrix (28, size) that averages ``size`` pixels into 28 by the share of each that a new pixel covers."""
    edges = np.arange(EDGE + 1) * (size / EDGE)
    pixels = np.arange(size)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (covered.clip(0) * (EDGE / size)).astype(np.float32)
