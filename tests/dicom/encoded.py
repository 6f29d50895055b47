"""Frames in every transfer syntax, encoded by others: imagecodecs, pydicom and the plugins of pylibjpeg."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import JPEGLSLosslessEncoder, JPEGLSNearLosslessEncoder, RLELosslessEncoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from tests.factories_dicom import slice_of


def picture(bits: int, *, signed: bool = False, shape: tuple[int, int] = (40, 56), seed: int = 0) -> np.ndarray:
    """Values over the whole range of so many bits, smooth enough for a lossy codec, in the type that holds them."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    wave = np.sin(y / 7 + seed) * np.cos(x / 9) * 0.48 + 0.5
    values = wave * (2**bits - 1) + np.random.default_rng(seed).integers(0, 3, shape)
    low = -(2 ** (bits - 1)) if signed else 0
    return (values.clip(0, 2**bits - 1) + low).astype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")


def _by_pydicom(encoder: Any, **options: Any) -> Callable[[np.ndarray, int], bytes]:
    def encode(pixels: np.ndarray, bits: int) -> bytes:
        return encoder.encode(
            pixels.tobytes(),
            rows=pixels.shape[0],
            columns=pixels.shape[1],
            samples_per_pixel=1,
            bits_allocated=pixels.dtype.itemsize * 8,
            bits_stored=bits,
            pixel_representation=int(pixels.dtype.kind == "i"),
            photometric_interpretation="MONOCHROME2",
            number_of_frames=1,
            **options,
        )

    return encode


def _unsigned(pixels: np.ndarray, bits: int) -> np.ndarray:
    """The same bits without their signs, which JPEG does not know."""
    return pixels.view(f"u{pixels.itemsize}") & np.array(2**bits - 1, f"u{pixels.itemsize}")


def _jpeg_2000(reversible: bool) -> Callable[[np.ndarray, int], bytes]:
    def encode(pixels: np.ndarray, bits: int) -> bytes:
        return imagecodecs.jpeg2k_encode(
            pixels, level=0 if reversible else 60, reversible=reversible, codecformat="j2k", bitspersample=bits
        )

    return encode


ENCODERS: dict[str, Callable[[np.ndarray, int], bytes]] = {
    RLELossless: _by_pydicom(RLELosslessEncoder),
    JPEGBaseline8Bit: lambda pixels, bits: imagecodecs.jpeg8_encode(pixels, level=98),
    JPEGExtended12Bit: lambda pixels, bits: imagecodecs.jpeg8_encode(pixels, level=98, bitspersample=bits),
    JPEGLossless: lambda pixels, bits: imagecodecs.jpeg8_encode(
        _unsigned(pixels, bits), lossless=True, predictor=6, bitspersample=bits
    ),
    JPEGLosslessSV1: lambda pixels, bits: imagecodecs.ljpeg_encode(_unsigned(pixels, bits), bitspersample=bits),
    JPEGLSLossless: _by_pydicom(JPEGLSLosslessEncoder),
    JPEGLSNearLossless: _by_pydicom(JPEGLSNearLosslessEncoder, jls_error=2),
    JPEG2000Lossless: _jpeg_2000(True),
    JPEG2000: _jpeg_2000(False),
    HTJ2KLossless: lambda pixels, bits: imagecodecs.htj2k_encode(pixels),
    HTJ2KLosslessRPCL: lambda pixels, bits: imagecodecs.htj2k_encode(pixels, tlm=True),
    HTJ2K: lambda pixels, bits: imagecodecs.htj2k_encode(pixels, level=0.001, reversible=False),
}
LOSSY = {JPEGBaseline8Bit: 0.02, JPEGExtended12Bit: 0.02, JPEGLSNearLossless: 0.001, JPEG2000: 0.02, HTJ2K: 0.02}


def encoded(pixels: np.ndarray, bits: int, uid: str) -> bytes:
    """One frame as it stands in the item of an encapsulated element."""
    return bytes(ENCODERS[uid](pixels, bits))


def header_of(pixels: np.ndarray, bits: int, **elements: Any) -> Dataset:
    """A CT slice without rescale whose header describes these pixels, but which has none."""
    rescale = {"RescaleSlope": None, "RescaleIntercept": None, "PixelData": None}
    dataset = slice_of(0, **{**rescale, **{name: value for name, value in elements.items() if name in rescale}})
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = pixels.dtype.itemsize * 8, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def with_pixels(dataset: Dataset, frames: Sequence[np.ndarray], bits: int, uid: str) -> Dataset:
    """The data set with these frames as its pixel data."""
    if len(frames) > 1:
        dataset.NumberOfFrames = len(frames)
    if uid in ENCODERS:
        dataset.PixelData = encapsulate([encoded(frame, bits, uid) for frame in frames])
        dataset["PixelData"].VR = "OB"
    else:
        order = ">" if uid == ExplicitVRBigEndian else "<"
        data = b"".join(frame.astype(frame.dtype.newbyteorder(order)).tobytes() for frame in frames)
        dataset.PixelData = data + bytes(len(data) % 2)
        dataset["PixelData"].VR = "OB" if frames[0].itemsize == 1 and uid != ImplicitVRLittleEndian else "OW"
    return dataset


def written(path: Path, dataset: Dataset, uid: str) -> Path:
    """The file in this transfer syntax."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    path.write_bytes(buffer.getvalue())
    return path
