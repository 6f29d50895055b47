import pickle
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflow.errors import CaseError, DeviceExhausted, PluginBroken, TransientError
from medflow.inference.lane import Lane
from medflow.inference.loaded import LoadedModel
from medflow.inference.runner import Outcome, Runner, as_medflow_error
from medflow.plugin import Model
from tests.models import Choosy, GcContent, SmallDevice, sequence_case


def run(model: Model, sequences: list[str]) -> list[Outcome]:
    openers = [
        lambda number=number, bases=bases: sequence_case(number, bases) for number, bases in enumerate(sequences)
    ]
    runner = Runner(LoadedModel(model, Lane("cpu")), threads=2)
    return list(chain.from_iterable(runner.run(openers)))


@given(st.lists(st.text(alphabet="ACGTN", min_size=8, max_size=8), max_size=30))
def test_every_case_comes_out_once_with_its_own_answer(sequences):
    outcomes = run(GcContent(), sequences)

    assert [outcome.index for outcome in outcomes] == list(range(len(sequences)))
    for bases, outcome in zip(sequences, outcomes, strict=True):
        if bases.startswith("N"):
            assert outcome.error is not None and outcome.error.code == "unknown-base"
        else:
            assert outcome.prediction.values["gc"] == sum(bases.count(letter) for letter in "GC") / 8


def test_a_case_that_fails_its_batch_fails_alone():
    outcomes = run(Choosy(), ["ACGTACGT", "TTTTTTTT", "GGGGCCCC", "AAAAAAAA", "CCCCCCCC"])

    assert [outcome.error is None for outcome in outcomes] == [True, False, True, True, True]
    assert outcomes[2].prediction.values["gc"] == 1.0


def test_a_foreign_error_text_is_not_kept_because_it_may_quote_the_input():
    outcome = run(Choosy(), ["TTTTTTTT"])[0]

    assert outcome.error.code == "plugin-error"
    assert "TTTT" not in outcome.error.message
    assert "ValueError at models.py:" in outcome.error.message


def test_which_cases_share_a_batch_depends_on_their_places_not_on_failures():
    seen = []

    class Noting(GcContent):
        def predict(self, batch):
            seen.append(list(batch))
            return super().predict(batch)

    run(Noting(), ["AAAAAAAA", "NAAAAAAA", "CCCCCCCC", "GGGGGGGG", "ACACACAC"])

    assert seen == [["AAAAAAAA", "CCCCCCCC", "GGGGGGGG"], ["ACACACAC"]]


def test_out_of_memory_halves_the_batch_and_keeps_it_small():
    loaded = LoadedModel(SmallDevice(), Lane("cpu"))
    runner = Runner(loaded, threads=1)

    outcomes = list(chain.from_iterable(runner.run([lambda: sequence_case(1, "ACGTACGT")] * 9)))

    assert all(outcome.error is None for outcome in outcomes)
    assert len(outcomes) == 9
    assert (loaded.planned_batch, loaded.batch_size) == (4, 2)


def test_out_of_memory_with_one_case_is_worth_another_try_later():
    model = SmallDevice()
    model.room = 0

    outcome = run(model, ["ACGTACGT"])[0]

    assert isinstance(outcome.error, DeviceExhausted)
    assert isinstance(outcome.error, TransientError)


def test_a_reader_that_fails_takes_only_its_case_down():
    def unreadable():
        raise OSError("disk")

    openers = [lambda: sequence_case(1, "ACGTACGT"), unreadable, lambda: sequence_case(3, "ACGTACGT")]
    outcomes = list(chain.from_iterable(Runner(LoadedModel(GcContent(), Lane("cpu")), threads=2).run(openers)))

    assert isinstance(outcomes[1].error, TransientError)
    assert outcomes[0].prediction and outcomes[2].prediction


def test_a_model_that_loses_count_is_broken():
    class Forgetful(GcContent):
        def predict(self, batch):
            return super().predict(batch)[:-1]

    with pytest.raises(PluginBroken, match="3 predictions for a batch of 4"):
        run(Forgetful(), ["ACGTACGT"] * 4)


def test_errors_survive_pickling():
    error = as_medflow_error(KeyError("x"))

    again = pickle.loads(pickle.dumps(error))

    assert isinstance(again, CaseError)
    assert (again.code, again.message) == (error.code, error.message)
