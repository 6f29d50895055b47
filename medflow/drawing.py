"""Figures as PNG files, without pyplot: nothing is shared between threads, and no display is looked for.

matplotlib is imported when the first figure is made, not when a command starts.
"""

from __future__ import annotations

import io
from base64 import b64encode
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT = "#333333", "#d0d4da"
COLOURS = ("#1f6fb4", "#d9822b", "#3a9a5b", "#8a5fb0", "#c0504d", "#4aa3a8", "#9a7b4f", "#7f7f7f")
MAX_PNG = 140_000  # bytes: what stays under 200 KB as a data URI
_RESOLUTIONS = (96, 72, 50)  # tried in turn until the file is small enough


def figure(width_in: float, height_in: float) -> Figure:
    """An empty figure whose axes arrange themselves."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width_in, height_in), layout="constrained", facecolor="white")
    made.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr]  # it has the engine asked for
    return made


def png(figure: Figure) -> bytes:
    """The figure as a PNG file of at most `MAX_PNG` bytes, where a lower resolution can make it so."""
    data = b""
    for resolution in _RESOLUTIONS:
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=resolution, metadata={"Software": None})
        data = file.getvalue()
        if len(data) <= MAX_PNG:
            break
    return data


def data_uri(png: bytes) -> str:
    """The picture itself as an address, so that a page needs no file beside it."""
    return f"data:image/png;base64,{b64encode(png).decode()}"


# --- heat maps over images ---------------------------------------------------------------------------------------

HEAT = "inferno"  # a map of colours of even steps to the eye, and no hue that grey images have
MOST = 0.6  # how much of the image a heat map hides where it is strongest


def heat_range(values: np.ndarray) -> tuple[float, float]:
    """What colours stand for: from zero, where there is anything above it, to the largest value; NaN is left out."""
    found = values[np.isfinite(values)]
    if not found.size:
        return 0.0, 1.0
    low, high = float(found.min()), float(found.max())
    low = max(low, 0.0) if high > 0 else low
    return (low, high) if high > low else (low, low + 1.0)


def heat_strength(values: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    """0 to 1 within ``span``, and 0 where nothing is said or what is said speaks against the answer."""
    return np.clip(np.nan_to_num((values - span[0]) / (span[1] - span[0]), nan=0.0), 0.0, 1.0)


def grey_range(pixels: np.ndarray) -> tuple[float, float]:
    """The window to show an image in that says nothing of its own: all but its darkest and brightest hundredth."""
    low, high = np.percentile(pixels[np.isfinite(pixels)], (1, 99))
    return float(low), float(max(high, low + 1e-6))


def blended(pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """An image in grey with its heat map in colours over it: (rows, columns, 3) uint8; the stronger, the denser."""
    from matplotlib import colormaps

    low, high = grey_range(pixels)
    grey = np.clip((np.nan_to_num(pixels, nan=low) - low) / (high - low), 0.0, 1.0)[..., None]
    strength = heat_strength(values, heat_range(values))
    colour = colormaps[HEAT](strength)[..., :3]
    hidden = (MOST * strength)[..., None]
    return np.around(255 * (grey * (1 - hidden) + colour * hidden)).astype(np.uint8)
