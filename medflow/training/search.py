"""The search for hyperparameters: trials one after the other, each seeded, the worse ones stopped early.

Optuna proposes, the model fits, and the fitted model's log loss on the validation patients decides; it is the first
trial's that has the model's own defaults. What a trial is given depends on the seed and on the trials that ended before
it, not on the process, so that a search that was killed ends as it would have otherwise.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from medflow.errors import PluginBroken, TransientError, TrialStopped, place_of
from medflow.inference.devices import is_out_of_memory
from medflow.plugin import Choice, Epoch, Examples, Fitted, HyperParameter, Integer, Trainable
from medflow.training import study as folders
from medflow.training.asked import Plan, Sampler
from medflow.training.study import Found, Kept

log = logging.getLogger(__name__)
RANDOM_FIRST = 5  # trials before the Bayesian sampler has something to go by
NEVER_STOPPED = 4  # trials that run to their end, for others to be held against
FIRST_EPOCHS = 3  # of a trial, that it is always given
NUMBER, ERROR = "number", "error"


Tell = Callable[[str, int], None]
Judge = Callable[[Kept], float]


class Search:
    """One search in its folder, begun or gone on with.

    Parameters
    ----------
    folder
        Of this training alone (`study.opened`).
    model
        What to fit.
    training, validation
        Its cases.
    judge
        The log loss of a fitted model on the validation part; lower is better.
    tell
        Called with what is going on, in words, and how many trials ended just now.
    """

    def __init__(
        self,
        folder: Path,
        model: type[Trainable[Any]],
        training: Examples,
        validation: Examples,
        plan: Plan,
        *,
        judge: Judge,
        tell: Tell = lambda _said, _count: None,
    ) -> None:
        self._folder, self._model, self._plan = folder, model, plan
        self._training, self._validation = training, validation
        self._judge, self._tell = judge, tell

    def run(self) -> Found:
        """Search until all trials of the plan have ended, in this process or one before.

        Raises
        ------
        PluginBroken
            The model's defaults, or all choices, could not be fitted.
        """
        with quiet():
            study = self._study()
            self._tell(f"trial 1 of {self._plan.trials}", len(_ended(study)))
            while (number := len(_ended(study))) < self._plan.trials:
                self._one(study, number)
            return self._found(study)

    def _study(self) -> optuna.Study:
        storage = JournalStorage(JournalFileBackend(str(self._folder / folders.JOURNAL)))
        pruner = optuna.pruners.MedianPruner(n_startup_trials=NEVER_STOPPED, n_warmup_steps=FIRST_EPOCHS)
        study = optuna.create_study(
            study_name="search", storage=storage, load_if_exists=True, direction="minimize", pruner=pruner
        )
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)  # its process was killed: it is done again
        return study

    def _one(self, study: optuna.Study, number: int) -> None:
        study.sampler = _sampler(self._plan.sampler, seed_of(self._plan.seed, number))
        if number == 0 and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            study.enqueue_trial({item.name: item.default for item in self._model.hyperparameters})
        trial = study.ask(_distributions(self._model.hyperparameters))
        trial.set_user_attr(NUMBER, number)
        epochs: list[Epoch] = []
        try:
            fitted = self._fit(number, dict(trial.params), self._reporter(study, trial, number, epochs))
            loss = self._keep_if_best(study, Kept.of(number, trial.params, fitted, epochs))
        except TrialStopped:
            study.tell(trial, state=TrialState.PRUNED)
            log.info("trial %d of %d was stopped after %d epochs", number + 1, self._plan.trials, len(epochs))
        except PluginBroken as error:
            if number == 0:
                study.tell(trial, state=TrialState.FAIL)  # without a word: tried anew, by a process that may succeed
                raise
            log.warning("trial %d of %d failed: %s", number + 1, self._plan.trials, error.message)
            trial.set_user_attr(ERROR, str(error.fields.get("kind", "plugin-error")))
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, loss)
            log.info("trial %d of %d: log loss %.4f", number + 1, self._plan.trials, loss)
        self._tell(f"trial {min(number + 2, self._plan.trials)} of {self._plan.trials}", 1)

    def _fit(self, number: int, chosen: Mapping[str, Any], report: Callable[[Epoch], None]) -> Fitted:
        return fit(
            self._model,
            self._training,
            self._validation,
            chosen,
            seed=seed_of(self._plan.seed, number),
            device=self._plan.device,
            report=report,
        )

    def _reporter(self, study: optuna.Study, trial: Trial, number: int, epochs: list[Epoch]) -> Callable[[Epoch], None]:
        """What the model calls each epoch. Choices are compared by the first network of an ensemble."""
        steps = iter(range(10**9))

        def report(epoch: Epoch) -> None:
            epochs.append(epoch)
            self._tell(f"trial {number + 1} of {self._plan.trials}, {_said(epoch)}", 0)
            if epoch.member:
                return
            trial.report(float(epoch.validation_loss), step=next(steps))
            if trial.should_prune():
                raise TrialStopped("others did better by this epoch")

        return report

    def _keep_if_best(self, study: optuna.Study, fitted: Kept) -> float:
        loss = self._judge(fitted)
        before = [trial.value for trial in _complete(study) if trial.value is not None]
        if not before or loss < min(before):
            folders.keep(self._folder, fitted)
        return loss

    def _found(self, study: optuna.Study) -> Found:
        ended, complete = _ended(study), _complete(study)
        if not complete:
            raise PluginBroken(f"{self._model.spec.name} gave up every choice of hyperparameters that it was given")
        best = min(complete, key=lambda trial: (trial.value, trial.number))
        number = best.user_attrs[NUMBER]
        fitted = folders.kept(self._folder, number)
        if fitted is None:  # killed between the two writes: the same seed and choice give the same fit
            epochs: list[Epoch] = []
            fitted = Kept.of(number, best.params, self._fit(number, best.params, epochs.append), epochs)
        failed: dict[str, int] = {}
        for trial in ended:
            if ERROR in trial.user_attrs:
                failed[trial.user_attrs[ERROR]] = failed.get(trial.user_attrs[ERROR], 0) + 1
        return Found(
            best=fitted,
            loss=float(best.value or 0.0),
            complete=len(complete),
            stopped=sum(trial.state is TrialState.PRUNED for trial in ended),
            failed=failed,
        )


def fit(
    model: type[Trainable[Any]],
    training: Examples,
    validation: Examples,
    chosen: Mapping[str, Any],
    *,
    seed: int,
    device: str,
    report: Callable[[Epoch], None],
) -> Fitted:
    """Fit a model; a foreign error's words, which may quote the cases, are left behind.

    Raises
    ------
    PluginBroken
        The model could not be fitted, or gave other files than its spec names.
    TrialStopped, TransientError
        As the model, or ``report``, raised them.
    """
    try:
        fitted = model.fit(training, validation, chosen, seed=seed, device=device, report=report)
    except (TrialStopped, TransientError):
        raise
    except Exception as error:  # noqa: BLE001 - a plugin's code
        kind = "out-of-memory" if is_out_of_memory(error) else type(error).__name__
        raise PluginBroken(f"{model.spec.name} could not be fitted: {kind} at {place_of(error)}", kind=kind) from None
    wanted, given = {item.file for item in model.spec.weights}, set(fitted.tensors)
    if wanted != given:
        raise PluginBroken(
            f"{model.spec.name} declares the weights {', '.join(sorted(wanted))} and was fitted to "
            f"{', '.join(sorted(given)) or 'none'}",
            kind="weights-undeclared",
        )
    return fitted


def seed_of(seed: int, number: int) -> int:
    """The seed of trial ``number``, 0 to 2**32 - 1."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


@contextmanager
def quiet() -> Iterator[None]:
    """Let libraries and models say nothing of their own: it would tear the progress bar, and may quote a case."""
    optuna.logging.disable_default_handler()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)  # without any, Python prints warnings of every logger
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeHandler(silent)


def _sampler(kind: Sampler, seed: int) -> optuna.samplers.BaseSampler:
    if kind == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM_FIRST)


def _distributions(parameters: Sequence[HyperParameter]) -> dict[str, BaseDistribution]:
    return {item.name: _distribution(item) for item in parameters}


def _distribution(item: HyperParameter) -> BaseDistribution:
    if isinstance(item, Choice):
        return CategoricalDistribution(item.options)
    if isinstance(item, Integer):
        return IntDistribution(item.low, item.high, log=item.log)
    return FloatDistribution(item.low, item.high, log=item.log)


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count: complete, stopped, or failed by the model's doing; not those of a killed process."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or ERROR in trial.user_attrs
    ]


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return list(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def _said(epoch: Epoch) -> str:
    member = f"network {epoch.member + 1}, " if epoch.member else ""
    return f"{member}epoch {epoch.number}: loss {epoch.validation_loss:.4f}"
