"""The loop that keeps a device busy: threads read and prepare ahead, one device call scores a batch.

A case that fails takes only itself down. An error while preparing is that case's. A batch that fails is halved until
the case that fails it stands alone; a device out of memory gets smaller batches from then on.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from medflow.errors import ConfigurationError, MedflowError, PluginBroken
from medflow.inference.devices import as_medflow_error, free_cache, is_out_of_memory
from medflow.inference.explaining import Explained, Explainer, Explanations
from medflow.inference.loaded import LoadedModel
from medflow.plugin import Case, ModelSpec, Prediction

AHEAD = 3  # batches that are read and prepared ahead of the device
AHEAD_GROWN = 2  # of batches that grew: the host holds them all

SHARES = 4  # of a batch for each thread that prepares, so that the last one waits for few cases

CaseOpener = Callable[[], Case]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How one case ended: its prediction, or the error that took it down. ``index`` is its place in the input.

    ``explanation`` is by output, where one was asked for and the model has one; ``unexplained`` says why one is missing
    that was asked for. The prediction stands in either case.
    """

    index: int
    case: Case | None = None
    prediction: Prediction | None = None
    error: MedflowError | None = None
    explanation: Explanations = field(default_factory=dict)
    unexplained: MedflowError | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A case that was read, as the model takes it."""

    index: int
    case: Case
    ready: Any


class Runs(ABC):
    """Runs a model over cases: threads open them, batches ahead of the one that is scored.

    ``seconds`` are those spent so far: "wait", in which the device waited for a batch to be read and prepared,
    "predict", in which it worked on one, and "explain", in which it worked out why, where that is asked for.
    """

    def __init__(self, spec: ModelSpec, *, planned_batch: int, threads: int) -> None:
        self._spec = spec
        self._planned_batch = planned_batch
        self._threads = max(1, threads)
        self.seconds = {"wait": 0.0, "predict": 0.0}

    @abstractmethod
    def _made_ready(self, case: Case) -> Any:
        """What is scored of a case."""

    @abstractmethod
    def _score(self, batch: Sequence[Prepared]) -> Iterator[Outcome]:
        """The outcome of every case of one planned batch, those left out that failed before."""

    def run(self, openers: Sequence[CaseOpener]) -> Generator[list[Outcome]]:
        """Score every case; gives the outcomes of one planned batch of consecutive cases at a time, in order.

        Which cases share a batch depends on their places alone, not on which of them fail: scoring the rest of an
        interrupted run forms the same batches, and so the same numbers to the last bit.
        """
        size = self._planned_batch
        at_once = max(1, size // (SHARES * self._threads))
        ahead = max(AHEAD * self._spec.batch_size, AHEAD_GROWN * size)
        with ThreadPoolExecutor(self._threads, thread_name_prefix="prepare") as pool:
            waiting: deque[Future[list[Prepared | Outcome]]] = deque()
            batches = [
                _slices(start, min(start + size, len(openers)), at_once) for start in range(0, len(openers), size)
            ]
            upcoming = chain.from_iterable(batches)
            try:
                for slices in batches:
                    while len(waiting) * at_once < ahead and (cases := next(upcoming, None)) is not None:
                        waiting.append(pool.submit(self._prepare_some, cases, openers))
                    asked = time.perf_counter()
                    block = [item for _ in slices for item in waiting.popleft().result()]
                    self.seconds["wait"] += time.perf_counter() - asked
                    ready = [item for item in block if isinstance(item, Prepared)]
                    outcomes = [item for item in block if isinstance(item, Outcome)]
                    outcomes += self._score(ready) if ready else ()
                    yield sorted(outcomes, key=lambda outcome: outcome.index)
            finally:
                for future in waiting:
                    future.cancel()

    def _prepare_some(self, cases: range, openers: Sequence[CaseOpener]) -> list[Prepared | Outcome]:
        return [self._prepare(index, openers[index]) for index in cases]

    def _prepare(self, index: int, opener: CaseOpener) -> Prepared | Outcome:
        try:
            case = opener()
            return Prepared(index=index, case=case, ready=self._made_ready(case))
        except ConfigurationError:
            raise  # of this installation, such as the object store's credentials: no case is to blame for it
        except Exception as error:  # noqa: BLE001 - a plugin's code; whatever it raises is this case's outcome
            return Outcome(index=index, error=as_medflow_error(error))


class Runner(Runs):
    """Runs one loaded model in this process.

    Parameters
    ----------
    loaded
        The model on its device.
    threads
        How many threads read and prepare.
    explain
        Whether predictions are to be explained, by a model that can.
    """

    def __init__(self, loaded: LoadedModel, *, threads: int, explain: bool = False) -> None:
        super().__init__(loaded.spec, planned_batch=loaded.planned_batch, threads=threads)
        self._loaded = loaded
        self._explainer = Explainer(loaded) if explain and loaded.explains else None

    def _made_ready(self, case: Case) -> Any:
        return self._loaded.model.prepare(case)

    def _score(self, batch: Sequence[Prepared]) -> Iterator[Outcome]:
        if len(batch) > self._loaded.batch_size:  # memory ran out meanwhile
            yield from self._halves(batch)
            return
        answer = self._predict(batch)
        if not isinstance(answer, MedflowError):
            yield from self._explained(batch, answer)
        elif len(batch) == 1:
            yield Outcome(index=batch[0].index, case=batch[0].case, error=answer)
        else:
            yield from self._halves(batch)

    def _explained(self, batch: Sequence[Prepared], answer: Sequence[Prediction]) -> Iterator[Outcome]:
        predicted = list(zip(batch, answer, strict=True))
        whole = [Outcome(index=item.index, case=item.case, prediction=prediction) for item, prediction in predicted]
        if self._explainer is None:
            yield from whole
            return
        asked = [Explained(case=item.case, ready=item.ready, prediction=prediction) for item, prediction in predicted]
        for outcome, found in zip(whole, self._explainer.explain(asked), strict=True):
            failed = isinstance(found, MedflowError)
            yield replace(outcome, unexplained=found) if failed else replace(outcome, explanation=found)
        self.seconds["explain"] = self._explainer.seconds

    def _predict(self, batch: Sequence[Prepared]) -> list[Prediction] | MedflowError:
        """The predictions of a batch, or what went wrong, without the traceback: it would keep the batch's tensors."""
        loaded, exhausted = self._loaded, False
        with loaded.lane.predicting(loaded.spec):
            started = time.perf_counter()
            try:
                return loaded.predict([item.ready for item in batch])
            except PluginBroken:
                raise
            except Exception as error:  # noqa: BLE001 - a plugin's code; sorted out by the caller
                exhausted = is_out_of_memory(error)
                failure = as_medflow_error(error).with_traceback(None)
            finally:
                self.seconds["predict"] += time.perf_counter() - started
            if exhausted:
                free_cache(loaded.lane.device)
        if exhausted:
            loaded.shrink(len(batch))
        return failure

    def _halves(self, batch: Sequence[Prepared]) -> Iterator[Outcome]:
        middle = len(batch) // 2
        yield from self._score(batch[:middle])
        yield from self._score(batch[middle:])


def _slices(start: int, stop: int, step: int) -> list[range]:
    return [range(begin, min(begin + step, stop)) for begin in range(start, stop, step)]
