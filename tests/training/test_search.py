"""Searches by a model that is cheap to fit: seeded, gone on with after a kill, and quiet."""

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import optuna
import pytest

from medflow.errors import ConfigurationError, PluginBroken
from medflow.plugin import Epoch, Examples, Fitted
from medflow.training import study
from medflow.training.asked import Plan
from medflow.training.search import Search, seed_of
from tests.trained_stays import WEIGHTS, HeartFit


@pytest.fixture
def folder(tmp_path):
    with study.opened(tmp_path, "k") as opened:
        yield opened


PLAN = Plan(trials=4, sampler="bayesian", seed=5, device="cpu")


def examples(seed: int) -> Examples:
    rng = np.random.default_rng(seed)
    rates = rng.normal(100, 20, size=(60, 1, 1)).astype(np.float32)
    outcome = (rates[:, 0, 0] + rng.normal(0, 20, size=60) > 110).astype(np.float32)
    return Examples(values=rates, statics=np.zeros((60, 0), np.float32), outcome=outcome, patients=np.arange(60))


def loss_of(kept) -> float:
    """The validation loss that the model itself came to."""
    return kept.epochs[-1].validation_loss


def search(folder, plan=PLAN, *, model=HeartFit, judge=loss_of, said: list[str] | None = None):
    told = (lambda words, _count: said.append(words)) if said is not None else (lambda _words, _count: None)
    return Search(folder, model, examples(1), examples(2), plan, judge=judge, tell=told).run()


def trials_in(folder) -> Sequence[optuna.trial.FrozenTrial]:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / study.JOURNAL))
    return optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend)).trials


@pytest.mark.parametrize("sampler", ["random", "bayesian"])
def test_the_first_trial_has_the_defaults_and_the_best_is_kept(folder, sampler):
    found = search(folder, replace(PLAN, sampler=sampler, trials=7))

    tried = trials_in(folder)
    assert tried[0].params == {"rate": 0.5, "epochs": 6, "start": "zero"}
    assert len({json.dumps(trial.params, sort_keys=True) for trial in tried}) == 7
    best = min((trial for trial in tried if trial.value is not None), key=lambda trial: trial.value or 0.0)
    assert (found.loss, found.best.chosen) == (best.value, best.params)
    assert found.complete + found.stopped == 7
    assert found.best.threshold == 0.4


def test_no_search_is_one_trial_with_the_defaults(folder):
    found = search(folder, replace(PLAN, trials=1))

    assert (found.complete, found.best.number, found.best.chosen["epochs"]) == (1, 0, 6)


class Killed(BaseException):
    """What the operating system does, as far as a test in the same process can."""


def test_a_search_that_was_killed_ends_as_it_would_have(tmp_path):
    def killing(kept):
        if kept.number == 2:
            raise Killed
        return loss_of(kept)

    with study.opened(tmp_path, "one") as folder:
        whole = search(folder)
    with study.opened(tmp_path, "two") as folder, pytest.raises(Killed):
        search(folder, judge=killing)
    with (tmp_path / "training" / "two" / study.JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code": 4, "half a li')  # and a write that was cut off
    fitted: list[int] = []

    class Noting(HeartFit):
        @classmethod
        def fit(cls, *parts, seed, **options):
            fitted.append(seed)
            return super().fit(*parts, seed=seed, **options)

    with study.opened(tmp_path, "two") as folder:
        resumed = search(folder, model=Noting)

    assert resumed == whole
    assert fitted == [seed_of(PLAN.seed, number) for number in (2, 3)]  # and none of those before


def test_a_kept_fit_that_was_lost_is_fitted_again(folder):
    once = search(folder)
    (folder / study.BEST / "about.json").unlink()

    assert search(folder) == once


@pytest.mark.parametrize("name", ["about.json", WEIGHTS])
def test_a_kept_fit_that_was_damaged_is_fitted_again(folder, name):
    once = search(folder)
    path = folder / study.BEST / name
    path.write_bytes(path.read_bytes()[:-1] + b"~")

    assert search(folder) == once


class Worsening(HeartFit):
    """All choices but the first five get worse with every epoch."""

    fits = 0

    @classmethod
    def fit(cls, training, validation, chosen, *, seed, device, report):
        cls.fits += 1
        for number in range(1, 9):
            loss = 0.5 if cls.fits < 5 else 0.5 + number
            report(Epoch(number=number, training_loss=loss, validation_loss=loss))
        return super().fit(training, validation, chosen, seed=seed, device=device, report=lambda _epoch: None)


def test_choices_that_do_worse_than_others_are_stopped(folder):
    Worsening.fits = 0

    found = search(folder, replace(PLAN, trials=6), model=Worsening)

    assert (found.complete, found.stopped, found.failed) == (4, 2, {})


class Fragile(HeartFit):
    """Cannot be fitted from a start that is drawn."""

    @classmethod
    def fit(cls, training, validation, chosen, **options):
        if chosen["start"] == "drawn":
            raise ValueError("the heart rate of patient 12 is 300")
        return super().fit(training, validation, chosen, **options)


def test_a_choice_that_cannot_be_fitted_is_counted_and_the_others_go_on(folder, caplog):
    found = search(folder, replace(PLAN, trials=6, sampler="random"), model=Fragile)

    assert found.failed["ValueError"] >= 1
    assert found.complete + found.stopped + sum(found.failed.values()) == 6
    assert "patient 12" not in caplog.text


class Hopeless(HeartFit):
    """Cannot be fitted at all."""

    @classmethod
    def fit(cls, *parts, **options):
        raise ValueError("the heart rate of patient 12 is 300")


class Elsewhere(HeartFit):
    """Gives a file that it does not declare."""

    @classmethod
    def fit(cls, *parts, **options):
        return Fitted(tensors={"other": {}})


class Infinite(HeartFit):
    """Gives numbers that are none."""

    @classmethod
    def fit(cls, *parts, **options):
        return Fitted(tensors={cls.spec.weights[0].file: {"weights": np.array([np.nan])}})


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Hopeless, r"heart-fit could not be fitted: ValueError at test_search.py:\d+$"),
        (Elsewhere, r"declares the weights heart.safetensors and was fitted to other"),
        (Infinite, r"the tensor weights holds what is no number"),
    ],
)
def test_defaults_that_cannot_be_fitted_end_the_search_without_a_patients_data(folder, model, said):
    with pytest.raises(PluginBroken, match=said) as caught:
        search(folder, model=model)

    assert "300" not in caught.value.message


class Loud(HeartFit):
    """Prints, warns and logs."""

    @classmethod
    def fit(cls, *parts, **options):
        import logging

        warnings.warn("a warning about patient 12", stacklevel=1)
        logging.getLogger("plugin").warning("a log line about patient 12")
        print("a line about patient 12")
        return super().fit(*parts, **options)


def test_nothing_that_a_model_or_the_search_says_gets_out(folder, capfd):
    said: list[str] = []

    search(folder, model=Loud, said=said)

    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert said[0] == "trial 1 of 4"
    assert any(words.startswith("trial 2 of 4, epoch 1: loss 0.") for words in said)


def test_the_folder_is_its_owners_alone(folder):
    search(folder, replace(PLAN, trials=1))

    assert folder.stat().st_mode & 0o77 == 0


def test_one_process_at_a_time(tmp_path, folder):
    with pytest.raises(ConfigurationError, match="another process is at this very training"):
        with study.opened(tmp_path, "k"):
            pass


def test_what_nobody_went_on_with_for_a_week_is_removed_unless_somebody_is_at_it(tmp_path):
    with study.opened(tmp_path, "left") as left:
        pass
    with study.opened(tmp_path, "recent") as recent:
        pass
    with study.opened(tmp_path, "long") as long:
        for path in (left / study.LOCK, left / study.JOURNAL, left, long / study.LOCK, long / study.JOURNAL, long):
            os.utime(path, (0, 0))
        with study.opened(tmp_path, "new"):
            assert (left.exists(), recent.exists(), long.exists()) == (False, True, True)
