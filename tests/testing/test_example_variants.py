"""The worked example of the documentation does what the page says of it."""

import numpy as np
import pytest

from medflow.plugin import VariantWindows
from tests.example_variants import GcChange


def test_it_keeps_the_contract(check_model):
    check_model(GcChange)


def test_the_change_is_that_of_the_letters_and_none_is_told_where_one_is_unknown():
    ref = [b"AAAAAAAAAA", b"AAAAAAAAAA", b"AAAANAAAAA"]
    alt = [b"AAAAAGAAAA", b"AAAAACGCAA", b"AAAANGAAAA"]
    windows = VariantWindows(
        ref=np.array([list(row) for row in ref], dtype=np.uint8),
        alt=np.array([list(row) for row in alt], dtype=np.uint8),
        at=5,
        ref_length=np.ones(3, dtype=np.int32),
        alt_length=np.array([1, 3, 1], dtype=np.int32),
    )

    [answer] = GcChange().predict([windows])

    assert answer.values["gc-change"] == pytest.approx(np.array([[0.1], [0.3], [np.nan]]), nan_ok=True)
