"""Frames of stored instances decoded into modality values, or a reason why not.

Everything between a file and a float32 array of a slice is here; where slices lie is `medflow.dicom.plan`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.utils import as_pixel_options

from medflow.dicom.codecs import codestreams, is_compressed, native_frame, needs_process
from medflow.dicom.decoders import Decoders, decoders
from medflow.dicom.elements import number_of
from medflow.dicom.files import InstanceFile, Objects, PixelSource, open_instance
from medflow.dicom.intensities import Intensities, intensities_of
from medflow.errors import InputNotUsable, MedflowError
from medflow.records import Instance

__all__ = ["InstanceFile", "Objects", "decode", "expect", "open_instance", "stored_frames"]

BLOCK = 8 << 20  # bytes of uncompressed frames that one thread converts at a time
AHEAD = 4  # pieces of work for each thread, so that none waits; more would only hold memory

Sink = Callable[[int, np.ndarray], None]
Piece = Callable[[], None]


def decode(wanted: Iterable[tuple[InstanceFile, Mapping[int, np.ndarray]]], *, workers: int = 0) -> None:
    """Decode frames, of any number of instances, each into its target.

    Each instance comes with the frames wanted of it (numbered from 0) and where each goes: (rows, columns) float32
    arrays, filled with the values after the modality LUT. All callers in this process share ``workers`` threads, and as
    many processes for compressed frames; 0 is one per core.

    Raises
    ------
    InputNotUsable
        file-missing, file-changed, undecodable-frame or bad-rescale: always that of the first instance that has one.
    """
    pool = decoders(workers)

    def pieces() -> Iterator[Piece]:
        for file, targets in wanted:
            sink = partial(_fill, targets, _guarded(file, partial(_intensities, file.header, targets)))
            yield from _pieces(file, sorted(targets), sink, pool)

    _run(pieces(), pool)


def expect(instances: Sequence[Instance], *, workers: int = 0) -> None:
    """Start what `decode` will need for these, while their headers are read."""
    frames = sum(one.frames for one in instances if needs_process(one.transfer_syntax_uid))
    if frames:
        decoders(workers).start(frames)


def stored_frames(file: InstanceFile, *, workers: int = 0) -> list[np.ndarray]:
    """Every frame's stored values, before any LUT: (rows, columns), or (rows, columns, 3) as RGB where that is known.

    Raises
    ------
    InputNotUsable
        file-missing, file-changed or undecodable-frame.
    """
    pool, found = decoders(workers), {}
    count = max(number_of(file.header, "NumberOfFrames") or 1, 1)

    def keep(frame: int, pixels: np.ndarray) -> None:
        found[frame] = np.array(pixels)

    _run(_pieces(file, range(count), keep, pool), pool)
    return [found[frame] for frame in range(count)]


def _run(pieces: Iterable[Piece], pool: Decoders) -> None:
    """Do the pieces in parallel; what goes wrong first in their order is raised, when none is at work any more."""
    waiting: deque[Future[None]] = deque()
    try:
        for piece in pieces:
            waiting.append(pool.threads.submit(piece))
            if len(waiting) >= AHEAD * pool.workers:
                waiting.popleft().result()
        while waiting:
            waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)


def _pieces(file: InstanceFile, frames: Sequence[int], sink: Sink, pool: Decoders) -> Iterator[Piece]:
    """The work on one instance, as pieces that may run in any thread."""
    if len(frames) == 1:
        yield partial(_guarded, file, partial(_decode_here, file, frames, sink, pool))
        return
    source = _guarded(file, partial(PixelSource.of, file))
    options = _guarded(file, partial(_options, file, source))
    if not is_compressed(file.transfer_syntax):
        step = max(1, BLOCK // max(1, _bits(options) // 8))
        for start in range(0, len(frames), step):
            block = frames[start : start + step]
            yield partial(_guarded, file, partial(_native, file, source, options, block, sink, pool))
        return
    with source.open() as opened:
        found = codestreams(opened, frames, options)
        while (item := _guarded(file, partial(next, found, None))) is not None:
            yield partial(_guarded, file, partial(_compressed, file, options, sink, pool, *item))


def _decode_here(file: InstanceFile, frames: Sequence[int], sink: Sink, pool: Decoders) -> None:
    source = PixelSource.of(file)
    options = _options(file, source)
    if not is_compressed(file.transfer_syntax):
        _native(file, source, options, frames, sink, pool)
        return
    with source.open() as opened:
        for frame, codestream in codestreams(opened, frames, options):
            _compressed(file, options, sink, pool, frame, codestream)


def _native(
    file: InstanceFile,
    source: PixelSource,
    options: dict[str, Any],
    frames: Sequence[int],
    sink: Sink,
    pool: Decoders,
) -> None:
    with pool.at_work, source.open() as opened:
        for frame in frames:
            sink(frame, native_frame(opened, frame, file.transfer_syntax, options))


def _compressed(
    file: InstanceFile, options: dict[str, Any], sink: Sink, pool: Decoders, frame: int, codestream: bytes
) -> None:
    sink(frame, pool.decompress(codestream, file.transfer_syntax, options))


def _guarded(file: InstanceFile, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except MedflowError:
        raise
    except Exception as error:  # decoders raise whatever their libraries do; the text may quote the data
        reason = f"the pixels of an instance cannot be decoded ({type(error).__name__})"
        raise InputNotUsable("undecodable-frame", reason, transfer_syntax=file.transfer_syntax) from None


def _intensities(header: Dataset, frames: Iterable[int]) -> dict[int, Intensities]:
    return {frame: intensities_of(header, frame) for frame in frames}


def _fill(
    targets: Mapping[int, np.ndarray], intensities: Mapping[int, Intensities], frame: int, pixels: np.ndarray
) -> None:
    target = targets[frame]
    if pixels.shape != target.shape:
        raise InputNotUsable("undecodable-frame", "a decoded frame has another size than its header says")
    intensities[frame].fill(target, pixels)


def _options(file: InstanceFile, source: PixelSource) -> dict[str, Any]:
    """What the header says of the pixels, for pydicom's decoders; ValueError where it contradicts itself."""
    options = as_pixel_options(file.header, pixel_keyword=source.keyword)
    options["number_of_frames"] = int(options["number_of_frames"])
    if is_compressed(file.transfer_syntax):
        return options
    options["pixel_vr"] = source.vr
    if options["samples_per_pixel"] == 1 and (_bits(options) * options["number_of_frames"] + 7) // 8 > source.length:
        raise ValueError("fewer pixel data than the header says")
    high = number_of(file.header, "HighBit")
    if source.keyword == "PixelData" and high is not None and high != options["bits_stored"] - 1:
        raise ValueError("pixels that do not begin at the lowest bit")
    return options


def _bits(options: dict[str, Any]) -> int:
    """Of one frame."""
    return options["rows"] * options["columns"] * options["samples_per_pixel"] * options["bits_allocated"]
