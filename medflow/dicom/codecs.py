"""Transfer syntaxes: which of them are decoded and with what, and frames out of the pixel data of a file.

pydicom tries whatever decoders happen to be installed, one after the other. Here each syntax has one: the same file
gives the same numbers on every machine, and a decoder that takes damaged data for whole is never a second choice.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
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

from medflow.errors import InputNotUsable

Options = Mapping[str, Any]  # elements of the Image Pixel module (PS3.3 C.7.6.3) by pydicom's names for decoders

DECODERS: Mapping[str, str] = {  # the decoding plugin of pydicom; none is needed where pixels are not compressed
    ImplicitVRLittleEndian: "",
    ExplicitVRLittleEndian: "",
    DeflatedExplicitVRLittleEndian: "",
    ExplicitVRBigEndian: "",
    RLELossless: "pylibjpeg",
    JPEGBaseline8Bit: "pylibjpeg",
    JPEGExtended12Bit: "pylibjpeg",
    JPEGLossless: "pylibjpeg",
    JPEGLosslessSV1: "pylibjpeg",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
    HTJ2KLossless: "pylibjpeg",
    HTJ2KLosslessRPCL: "pylibjpeg",
    HTJ2K: "pylibjpeg",
}
HARMLESS = {RLELossless}  # decoded in Rust, within bounds and in no time
PANIC = "PanicException"  # of Rust, under Python's BaseException and not to be imported
JPEGS = {JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless}
JPEG_2000S = {JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K}
END_OF_IMAGE = b"\xff\xd9"
FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF of ITU-T T.81 B.1.1.3 and T.87 C.1.1
SCAN_MARKER = 0xDA


class FrameDamaged(Exception):
    """A compressed frame that is cut off, or is not the image that its header describes."""


def check_transfer_syntax(uid: str) -> None:
    """Raise `InputNotUsable` (unsupported-transfer-syntax) unless pixels in this transfer syntax are decoded."""
    if uid in DECODERS:
        return
    name = UID(uid).name
    stated = name if name == uid else f"{name} ({uid})"
    reason = (
        f"pixels in the transfer syntax {stated} are not decoded: have the sender send, or a DICOM tool convert to, "
        "Explicit VR Little Endian, and ingest that"
    )
    raise InputNotUsable("unsupported-transfer-syntax", reason, transfer_syntax=uid)


def is_compressed(uid: str) -> bool:
    """Whether frames in this transfer syntax are encapsulated (PS3.5 A.4)."""
    return bool(DECODERS[uid])


def needs_process(uid: str) -> bool:
    """Whether frames in this transfer syntax are decoded in a process of their own."""
    return bool(DECODERS.get(uid)) and uid not in HARMLESS


def native_frame(file: BinaryIO, frame: int, uid: str, options: Options) -> np.ndarray:
    """One frame that is not compressed, of pixel data that begin where ``file`` stands; only its bytes are read.

    The array may be a view of what was read, and read-only. Raises whatever pydicom makes of wrong elements.
    """
    if options["bits_allocated"] == 1:
        return _bit_frame(file, frame, (options["rows"], options["columns"]))
    return _decoder(uid).as_array(file, index=frame, view_only=True, **options)[0]


def _bit_frame(file: BinaryIO, frame: int, shape: tuple[int, int]) -> np.ndarray:
    """A frame of single bits, which begins where the last one ended: within a byte, maybe (PS3.5 8.1.1)."""
    start, count = frame * shape[0] * shape[1], shape[0] * shape[1]
    value = file.tell()
    file.seek(value + start // 8)
    data = file.read((start % 8 + count + 7) // 8)
    file.seek(value)
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    return bits[start % 8 : start % 8 + count].reshape(shape)


def codestreams(file: BinaryIO, frames: Sequence[int], options: Options) -> Iterator[tuple[int, bytes]]:
    """The compressed frames with these ascending numbers, of encapsulated pixel data that begin where ``file`` stands.

    A frame is all of its fragments, found by an offset table where there is one. Raises ValueError, or whatever
    pydicom makes of wrong items.
    """
    wanted = set(frames)
    total, offsets = options["number_of_frames"], options.get("extended_offsets")
    last = frames[-1]
    for number, found in enumerate(generate_frames(file, number_of_frames=total, extended_offsets=offsets)):
        if number in wanted:
            yield number, found
        if number == last:
            return
    raise ValueError("fewer frames than the header says")


def decompress(codestream: bytes, uid: str, options: Options) -> np.ndarray:
    """Decode one compressed frame: (rows, columns), or (rows, columns, 3), in the type that its header describes.

    Raises `FrameDamaged`, or whatever the decoder does. A decoder in C may do anything with bytes that were made to
    harm it: but for those of `HARMLESS`, `medflow.dicom.decoders` calls this in a process of its own.
    """
    check_codestream(codestream, uid, (options["rows"], options["columns"]))
    one = {name: value for name, value in options.items() if name != "extended_offsets"} | {"number_of_frames": 1}
    data = encapsulate([codestream], has_bot=False)
    try:
        pixels = _decoder(uid).as_array(data, index=0, decoding_plugin=DECODERS[uid], **one)[0]
    except BaseException as error:
        if type(error).__name__ != PANIC:
            raise
        raise FrameDamaged("the decoder gave up") from None
    _check_signs(pixels, options)
    return pixels


def _decoder(uid: str) -> Any:  # pydicom annotates its decoders' options as what holds them
    return get_decoder(UID(uid))


def check_codestream(codestream: bytes, uid: str, shape: tuple[int, int]) -> None:
    """Raise `FrameDamaged` for a frame that is cut off or of another size: not every decoder notices."""
    if uid in JPEGS:
        found, scan = _jpeg_shape(codestream)
        if codestream.rfind(END_OF_IMAGE, scan) < 0:
            raise FrameDamaged("the end of a frame is missing")
    elif uid in JPEG_2000S:
        found = _jpeg_2000_shape(codestream)
    else:
        return
    if found != shape and found != (0, shape[1]):  # no height: it is written behind the image (T.81 B.2.5)
        raise FrameDamaged("a frame has another size than its header says")


def _check_signs(pixels: np.ndarray, options: Options) -> None:
    """Refuse signed pixels well above the range of their bits: negative ones whose sign went lost in encoding.

    JPEG and JPEG-LS have no negative numbers. Where a codestream has more bits than BitsStored, nothing says whether
    the sign reaches up to its first bit.
    """
    if pixels.dtype.kind != "i" or options["bits_stored"] >= 8 * pixels.itemsize:
        return
    half = 1 << (options["bits_stored"] - 1)
    if pixels.max(initial=0) > half + half // 16:  # a lossy codec may overshoot
        raise FrameDamaged("pixels have lost their sign")


def _jpeg_shape(codestream: bytes) -> tuple[tuple[int, int], int]:
    """Rows and columns, and where the first scan begins."""
    position, shape = 2, None
    while position + 4 <= len(codestream) and codestream[position] == 0xFF:
        marker = codestream[position + 1]
        if marker == 0xFF:  # filling
            position += 1
            continue
        if marker in FRAME_MARKERS:
            shape = struct.unpack_from(">HH", codestream, position + 5)
        if marker == SCAN_MARKER and shape is not None:
            return (shape[0], shape[1]), position
        position += 2 + struct.unpack_from(">H", codestream, position + 2)[0]
    raise FrameDamaged("a frame has no header")


def _jpeg_2000_shape(codestream: bytes) -> tuple[int, int]:
    """Rows and columns of the image and tile size segment (ITU-T T.800 A.5.1), within a JP2 file too."""
    start = codestream.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(codestream) < start + 24:
        raise FrameDamaged("a frame has no header")
    right, bottom, left, top = struct.unpack_from(">4L", codestream, start + 8)
    return bottom - top, right - left
