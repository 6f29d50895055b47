"""Figures as PNG files, without pyplot: nothing is shared between threads, and no display is looked for.

matplotlib is imported when the first figure is made, not when a command starts.
"""

from __future__ import annotations

import io
from base64 import b64encode
from typing import TYPE_CHECKING

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
