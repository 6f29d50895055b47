"""Explanations: checked against the declaration, on the device's terms, and never at a prediction's cost."""

import weakref
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain

import numpy as np
import pytest

from medflow.errors import CaseError, DeviceExhausted, PredictionInvalid
from medflow.inference.explaining import checked
from medflow.inference.lane import Lane
from medflow.inference.loaded import LoadedModel
from medflow.inference.runner import Runner
from medflow.plugin import Case, Image, Prediction, SequenceAttribution, SeriesAttribution, VariantWindows
from medflow.records import Unit, UnitKind
from medflow.testing.cases import sample_cases
from tests.explaining_models import ExplainedTissue, Gradient, LinearSite, LinearStay
from tests.models import GcContent, OutOfMemoryError, sequence_case


def picture(number: int, array: np.ndarray) -> Case:
    image = Image(array=array.astype(np.float32), spacing_mm=None, affine=None, modality="DX")
    unit = Unit(kind=UnitKind.SERIES, id=number)
    return Case(unit=unit, prediction_time=datetime(2026, 1, 1, tzinfo=UTC), inputs={"image": image})


def run(model, cases, *, explain=True, device="cpu"):
    model.load(device)
    loaded = LoadedModel(model, Lane(device))
    openers = [lambda case=case: case for case in cases]
    runner = Runner(loaded, threads=2, explain=explain)
    return list(chain.from_iterable(runner.run(openers))), runner, loaded


class Letters(GcContent):
    """Explains each base by whether it counts, and what stands instead would not, or the other way round."""

    def explain(self, batch, predictions):
        counts = np.array([letter in "GC" for letter in "ACGT"], np.float32)
        each = [np.array([counts - (letter in "GC") for letter in bases], np.float32) for bases in batch]
        return [{"gc": SequenceAttribution(values=values / 8, of="gc")} for values in each]


def test_nothing_is_explained_unless_it_is_asked_for():
    model = Gradient()

    outcomes, runner, _ = run(model, [picture(1, np.eye(8))], explain=False)

    assert [what for what, *_ in model.modes] == ["predict"]
    assert outcomes[0].explanation == {}
    assert "explain" not in runner.seconds


def test_a_model_that_explains_nothing_is_not_asked():
    outcomes, runner, _ = run(GcContent(), [sequence_case(1, "GGGGACTT")])

    assert (outcomes[0].explanation, outcomes[0].unexplained) == ({}, None)
    assert "explain" not in runner.seconds


def test_gradients_are_there_for_explaining_and_not_for_predicting(device):
    model = Gradient()

    outcomes, runner, _ = run(model, [picture(1, np.eye(9)), picture(2, np.ones((9, 9)))], device=device)

    assert model.modes == [("predict", True, False), ("explain", False, True)]
    found = outcomes[0].explanation["opacity"]
    assert found.dtype == np.float32
    assert found.sum() == pytest.approx(outcomes[0].prediction.values["opacity"][1], rel=1e-5)
    assert np.unravel_index(found.argmax(), found.shape) == (4, 4)
    assert runner.seconds["explain"] > 0


def test_a_case_out_of_scope_has_nothing_to_explain():
    class Sparing(Letters):
        def predict(self, batch):
            found = super().predict(batch)
            return [
                Prediction(out_of_scope="an unknown letter") if "N" in bases else prediction
                for bases, prediction in zip(batch, found, strict=True)
            ]

    outcomes, _, _ = run(Sparing(), [sequence_case(1, "GGACTTTT"), sequence_case(2, "GNACTTTT")])

    assert ["gc" in outcome.explanation for outcome in outcomes] == [True, False]
    assert outcomes[1].unexplained is None


def test_an_explanation_that_fails_costs_its_own_case_only_the_explanation():
    class Choosy(Letters):
        def explain(self, batch, predictions):
            if "TTTTTTTT" in batch:
                raise ValueError(f"cannot explain {batch}")
            return super().explain(batch, predictions)

    outcomes, _, _ = run(Choosy(), [sequence_case(number, base * 8) for number, base in enumerate("ACTG")])

    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert [outcome.prediction.values["gc"] for outcome in outcomes] == [0, 1, 0, 1]
    assert ["gc" in outcome.explanation for outcome in outcomes] == [True, True, False, True]
    assert outcomes[2].unexplained.code == "plugin-error"
    assert "TTTT" not in outcomes[2].unexplained.message


def test_the_wrong_number_of_explanations_loses_no_prediction():
    class Short(Letters):
        def explain(self, batch, predictions):
            return []

    outcomes, _, _ = run(Short(), [sequence_case(1, "GGGGACTT")])

    assert outcomes[0].prediction is not None
    assert "0 explanations for a batch of 1" in outcomes[0].unexplained.message


def test_out_of_memory_explains_fewer_at_once_and_predicts_as_before():
    sizes: list[int] = []

    class Greedy(Letters):
        def explain(self, batch, predictions):
            sizes.append(len(batch))
            if len(batch) > 1:
                raise OutOfMemoryError("device")
            return super().explain(batch, predictions)

    outcomes, _, loaded = run(Greedy(), [sequence_case(number, "GGGGACTT") for number in range(8)])

    assert all("gc" in outcome.explanation for outcome in outcomes)
    assert (loaded.batch_size, loaded.explained_size) == (4, 1)
    assert sizes == [4, 2, 1, 1, 1, 1, 1, 1, 1, 1]


def test_out_of_memory_with_one_case_is_said_and_the_prediction_stands():
    class Hopeless(Letters):
        def explain(self, batch, predictions):
            raise OutOfMemoryError("device")

    outcomes, _, _ = run(Hopeless(), [sequence_case(1, "GGGGACTT")])

    assert outcomes[0].prediction is not None
    assert isinstance(outcomes[0].unexplained, DeviceExhausted)


def test_what_a_failed_explanation_held_is_free_before_its_halves_are_tried():
    alive: list[weakref.ref] = []

    class Tensor:
        """Stands for memory of the device: gone when nobody knows it any more."""

    class Hoarding(Letters):
        def explain(self, batch, predictions):
            assert not any(reference() for reference in alive), "a traceback keeps the tensors of what failed"
            tensor = Tensor()
            alive.append(weakref.ref(tensor))
            if len(batch) > 2:
                raise CaseError("odd", "an odd case")
            return super().explain(batch, predictions)

    outcomes, _, _ = run(Hoarding(), [sequence_case(number, "GGGGACTT") for number in range(4)])

    assert [outcome.unexplained for outcome in outcomes] == [None] * 4
    assert len(alive) == 3


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"other": np.zeros((4, 5, 6), np.float32)}, "other is explained, and the model declares bright"),
        ({"bright": np.zeros((4, 5, 6))}, "must be a float32 array"),
        ({"bright": [[[0.0]]]}, "must be a float32 array"),
        ({"bright": np.zeros((4, 5), np.float32)}, "on the grid of the input image"),
        ({"bright": np.full((4, 5, 6), np.inf, np.float32)}, "infinite"),
        (None, "a mapping"),
    ],
)
def test_an_explanation_outside_the_declaration_is_refused(answer, reason):
    case = picture(1, np.zeros((4, 5, 6)))

    with pytest.raises(PredictionInvalid, match=reason) as refused:
        checked(ExplainedTissue.spec, case, answer)

    assert refused.value.code == "explanation-malformed"


def test_nothing_need_be_said_of_some_voxels_and_a_map_that_says_nothing_is_left_out():
    case, some = picture(1, np.zeros((4, 5, 6))), np.zeros((4, 5, 6), np.float32)
    some[0] = np.nan

    assert list(checked(ExplainedTissue.spec, case, {"bright": some})) == ["bright"]
    assert checked(ExplainedTissue.spec, case, {"bright": np.full_like(some, np.nan)}) == {}


# --- time series ---------------------------------------------------------------------------------------------------


def stay(number: int = 1) -> Case:
    (case,) = sample_cases(LinearStay.spec, 1, seed=number)
    return case


def attribution(**changes) -> dict[str, SeriesAttribution]:
    plain = SeriesAttribution(values=np.zeros((24, 4), np.float32), statics=np.zeros(2, np.float32))
    return {"death": replace(plain, **changes)}


def test_a_time_series_is_explained_value_by_value():
    outcomes, _, _ = run(LinearStay(), [stay(1), stay(2)])

    for outcome in outcomes:
        found, chance = outcome.explanation["death"], outcome.prediction.values["death"]
        assert (found.values.shape, found.statics.shape) == ((24, 4), (2,))
        assert found.values.sum() + found.statics.sum() == pytest.approx(np.log(chance / (1 - chance)), abs=1e-3)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"death": np.zeros((24, 4), np.float32)}, "death must be a SeriesAttribution"),
        (attribution(values=np.zeros((24, 4))), "values that explain death must be a float32 array"),
        (attribution(statics=None), "statics that explain death must be a float32 array"),
        (attribution(values=np.zeros((48, 4), np.float32)), r"are \(48, 4\), and what is explained is \(24, 4\)"),
        (attribution(statics=np.zeros(3, np.float32)), r"are \(3,\), and what is explained is \(2,\)"),
        (attribution(values=np.full((24, 4), np.nan, np.float32)), "values that explain death are not finite"),
        (attribution(statics=np.full(2, np.inf, np.float32)), "statics that explain death are not finite"),
    ],
)
def test_an_attribution_that_does_not_lie_on_the_series_is_refused(answer, reason):
    with pytest.raises(PredictionInvalid, match=reason) as refused:
        checked(LinearStay.spec, stay(), answer)

    assert refused.value.code == "explanation-malformed"


def test_an_attribution_explains_no_picture():
    with pytest.raises(PredictionInvalid, match="bright must be a float32 array"):
        checked(ExplainedTissue.spec, picture(1, np.zeros((4, 5, 6))), {"bright": attribution()["death"]})


# --- sequences -----------------------------------------------------------------------------------------------------


def changes(**given) -> dict[str, SequenceAttribution]:
    plain = SequenceAttribution(values=np.zeros((8, 4), np.float32), of="donor")
    return {"site": replace(plain, **given)}


def test_a_sequence_is_explained_base_by_base():
    (outcome, other), _, _ = run(LinearSite(), [sequence_case(1, "CAGGTAAG"), sequence_case(2, "TTTTTTTT")])

    assert outcome.explanation["site"].values[3].tolist() == [-3.0, -3.0, 0.0, -3.0]
    assert (outcome.explanation["site"].of, other.explanation["site"].of) == ("donor", "none")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"site": np.zeros((8, 4), np.float32)}, "site must be a SequenceAttribution"),
        (attribution() | {"site": attribution()["death"]}, "death is explained, and the model declares site"),
        (changes(values=np.zeros((8, 4))), "must be a float32 array"),
        (changes(values=np.zeros((60, 4), np.float32)), r"are \(60, 4\), and what is explained is \(8, 4\)"),
        (changes(values=np.full((8, 4), np.nan, np.float32)), "not finite"),
        (changes(values=np.ones((8, 4), np.float32)), "its own place in the values must be 0"),
        (changes(of="promoter"), "its classes: donor, none"),
    ],
)
def test_an_attribution_that_does_not_lie_on_the_sequence_is_refused(answer, reason):
    with pytest.raises(PredictionInvalid, match=reason) as refused:
        checked(LinearSite.spec, sequence_case(1, "CAGGTAAG"), answer)

    assert refused.value.code == "explanation-malformed"


def test_of_a_letter_that_is_no_base_every_substitution_is_a_change():
    answer = changes(values=np.ones((1, 4), np.float32))

    assert checked(LinearSite.spec, sequence_case(1, "N"), answer) == answer


def test_the_variants_of_a_sample_are_explained_by_their_scores_alone():
    bases = np.full((2, 8), ord("A"), np.uint8)
    windows = VariantWindows(
        ref=bases, alt=bases, at=4, ref_length=np.ones(2, np.int32), alt_length=np.ones(2, np.int32)
    )
    case = replace(sequence_case(1, "A"), inputs={"sequence": windows})

    assert checked(LinearSite.spec, case, {}) == {}
    with pytest.raises(PredictionInvalid, match="explain nothing else"):
        checked(LinearSite.spec, case, changes())
