"""Effects of variants against their declaration."""

import numpy as np
import pytest

from medflow.errors import PredictionInvalid
from medflow.inference.results import results_of, scores_of
from medflow.plugin import Prediction
from medflow.testing import sample_cases
from medflow.testing.variants import chosen, with_windows
from tests.variant_models import GcShift

SPEC = GcShift.spec
(CASE,) = sample_cases(SPEC, 1)
THREE = with_windows(CASE, chosen(CASE.variants, np.arange(3)))
NAN = float("nan")


def results(effects, dtype=np.float32):
    return results_of(SPEC, THREE, Prediction(values={"shift": np.array(effects, dtype).reshape(-1, 2)}))


def test_the_score_is_the_largest_absolute_effect_and_a_row_of_nan_is_out_of_scope():
    (result,) = results([[0.25, -0.75], [NAN, NAN], [0.0, 0.5]])

    assert result.value == 0.75 and result.counts == {"scored": 2, "out-of-scope": 1}
    assert np.array_equal(
        scores_of(SPEC.outputs[0], np.array([[0.25, -0.75], [NAN, NAN]]), 2), [0.75, NAN], equal_nan=True
    )


def test_a_sample_without_variants_has_no_score():
    empty = with_windows(CASE, chosen(CASE.variants, np.arange(0)))

    (result,) = results_of(SPEC, empty, Prediction(values={"shift": np.zeros((0, 2), np.float32)}))

    assert result.value is None and result.counts == {"scored": 0}


@pytest.mark.parametrize(
    ("effects", "code"),
    [
        ([[0.1, 0.1]] * 2, "prediction-malformed"),
        ([[0.1, NAN], [0, 0], [0, 0]], "prediction-malformed"),
        ([[0.1, 1.5], [0, 0], [0, 0]], "prediction-out-of-range"),
        ([[0.1, -np.inf], [0, 0], [0, 0]], "prediction-out-of-range"),
    ],
)
def test_effects_that_do_not_fit_are_no_result(effects, code):
    with pytest.raises(PredictionInvalid) as raised:
        results(effects)

    assert raised.value.fields["code"] == code


def test_effects_are_floats():
    with pytest.raises(PredictionInvalid, match="floats of shape"):
        results([[0, 0], [0, 0], [0, 1]], np.int64)
