"""How much memory a device has for models, and how large a batch fits into it."""

from __future__ import annotations

import math
from collections.abc import Iterable

from medflow.plugin import ModelSpec

MIB = 1 << 20
LARGEST_GROWTH = 64  # times spec.batch_size
CHUNK = 256  # cases that are leased at once, or
BATCHES = 8  # so many batches where these are more: what reads ahead of the device begins anew with each chunk


class DeviceMemory:
    """What models may take of one device, in MiB.

    Parameters
    ----------
    device
        A torch device. Of a CPU nothing is measured.
    limit_mib
        What models may take together by the operator's word; 0 leaves it to what the device has.
    """

    def __init__(self, device: str, limit_mib: int) -> None:
        self.device = device
        self.limit_mib = limit_mib

    @property
    def most_mib(self) -> float:
        """What a model could have if nothing else were on the device; infinite where there is no limit."""
        return min(self.limit_mib or math.inf, _total_mib(self.device))

    def room_mib(self, resident: Iterable[ModelSpec]) -> float:
        """What one more model could have beside those already loaded.

        A resident model counts as what it declares even while it holds less: its next batch will need it.
        """
        taken = sum(spec.memory_mib for spec in resident)
        free, held = _free_and_held_mib(self.device)
        return min((self.limit_mib or math.inf) - taken, free + held - taken, free)


def chunk_of(spec: ModelSpec, most: int) -> int:
    """How many cases of a model are leased at once, where a site allows ``most``."""
    return min(most, max(CHUNK, BATCHES * spec.batch_size))


def largest_batch(spec: ModelSpec, most: int) -> int:
    """The largest batch that a model may get in chunks of ``most`` cases; every batch that it does get divides it."""
    size, chunk = spec.batch_size, chunk_of(spec, most)
    if spec.batch_grows:
        while size * 2 <= min(chunk, spec.batch_size * LARGEST_GROWTH):
            size *= 2
    return size


def batch_that_fits(spec: ModelSpec, most: int, room_mib: float) -> int:
    """``spec.batch_size``, doubled while the model allows it and a device with this much room has memory for it."""
    largest, size = largest_batch(spec, most), spec.batch_size
    while size * 2 <= largest and size * 2 // spec.batch_size * spec.memory_mib <= room_mib:
        size *= 2
    return size


def _total_mib(device: str) -> float:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_properties(device).total_memory / MIB
    if device == "mps":
        import torch

        return torch.mps.recommended_max_memory() / MIB
    return math.inf


def _free_and_held_mib(device: str) -> tuple[float, float]:
    """What the device has free, and what this process holds of it through torch."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0] / MIB, torch.cuda.memory_reserved(device) / MIB
    if device == "mps":
        import torch

        held = torch.mps.driver_allocated_memory()
        return (torch.mps.recommended_max_memory() - held) / MIB, held / MIB
    return math.inf, 0.0
