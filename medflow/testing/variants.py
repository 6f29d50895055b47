"""Windows of made-up variants, as a model of variants is given them; and the same read from the other strand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medflow.plugin import Case, SequenceInput, VariantWindows

VARIANTS = 24  # of a case
EVERY_N = 6  # one variant in so many lies near a stretch of which nothing is known
BASES = np.frombuffer(b"ACGT", np.uint8)
COMPLEMENT = np.arange(256, dtype=np.uint8)
COMPLEMENT[np.frombuffer(b"ACGTRYKMBDHV", np.uint8)] = np.frombuffer(b"TGCAYRMKVHDB", np.uint8)


def sample_windows(spec: SequenceInput, rng: np.random.Generator) -> VariantWindows:
    """Substitutions, insertions and deletions in random bases; some near a gap of N, some at the end of a contig."""
    at, length = spec.length // 2, spec.length
    pairs = [_pair(spec, number, rng) for number in range(VARIANTS)]
    shape = (len(pairs), length)
    ref, alt = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
    for place, (one, other) in enumerate(pairs):
        around = rng.choice(BASES, size=2 * length)
        if place % EVERY_N == 0:
            around[: at // 2] = ord("N")
        elif place % EVERY_N == 1:
            around[at + len(one) + 1 :] = ord("N")
        before, after = around[:at], around[at + len(one) :]
        ref[place] = np.concatenate([before, one, after])[:length]
        alt[place] = np.concatenate([before, other, after])[:length]
    lengths = np.array([(len(one), len(other)) for one, other in pairs], np.int32)
    return VariantWindows(ref=ref, alt=alt, at=at, ref_length=lengths[:, 0].copy(), alt_length=lengths[:, 1].copy())


def _pair(spec: SequenceInput, number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two alleles; an insertion or deletion keeps the base before it in both."""
    first, second = rng.choice(BASES, size=2, replace=False)
    most = max(1, min(spec.max_allele, spec.length - spec.length // 2, 4))
    longer = np.concatenate([[first], rng.choice(BASES, size=int(rng.integers(0, most)))]).astype(np.uint8)
    if number % 4 == 2 and len(longer) > 1:
        return longer[:1], longer
    if number % 4 == 3 and len(longer) > 1:
        return longer, longer[:1]
    return np.array([first], np.uint8), np.array([second], np.uint8)


def chosen(windows: VariantWindows, rows: np.ndarray) -> VariantWindows:
    """Some of the variants: those that a mask, or their places, name."""
    return replace(
        windows,
        ref=windows.ref[rows],
        alt=windows.alt[rows],
        ref_length=windows.ref_length[rows],
        alt_length=windows.alt_length[rows],
    )


def substitutions(windows: VariantWindows) -> np.ndarray:
    """Which of the variants put one base in the place of another."""
    return (windows.ref_length == 1) & (windows.alt_length == 1)


def reverse_complement(windows: VariantWindows) -> VariantWindows:
    """The same substitutions as the other strand has them.

    Of an insertion or deletion the other strand has no such windows: what it takes from the flank, it takes from the
    other one, and the base that it keeps is the one after it.
    """
    if not substitutions(windows).all():
        raise ValueError("windows of substitutions only have a reverse complement")
    return replace(
        windows,
        ref=np.ascontiguousarray(COMPLEMENT[windows.ref][:, ::-1]),
        alt=np.ascontiguousarray(COMPLEMENT[windows.alt][:, ::-1]),
        at=windows.ref.shape[1] - 1 - windows.at,
    )


def with_windows(case: Case, windows: VariantWindows) -> Case:
    """The case with other windows in the place of its own."""
    inputs = {name: windows if isinstance(item, VariantWindows) else item for name, item in case.inputs.items()}
    return replace(case, inputs=inputs)
