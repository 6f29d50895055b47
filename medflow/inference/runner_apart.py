"""Models in the process apart: cases are opened here, and all that a `Runner` does is done there.

What travels are the cases of a batch and their outcomes. Only models of time series go there, on the CPU: an image
takes longer to send than to look at.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

from medflow.config import Settings
from medflow.errors import TransientError
from medflow.garbage import collect_seldom
from medflow.inference.apart import Apart, begun
from medflow.inference.resident import Loadable, LoadedModels
from medflow.inference.runner import Outcome, Prepared, Runs
from medflow.plugin import Case, TimeSeriesInput

log = logging.getLogger(__name__)
_Answers = tuple[list[Outcome], dict[str, float]]


@contextmanager
def models(settings: Settings, *, set_up_logging: Callable[[], None]) -> Iterator[LoadedModels]:
    """What keeps this process's models, in the process apart if one was begun; all of it ends with the block.

    ``set_up_logging`` is called in the process apart.
    """
    process = begun()
    if process:
        process.tell(set_up_logging)
    loaded = LoadedApart(settings, process) if process else LoadedModels(settings)
    try:
        yield loaded
    finally:
        loaded.close()
        if process:
            process.close()


class LoadedApart(LoadedModels):
    """The models of this process, those of time series in the process apart: each once, on one device."""

    def __init__(self, settings: Settings, process: Apart) -> None:
        self._process = process
        super().__init__(settings)

    def _found(self) -> str:
        if self._process.alive:
            with suppress(EOFError, BrokenPipeError):
                return self._process.ask(set_up, self._settings)
        return super()._found()

    @contextmanager
    def running(self, model: Loadable, *, threads: int, explain: bool = False) -> Iterator[Runs]:
        """As `LoadedModels.running`, in the process apart where the model can go there."""
        if self._goes_there(model):
            yield RunnerApart(self, self._process, model, threads=threads, explain=explain)
        else:
            with super().running(model, threads=threads, explain=explain) as runner:
                yield runner

    def _goes_there(self, model: Loadable) -> bool:
        small = all(isinstance(item, TimeSeriesInput) for item in model.spec.accepts)
        counted = self._settings.memory_mib > 0  # what models take together is known of one process only
        return small and not counted and self.device == "cpu" and self._process.alive and self._travels(model)

    def _travels(self, model: Loadable) -> bool:
        """Whether the model can be made in another process, from what of it can be sent there."""
        with suppress(pickle.PicklingError, AttributeError, TypeError, EOFError, BrokenPipeError):
            return self._process.ask(comes_over, pickle.dumps(model))
        return False


class RunnerApart(Runs):
    """Runs one model in the process apart, where it is loaded now and stays. Parameters as of `Runner`.

    When that process dies the cases that it had in hand have failed, to be tried again as often as any: one of them may
    be what kills it. The others are run here.

    Raises
    ------
    PluginBroken, TransientError
        As `LoadedModels.using`.
    """

    def __init__(self, loaded: LoadedModels, process: Apart, model: Loadable, *, threads: int, explain: bool) -> None:
        super().__init__(model.spec, planned_batch=model.spec.batch_size, threads=threads)
        self._loaded, self._process, self._model, self._explain = loaded, process, model, explain
        with suppress(EOFError, BrokenPipeError):
            process.ask(load, model)

    def _made_ready(self, case: Case) -> None:
        """Nothing: cases are prepared where the model is."""

    def _score(self, batch: Sequence[Prepared]) -> Iterator[Outcome]:
        outcomes, seconds = self._answers([item.case for item in batch])
        for stage, spent in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
        for outcome in outcomes:
            item = batch[outcome.index]
            yield replace(outcome, index=item.index, case=item.case)

    def _answers(self, cases: Sequence[Case]) -> _Answers:
        try:
            return self._process.ask(answers, self._model, cases, self._threads, self._explain)
        except EOFError as death:
            failure = TransientError(f"the process that ran {self._spec.name} {death}")
            log.error("%s; %d cases will be tried again, and the others are scored here", failure, len(cases))
            return [Outcome(index=index, error=failure) for index in range(len(cases))], {}
        except BrokenPipeError:
            return _run(self._loaded, self._model, cases, self._threads, self._explain)


def _run(loaded: LoadedModels, model: Loadable, cases: Sequence[Case], threads: int, explain: bool) -> _Answers:
    """The outcomes of one planned batch, without its cases, and the seconds by stage."""
    with loaded.running(model, threads=threads, explain=explain) as runner:
        found = [outcome for batch in runner.run([partial(_itself, case) for case in cases]) for outcome in batch]
    seconds = {stage: spent for stage, spent in runner.seconds.items() if stage != "wait"}  # for what is all there
    return [replace(outcome, case=None) for outcome in found], seconds


def _itself(case: Case) -> Case:
    return case


# --- in that process ---------------------------------------------------------------------------------------------

_models: list[LoadedModels] = []


def get_ready() -> None:
    """Read what takes long to read, before anything is asked."""
    with suppress(ModuleNotFoundError):  # there are models without torch
        import torch  # noqa: F401
    collect_seldom()


def set_up(settings: Settings) -> str:
    """The device, found there. Raises ConfigurationError, as `resolve_device` does."""
    _models[:] = [LoadedModels(settings)]
    return _models[0].device


def comes_over(model: bytes) -> bool:
    """Whether this pickled model can be made there."""
    try:
        pickle.loads(model)  # noqa: S301 - of the process that this one is a copy of
    except Exception:  # noqa: BLE001 - a plugin's code is imported
        return False
    return True


def load(model: Loadable) -> None:
    """Load a model there. Raises as `LoadedModels.using`."""
    with _models[0].using(model):
        pass


def answers(model: Loadable, cases: Sequence[Case], threads: int, explain: bool) -> _Answers:
    """The outcomes of one planned batch, without its cases, and the seconds by stage."""
    return _run(_models[0], model, cases, threads, explain)
