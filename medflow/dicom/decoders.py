"""Threads that read and convert frames, and processes that decode compressed ones for them.

Reading, hashing and numpy's conversions let other threads run; the decoders of pydicom's plugins do not, so each
thread that meets a compressed frame takes a process (`medflow.dicom.decoder_process`). They are plain child processes
spoken to through pipes: that works in a daemon, in a forked process and beside CUDA, where multiprocessing does not.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import BoundedSemaphore, Lock
from typing import Any, NoReturn

import numpy as np

from medflow.dicom.codecs import FrameDamaged, decompress, needs_process
from medflow.dicom.decoder_process import LENGTH, READY
from medflow.errors import ConfigurationError, TransientError

PIPE_BYTES = 1 << 20
ENVIRONMENT = {  # one thread each; and glibc keeps a frame's memory for the next frame
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}
CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGALRM}
SET_PIPE_SIZE = getattr(fcntl, "F_SETPIPE_SZ", None)  # Linux


def decoders(workers: int = 0) -> Decoders:
    """The decoders of this process, shared by all of its threads: as many as ``workers``, 0 is one per core."""
    return _decoders(os.getpid(), workers or len(_cores()))


def _cores() -> set[int] | range:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


@lru_cache(maxsize=4)
def _decoders(_process: int, workers: int) -> Decoders:  # by process: a forked one has no threads
    return Decoders(workers)


class Decoders:
    """Threads, of which at most ``workers`` decode at a time while another reads; and as many processes.

    All of them are started when they are first needed. ``at_work`` is entered by whoever decodes.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.threads = ThreadPoolExecutor(workers + 1, thread_name_prefix="decode")
        self.at_work = BoundedSemaphore(workers)
        self._lock = Lock()
        self._idle: list[_Process] = []
        self._busy = 0
        atexit.register(self.close)

    def start(self, frames: int) -> None:
        """Start the processes that so many frames will need, and go on without waiting for them."""
        with self._lock:
            for _ in range(min(frames, self.workers) - len(self._idle) - self._busy):
                self._idle.append(_Process())

    def decompress(self, codestream: bytes, uid: str, options: Mapping[str, Any]) -> np.ndarray:
        """As `codecs.decompress`, in another process unless that is needless."""
        with self.at_work:
            return self._ask(codestream, uid, options) if needs_process(uid) else decompress(codestream, uid, options)

    def _ask(self, codestream: bytes, uid: str, options: Mapping[str, Any]) -> np.ndarray:
        while True:
            process = self._take()
            try:
                return process.decompress(codestream, uid, options)
            except _IdleTooLong:
                continue
            finally:
                self._give_back(process)

    def close(self) -> None:
        """End the processes that wait for work."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.close()

    def _take(self) -> _Process:
        with self._lock:
            for process in [one for one in self._idle if not one.alive]:  # gone for want of work
                self._idle.remove(process)
                process.close()
            process = self._idle.pop() if self._idle else _Process()
            self._busy += 1
            return process

    def _give_back(self, process: _Process) -> None:
        with self._lock:
            self._busy -= 1
            if process.alive:
                self._idle.append(process)


class _IdleTooLong(Exception):
    """The process had ended for want of work before it saw the frame."""


class _Process:
    """One decoding process, for one thread at a time."""

    def __init__(self) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "medflow.dicom.decoder_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # decoders quote what they cannot read
                bufsize=0,
                env={**os.environ, **ENVIRONMENT, "PYTHONPATH": paths},
                start_new_session=True,  # Ctrl-C is for the process that asks
            )
        except OSError as error:
            reason = f"a process that decodes images cannot be started ({error.strerror})"
            raise TransientError(reason) from None
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: S101 - they are pipes
        self._requests, self._answers = self._process.stdin, self._process.stdout
        if SET_PIPE_SIZE is not None:
            for pipe in (self._requests, self._answers):
                _enlarge(pipe.fileno())
        self._ready = False

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def decompress(self, codestream: bytes, uid: str, options: Mapping[str, Any]) -> np.ndarray:
        if not self._ready:
            self._wait()
        plain = {name: value for name, value in options.items() if name != "extended_offsets"}
        request = json.dumps({"uid": uid, "options": plain, "bytes": len(codestream)}).encode()
        try:
            self._requests.write(LENGTH.pack(len(request)) + request)
            self._write(codestream)
            head = bytearray(LENGTH.size)
            self._fill(memoryview(head))
            text = bytearray(LENGTH.unpack(head)[0])
            self._fill(memoryview(text))
            answer = json.loads(text)
            if "error" in answer:
                raise FrameDamaged(answer["error"])
            pixels = np.empty(answer["shape"], np.dtype(answer["dtype"]))
            self._fill(pixels.data.cast("B"))
        except BrokenPipeError:
            self._raise_ended(self.close())
        except FrameDamaged:
            raise
        except BaseException:
            self._process.kill()  # interrupted between a request and its answer: the next would get this one's
            self.close()
            raise
        return pixels

    def close(self) -> int:
        """Let the process end; returns its exit status."""
        self._requests.close()
        self._answers.close()
        return self._process.wait()

    def _wait(self) -> None:
        try:
            self._fill(memoryview(bytearray(len(READY))))
        except BrokenPipeError:
            self.close()
            raise ConfigurationError(
                "the process that decodes compressed images does not start: "
                f"see what `{sys.executable} -m medflow.dicom.decoder_process` says"
            ) from None
        self._ready = True

    @staticmethod
    def _raise_ended(status: int) -> NoReturn:
        if status == 0:
            raise _IdleTooLong
        if status > 0 or -status in CRASHES:
            raise FrameDamaged("the decoder crashed, or did not end")
        raise TransientError("a process that decodes images was killed, as happens when memory runs out")

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._requests.write(view) :]

    def _fill(self, view: memoryview) -> None:
        """Read as many bytes as ``view`` takes; BrokenPipeError when the process ends before."""
        while view:
            got = self._answers.readinto(view)  # type: ignore[attr-defined]  # it is a FileIO, being unbuffered
            if not got:
                raise BrokenPipeError
            view = view[got:]


def _enlarge(pipe: int) -> None:
    """A frame in one piece; a smaller pipe works as well."""
    try:
        fcntl.fcntl(pipe, SET_PIPE_SIZE, PIPE_BYTES)  # type: ignore[arg-type]  # it is known here
    except OSError:
        return
