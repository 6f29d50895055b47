"""Frames: decoded as pydicom decodes them, made exact float32, or refused, whatever their bytes do to a decoder."""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.data
import pytest
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medflow.dicom import files
from medflow.dicom.codecs import DECODERS
from medflow.dicom.elements import quiet
from medflow.dicom.pixels import decode, open_instance, stored_frames
from medflow.errors import InputNotUsable
from medflow.store import FolderObjects
from tests.dicom.encoded import ENCODERS, LOSSY, encoded, header_of, picture, with_pixels, written
from tests.factories_dicom import instance_of

NOWHERE = FolderObjects(Path("no-such-folder"))
BUNDLED = Path(pydicom.data.__file__).parent
DOCUMENT = Path(__file__).parents[2] / "docs" / "operators" / "transfer-syntaxes.md"


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet()


def _stored(path: Path) -> list[np.ndarray]:
    return stored_frames(open_instance(instance_of(path), NOWHERE, []))


def _values(path: Path, frames: Sequence[int] = (0,), shape: tuple[int, int] | None = None) -> list[np.ndarray]:
    """Modality values, through the same door as volumes."""
    file = open_instance(instance_of(path), NOWHERE, [])
    shape = shape or (file.header.Rows, file.header.Columns)
    targets = {frame: np.full(shape, np.nan, np.float32) for frame in frames}
    decode([(file, targets)], workers=2)
    return [targets[frame] for frame in frames]


def _refusal(path: Path, **changes: Any) -> str:
    with pytest.raises(InputNotUsable) as caught:
        _values(path, **changes)
    return caught.value.code


def _file(folder: Path, frames: Sequence[np.ndarray], bits: int, uid: str, **elements: Any) -> Path:
    dataset = with_pixels(header_of(frames[0], bits, **elements), frames, bits, uid)
    return written(folder / "file.dcm", dataset, uid)


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
    compared = 0

    for path, expected in _decoded_by_pydicom():
        frames = _stored(path)
        count = int(pydicom.dcmread(path, force=True).get("NumberOfFrames") or 1)
        assert len(frames) == count
        for mine, theirs in zip(frames, expected if count > 1 else [expected], strict=True):
            assert mine.dtype.newbyteorder("=") == theirs.dtype.newbyteorder("="), path.name
            np.testing.assert_array_equal(mine, theirs, err_msg=path.name)
        compared += 1

    assert compared >= 90  # of pydicom 3.0


# --- transfer syntaxes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", DECODERS)
def test_every_transfer_syntax_decodes(tmp_path: Path, uid: str) -> None:
    bits = 8 if uid == JPEGBaseline8Bit else 12
    pixels = picture(bits)

    (found,) = _values(_file(tmp_path, [pixels], bits, uid))

    most = LOSSY.get(uid, 0) * 2**bits
    assert np.abs(found - pixels).max() <= most
    assert most == 0 or not np.array_equal(found, pixels)


@pytest.mark.parametrize("uid", [uid for uid in DECODERS if uid not in LOSSY])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (8, True), (12, True), (16, False), (16, True)])
def test_lossless_ones_give_every_bit_back(tmp_path: Path, uid: str, bits: int, signed: bool) -> None:
    pixels = picture(bits, signed=signed)
    coded = pixels
    if signed and uid in ENCODERS and uid not in (RLELossless, JPEG2000Lossless) and "4.20" not in uid:
        coded = (pixels.view(f"u{pixels.itemsize}") & (2**bits - 1)).astype(
            f"u{pixels.itemsize}"
        )  # these know no signs
    dataset = header_of(pixels, bits)

    path = written(tmp_path / "file.dcm", with_pixels(dataset, [coded], bits, uid), uid)

    np.testing.assert_array_equal(_values(path)[0], pixels)


def test_any_predictor_of_lossless_jpeg_decodes(tmp_path: Path) -> None:
    import imagecodecs

    pixels, uid = picture(12), pydicom.uid.JPEGLossless
    for predictor in range(1, 8):
        dataset = header_of(pixels, 12)
        frame = imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=predictor, bitspersample=12)
        dataset.PixelData = encapsulate([bytes(frame)])

        np.testing.assert_array_equal(_values(written(tmp_path / "file.dcm", dataset, uid))[0], pixels)


@pytest.mark.parametrize("uid", [JPEGLSLossless, JPEGLosslessSV1])
def test_negative_pixels_are_right_or_refused_when_their_encoder_took_them_for_unsigned(
    tmp_path: Path, uid: str
) -> None:
    pixels = picture(12, signed=True)
    dataset = header_of(pixels, 12)
    dataset.PixelData = encapsulate([encoded((pixels & 0xFFF).view("u2"), 16, uid)])

    path = written(tmp_path / "file.dcm", dataset, uid)

    if uid == JPEGLSLossless:
        assert _refusal(path) == "undecodable-frame"
    else:
        np.testing.assert_array_equal(_values(path)[0], pixels)


def test_what_is_not_decoded_is_refused_by_name(tmp_path: Path) -> None:
    dataset, video = header_of(picture(8), 8), "1.2.840.10008.1.2.4.102"
    dataset.PixelData = encapsulate([b"a film"])

    with pytest.raises(InputNotUsable) as caught:
        open_instance(instance_of(written(tmp_path / "file.dcm", dataset, video)), NOWHERE, [])

    assert caught.value.code == "unsupported-transfer-syntax"
    assert "MPEG-4 AVC/H.264 High Profile / Level 4.1 (1.2.840.10008.1.2.4.102)" in caught.value.message
    assert "Explicit VR Little Endian" in caught.value.message


def test_the_documented_table_is_what_is_decoded() -> None:
    documented = re.findall(r"^\| (.+?) \| `([0-9.]+)` \| (\S+) \|", DOCUMENT.read_text(), re.M)

    assert {uid: plugin for _, uid, plugin in documented} == {
        uid: {"": "numpy", "pyjpegls": "pyjpegls"}.get(plugin, f"pylibjpeg-{_library(uid)}")
        for uid, plugin in DECODERS.items()
    }


def _library(uid: str) -> str:
    if uid == RLELossless:
        return "rle"
    return "openjpeg" if "4.9" in uid or "4.20" in uid else "libjpeg"


# --- frames ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", [ExplicitVRLittleEndian, ExplicitVRBigEndian, JPEG2000Lossless, RLELossless])
def test_the_frames_asked_for_are_those_given(tmp_path: Path, uid: str) -> None:
    frames = [picture(12, seed=number) for number in range(7)]

    found = _values(_file(tmp_path, frames, 12, uid), frames=(5, 0, 3))

    for number, one in zip((5, 0, 3), found, strict=True):
        np.testing.assert_array_equal(one, frames[number])


@pytest.mark.parametrize("kind", ["basic", "none", "fragments", "extended"])
def test_frames_are_found_by_any_offset_table_or_none(tmp_path: Path, kind: str) -> None:
    frames = [picture(12, seed=number) for number in range(4)]
    codestreams = [encoded(frame, 12, JPEG2000Lossless) for frame in frames]
    dataset = header_of(frames[0], 12, NumberOfFrames=4)
    if kind == "extended":
        pixels, offsets, lengths = encapsulate_extended(codestreams)
        dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = pixels, offsets, lengths
    else:
        per_frame = 3 if kind == "fragments" else 1
        dataset.PixelData = encapsulate(codestreams, fragments_per_frame=per_frame, has_bot=kind != "none")

    found = _values(written(tmp_path / "file.dcm", dataset, JPEG2000Lossless), frames=range(4))

    np.testing.assert_array_equal(found, frames)


def test_frames_of_single_bits_need_not_begin_at_bytes(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (5, 3, 7), np.uint8)
    dataset = header_of(bits, 1, NumberOfFrames=5)
    dataset.BitsAllocated, dataset.HighBit = 1, 0
    dataset.PixelData = np.packbits(bits.ravel(), bitorder="little").tobytes()

    found = _values(written(tmp_path / "file.dcm", dataset, ExplicitVRLittleEndian), frames=range(5))

    np.testing.assert_array_equal(found, bits)


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")])
def test_floating_point_pixels_are_taken_when_they_are_finite(tmp_path: Path, keyword: str, dtype: str) -> None:
    pixels = np.random.default_rng(0).normal(size=(6, 4)).astype(dtype)
    dataset = header_of(picture(8, shape=(6, 4)), 8, RescaleSlope=2, RescaleIntercept=1)
    dataset.BitsAllocated = pixels.itemsize * 8
    setattr(dataset, keyword, pixels.tobytes())
    path = written(tmp_path / "file.dcm", dataset, ExplicitVRLittleEndian)

    np.testing.assert_array_equal(_values(path)[0], (pixels.astype(np.float64) * 2 + 1).astype(np.float32))

    pixels[2, 2] = np.nan
    setattr(dataset, keyword, pixels.tobytes())
    assert _refusal(written(path, dataset, ExplicitVRLittleEndian)) == "undecodable-frame"


def test_eight_bits_in_big_endian_words_are_swapped(tmp_path: Path) -> None:
    frames = [picture(8, shape=(3, 5), seed=number) for number in range(3)]
    dataset = header_of(frames[0], 8, NumberOfFrames=3)
    data = np.frombuffer(b"".join(frame.tobytes() for frame in frames) + b"\0", "<u2")
    dataset.PixelData = data.astype(">u2").tobytes()
    dataset["PixelData"].VR = "OW"

    found = _values(written(tmp_path / "file.dcm", dataset, ExplicitVRBigEndian), frames=range(3))

    np.testing.assert_array_equal(found, frames)


# --- intensities -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize(
    ("slope", "intercept"), [(1, -1024), (2, 0), (-3, 10), (0.3184, 0), (1.25, -0.1), (1e-7, 3e4), (4097, 1), (1e30, 0)]
)
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, True), (16, False)])
def test_values_are_those_of_64_bits_rounded_once(
    tmp_path: Path, bits: int, signed: bool, slope: float, intercept: float, photometric: str
) -> None:
    pixels = picture(bits, signed=signed, shape=(9, 11))
    elements = {"RescaleSlope": slope, "RescaleIntercept": intercept, "PhotometricInterpretation": photometric}
    path = _file(tmp_path, [pixels], bits, ExplicitVRLittleEndian, **elements)

    expected = pixels * float(slope) + float(intercept)
    if photometric == "MONOCHROME1":
        ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])
        expected = float((ends * float(slope) + float(intercept)).sum()) - expected
    np.testing.assert_array_equal(_values(path)[0], expected.astype(np.float32))


def test_a_rescale_out_of_all_bounds_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path, [picture(12)], 12, ExplicitVRLittleEndian, RescaleSlope=1e38, RescaleIntercept=0)

    assert _refusal(path) == "bad-rescale"


# --- damage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", ENCODERS)
@pytest.mark.parametrize("part", [0.02, 0.5, 0.98])
def test_a_frame_that_is_cut_off_is_refused(tmp_path: Path, uid: str, part: float) -> None:
    bits = 8 if uid == JPEGBaseline8Bit else 12
    pixels = picture(bits, shape=(64, 64))
    whole = encoded(pixels, bits, uid)
    dataset = header_of(pixels, bits)
    dataset.PixelData = encapsulate([whole[: int(len(whole) * part)]])

    assert _refusal(written(tmp_path / "file.dcm", dataset, uid)) == "undecodable-frame"


@pytest.mark.parametrize("uid", [uid for uid in DECODERS if uid != DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize(
    "elements",
    [
        {"BitsAllocated": 13},
        {"BitsStored": 17},
        {"PixelRepresentation": 7},
        {"Rows": 400},
        {"PhotometricInterpretation": "NOTHING"},
        {"NumberOfFrames": 1000},
    ],
)
def test_a_header_that_contradicts_the_pixels_is_refused(tmp_path: Path, uid: str, elements: dict[str, Any]) -> None:
    bits = 8 if uid == JPEGBaseline8Bit else 12
    path = _file(tmp_path, [picture(bits)], bits, uid, **elements)

    assert _refusal(path, frames=(0, 1)) == "undecodable-frame"


@pytest.mark.parametrize("uid", [uid for uid in ENCODERS if uid != RLELossless])
def test_rows_and_columns_the_wrong_way_round_are_refused(tmp_path: Path, uid: str) -> None:
    bits = 8 if uid == JPEGBaseline8Bit else 12
    pixels = picture(bits)
    dataset = with_pixels(header_of(pixels, bits), [pixels], bits, uid)
    dataset.Rows, dataset.Columns = dataset.Columns, dataset.Rows

    assert _refusal(written(tmp_path / "file.dcm", dataset, uid)) == "undecodable-frame"


def test_pixels_in_the_upper_bits_are_refused(tmp_path: Path) -> None:
    path = _file(tmp_path, [picture(12)], 12, ExplicitVRLittleEndian, HighBit=15)

    assert _refusal(path) == "undecodable-frame"


def test_pixel_data_that_are_shorter_than_the_image_are_refused_though_more_follows(tmp_path: Path) -> None:
    dataset = with_pixels(header_of(picture(12), 12), [picture(12)], 12, ExplicitVRLittleEndian)
    dataset.PixelData = dataset.PixelData[:-2]
    dataset.DataSetTrailingPadding = bytes(10)

    assert _refusal(written(tmp_path / "file.dcm", dataset, ExplicitVRLittleEndian)) == "undecodable-frame"


def test_a_file_without_pixel_data_is_refused(tmp_path: Path) -> None:
    assert _refusal(written(tmp_path / "a.dcm", header_of(picture(12), 12), ExplicitVRLittleEndian)) == (
        "undecodable-frame"
    )
    assert _refusal(written(tmp_path / "b.dcm", header_of(picture(12), 12), DeflatedExplicitVRLittleEndian)) == (
        "undecodable-frame"
    )


@pytest.mark.parametrize("uid", [JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_random_damage_never_harms_this_process(tmp_path: Path, uid: str) -> None:
    bits = 8 if uid == JPEGBaseline8Bit else 12
    pixels = picture(bits, shape=(64, 64))
    whole, generator = encoded(pixels, bits, uid), np.random.default_rng(1)
    ends = set()

    for number in range(25):
        damaged = bytearray(whole)
        for place in generator.integers(2, len(damaged), 1 + number):
            damaged[place] = generator.integers(256)
        dataset = header_of(pixels, bits)
        dataset.PixelData = encapsulate([bytes(damaged)])
        try:
            _values(written(tmp_path / "file.dcm", dataset, uid))
            ends.add("decoded")  # a wrong bit is not always to be noticed
        except InputNotUsable as error:
            ends.add(error.code)

    assert "undecodable-frame" in ends and ends <= {"undecodable-frame", "decoded"}
    np.testing.assert_allclose(_values(_file(tmp_path, [pixels], bits, uid))[0], pixels, atol=5)


def test_the_reason_is_that_of_the_first_instance_that_has_one(tmp_path: Path) -> None:
    good = _file(tmp_path, [picture(12)], 12, JPEG2000Lossless)
    short = written(tmp_path / "short.dcm", header_of(picture(12), 12), JPEG2000Lossless)
    opened = [open_instance(instance_of(path), NOWHERE, []) for path in (good, good, short, good)]
    first, vanished = opened[2], opened[3]
    good.unlink()

    for _ in range(5):
        with pytest.raises(InputNotUsable) as caught:
            decode([(file, {0: np.empty((40, 56), np.float32)}) for file in (first, vanished)], workers=4)
        assert caught.value.code == "undecodable-frame"


# --- files that change -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [files.IN_MEMORY, 0])
@pytest.mark.parametrize("uid", [ImplicitVRLittleEndian, JPEG2000Lossless])
def test_a_file_is_checked_whether_it_is_held_or_read_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: str, in_memory: int
) -> None:
    monkeypatch.setattr(files, "IN_MEMORY", in_memory)
    frames = [picture(12, seed=number) for number in range(3)]
    path = _file(tmp_path, frames, 12, uid)
    np.testing.assert_array_equal(_values(path, frames=(0, 1, 2)), frames)

    instance = instance_of(path)
    header_read = open_instance(instance, NOWHERE, [])
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputNotUsable) as caught:
        decode([(header_read, {0: np.empty((40, 56), np.float32)})])
    assert caught.value.code == "file-changed"


def test_a_header_that_was_another_when_it_was_read_is_noticed(tmp_path: Path) -> None:
    path = _file(tmp_path, [picture(12)], 12, ExplicitVRLittleEndian, RescaleSlope=2, RescaleIntercept=0)
    taken_in, whole = instance_of(path), path.read_bytes()
    slope = whole.index(struct.pack("<HH", 0x0028, 0x1053)) + 8
    path.write_bytes(whole[:slope] + b"3" + whole[slope + 1 :])
    file = open_instance(taken_in, NOWHERE, [])
    path.write_bytes(whole)

    with pytest.raises(InputNotUsable) as caught:
        decode([(file, {0: np.empty((40, 56), np.float32)})])

    assert caught.value.code == "file-changed"


def test_an_object_of_the_store_is_read_like_a_file(tmp_path: Path) -> None:
    frames = [picture(12, seed=number) for number in range(3)]
    path = _file(tmp_path, frames, 12, JPEG2000Lossless)
    objects = FolderObjects(tmp_path / "objects")
    objects.put(path.read_bytes())
    file = open_instance(replace(instance_of(path), path=None), objects, [])

    np.testing.assert_array_equal(stored_frames(file), frames)
