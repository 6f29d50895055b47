"""The clauses of the contract that models of variants keep, each broken by one that does not."""

from dataclasses import replace

import numpy as np
import pytest

from medflow.plugin import Prediction
from medflow.testing import check_model, sample_cases
from medflow.testing.variants import COMPLEMENT, chosen, indels_of_both_strands, reverse_complement, substitutions
from tests.variant_models import GcShift

STRANDS = "both strands give the same effects"
OTHERS = "a variant's effects do not depend on the others"
BATCH = "a batch equals its cases one by one"


def broken(checks) -> list[str]:
    return [check.name for check in checks if not check.passed]


class OneStrand(GcShift):
    """Counts G alone, which the other strand has as C."""

    def effects(self, windows):
        return super().effects(windows) + (windows.ref == ord("G")).mean(axis=1, keepdims=True).astype(np.float32) / 9


class OneStrandAsDeclared(OneStrand):
    spec = replace(GcShift.spec, accepts=(replace(GcShift.spec.accepts[0], strand="forward"),))


class OneStrandOfIndels(GcShift):
    """Adds what the base before an insertion or deletion is, which the other strand has after it."""

    def effects(self, windows):
        kept = np.isin(windows.ref[:, windows.at], list(b"GC")) & (windows.ref_length != windows.alt_length)
        return super().effects(windows) + kept[:, None].astype(np.float32) / 9


class AsWritten(GcShift):
    """Adds to the effects of what is removed where it is written, of several places that it may be in."""

    def effects(self, windows):
        where = (windows.ref_length > windows.alt_length) * (windows.at - windows.ref.shape[1] / 2)
        return super().effects(windows) + where[:, None].astype(np.float32) / 100


class Comparing(GcShift):
    """Tells each variant's effects beside the mean of its sample."""

    def effects(self, windows):
        found = super().effects(windows)
        return found - np.nanmean(found, axis=0)


class OfTheBatch(GcShift):
    """Its answers depend on what shares a batch with them."""

    def predict(self, batch):
        return [Prediction(values={"shift": self.effects(item) / len(batch)}) for item in batch]


class Infinite(GcShift):
    def effects(self, windows):
        return super().effects(windows) + 7


def test_a_good_model_of_variants_keeps_every_clause(check_model):
    check_model(GcShift)


@pytest.mark.parametrize(
    ("model", "clauses"),
    [
        (OneStrand, [STRANDS]),
        (OneStrandOfIndels, [STRANDS]),
        (AsWritten, [STRANDS]),
        (OneStrandAsDeclared, []),
        (Comparing, [OTHERS]),
        (OfTheBatch, [BATCH]),
        (Infinite, ["outputs lie inside the declaration"]),
    ],
)
def test_each_clause_that_is_not_kept_is_named(model, clauses):
    found = broken(check_model(model))

    assert set(clauses) <= set(found)
    assert found == [] or clauses
    assert (STRANDS in found) == (STRANDS in clauses)


def test_cases_have_every_kind_of_variant_and_bases_that_are_not_known():
    windows = sample_cases(GcShift.spec, 1)[0].variants

    assert (windows.ref_length > 1).any() and (windows.alt_length > 1).any() and substitutions(windows).any()
    assert (windows.ref == ord("N")).any()
    kept = np.arange(windows.ref.shape[1]) < windows.at
    assert (windows.ref == windows.alt)[:, kept].all()


def test_the_other_strand_twice_is_the_first():
    windows = sample_cases(GcShift.spec, 1)[0].variants
    single = chosen(windows, substitutions(windows))

    turned = reverse_complement(single)
    again = reverse_complement(turned)

    assert (again.ref == single.ref).all() and again.at == single.at
    changed = turned.ref != turned.alt
    assert (changed.nonzero()[1] == turned.at).all() and changed.any(axis=1).all()


@pytest.mark.parametrize("length", [16, 60, 61])
def test_indels_of_the_other_strand_are_the_same_haplotypes_in_its_own_normal_form(length):
    wanted = replace(GcShift.spec.accepts[0], length=length)

    pairs = indels_of_both_strands(wanted, np.random.default_rng(3))

    assert len(pairs) == 4
    for first, other in pairs:
        count = int(abs(first.ref_length[0] - first.alt_length[0]))
        assert (reverse(other.ref) == first.ref).all()
        one, two = (first.alt, reverse(other.alt)) if first.ref_length[0] > 1 else (reverse(other.alt), first.alt)
        assert (one[:, : length - count] == two[:, count:]).all()
        for windows in (first, other):
            at, longer = windows.at, windows.ref if windows.ref_length[0] > 1 else windows.alt
            assert (windows.ref[:, : at + 1] == windows.alt[:, : at + 1]).all()
            assert (longer[:, at + count] != longer[:, at]).all()  # cannot be written further left


def reverse(windows: np.ndarray) -> np.ndarray:
    return COMPLEMENT[windows][:, ::-1]


def test_a_window_too_short_for_an_indel_is_asked_of_substitutions_alone():
    assert indels_of_both_strands(replace(GcShift.spec.accepts[0], length=15), np.random.default_rng(3)) == []
