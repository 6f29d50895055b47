import numpy as np

from medflow_genomics.encoding import encode
from medflow_genomics.measure import Mutated, figures
from medflow_genomics.mutagenesis import changes, mutants

DONOR = "CATGATCCTGAACATTGCACATGCAAACAG" + "GTAAGTATCCATTGACATGCATTGACCATA"


def test_every_neighbour_of_a_sequence_is_made_once_and_its_change_finds_its_place() -> None:
    bases = encode(DONOR)

    made = mutants(bases)

    assert made.shape == (181, 60) and len({tuple(row) for row in made.tolist()}) == 181
    assert (made[0] == bases).all() and ((made[1:] != bases).sum(1) == 1).all()
    scores = made[:, 30] == encode("A")[0]
    assert np.argwhere(changes(scores.astype(float), bases)).tolist() == [[30, 0]]


def test_a_loss_counts_as_reported_where_the_two_bases_go_or_the_answer_does() -> None:
    made = mutants(encode(DONOR))
    place = (made[1:] != made[0]).argmax(1)
    answers = np.tile([0.9, 0.05, 0.05], (181, 1))
    answers[1:][place == 34] = [0.1, 0.1, 0.8]
    donor = (made[:, 30] == encode("G")[0]) & (made[:, 31] == encode("T")[0])
    of = {"EI": donor, "IE": np.zeros(181, bool)}
    windows = [Mutated(label=label, answers=answers, has=of, place=place) for label in ("EI", "N")]
    windows.append(Mutated(label="IE", answers=answers, has={"EI": donor, "IE": ~of["IE"]}, place=place))

    found = figures(windows)

    assert found["EI"]["two_bases_changed_loss_reported"] == 1.0
    assert found["EI"]["other_base_changed_loss_reported"] == round(3 / 174, 5)
    assert found["EI"]["two_bases_changed_median_probability_without_the_rule"] == 0.9
    assert found["N"]["any_base_changed_gain_reported"] == 0.0
