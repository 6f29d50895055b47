"""Windows of made-up variants, as a model of variants is given them; and the same read from the other strand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medflow.plugin import Case, SequenceInput, VariantWindows

VARIANTS = 24  # of a case
EVERY_N = 6  # one variant in so many lies near a stretch of which nothing is known
INDELS = 6  # of each kind that are read from both strands
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

    Those of insertions and deletions are not told by their windows alone: `indels_of_both_strands` makes some.
    """
    if not substitutions(windows).all():
        raise ValueError("windows of substitutions only have a reverse complement")
    return replace(
        windows,
        ref=_turned(windows.ref),
        alt=_turned(windows.alt),
        at=windows.ref.shape[1] - 1 - windows.at,
    )


def indels_of_both_strands(
    spec: SequenceInput, rng: np.random.Generator
) -> list[tuple[VariantWindows, VariantWindows]]:
    """Insertions and deletions, each as one strand has them and as the other one does; none for a very short window.

    The other strand keeps the base after the allele, aligns what could stand in several places to its own left, and
    makes up for the length at its own right end, where the first one has its left. There both are the same bases here
    (of the two ends each is the reverse complement of the other), so that they make no difference. Each pair is of one
    kind, in no repeat or in one: the place of the allele on the other strand depends on it.
    """
    count = min(spec.max_allele - 1, 3, spec.length // 4 - 3)
    if count < 1:
        return []
    return [_indels(spec, count, rng, removed=removed, shift=shift) for removed in (0, count) for shift in (0, count)]


def _indels(
    spec: SequenceInput, count: int, rng: np.random.Generator, *, removed: int, shift: int
) -> tuple[VariantWindows, VariantWindows]:
    """Of ``count`` bases, that are ``removed`` (else inserted), and can stand ``shift`` bases further right as well."""
    length, at = spec.length, spec.length // 2
    some = [_one_indel(length, count, rng, removed=removed, shift=shift) for _ in range(INDELS)]
    shorter, longer = (np.stack(items) for items in zip(*some, strict=True))
    begin, begin_there = count, 2 * (count - removed)  # where the window of the alternate begins on either strand
    here, there = slice(begin, begin + length), slice(begin_there, begin_there + length)
    ref, alt = (longer, shorter) if removed else (shorter, longer)
    lengths = {
        "ref_length": np.full(len(some), 1 + removed, np.int32),
        "alt_length": np.full(len(some), 1 + count - removed, np.int32),
    }
    turned = length - 2 - at - shift - removed  # of the base after the allele
    return (
        VariantWindows(ref=ref[:, here].copy(), alt=alt[:, here].copy(), at=at, **lengths),
        VariantWindows(ref=_turned(ref[:, here]), alt=_turned(alt[:, there]), at=turned, **lengths),
    )


def _one_indel(
    length: int, count: int, rng: np.random.Generator, *, removed: int, shift: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bases without the allele and with it, as many more than a window at both ends as the allele has."""
    around = rng.choice(BASES, size=length + 2 * count)
    after = count + length // 2 + 1
    letters = np.append(rng.choice(BASES, size=count - 1), _other_than(around[after - 1], rng)).astype(np.uint8)
    around[after : after + shift] = letters[:shift]
    around[after + shift] = _other_than(letters[0], rng)
    left, end, mirrored = count - removed, count + length, length // 4
    around[left : left + mirrored] = COMPLEMENT[around[end - mirrored : end]][::-1]
    return around, np.concatenate([around[:after], letters, around[after:]])


def _other_than(base: np.uint8, rng: np.random.Generator) -> np.uint8:
    return rng.choice(BASES[base != BASES])


def _turned(windows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(COMPLEMENT[windows][:, ::-1])


def with_windows(case: Case, windows: VariantWindows) -> Case:
    """The case with other windows in the place of its own."""
    inputs = {name: windows if isinstance(item, VariantWindows) else item for name, item in case.inputs.items()}
    return replace(case, inputs=inputs)
