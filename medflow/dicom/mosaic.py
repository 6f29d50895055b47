"""Siemens mosaics: the slices of one volume laid out as tiles of a single frame, taken apart where that is certain.

ImagePositionPatient of a mosaic is the corner of a slice that would be as large as all tiles together, so the first
tile lies half the difference further in. Which way the slices go is not in any standard element: it is taken from
Siemens' own header (CSA), and only if the positions in the protocol that was measured say the same.
"""

from __future__ import annotations

import re
import warnings
from math import ceil, sqrt
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from medflow.dicom.elements import number_of, numbers_of, text_of
from medflow.dicom.geometry import Plane, planes_of
from medflow.errors import InputNotUsable

MOSAIC_HEADER = ["SpacingBetweenSlices", "00290010", "00291010", "00291020"]
POSITION = re.compile(r"^sSliceArray\.asSlice\[(\d+)\]\.sPosition\.d(Sag|Cor|Tra)\s*=\s*(\S+)", re.MULTILINE)
COUNT = re.compile(r"^sSliceArray\.lSize\s*=\s*(\S+)", re.MULTILINE)
AXES = ("Sag", "Cor", "Tra")  # left, posterior, head: LPS
PARALLEL = 1e-3  # difference of a component of two directions
SAME_STEP = 0.01  # relative


def is_mosaic(header: Dataset) -> bool:
    """Whether an image says that it is a mosaic."""
    return "MOSAIC" in (text_of(header, "ImageType") or "").upper().split("\\")


def tiles_of(header: Dataset) -> list[tuple[Plane, tuple[int, int]]]:
    """The slices of a mosaic: where each lies, and the (row, column) of its first pixel in the frame.

    ``header`` must have `MOSAIC_HEADER`.

    Raises
    ------
    InputNotUsable
        mosaic: how the slices lie is not certain; missing-geometry.
    """
    image, series = _csa(header, "image"), _csa(header, "series")
    count = _values(image, "NumberOfImagesInMosaic", 1)[0]
    side = ceil(sqrt(count))
    rows, columns = (number_of(header, name) or 0 for name in ("Rows", "Columns"))
    if count != int(count) or count < 1 or rows % side or columns % side:
        raise _uncertain("its tiles do not fill it")
    (whole,) = planes_of(header)
    shape = (rows // side, columns // side)
    step = _step(header, image, whole)
    _check_protocol(series, int(count), step)
    shift = np.array([(columns - shape[1]) / 2 * whole.spacing_mm[1], (rows - shape[0]) / 2 * whole.spacing_mm[0]])
    first = whole.position + shift[0] * whole.along_rows + shift[1] * whole.along_columns
    return [
        (
            Plane(
                position=first + index * step,
                along_rows=whole.along_rows,
                along_columns=whole.along_columns,
                spacing_mm=whole.spacing_mm,
                shape=shape,
                frame_of_reference=whole.frame_of_reference,
            ),
            (index // side * shape[0], index % side * shape[1]),
        )
        for index in range(int(count))
    ]


def _step(header: Dataset, image: dict[str, Any], whole: Plane) -> np.ndarray:
    """From one tile's slice to the next, in mm."""
    spacing = numbers_of(header, "SpacingBetweenSlices")
    normal = np.array(_values(image, "SliceNormalVector", 3))
    if len(spacing) != 1 or spacing[0] <= 0:
        raise _uncertain("SpacingBetweenSlices is missing")
    if np.abs(normal - np.sign(normal @ whole.normal) * whole.normal).max() > PARALLEL:
        raise _uncertain("its slices' normal is not that of its orientation")
    return normal * spacing[0]


def _check_protocol(series: dict[str, Any], count: int, step: np.ndarray) -> None:
    """The slices as they were prescribed must follow one another as the tiles are taken to."""
    texts = [item for name in ("MrPhoenixProtocol", "MrProtocol") for item in _items(series, name)]
    text = next((text for text in texts if isinstance(text, str) and "sSliceArray" in text), "")
    size = COUNT.search(text)
    if count < 2 or size is None or size[1] != str(count):
        raise _uncertain("the protocol does not say where its slices lie")
    positions = np.zeros((count, 3))  # what is zero is not written
    for index, axis, value in POSITION.findall(text):
        try:
            positions[int(index), AXES.index(axis)] = float(value)
        except (IndexError, ValueError):
            raise _uncertain("the protocol does not say where its slices lie") from None
    if np.abs(np.diff(positions, axis=0) - step).max() > SAME_STEP * float(np.linalg.norm(step)):
        raise _uncertain("its slices were prescribed in another order or distance")


def _csa(header: Dataset, kind: str) -> dict[str, Any]:
    warnings.filterwarnings(
        "ignore", message="The DICOM readers are highly experimental"
    )  # only the header reader is used
    from nibabel.nicom import csareader

    try:
        found = csareader.get_csa_header(header, kind)
    except Exception:  # noqa: BLE001 - whatever damaged bytes raise
        found = None
    return found["tags"] if found else {}


def _items(tags: dict[str, Any], name: str) -> list[Any]:
    return tags.get(name, {}).get("items", [])


def _values(tags: dict[str, Any], name: str, count: int) -> list[float]:
    items = _items(tags, name)[:count]
    if len(items) != count or not all(isinstance(item, int | float) and np.isfinite(item) for item in items):
        raise _uncertain(f"Siemens' header does not give {name}")
    return [float(item) for item in items]


def _uncertain(why: str) -> InputNotUsable:
    return InputNotUsable("mosaic", f"a mosaic of slices, which cannot be taken apart with certainty: {why}")
