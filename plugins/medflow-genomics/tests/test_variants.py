from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medflow.errors import InputNotUsable
from medflow.plugin import Case, VariantWindows
from medflow.records import Unit, UnitKind
from medflow_genomics.alleles import LONGEST, alleles_of
from medflow_genomics.encoding import encode
from medflow_genomics.passes import one_thread
from medflow_genomics.scan import delta_scores
from medflow_genomics.variants import EFFECTS, OUTPUT, WINDOW, SpliceVariant, SpliceVariant37, variant_models

HERE = 200  # where in a contig the variants of these tests lie, 0-based
PAIRS = str.maketrans("ACGTN", "TGCAN")
# Consensus sites (Shapiro and Senapathy 1987) amid bases that mean nothing: exon|GT..., ...AG|exon
DONOR = "CATGATCCTGAACATTGCACATGCAAACAG" + "GTAAGTATCCATTGACATGCATTGACCATA"
ACCEPTOR = "GACATTGACTAACTTTTCTTTCCTTTGCAG" + "GTGCATGAACATGCCATTGATCATGCAAGC"
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Called:
    """A variant of a contig; ``at`` is 0-based."""

    contig: str
    at: int
    ref: str
    alt: str

    @property
    def changed(self) -> str:
        return self.contig[: self.at] + self.alt + self.contig[self.at + len(self.ref) :]

    def backwards(self) -> "Called":
        """The same variant on the other strand, its alleles where they are."""
        return Called(
            reverse(self.contig), len(self.contig) - self.at - len(self.ref), reverse(self.ref), reverse(self.alt)
        )

    def leftmost(self) -> "Called":
        """Of an insertion or deletion: the first of its places, with the base before it."""
        at, ref, alt = self.at, self.ref, self.alt
        while not ref or not alt or ref[-1] == alt[-1]:
            if ref and alt:
                ref, alt = ref[:-1], alt[:-1]
            else:
                at -= 1
                ref, alt = self.contig[at] + ref, self.contig[at] + alt
        while len(ref) > 1 and len(alt) > 1 and ref[0] == alt[0]:
            at, ref, alt = at + 1, ref[1:], alt[1:]
        return Called(self.contig, at, ref, alt)


def reverse(bases: str) -> str:
    return bases.translate(PAIRS)[::-1]


def windows_of(variants: list[Called]) -> VariantWindows:
    """Windows as medflow documents them, by slicing strings."""
    half = WINDOW // 2

    def window(bases: str, at: int) -> np.ndarray:
        padded = "N" * half + bases + "N" * WINDOW
        return np.frombuffer(padded[at : at + WINDOW].encode(), np.uint8)

    return VariantWindows(
        ref=np.stack([window(item.contig, item.at) for item in variants]),
        alt=np.stack([window(item.changed, item.at) for item in variants]),
        at=half,
        ref_length=np.array([len(item.ref) for item in variants], np.int32),
        alt_length=np.array([len(item.alt) for item in variants], np.int32),
    )


def case(windows: VariantWindows) -> Case:
    return Case(
        unit=Unit(kind=UnitKind.SAMPLE, id=1),
        prediction_time=datetime(2026, 1, 1, tzinfo=UTC),
        inputs={"variants": windows},
    )


@pytest.fixture(scope="module")
def model() -> Iterator[SpliceVariant]:
    loaded = SpliceVariant()
    loaded.load("cpu")
    yield loaded
    loaded.close()


def effects(model: SpliceVariant, *variants: Called) -> np.ndarray:
    (prediction,) = model.predict([model.prepare(case(windows_of(list(variants))))])
    return np.asarray(prediction.values[OUTPUT])


def bases(length: int, seed: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


def around(site: str, place: int) -> str:
    """A contig in which the 60 bases of a site begin ``place`` bases before `HERE`."""
    return bases(HERE - place, seed=1) + site + bases(400 - HERE + place - len(site), seed=2)


def by_hand(model: SpliceVariant, variant: Called) -> list[float]:
    """The definition, boundary by boundary over strings."""
    ref, alt = variant.contig, variant.changed
    start, end = _ends(ref, alt)
    found = []
    for kind in ("donor", "acceptor"):
        gains, losses = [0.0], [0.0]
        for strand in (1, -1):
            places = {side: _places(model, bases_, start, end, kind, strand, len(ref) == len(alt))
                      for side, bases_ in (("ref", ref), ("alt", alt))}  # fmt: skip
            differences = [places["alt"][key] - places["ref"][key] for key in places["ref"]]
            gains += differences
            losses += [-item for item in differences]
        found += [max(gains), max(losses)]
    return found


def _ends(ref: str, alt: str) -> tuple[int, int]:
    """How many bases there are before the allele, and behind it, with all its places."""

    def shared(one: str, other: str) -> int:
        return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

    shorter = min(len(ref), len(alt))
    front, back = shared(ref, alt), shared(ref[::-1], alt[::-1])
    if front + back >= shorter:  # one piece in or out: before its last place, and behind its first
        return shorter - back, shorter - front
    return front, back


def _places(
    model: SpliceVariant, sequence: str, start: int, end: int, kind: str, strand: int, equal: bool
) -> dict[int, float]:
    stop = len(sequence) - end
    scores = _scores(model, sequence, range(start - 29, stop + 30), kind, strand)
    if equal:
        return {place - start: score for place, score in scores.items()}
    merged = {place - start: score for place, score in scores.items() if place < start}
    merged[0] = max(score for place, score in scores.items() if start <= place <= stop)
    return merged | {place - stop: score for place, score in scores.items() if place > stop}


def _scores(model: SpliceVariant, sequence: str, boundaries: range, kind: str, strand: int) -> dict[int, float]:
    sites = {}
    for boundary in boundaries:
        window = sequence[boundary - 30 : boundary + 30]
        window = window if strand > 0 else reverse(window)
        if (window[30:32] == "GT") if kind == "donor" else (window[28:30] == "AG"):
            sites[boundary] = encode(window)
    scores = dict.fromkeys(boundaries, 0.0)
    if sites:
        assert model._ensemble is not None
        with one_thread(), torch.inference_mode():
            answers = model._ensemble(torch.from_numpy(np.stack(list(sites.values()))))
        scores.update(zip(sites, answers[:, 0 if kind == "donor" else 1].tolist(), strict=True))
    return scores


@st.composite
def variants(draw: st.DrawFn, letters: str = "ACGT") -> Called:
    """Substitutions, insertions, deletions and both, amid bases that repeat themselves, so that indels could move."""
    seed = draw(st.integers(0, 2**31))
    unit = draw(st.text(letters, min_size=1, max_size=4))
    repeats = draw(st.integers(0, 8))
    left = bases(HERE - draw(st.integers(0, 20)), seed)
    contig = left + unit * repeats + bases(200, seed + 1)
    at = draw(st.integers(HERE - 15, HERE + 15))
    removed = draw(st.one_of(st.just(1), st.integers(0, 12)))
    added = draw(st.one_of(st.text(letters, max_size=12), st.just(unit), st.just("")))
    ref, before = contig[at : at + removed], contig[at - 1]
    return Called(contig, at - 1, before + ref, before + added)


SOME = st.lists(variants().filter(lambda item: item.ref != item.alt), min_size=1, max_size=4)


def test_one_model_for_each_assembly() -> None:
    found = {item.spec.accepts[0].assembly: item.spec.name for item in variant_models()}

    assert found == {"GRCh38": "splice-variant", "GRCh37": "splice-variant-grch37"}
    assert variant_models() == [SpliceVariant, SpliceVariant37]
    assert [effect.name for effect in SpliceVariant.spec.outputs[0].effects] == list(EFFECTS)


def test_a_donor_without_its_gt_is_lost_and_gained_the_other_way_round(model: SpliceVariant) -> None:
    contig = around(DONOR, 30)
    broken = contig[:HERE] + "C" + contig[HERE + 1 :]

    lost, gained = effects(model, Called(contig, HERE, "G", "C"), Called(broken, HERE, "C", "G"))

    assert lost[1] > 0.8 and np.all(lost[[0, 2]] < 0.5)
    assert np.allclose(gained, lost[[1, 0, 3, 2]], atol=TOLERANCE)


def test_an_acceptor_without_its_ag_is_lost(model: SpliceVariant) -> None:
    (lost,) = effects(model, Called(around(ACCEPTOR, 29), HERE, "G", "C"))

    assert lost[3] > 0.8 and lost[0] < 0.5 and lost[2] < 0.5


def test_where_no_site_can_be_nothing_changes(model: SpliceVariant) -> None:
    contig = "AT" * 100 + "AA" + "AT" * 100

    found = effects(model, Called(contig, HERE, "A", "ATT"), Called(contig, HERE, "A", "T"))

    assert found.tolist() == [[0.0] * 4] * 2 and not np.signbit(found).any()


def test_a_site_that_only_moves_is_neither_lost_nor_gained(model: SpliceVariant) -> None:
    contig = around(DONOR, 5)  # the variant lies 25 bases before the boundary

    (moved,) = effects(model, Called(contig, HERE, contig[HERE], contig[HERE] + "T"))

    assert np.all(moved < 0.3)


@settings(max_examples=10, deadline=None)
@given(SOME)
def test_scores_are_those_of_the_definition_by_hand(model: SpliceVariant, some: list[Called]) -> None:
    found = effects(model, *some)

    assert np.allclose(found, [by_hand(model, item) for item in some], atol=TOLERANCE)


@settings(max_examples=20, deadline=None)
@given(SOME)
def test_a_variant_and_its_reverse_complement_have_the_same_scores(model: SpliceVariant, some: list[Called]) -> None:
    forward = effects(model, *some)

    backward = effects(model, *(item.backwards() for item in some))
    aligned = effects(model, *(item.backwards().leftmost() for item in some))

    assert not np.isnan(forward).any()
    assert np.allclose(forward, backward, atol=TOLERANCE) and np.allclose(forward, aligned, atol=TOLERANCE)


@settings(max_examples=20, deadline=None)
@given(st.lists(variants("ACGTN").filter(lambda item: item.ref != item.alt), min_size=1, max_size=4))
def test_what_unknown_bases_leave_open_is_open_on_either_strand(model: SpliceVariant, some: list[Called]) -> None:
    forward, backward = effects(model, *some), effects(model, *(item.backwards() for item in some))

    assert np.allclose(forward, backward, atol=TOLERANCE, equal_nan=True)


def test_batches_of_any_size_give_the_same_scores(model: SpliceVariant) -> None:
    contig = bases(700, seed=5)
    many = [Called(contig, at, contig[at : at + 1 + at % 3], "CAT"[: 1 + at % 2]) for at in range(150, 550, 11)]
    windows = windows_of(many)
    alleles = alleles_of(windows)
    assert model._ensemble is not None

    with torch.inference_mode():
        scores = [
            delta_scores(
                model._ensemble, windows, alleles, device="cpu", variants_at_once=variants, windows_at_once=size
            )
            for variants, size in ((2048, 256), (2048, 17), (7, 1000), (40, 5))
        ]

    assert max(float(np.abs(scores[0] - other).max()) for other in scores[1:]) <= 1e-6
    assert scores[0].max() > 0.1


def test_only_unknown_bases_that_matter_leave_a_variant_without_a_score(model: SpliceVariant) -> None:
    contig = bases(400, seed=7)
    near, far = (contig[:at] + "N" + contig[at + 1 :] for at in (HERE + 40, HERE + 61))

    found = effects(model, Called(near, HERE, near[HERE], "A"), Called(far, HERE, far[HERE], "A"))

    assert np.isnan(found[0]).all() and not np.isnan(found[1]).any()


def test_contig_ends_leave_a_variant_without_a_score(model: SpliceVariant) -> None:
    contig = bases(400, seed=8)

    found = effects(model, Called(contig, 3, contig[3], "N"), Called(contig, 398, contig[398], "NN"))

    assert np.isnan(found).all()


def test_an_indel_in_a_long_repeat_has_no_score_on_either_strand(model: SpliceVariant) -> None:
    def lost(units: int) -> Called:
        contig = bases(HERE, 1)[:-1] + "C" + "GT" * units + "C" + bases(200, 2)
        return Called(contig, HERE - 1, "CGT", "C")

    short, long = lost(LONGEST // 2), lost(LONGEST // 2 + 1)

    for found in (effects(model, short, long), effects(model, short.backwards(), long.backwards().leftmost())):
        assert not np.isnan(found[0]).any() and np.isnan(found[1]).all()


def test_a_sample_without_variants_has_no_scores(model: SpliceVariant) -> None:
    nothing = np.empty((0, WINDOW), np.uint8)
    none = np.empty(0, np.int32)
    windows = VariantWindows(ref=nothing, alt=nothing, at=WINDOW // 2, ref_length=none, alt_length=none)

    (prediction,) = model.predict([model.prepare(case(windows))])

    assert np.asarray(prediction.values[OUTPUT]).shape == (0, 4)


def test_windows_of_another_length_are_refused(model: SpliceVariant) -> None:
    windows = windows_of([Called(bases(400, 1), HERE, "A", "C")])
    cut = VariantWindows(
        ref=windows.ref[:, 1:], alt=windows.alt[:, 1:], at=windows.at - 1, ref_length=windows.ref_length,
        alt_length=windows.alt_length,
    )  # fmt: skip

    with pytest.raises(InputNotUsable):
        model.prepare(case(cut))
