"""Every place of a variant's neighbourhood that could be a splice site, scored in the reference and in the alternate.

A *boundary* lies between two bases; the network answers for the boundary in the middle of 60 bases. A variant can
change its answer for the boundaries only whose 60 bases hold some of the allele: those from 29 bases before it to 29
bases behind it. They are scored on both strands, as donors where GT follows and as acceptors where AG precedes; the
training data hardly know others, whose score is 0 by definition.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medflow.plugin import VariantWindows
from medflow_genomics.alleles import FLANK, Alleles
from medflow_genomics.encoding import ALPHABET, LENGTH
from medflow_genomics.network import Ensemble
from medflow_genomics.passes import Passes

HALF = LENGTH // 2
REACH = HALF - 1  # bases between the allele and the furthest boundary whose window it touches
UNKNOWN = len(ALPHABET)
VARIANTS_AT_ONCE = 2048
A, C, G, T = range(UNKNOWN)

_CODE = np.full(256, UNKNOWN, np.uint8)
_CODE[np.frombuffer(ALPHABET.encode(), np.uint8)] = np.arange(UNKNOWN)


def delta_scores(
    ensemble: Ensemble,
    windows: VariantWindows,
    alleles: Alleles,
    *,
    device: str,
    variants_at_once: int = VARIANTS_AT_ONCE,
    windows_at_once: int | None = None,
) -> np.ndarray:
    """Donor gain, donor loss, acceptor gain and acceptor loss of each variant: (variants, 4) float32.

    NaN where the allele is not usable, or where an unknown base leaves a score open. Variants are taken in order of
    length, ``variants_at_once``, and their windows go through the network ``windows_at_once``: neither changes a
    score by more than rounding does (1e-6).
    """
    found = np.full((len(windows), 4), np.nan, np.float32)
    longest = np.maximum(alleles.ref_length, alleles.alt_length)
    rows = np.flatnonzero(alleles.usable)
    rows = rows[np.argsort(longest[rows], kind="stable")]  # so that few are longer than the others of their block
    with Passes(device, windows_at_once).open() as passes:
        for first in range(0, len(rows), variants_at_once):
            block = rows[first : first + variants_at_once]
            start, span = alleles.start[block], int(longest[block].max())
            ref, alt = (
                _Side(_neighbourhood(bases, block, start, span), length[block], device)
                for bases, length in ((windows.ref, alleles.ref_length), (windows.alt, alleles.alt_length))
            )
            equal = ref.length == alt.length
            before, after = (side.by_place(side.scores(ensemble, passes), equal) for side in (ref, alt))
            effects = _effects(before, after)
            effects[ref.open() | alt.open()] = torch.nan
            found[block] = effects.cpu().numpy()
    return found


def _neighbourhood(bases: np.ndarray, rows: np.ndarray, start: np.ndarray, span: int) -> Tensor:
    """Numbers of the bases from 59 before each allele to 59 behind the longest, (variants, 118 + span) uint8."""
    places = (start - FLANK)[:, None] + np.arange(2 * FLANK + span)
    return torch.from_numpy(_CODE[bases[rows[:, None], np.minimum(places, bases.shape[1] - 1)]])


def _effects(before: Tensor, after: Tensor) -> Tensor:
    """(variants, places, 4 kinds of site) to (variants, 4): gain and loss of donors, then of acceptors."""
    gains, losses = (direction.amax(1).clamp(min=0) for direction in (after - before, before - after))
    donor, acceptor = slice(0, None, 2), slice(1, None, 2)  # each on the forward strand, and on the reverse
    columns = [side[:, kind].amax(1) for kind in (donor, acceptor) for side in (gains, losses)]
    return torch.stack(columns, 1)


class _Side:
    """The neighbourhoods of one of the two alleles of some variants.

    Sites are of four kinds, the last axis of its tensors: donor and acceptor on the forward strand, and on the reverse.
    """

    def __init__(self, codes: Tensor, length: np.ndarray, device: str) -> None:
        self.codes, self.length = codes.to(device), torch.from_numpy(length).to(device)[:, None]
        self.windows = codes.unfold(1, LENGTH, 1)  # (variants, boundaries, 60): a view
        self.boundary = torch.arange(self.windows.shape[1], device=device)
        self.sites = self._sites()

    def _sites(self) -> Tensor:
        """Where the two bases are there that make a site, or could be: (variants, boundaries, 4) bool."""
        before, after = (
            (self._bases(HALF - 2), self._bases(HALF - 1)),
            (self._bases(HALF), self._bases(HALF + 1)),
        )
        kinds = [(after, (G, T)), (before, (A, G)), (before, (A, C)), (after, (C, T))]  # AC is GT backwards, CT is AG
        found = [
            ((first == wanted[0]) | (first == UNKNOWN)) & ((second == wanted[1]) | (second == UNKNOWN))
            for (first, second), wanted in kinds
        ]
        touched = self.boundary <= self.length + 2 * REACH
        return torch.stack(found, -1) & touched[..., None]

    def _bases(self, place: int) -> Tensor:
        return self.codes[:, place : place + len(self.boundary)]

    def open(self) -> Tensor:
        """Which variants have a site whose 60 bases are not all known: (variants,) bool."""
        unknown = self.codes == UNKNOWN
        if not bool(unknown.any()):
            return torch.zeros(len(self.codes), dtype=torch.bool, device=self.codes.device)
        holding = unknown.unfold(1, LENGTH, 1).any(2)
        return (self.sites.any(2) & holding).any(1)

    def scores(self, ensemble: Ensemble, passes: Passes) -> Tensor:
        """The probability of each site, 0 where there is none: (variants, boundaries, 4) float32."""
        table = torch.zeros(self.sites.shape, device=self.codes.device)
        for strand in range(2):
            kinds = slice(2 * strand, 2 * strand + 2)

            def answer(variant: Tensor, boundary: Tensor, strand: int = strand) -> Tensor:
                return ensemble(self._read(variant, boundary, strand))[:, :2]

            variant, boundary = self.sites[..., kinds].any(2).nonzero(as_tuple=True)
            if len(variant):
                table[variant, boundary, kinds] = torch.cat(passes.run(answer, variant, boundary)).to(table.dtype)
        return table * self.sites

    def _read(self, variant: Tensor, boundary: Tensor, strand: int) -> Tensor:
        """Windows, 5' to 3' of their strand, as the network takes them: (n, 60) int64."""
        bases = self.windows[variant, boundary].long().clamp(max=T)  # an unknown base makes the variant's row NaN
        return (T - bases).flip(1) if strand else bases

    def by_place(self, scores: Tensor, equal: Tensor) -> Tensor:
        """Scores by places that reference and alternate share: (variants, places, 4).

        Where the alleles are of equal length each boundary is a place. Otherwise the boundaries of the allele, those
        at its two ends included, are one place, that has the highest score among them.
        """
        if bool(equal.all()):
            return scores
        inside = torch.where(self.boundary < REACH, self.boundary, (self.boundary - self.length).clamp(min=REACH))
        place = torch.where(equal, self.boundary, inside)
        return torch.zeros_like(scores).scatter_reduce(1, place[..., None].expand_as(scores), scores, "amax")
