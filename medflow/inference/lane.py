"""The way into a device: one call at a time, with what torch needs around it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from medflow.plugin import ModelSpec


class Lane:
    """One device's lane: whoever is in it has the device to itself.

    On CUDA all calls run on one stream of the lane's own, off the default stream, which would wait for every other.
    It is one stream for the device, not one a model: torch keeps freed memory for the stream that it was used on, and
    calls that never overlap gain nothing from several.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._lock = threading.Lock()
        self._stream: Any = None  # a torch.cuda.Stream, from the first call on

    @contextmanager
    def loading(self) -> Iterator[None]:
        """The device alone, to load, unload or measure."""
        with self._lock, ExitStack() as around:
            self._enter_stream(around)
            yield

    @contextmanager
    def predicting(self, spec: ModelSpec) -> Iterator[None]:
        """The device alone, without autograd, in mixed precision where the model allows it and the device has it.

        A model that has not imported torch needs none of this, and torch is not imported for it.
        """
        with self._lock, ExitStack() as around:
            if "torch" in sys.modules:
                import torch

                self._enter_stream(around)
                around.enter_context(torch.inference_mode())
                if spec.mixed_precision and self.device.startswith("cuda"):
                    around.enter_context(torch.autocast("cuda", dtype=_half(torch)))
            yield

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """The device alone, with autograd and in full precision: an explanation looks for small differences."""
        with self._lock, ExitStack() as around:
            if "torch" in sys.modules:
                import torch

                self._enter_stream(around)
                around.enter_context(torch.inference_mode(False))
                around.enter_context(torch.enable_grad())
            yield

    def _enter_stream(self, around: ExitStack) -> None:
        if not self.device.startswith("cuda"):
            return
        import torch

        if self._stream is None:
            torch.cuda.synchronize(self.device)  # what was put there before this stream was, it may rely on
            self._stream = torch.cuda.Stream(self.device)
        around.enter_context(torch.cuda.stream(self._stream))


def _half(torch: Any) -> Any:
    """bfloat16 where the GPU computes in it, since it cannot overflow where float32 does not; else float16."""
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
