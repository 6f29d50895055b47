"""Siemens mosaics: taken apart where their private header and the protocol agree, refused otherwise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from medflow.dicom.mosaic import tiles_of
from medflow.errors import InputNotUsable

IMAGE, SERIES = 0x00291010, 0x00291020


@pytest.fixture(scope="module")
def mosaic(realdata: Callable[[str], Path]) -> Dataset:
    folder = realdata("dcm_qa_nih") / "dcm_qa_nih" / "In" / "20180918Si" / "mr_0003"
    return dcmread(next(path for path in sorted(folder.iterdir()) if path.suffix != ".txt"))


def _changed(mosaic: Dataset, tag: int, old: bytes, new: bytes) -> Dataset:
    """The same header with bytes of the private part replaced by as many others."""
    changed = copy.deepcopy(mosaic)
    assert old in changed[tag].value and len(old) == len(new)
    changed[tag].value = changed[tag].value.replace(old, new)
    return changed


def _refusal(header: Dataset) -> str:
    with pytest.raises(InputNotUsable) as caught:
        tiles_of(header)
    assert caught.value.code == "mosaic"
    return caught.value.message


def test_the_first_tile_lies_half_the_difference_in_and_the_others_follow(mosaic: Dataset) -> None:
    tiles = tiles_of(mosaic)

    assert [tile for _, tile in tiles] == [(0, 0), (0, 72), (0, 144), (72, 0), (72, 72)]
    assert [plane.shape for plane, _ in tiles] == [(72, 72)] * 5
    np.testing.assert_allclose([plane.position for plane, _ in tiles], [[-108, -108, 16 + 12 * z] for z in range(5)])


@pytest.mark.parametrize("tag", [IMAGE, SERIES])
def test_without_the_private_header_a_mosaic_is_refused(mosaic: Dataset, tag: int) -> None:
    stripped = copy.deepcopy(mosaic)
    del stripped[tag]

    assert "certainty" in _refusal(stripped)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"asSlice[3].sPosition.dTra\t = \t52.0", b"asSlice[3].sPosition.dTra\t = \t51.0"),
        (b"asSlice[3].sPosition.dTra\t = \t52.0", b"asSlice[3].sPosition.dCor\t = \t52.0"),
        (b"asSlice[3].sPosition.dTra\t = \t52.0", b"asSlice[3].sPosition.dTra\t = \tfoo "),
        (b"sSliceArray.lSize\t = \t5", b"sSliceArray.lSize\t = \t6"),
    ],
)
def test_a_protocol_that_says_otherwise_refuses_the_mosaic(mosaic: Dataset, old: bytes, new: bytes) -> None:
    assert "prescribed" in (message := _refusal(_changed(mosaic, SERIES, old, new))) or "protocol" in message


def test_slices_in_the_opposite_order_are_refused(mosaic: Dataset) -> None:
    positions = [b"sPosition.dTra\t = \t%d.0" % place for place in (16, 28, 40, 52, 64)]
    changed = mosaic
    for index in (0, 1):  # swap the first with the last, the second with the last but one
        one, other = b"[%d]." % index + positions[index], b"[%d]." % (4 - index) + positions[4 - index]
        changed = _changed(changed, SERIES, one, one.replace(positions[index], positions[4 - index]))
        changed = _changed(changed, SERIES, other, other.replace(positions[4 - index], positions[index]))

    assert "another order" in _refusal(changed)


def test_a_mosaic_whose_tiles_do_not_fill_it_is_refused(mosaic: Dataset) -> None:
    cut = copy.deepcopy(mosaic)
    cut.Rows = 215

    assert "do not fill it" in _refusal(cut)


def test_damaged_private_bytes_refuse_the_mosaic(mosaic: Dataset) -> None:
    damaged = copy.deepcopy(mosaic)
    damaged[IMAGE].value = damaged[IMAGE].value[:600]

    assert "certainty" in _refusal(damaged)
