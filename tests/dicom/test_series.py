"""What models ask of a series, read from headers: plain, enhanced, and wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from medflow.config import load_settings
from medflow.dicom.read import read_bytes
from medflow.records import Series
from tests.factories_dicom import slice_of, to_bytes

PLAIN = load_settings(home=Path("unused"))


def _series(**elements: Any) -> Series:
    return read_bytes(to_bytes(slice_of(**elements)), PLAIN).object.series


def _item(**elements: Any) -> Dataset:
    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return item


def _measures(*thicknesses: float) -> list[Dataset]:
    return [_item(PixelMeasuresSequence=[_item(SliceThickness=thickness)]) for thickness in thicknesses]


def test_a_plain_object_says_it_in_its_own_elements() -> None:
    series = _series(
        ProtocolName="Venous", ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], SliceThickness=2.5, ContrastBolusAgent="x"
    )

    assert series.protocol_name == "Venous"
    assert series.image_type == "ORIGINAL\\PRIMARY\\AXIAL"
    assert (series.slice_thickness_mm, series.contrast) == (2.5, True)


@pytest.mark.parametrize("agent", ["", "NONE", "no", "Without contrast"])
def test_no_agent_is_no_contrast_whatever_the_word(agent: str) -> None:
    assert _series(ContrastBolusAgent=agent).contrast is False


def test_without_the_elements_there_is_no_contrast_and_no_thickness() -> None:
    series = _series(SliceThickness=None)

    assert (series.contrast, series.slice_thickness_mm, series.protocol_name, series.image_type) == (
        False,
        None,
        None,
        None,
    )


@pytest.mark.parametrize("wrong", ["0", "-1", ""])
def test_a_thickness_that_cannot_be_one_is_not_known(wrong: str) -> None:
    assert _series(SliceThickness=wrong).slice_thickness_mm is None


@pytest.mark.parametrize("groups", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_an_enhanced_object_says_it_in_functional_groups(groups: str) -> None:
    agent = _item(CodeValue="A", CodingSchemeDesignator="99X", CodeMeaning="agent")
    enhanced = {"SliceThickness": None, "ContrastBolusAgentSequence": [agent], groups: _measures(3.0, 1.5, 2.0)}

    series = _series(**enhanced)

    assert (series.slice_thickness_mm, series.contrast) == (1.5, True)


def test_every_encoding_says_the_same() -> None:
    said = [
        _series_of("MR_small.dcm"),
        _series_of("MR_small_bigendian.dcm"),
        _series_of("MR_small_implicit.dcm"),
    ]

    assert {(one.image_type, one.slice_thickness_mm, one.contrast) for one in said} == {
        ("DERIVED\\SECONDARY\\OTHER", 0.8, False)
    }
    assert {ExplicitVRBigEndian, ImplicitVRLittleEndian} <= {
        pydicom.dcmread(str(get_testdata_file(name))).file_meta.TransferSyntaxUID
        for name in ("MR_small_bigendian.dcm", "MR_small_implicit.dcm")
    }


@pytest.mark.parametrize("name", ["CT_small.dcm", "examples_overlay.dcm", "liver_1frame.dcm"])
def test_real_objects_say_what_pydicom_reads(name: str) -> None:
    series, peer = _series_of(name), pydicom.dcmread(str(get_testdata_file(name)), stop_before_pixels=True)

    measures = peer
    if "SharedFunctionalGroupsSequence" in peer:
        measures = peer.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert series.slice_thickness_mm == float(measures.SliceThickness)
    assert series.contrast is bool(peer.get("ContrastBolusAgent"))
    assert series.protocol_name == peer.get("ProtocolName")


def _series_of(name: str) -> Series:
    return read_bytes(Path(str(get_testdata_file(name))).read_bytes(), PLAIN).object.series
