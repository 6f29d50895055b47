"""Versions trained here: numbered once, at most one of a model promoted, whoever promotes at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from medflow.errors import ConfigurationError
from medflow.store import Store, trained

WEIGHTS = "ab" * 32


def train(store: Store, model: str = "risk", *, weights: str = WEIGHTS) -> str:
    spec = {"weights": [{"file": "w.safetensors", "sha256": weights}], "reference": None}
    with store.writing() as connection:
        version = trained.next_version(connection, model, "1.1.0")
        trained.add(
            connection,
            model=model,
            version=version,
            base_version="1.1.0",
            base_digest="d",
            spec=spec,
            files={"w.safetensors": weights, trained.CARD: "cd" * 32},
            hyperparameters={"width": 8},
            seed=7,
            cohort={"cases": 12},
            metrics={"auroc": 0.8},
        )
    return version


def promote(store: Store, version: str | None, model: str = "risk") -> trained.TrainedVersion | None:
    with store.writing() as connection:
        return trained.promote(connection, model, version)


def states(store: Store) -> dict[str, str]:
    with store.reading() as connection:
        return {item.version: item.state for item in trained.versions(connection)}


def test_a_training_is_a_candidate_with_a_number_of_its_own(store):
    found = [train(store), train(store), train(store, "other")]

    assert found == ["1.1.0+trained.1", "1.1.0+trained.2", "1.1.0+trained.1"]
    with store.reading() as connection:
        first, _ = trained.versions(connection, "risk")
        assert trained.promoted(connection) == []
    assert (first.state, first.metrics, first.seed, first.files["w.safetensors"]) == (
        "candidate",
        {"auroc": 0.8},
        7,
        WEIGHTS,
    )


def test_promoting_another_retires_the_first_which_can_be_promoted_again(store):
    first, second = train(store), train(store)

    assert promote(store, first) is None
    before = promote(store, second)

    assert before is not None and before.version == first
    assert states(store) == {first: "retired", second: "promoted"}
    promote(store, first)
    assert states(store) == {first: "promoted", second: "retired"}


def test_going_back_to_what_the_plugin_brings_leaves_other_models_alone(store):
    promote(store, train(store))
    promote(store, train(store, "other"), "other")

    before = promote(store, None)

    assert before is not None and before.version == "1.1.0+trained.1"
    with store.reading() as connection:
        assert [item.model for item in trained.promoted(connection)] == ["other"]


def test_what_is_promoted_has_another_stamp_after_each_promotion(store):
    first, second = train(store), train(store)
    stamps = set()

    for version in (first, second, None, first):
        promote(store, version)
        with store.reading() as connection:
            stamps.add(trained.stamp(connection))

    assert len(stamps) == 4


def test_promoting_what_is_promoted_changes_nothing(store):
    version = train(store)
    promote(store, version)
    with store.reading() as connection:
        before = trained.stamp(connection)

    promote(store, version)

    with store.reading() as connection:
        assert trained.stamp(connection) == before


def test_a_version_that_is_not_there_is_refused_with_those_that_are(store):
    train(store)

    with pytest.raises(ConfigurationError, match=r"no version 9 of risk .*1\.1\.0\+trained\.1"):
        promote(store, "9")


def test_of_two_who_promote_at_once_one_stays(store):
    found = [train(store) for _ in range(4)]
    together = Barrier(len(found))

    def go(version: str) -> None:
        together.wait()
        promote(store, version)

    with ThreadPoolExecutor(len(found)) as pool:
        list(pool.map(go, found))

    assert sorted(states(store).values()) == ["promoted", "retired", "retired", "retired"]


def test_trainings_that_end_at_once_have_different_numbers(store):
    together = Barrier(4)

    def go(_: int) -> str:
        together.wait()
        return train(store)

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(go, range(4)))

    assert found == {f"1.1.0+trained.{number}" for number in range(1, 5)}


def test_a_removed_candidate_leaves_its_number_taken_and_frees_what_nobody_else_has(store):
    first = train(store)
    second = train(store, weights="ef" * 32)

    with store.writing() as connection:
        assert trained.remove(connection, "risk", second) == ("ef" * 32,)

    assert list(states(store)) == [first]
    assert train(store) == "1.1.0+trained.3"


def test_what_has_been_served_is_not_removed(store):
    version = train(store)
    promote(store, version)
    promote(store, None)

    with store.writing() as connection, pytest.raises(ConfigurationError, match="is retired"):
        trained.remove(connection, "risk", version)


def test_a_spec_whose_weights_are_not_among_the_files_is_refused(store):
    spec = {"weights": [{"file": "w.safetensors", "sha256": WEIGHTS}]}

    with store.writing() as connection, pytest.raises(ConfigurationError, match=r"names w\.safetensors"):
        trained.add(
            connection, model="m", version="1+trained.1", base_version="1", base_digest="d", spec=spec, files={},
            hyperparameters={}, seed=0, cohort={}, metrics={},
        )  # fmt: skip
