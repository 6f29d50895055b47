"""The process that decodes compressed frames for another: ``python -m medflow.dicom.decoder_process``.

Decoders are C code that holds Python's lock while it works, and that is given bytes from anywhere. In a process of
its own it runs beside others, and what crashes it, hangs it or makes it ask for all memory costs one frame.

A request and an answer are each a JSON object behind its length, and then the frame's bytes. The process ends when its
input does, and when nothing was asked for a while.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import struct
import sys
from typing import Any

import numpy as np

from medflow.dicom.codecs import decompress
from medflow.dicom.elements import quiet

READY = b"ready\n"
LENGTH = struct.Struct("<I")
IDLE_S = 60
FRAME_S = 120  # a frame that takes longer never ends
ADDRESS_SPACE = 16 << 30  # bytes; a frame that asks for more is made to exhaust memory


def main() -> int:
    """Answer requests until there are no more."""
    answers = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a decoder prints is no answer
    quiet()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):  # for whoever asks, who may want to finish
        signal.signal(number, signal.SIG_IGN)
    _limit(resource.RLIMIT_AS, ADDRESS_SPACE)
    _limit(resource.RLIMIT_CORE, 0)  # a core file would hold pixels
    _write(answers, READY)
    while select.select([0], [], [], IDLE_S)[0]:
        head = _read(LENGTH.size)
        if head is None:
            return 0
        request = json.loads(_read(LENGTH.unpack(head)[0]) or b"")
        codestream = _read(request.pop("bytes"))
        if codestream is None:
            return 0
        signal.alarm(FRAME_S)  # unhandled on purpose: it ends the process from within any decoder
        answer, pixels = _answer(bytes(codestream), **request)
        signal.alarm(0)
        head = json.dumps(answer).encode()
        _write(answers, LENGTH.pack(len(head)) + head)
        if pixels is not None:
            _write(answers, pixels.data.cast("B"))
    return 0


def _answer(codestream: bytes, uid: str, options: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray | None]:
    try:
        pixels = np.ascontiguousarray(decompress(codestream, uid, options))
    except Exception as error:  # whatever the decoder raises; its text may quote the data
        return {"error": type(error).__name__}, None
    return {"dtype": pixels.dtype.str, "shape": pixels.shape}, pixels


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _read(count: int) -> bytearray | None:
    """Exactly so many bytes; None when the input ends."""
    data = bytearray(count)
    view, got = memoryview(data), 0
    while got < count:
        read = os.readv(0, [view[got:]])
        if read == 0:
            return None
        got += read
    return data


def _write(file: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


if __name__ == "__main__":
    sys.exit(main())
