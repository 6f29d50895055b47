"""How bases become numbers: the one thing that training and scoring must do alike. No torch."""

from __future__ import annotations

import numpy as np

ALPHABET = "ACGT"
LENGTH = 60  # bases; the boundary that is asked about lies between the 30th and the 31st
CLASSES = ("EI", "IE", "N")

_CODE = np.full(128, -1, dtype=np.int64)
for _number, _letter in enumerate(ALPHABET):
    _CODE[ord(_letter)] = _number


def encode(bases: str) -> np.ndarray:
    """Numbers of the bases in `ALPHABET`, shape (len(bases),) int64; -1 for any other letter."""
    points = np.frombuffer(bases.encode("ascii", "replace"), dtype=np.uint8)
    return _CODE[np.minimum(points, 127)]
