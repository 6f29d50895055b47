from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from medflow.errors import InputNotUsable
from medflow.plugin import Case, Prediction, SequenceAttribution, SequenceWindow
from medflow.records import Unit, UnitKind
from medflow.testing.conformance import check_model
from medflow_genomics.encoding import CLASSES, LENGTH, encode
from medflow_genomics.splice import OUTPUT, SpliceSite
from medflow_genomics.train import fit_member, stratified_folds

# Consensus sites (Shapiro and Senapathy 1987) amid bases that mean nothing: exon|GT..., ...AG|exon
DONOR = "CATGATCCTGAACATTGCACATGCAAACAG" + "GTAAGTATCCATTGACATGCATTGACCATA"
ACCEPTOR = "GACATTGACTAACTTTTCTTTCCTTTGCAG" + "GTGCATGAACATGCCATTGATCATGCAAGC"
NEITHER = "CATGATCCTGAACATTGCACATGCAACATC" + "CATCGTATCCATTGACATGCATTGACCATA"


def case(bases: str, number: int = 1) -> Case:
    return Case(
        unit=Unit(kind=UnitKind.SEQUENCE, id=number),
        prediction_time=datetime(2026, 1, 1, tzinfo=UTC),
        inputs={"sequence": SequenceWindow(bases=bases)},
    )


@pytest.fixture(scope="module")
def model() -> SpliceSite:
    loaded = SpliceSite()
    loaded.load("cpu")
    return loaded


def predict(model: SpliceSite, *sequences: str) -> list[Prediction]:
    return model.predict([model.prepare(case(bases)) for bases in sequences])


def test_keeps_the_contract() -> None:
    broken = [check for check in check_model(SpliceSite) if not check.passed]

    assert not broken, broken


def test_tells_donor_acceptor_and_neither_apart(model: SpliceSite) -> None:
    answers = [prediction.values[OUTPUT] for prediction in predict(model, DONOR, ACCEPTOR, NEITHER)]

    assert [CLASSES[int(np.argmax(answer))] for answer in answers] == ["EI", "IE", "N"]
    assert all(float(np.max(answer)) > 0.8 for answer in answers)


def test_a_site_that_is_not_in_the_middle_is_none(model: SpliceSite) -> None:
    (answer,) = predict(model, DONOR[15:] + DONOR[:15])

    assert CLASSES[int(np.argmax(answer.values[OUTPUT]))] == "N"


def test_other_letters_are_out_of_scope_and_change_nothing_beside_them(model: SpliceSite) -> None:
    alone = predict(model, DONOR)[0]

    ambiguous, beside = predict(model, DONOR[:10] + "N" + DONOR[11:], DONOR)

    assert ambiguous.out_of_scope == "the sequence has letters other than A, C, G, T" and not ambiguous.values
    assert np.allclose(alone.values[OUTPUT], beside.values[OUTPUT], atol=1e-6)


def test_another_length_is_refused(model: SpliceSite) -> None:
    with pytest.raises(InputNotUsable):
        model.prepare(case(DONOR[1:]))


def explain(model: SpliceSite, *sequences: str) -> list[SequenceAttribution]:
    ready = [model.prepare(case(bases)) for bases in sequences]
    return [found[OUTPUT] for found in model.explain(ready, model.predict(ready))]


def test_explains_what_each_other_base_would_do_to_the_log_odds_of_the_answer(model: SpliceSite) -> None:
    (found,) = explain(model, DONOR)

    changed = DONOR[:34] + "T" + DONOR[35:]  # the G at +5
    before, after = (float(item.values[OUTPUT][0]) for item in predict(model, DONOR, changed))
    expected = np.log(after / (1 - after)) - np.log(before / (1 - before))
    assert found.of == "EI" and found.values.shape == (LENGTH, 4) and found.values.dtype == np.float32
    assert found.values[34, 3] == pytest.approx(expected, abs=1e-3) and expected < -0.5
    assert not found.values[np.arange(LENGTH), encode(DONOR)].any()


def test_the_bases_that_make_a_site_matter_most(model: SpliceSite) -> None:
    donor, acceptor = explain(model, DONOR, ACCEPTOR)

    assert set(np.argsort(donor.values.min(1))[:2].tolist()) == {30, 31}
    assert {28, 29} < set(np.argsort(acceptor.values.min(1))[:4].tolist())


def test_an_explanation_is_the_same_alone_and_beside_others(model: SpliceSite) -> None:
    alone, beside = explain(model, DONOR)[0], explain(model, ACCEPTOR, NEITHER, DONOR)[2]

    assert np.array_equal(alone.values, beside.values)


def test_what_is_out_of_scope_is_not_explained(model: SpliceSite) -> None:
    ready = [model.prepare(case("N" + DONOR[1:]))]

    assert model.explain(ready, model.predict(ready)) == [{}]


def test_letters_become_numbers_and_others_minus_one() -> None:
    assert encode("ACGTNacgé").tolist() == [0, 1, 2, 3, -1, -1, -1, -1, -1]


def test_folds_share_out_every_class_evenly() -> None:
    labels = np.repeat([0, 1, 2], [23, 35, 42])

    folds = stratified_folds(labels, 10, seed=1)

    counts = np.array([[np.sum((folds == fold) & (labels == label)) for label in range(3)] for fold in range(10)])
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.bincount(folds).tolist() == [10] * 10


def test_training_learns_and_gives_the_same_network_for_the_same_seed() -> None:
    rng = np.random.default_rng(0)
    bases = rng.integers(0, 4, (64, LENGTH))
    bases[:32, 20:40] = 2
    labels = np.repeat([0, 2], 32)

    first, again, other = (
        fit_member(torch.from_numpy(bases), torch.from_numpy(labels), seed=seed) for seed in (7, 7, 8)
    )
    with torch.inference_mode():
        answers = [member(torch.from_numpy(bases)).numpy() for member in (first, again, other)]

    assert np.array_equal(answers[0], answers[1]) and not np.array_equal(answers[0], answers[2])
    assert (answers[0].argmax(1) == labels).all()
