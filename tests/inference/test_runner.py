import pickle
import time
import weakref
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflow.errors import CaseError, ConfigurationError, DeviceExhausted, PluginBroken, TransientError
from medflow.inference.devices import as_medflow_error
from medflow.inference.lane import Lane
from medflow.inference.loaded import LoadedModel
from medflow.inference.runner import Outcome, Runner
from medflow.plugin import Model
from tests.models import Choosy, GcContent, OutOfMemoryError, SmallDevice, sequence_case


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


@pytest.mark.parametrize("fail", [lambda: OutOfMemoryError("device"), lambda: CaseError("odd", "an odd case")])
def test_what_a_failed_batch_held_is_free_before_its_halves_are_tried(fail):
    alive: list[weakref.ref] = []

    class Tensor:
        """Stands for memory of the device: gone when nobody knows it any more."""

    class Hoarding(GcContent):
        def predict(self, batch):
            assert not any(reference() for reference in alive), "a traceback keeps the tensors of the batch that failed"
            tensor = Tensor()
            alive.append(weakref.ref(tensor))
            if len(batch) > 2:
                raise fail()
            return super().predict(batch)

    outcomes = run(Hoarding(), ["ACGTACGT"] * 4)

    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert len(alive) == 3


def test_seconds_tell_waiting_for_input_from_working_on_it():
    class Slow(GcContent):
        def prepare(self, case):
            time.sleep(0.03)
            return super().prepare(case)

        def predict(self, batch):
            time.sleep(0.1)
            return super().predict(batch)

    runner = Runner(LoadedModel(Slow(), Lane("cpu")), threads=4)
    list(runner.run([lambda: sequence_case(1, "ACGTACGT")] * 8))

    assert runner.seconds["predict"] >= 0.2
    assert 0.03 <= runner.seconds["wait"] < 0.15  # the second batch was prepared while the first was worked on


def test_a_grown_batch_is_formed_of_more_cases_and_prepared_one_batch_ahead():
    prepared: list[int] = []
    sizes: list[tuple[int, int]] = []

    class Noting(GcContent):
        def prepare(self, case):
            prepared.append(1)
            return super().prepare(case)

        def predict(self, batch):
            time.sleep(0.05)
            sizes.append((len(batch), len(prepared)))
            return super().predict(batch)

    loaded = LoadedModel(Noting(), Lane("cpu"), planned_batch=16)
    list(Runner(loaded, threads=4).run([lambda: sequence_case(1, "ACGTACGT")] * 64))

    assert sizes == [(16, 32), (16, 48), (16, 64), (16, 64)]


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


def test_a_case_is_not_blamed_for_how_the_installation_is_configured():
    def refused():
        raise ConfigurationError("the object store refused: check its credentials")

    with pytest.raises(ConfigurationError, match="credentials"):
        list(Runner(LoadedModel(GcContent(), Lane("cpu")), threads=2).run([refused, refused]))
