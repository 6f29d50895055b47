"""Frames: decoded as pydicom decodes them, turned into exact float32, or refused; whatever the bytes do to a decoder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from pydicom.dataset import Dataset

from medflow.dicom.elements import quiet
from medflow.dicom.pixels import open_instance, stored_frames
from medflow.store import FolderObjects
from tests.factories_dicom import instance_of

NOWHERE = FolderObjects(Path("no-such-folder"))
BUNDLED = Path(pydicom.data.__file__).parent


def _stored(path: Path) -> list[np.ndarray]:
    return stored_frames(open_instance(instance_of(path), NOWHERE, []))


# --- as pydicom does -------------------------------------------------------------------------------------------


def _decoded_by_pydicom() -> Iterator[tuple[Path, np.ndarray]]:
    """Every file in pydicom's distribution that pydicom decodes, with what it makes of it."""
    for path in sorted(BUNDLED.rglob("*")):
        try:
            with warnings.catch_warnings(action="ignore"):
                pixels = pydicom.dcmread(path, force=True).pixel_array
        except Exception:  # noqa: BLE001, S112 - folders, Python files, DICOM without pixels, damaged ones
            continue
        yield path, pixels


def test_every_file_that_pydicom_decodes_is_decoded_identically() -> None:
    quiet()
    compared = 0

    for path, expected in _decoded_by_pydicom():
        frames = _stored(path)
        count = int(pydicom.dcmread(path, force=True).get("NumberOfFrames") or 1)
        assert len(frames) == count
        for mine, theirs in zip(frames, expected if count > 1 else [expected], strict=True):
            assert mine.dtype.newbyteorder("=") == theirs.dtype.newbyteorder("="), path.name
            np.testing.assert_array_equal(mine, theirs, err_msg=path.name)
        compared += 1

    assert compared >= 100  # of pydicom 3.0
