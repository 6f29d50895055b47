"""Models in the process apart: cases are opened here, and all that a `Runner` does is done there.

What travels are the cases of a batch and their outcomes. Only models of time series go there, on the CPU: an image
takes longer to send than to look at.
"""

from __future__ import annotations

import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from medflow.config import Settings
from medflow.errors import PluginBroken
from medflow.garbage import collect_seldom
from medflow.inference.apart import Apart, begun
from medflow.inference.resident import Loadable, LoadedModels
from medflow.inference.runner import Outcome, Prepared, Runs
from medflow.plugin import Case, TimeSeriesInput
from medflow.processes import follow_parent

T = TypeVar("T")


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
            with suppress(EOFError):
                return self._process.ask(set_up, self._settings)
        return super()._found()

    @contextmanager
    def running(self, model: Loadable, *, threads: int, explain: bool = False) -> Iterator[Runs]:
        """As `LoadedModels.running`, in the process apart where the model can go there."""
        if self._goes_there(model):
            yield RunnerApart(self._process, model, threads=threads, explain=explain)
        else:
            with super().running(model, threads=threads, explain=explain) as runner:
                yield runner

    def _goes_there(self, model: Loadable) -> bool:
        small = all(isinstance(item, TimeSeriesInput) for item in model.spec.accepts)
        counted = self._settings.memory_mib > 0  # what models take together is known of one process only
        return small and not counted and self.device == "cpu" and self._process.alive and self._travels(model)

    def _travels(self, model: Loadable) -> bool:
        """Whether the model can be made in another process, from what of it can be sent there."""
        with suppress(pickle.PicklingError, AttributeError, TypeError, EOFError):
            return self._process.ask(comes_over, pickle.dumps(model))
        return False


class RunnerApart(Runs):
    """Runs one model in the process apart, where it is loaded now and stays. Parameters as of `Runner`.

    Raises
    ------
    PluginBroken, TransientError
        As `LoadedModels.using`. And PluginBroken when that process died: whichever case does that would do it again.
    """

    def __init__(self, process: Apart, model: Loadable, *, threads: int, explain: bool) -> None:
        super().__init__(model.spec, planned_batch=model.spec.batch_size, threads=threads)
        self._process, self._model, self._explain = process, model, explain
        self._ask(load, model)

    def _made_ready(self, case: Case) -> None:
        """Nothing: cases are prepared where the model is."""

    def _score(self, batch: Sequence[Prepared]) -> Iterator[Outcome]:
        cases = [item.case for item in batch]
        outcomes, seconds = self._ask(answers, self._model, cases, self._threads, self._explain)
        for stage, spent in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
        for outcome in outcomes:
            item = batch[outcome.index]
            yield replace(outcome, index=item.index, case=item.case)

    def _ask(self, function: Callable[..., T], *arguments: Any) -> T:
        try:
            return self._process.ask(function, *arguments)
        except EOFError as error:
            raise PluginBroken(
                f"the process that ran {self._spec.name} {error}: its cases wait; run the same again, and if it ends "
                "once more, look at the model"
            ) from None


# --- in that process ---------------------------------------------------------------------------------------------

_models: list[LoadedModels] = []


def get_ready() -> None:
    """Read what takes long to read, before anything is asked."""
    with suppress(ModuleNotFoundError):  # there are models without torch
        import torch  # noqa: F401
    collect_seldom()
    follow_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # who asked for the batch at hand still wants it, and ends this


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


def answers(
    model: Loadable, cases: Sequence[Case], threads: int, explain: bool
) -> tuple[list[Outcome], dict[str, float]]:
    """The outcomes of one planned batch, without its cases, and the seconds by stage that count here."""
    with _models[0].running(model, threads=threads, explain=explain) as runner:
        found = [outcome for batch in runner.run([partial(_itself, case) for case in cases]) for outcome in batch]
    seconds = {stage: spent for stage, spent in runner.seconds.items() if stage != "wait"}
    return [replace(outcome, case=None) for outcome in found], seconds


def _itself(case: Case) -> Case:
    return case
