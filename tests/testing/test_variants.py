"""The clauses of the contract that models of variants keep, each broken by one that does not."""

from dataclasses import replace

import numpy as np
import pytest

from medflow.plugin import Prediction
from medflow.testing import check_model, sample_cases
from medflow.testing.variants import chosen, reverse_complement, substitutions
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
