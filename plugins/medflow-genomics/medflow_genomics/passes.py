"""Passes through the network: few windows at a time, and one thread of torch's for each.

For a network this small torch's threads wait for one another longer than they work; and on a CPU a pass is fastest
while what it computes stays in the caches. Several passes at once are what several cores are good for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

AT_ONCE = {"cpu": 256, "cuda": 16384}  # windows of one pass


@contextmanager
def one_thread() -> Iterator[int]:
    """Torch keeps to one thread; gives how many it had."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


class Passes:
    """Runs passes on a device: on a CPU as many side by side as torch may use threads, else one after another."""

    def __init__(self, device: str, at_once: int | None = None) -> None:
        self.kind = torch.device(device).type
        self.at_once = at_once or AT_ONCE.get(self.kind, AT_ONCE["cpu"])
        self._pool: ThreadPoolExecutor | None = None

    @contextmanager
    def open(self) -> Iterator[Passes]:
        """While it is open, on a CPU there are threads."""
        with one_thread() as threads:
            if self.kind != "cpu" or threads == 1:
                yield self
                return
            with ThreadPoolExecutor(threads, "pass", initializer=torch.set_num_threads, initargs=(1,)) as self._pool:
                yield self
            self._pool = None

    def run(self, answer: Callable[[Tensor, Tensor], Tensor], rows: Tensor, columns: Tensor) -> list[Tensor]:
        """The answers for parts of at most ``at_once`` rows and columns, in order."""

        def inferred(one: Tensor, other: Tensor) -> Tensor:
            with torch.inference_mode():  # which is of a thread
                return answer(one, other)

        together = self._pool.map if self._pool is not None else map
        return list(together(inferred, rows.split(self.at_once), columns.split(self.at_once)))
