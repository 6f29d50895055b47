"""Where a variant begins and ends, whichever way its alleles were written and aligned. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from medflow.plugin import VariantWindows
from medflow_genomics.encoding import LENGTH

LONGEST = 80  # bases of an allele, with all the places that it could have
FLANK = LENGTH - 1  # bases on either side that share a window of 60 with the allele

_KNOWN = np.isin(np.arange(256), np.frombuffer(b"ACGT", np.uint8))


@dataclass(frozen=True, kw_only=True, slots=True)
class Alleles:
    """The alleles of `VariantWindows`, without what reference and alternate share, and with all their places.

    ``start`` (variants,) is the index in the window of the first base that differs; ``ref_length`` and ``alt_length``
    say how many bases stand there. A base inserted into, or lost from, a run of the same bases has no one place: the
    allele is then the whole run, in both (the fully expanded allele of SPDI, Holmes et al. 2020). So it is the same
    however the caller aligned it, and on either strand. ``usable`` is False where that is longer than `LONGEST`, or
    where the window has less than `FLANK` bases on either side of it.
    """

    start: np.ndarray
    ref_length: np.ndarray
    alt_length: np.ndarray
    usable: np.ndarray

    def __len__(self) -> int:
        return len(self.start)


def alleles_of(windows: VariantWindows) -> Alleles:
    """The alleles of each variant, trimmed and expanded."""
    ref, alt = windows.ref, windows.alt
    r, a = windows.ref_length.astype(np.int64), windows.alt_length.astype(np.int64)
    inside = (r >= 0) & (a >= 0) & (windows.at + np.maximum(r, a) <= ref.shape[1])
    r, a = np.where(inside, r, 0), np.where(inside, a, 0)
    shared = np.minimum(r, a)
    front = _run(lambda rows, i: ref[rows, windows.at + i] == alt[rows, windows.at + i], shared)
    last_ref, last_alt = windows.at + r - 1, windows.at + a - 1
    back = _run(lambda rows, i: ref[rows, last_ref[rows] - i] == alt[rows, last_alt[rows] - i], shared - front)
    start, r, a = windows.at + front, r - front - back, a - front - back
    for longer, size, other in ((ref, r, a), (alt, a, r)):
        rows = np.flatnonzero((size > 0) & (other == 0))
        before, after = _places(longer, rows, start[rows], size[rows])
        start[rows] -= before
        r[rows] += before + after
        a[rows] += before + after
    longest = np.maximum(r, a)
    fits = (start >= FLANK) & (start + longest + FLANK <= ref.shape[1]) & (longest <= LONGEST)
    return Alleles(start=start, ref_length=r, alt_length=a, usable=inside & fits)


def _places(bases: np.ndarray, rows: np.ndarray, start: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By how many bases a piece that only one of the alleles has could lie further to the left, and to the right."""

    def same(chosen: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        left, right = bases[rows[chosen], one], bases[rows[chosen], other]
        return (left == right) & _KNOWN[left]

    end = start + size
    before = _run(lambda chosen, i: same(chosen, start[chosen] - 1 - i, end[chosen] - 1 - i), start)
    after = _run(lambda chosen, i: same(chosen, start[chosen] + i, end[chosen] + i), bases.shape[1] - end)
    return before, after


def _run(holds: Callable[[np.ndarray, int], np.ndarray], most: np.ndarray) -> np.ndarray:
    """For each row the number of steps i = 0, 1, ... before the first at which it does not hold, ``most`` at most."""
    steps = np.zeros(len(most), np.int64)
    going = np.flatnonzero(most > 0)
    step = 0
    while len(going):
        going = going[holds(going, step)]
        step += 1
        steps[going] = step
        going = going[most[going] > step]
    return steps
