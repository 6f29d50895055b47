"""Alleles in their one normal form, and the windows of bases around them that a model reads.

The normal form is that of Tan, Abecasis and Kang, Bioinformatics 2015, 31(13), 2202-2204, which bcftools norm gives as
well: as few letters as possible, as far to the left as possible.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medflow.genomics.reference import Reference
from medflow.plugin.cases import VariantWindows
from medflow.records import Variant

_STEP = 64  # bases looked at to the left at first
_MOST = 1 << 16
_AT_ONCE = 1 << 26  # bases cut out at once

_TO_N = str.maketrans("RYSWKMBDHV", "NNNNNNNNNN")
_COMPLEMENT = np.full(256, ord("N"), dtype=np.uint8)
_COMPLEMENT[list(b"ACGT")] = list(b"TGCA")


def reverse_complement(windows: np.ndarray) -> np.ndarray:
    """The other strand of each window, 5' to 3': uint8 (n, length) of ASCII codes; what is not A, C, G or T is N.

    What stood at index i stands at length - 1 - i: an allele of ``n`` bases at ``at`` begins at length - at - n.
    """
    return np.ascontiguousarray(_COMPLEMENT[windows[:, ::-1]])


def normalised(reference: Reference, contig: str, position: int, ref: str, alt: str) -> tuple[int, str, str]:
    """Position (1-based), ref and alt of one allele, trimmed and aligned to the left, in upper case.

    An insertion or deletion keeps the base before it, at the start of a contig the base after it. ``ref`` must agree
    with the reference and differ from ``alt``; where it has N the reference's base is taken. Raises KeyError.
    """
    ref, alt = ref.upper(), alt.upper()
    if "N" in ref:
        found = _written(reference.text(contig, position - 1, position - 1 + len(ref)))
        ref = "".join(base if base != "N" else known for base, known in zip(ref, found, strict=True))
    if len(ref) == len(alt) == 1:
        return position, ref, alt
    ref, alt, before = _trimmed(ref, alt)
    place0 = position - 1 + before
    if ref and alt:
        return place0 + 1, ref, alt
    place0, letters = _leftmost(reference, contig, place0, ref or alt)
    ref, alt = (letters, "") if ref else ("", letters)
    if place0 > 0:
        anchor = _written(reference.text(contig, place0 - 1, place0))
        return place0, anchor + ref, anchor + alt
    anchor = _written(reference.text(contig, len(ref), len(ref) + 1))
    return 1, ref + anchor, alt + anchor


def _written(letters: str) -> str:
    """As an allele may have them: VCF knows no letter for several bases but N."""
    return letters.translate(_TO_N)


def _trimmed(ref: str, alt: str) -> tuple[str, str, int]:
    """Without what both end with, then without what both begin with, and how much that was."""
    shorter, end = min(len(ref), len(alt)), 0
    while end < shorter and ref[-1 - end] == alt[-1 - end]:
        end += 1
    ref, alt = ref[: len(ref) - end], alt[: len(alt) - end]
    shorter, start = min(len(ref), len(alt)), 0
    while start < shorter and ref[start] == alt[start]:
        start += 1
    return ref[start:], alt[start:], start


def _leftmost(reference: Reference, contig: str, place0: int, letters: str) -> tuple[int, str]:
    """Where the insertion or deletion of ``letters`` before ``place0`` may be written as far left as possible.

    One base further left it is the same if the base that it steps over is its own last one.
    """
    step, count = _STEP, len(letters)
    while place0 > 0:
        left = reference.text(contig, max(0, place0 - step), place0)
        joined = left + letters
        moved, end = 0, len(joined)
        while moved < len(left) and joined[end - 1 - moved - count] == joined[end - 1 - moved]:
            moved += 1
        letters = joined[end - moved - count : end - moved]
        place0 -= moved
        if moved < len(left):
            break
        step = min(4 * step, _MOST)
    return place0, letters


def variant_windows(reference: Reference, variants: Sequence[Variant], length: int) -> VariantWindows:
    """The windows of alleles in normal form, in their order; contigs named as the reference names them.

    The first base of an allele stands at index ``length // 2``. Around it both windows have the bases of the
    reference: the one of an insertion fewer of the right side, that of a deletion more. Raises KeyError.
    """
    count, at = len(variants), length // 2
    windows = VariantWindows(
        ref=np.empty((count, length), dtype=np.uint8),
        alt=np.empty((count, length), dtype=np.uint8),
        at=at,
        ref_length=np.fromiter((len(variant.ref) for variant in variants), dtype=np.int32, count=count),
        alt_length=np.fromiter((len(variant.alt) for variant in variants), dtype=np.int32, count=count),
    )
    starts0 = np.fromiter((variant.position - 1 - at for variant in variants), dtype=np.int64, count=count)
    contigs: dict[str, list[int]] = {}
    for row, variant in enumerate(variants):
        contigs.setdefault(variant.contig, []).append(row)
    longest = int(np.max(windows.ref_length - windows.alt_length, initial=0))
    each = max(1, _AT_ONCE // (length + longest))
    for contig, members in contigs.items():
        for some in (np.array(members[low : low + each]) for low in range(0, len(members), each)):
            _fill(windows, some, [variants[row] for row in some], reference, contig, starts0[some])
    return windows


def _fill(
    windows: VariantWindows,
    rows: np.ndarray,
    variants: Sequence[Variant],
    reference: Reference,
    contig: str,
    starts0: np.ndarray,
) -> None:
    """The windows of some variants of one contig; those with alleles of the same lengths are written at once."""
    length, at = windows.ref.shape[1], windows.at
    lengths = np.stack([windows.ref_length[rows], windows.alt_length[rows]], axis=1)
    wider = max(0, int(np.max(lengths[:, 0] - lengths[:, 1])))
    bases = reference.cut(contig, starts0, length + wider)
    pairs, group = np.unique(lengths, axis=0, return_inverse=True)
    order = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group.ravel()))[:-1])
    for (taken, given), some in zip(pairs.tolist(), order, strict=True):
        ref, alt = bases[some, :length], bases[some, :length]
        end = min(at + given, length)
        alt[:, end:] = bases[some, at + taken : at + taken + length - end]
        ref[:, at : at + taken] = _letters([variants[row].ref for row in some])[:, : length - at]
        alt[:, at:end] = _letters([variants[row].alt for row in some])[:, : length - at]
        windows.ref[rows[some]], windows.alt[rows[some]] = ref, alt


def _letters(alleles: list[str]) -> np.ndarray:
    """Alleles of one length as uint8 (n, length); what is not A, C, G or T is N."""
    codes = np.frombuffer("".join(alleles).encode("ascii"), dtype=np.uint8).reshape(len(alleles), -1)
    return np.where(np.isin(codes, _ACGT), codes, ord("N")).astype(np.uint8)


_ACGT = np.frombuffer(b"ACGT", dtype=np.uint8)
