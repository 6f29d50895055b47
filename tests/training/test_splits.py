"""Parts of a cohort: whole patients, both outcomes in each, the same for the same seed; or a reason why not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflow.errors import ConfigurationError
from medflow.training.splits import NEEDED, split


def cohort(patients: int, stays: int, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    whose = np.concatenate([np.arange(patients), rng.integers(patients, size=stays)])
    return (rng.random(len(whose)) < share).astype(np.float32), whose


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32), share=st.floats(0.4, 0.6), stays=st.integers(0, 60))
def test_no_patient_is_in_two_parts_and_no_stay_is_in_none(seed, share, stays):
    outcome, whose = cohort(200, stays, share, seed)

    parts = split(outcome, whose, seed=seed)

    named = [parts.training, parts.validation, parts.test]
    patients = [set(whose[rows].tolist()) for rows in named]
    assert sorted(np.concatenate(named).tolist()) == list(range(len(outcome)))
    assert not (patients[0] & patients[1] or patients[0] & patients[2] or patients[1] & patients[2])
    assert all({0, 1} == set(outcome[rows].tolist()) for rows in named)


def test_parts_have_about_the_same_share_of_outcomes():
    outcome, whose = cohort(1000, 0, 0.14)

    parts = split(outcome, whose, seed=1)

    assert [round(len(rows) / 1000, 2) for rows in (parts.training, parts.validation, parts.test)] == [0.64, 0.16, 0.2]
    shares = [outcome[rows].mean() for rows in (parts.training, parts.validation, parts.test)]
    assert max(shares) - min(shares) < 0.01


def test_the_seed_decides():
    outcome, whose = cohort(160, 0, 0.5)
    once, again, other = (split(outcome, whose, seed=seed).test.tolist() for seed in (3, 3, 4))

    assert once == again != other


def test_too_few_events_are_refused_with_how_many_are_needed():
    outcome = np.zeros(500, dtype=np.float32)
    outcome[: NEEDED - 1] = 1

    with pytest.raises(ConfigurationError, match=f"{NEEDED - 1} patients have the outcome .* need {NEEDED} patients"):
        split(outcome, np.arange(500), seed=0)
