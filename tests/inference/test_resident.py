"""What stays loaded and what goes, on every device there is: the budget is set, so that it is the same on all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain

import pytest

from medflow.config import load_settings
from medflow.errors import DeviceExhausted, PluginBroken, TransientError
from medflow.inference.resident import LoadedModels
from medflow.inference.runner import Runner
from medflow.plugin import Model, ModelSpec
from tests.models import GcContent, sequence_case

NEED_MIB = 100
LATE_S = 10  # longer than anything here takes


@dataclass(frozen=True, kw_only=True)
class Installed:
    """What the registry knows of a model."""

    spec: ModelSpec
    factory: Callable[[], Model]
    digest: str
    distribution: str = "tests 1.0"


@pytest.fixture
def seen() -> list[str]:
    """What happened, in order."""
    return []


def installed(name: str, seen: list[str], base: type[GcContent] = GcContent, **spec) -> Installed:
    """A model of ``NEED_MIB`` that notes when it is loaded and closed."""
    declared = replace(base.spec, name=name, **{"memory_mib": NEED_MIB, **spec})

    class Noting(base):
        def load(self, device: str) -> None:
            super().load(device)
            seen.append(f"{name} loaded")

        def close(self) -> None:
            seen.append(f"{name} closed")
            super().close()

    Noting.spec = declared
    return Installed(spec=declared, factory=Noting, digest=name)


def loaded_models(device: str, *, memory_mib: int = 2 * NEED_MIB, **settings) -> LoadedModels:
    """Room for two models of ``NEED_MIB``."""
    chosen = load_settings(device=device, memory_mib=memory_mib)
    return LoadedModels(chosen.model_copy(update=settings))


def use(loaded: LoadedModels, model: Installed) -> None:
    """Score one case."""
    with loaded.using(model) as one:
        outcomes = list(chain.from_iterable(Runner(one, threads=1).run([lambda: sequence_case(1, "ACGTACGT")])))
    assert outcomes[0].prediction.values["gc"] == 0.5


def test_a_model_stays_loaded_between_uses(device, seen):
    loaded, model = loaded_models(device), installed("a", seen)

    use(loaded, model)
    use(loaded, model)

    assert seen == ["a loaded"]
    assert loaded.names() == ["a"]


def test_models_that_fit_together_stay_together(device, seen):
    loaded = loaded_models(device)

    for name in ("b", "a"):
        use(loaded, installed(name, seen))

    assert loaded.names() == ["a", "b"]
    assert seen == ["b loaded", "a loaded"]


def test_the_model_used_longest_ago_makes_room(device, seen):
    loaded = loaded_models(device)
    models = {name: installed(name, seen) for name in "abc"}

    for name in "abac":
        use(loaded, models[name])

    assert seen == ["a loaded", "b loaded", "b closed", "c loaded"]
    assert loaded.names() == ["a", "c"]


def test_a_use_counts_from_its_end(device, seen):
    loaded = loaded_models(device)
    a, b = installed("a", seen), installed("b", seen)

    with loaded.using(a), loaded.using(b):
        pass  # b is released first
    use(loaded, installed("c", seen))

    assert loaded.names() == ["a", "c"]


def test_as_many_go_as_the_next_one_needs(device, seen):
    loaded = loaded_models(device)

    for name, need in (("a", NEED_MIB), ("b", NEED_MIB), ("large", 2 * NEED_MIB)):
        use(loaded, installed(name, seen, memory_mib=need))

    assert seen == ["a loaded", "b loaded", "a closed", "b closed", "large loaded"]


def test_a_model_in_use_is_waited_for_and_not_unloaded(device, seen):
    loaded = loaded_models(device, memory_mib=NEED_MIB)
    a, b = installed("a", seen), installed("b", seen)

    with ThreadPoolExecutor(1) as pool:
        with loaded.using(a):
            waiting = pool.submit(use, loaded, b)
            time.sleep(0.2)
            seen.append("a released")
        waiting.result(LATE_S)

    assert seen == ["a loaded", "a released", "a closed", "b loaded"]


def test_who_waits_for_memory_is_not_overtaken_for_ever(device, seen):
    loaded = loaded_models(device, memory_mib=NEED_MIB)
    a, b = installed("a", seen), installed("b", seen)

    with ThreadPoolExecutor(2) as pool:
        with loaded.using(a):
            waiting = pool.submit(use, loaded, b)
            time.sleep(0.2)
            later = pool.submit(use, loaded, a)  # could have it at once, and so on without end
            time.sleep(0.2)
        waiting.result(LATE_S)
        later.result(LATE_S)

    assert seen == ["a loaded", "a closed", "b loaded", "b closed", "a loaded"]


def test_waiting_for_memory_ends_with_the_lease(device, seen):
    loaded = loaded_models(device, memory_mib=NEED_MIB, lease_seconds=0)
    a, b = installed("a", seen), installed("b", seen)

    with loaded.using(a), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(use, loaded, b)
        with pytest.raises(DeviceExhausted, match=rf"b needs {NEED_MIB} MiB, and {device} has 0 MiB free"):
            waiting.result(LATE_S)

    use(loaded, b)  # and is over with it
    assert seen == ["a loaded", "a closed", "b loaded"]


def test_a_model_that_never_fits_is_refused_with_both_figures_and_nothing_is_unloaded_for_it(device, seen):
    loaded = loaded_models(device)
    use(loaded, installed("a", seen))

    with pytest.raises(PluginBroken, match=r"vast declares 300 MiB.* has 200 MiB.*MEDFLOW_MEMORY_MIB to 300 or more"):
        use(loaded, installed("vast", seen, memory_mib=300))

    assert loaded.names() == ["a"]


def test_a_cpu_without_a_limit_keeps_every_model(seen):
    loaded = loaded_models("cpu", memory_mib=0)

    for name in "abc":
        use(loaded, installed(name, seen, memory_mib=1 << 20))

    assert loaded.names() == ["a", "b", "c"]


def test_threads_that_ask_at_once_load_a_model_once(device, seen):
    class Slow(GcContent):
        def load(self, device: str) -> None:
            time.sleep(0.1)

    loaded, model, together = loaded_models(device), installed("a", seen, Slow), threading.Barrier(4)

    def ask() -> None:
        together.wait(LATE_S)
        use(loaded, model)

    with ThreadPoolExecutor(4) as pool:
        for asked in [pool.submit(ask) for _ in range(4)]:
            asked.result(LATE_S)

    assert seen == ["a loaded"]


def test_calls_into_one_device_follow_one_another_while_cases_are_prepared_side_by_side(device, seen):
    calling, preparing, most = threading.Semaphore(), threading.Barrier(2), []

    class Exclusive(GcContent):
        def prepare(self, case):
            preparing.wait(LATE_S)  # breaks unless the other model's case is prepared at the same time
            return super().prepare(case)

        def predict(self, batch):
            most.append(calling.acquire(blocking=False))
            time.sleep(0.05)
            calling.release()
            return super().predict(batch)

    loaded = loaded_models(device)
    with ThreadPoolExecutor(2) as pool:
        models = [installed(name, seen, Exclusive) for name in "ab"]
        for asked in [pool.submit(use, loaded, model) for model in models]:
            asked.result(LATE_S)

    assert most == [True, True]


def test_what_the_device_took_is_remembered_from_chunk_to_chunk(device, seen):
    class OutOfMemoryError(RuntimeError):
        """Named as torch names its own."""

    class Small(GcContent):
        def predict(self, batch):
            seen.append(len(batch))
            if len(batch) > 2:
                raise OutOfMemoryError
            return super().predict(batch)

    loaded, model = loaded_models(device), installed("a", [], Small)

    for _ in range(2):
        with loaded.using(model) as one:
            outcomes = list(chain.from_iterable(Runner(one, threads=1).run([lambda: sequence_case(1, "ACGT" * 2)] * 4)))
        assert all(outcome.prediction for outcome in outcomes)

    assert seen == [4, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ValueError("text"), PluginBroken, "a of tests 1.0 does not load: .*ValueError at test_resident.py"),
        (ConnectionError("text"), TransientError, "ConnectionError at test_resident.py"),
        (MemoryError("text"), DeviceExhausted, "cpu ran out of memory while a was loading, which declares 100 MiB"),
    ],
)
def test_a_model_that_does_not_load_says_whose_fault_it_is_and_may_be_tried_again(error, kind, said, seen):
    class Failing(GcContent):
        failing = True

        def load(self, device: str) -> None:
            if Failing.failing:
                raise error

    loaded, model = loaded_models("cpu"), installed("a", seen, Failing)

    with pytest.raises(kind, match=said) as caught:
        use(loaded, model)
    Failing.failing = False
    use(loaded, model)

    assert "text" not in str(caught.value)
    assert seen == ["a loaded"]


def test_closing_unloads_every_model(device, seen):
    loaded = loaded_models(device)
    for name in "ab":
        use(loaded, installed(name, seen))

    loaded.close()

    assert loaded.names() == []
    assert seen[2:] == ["a closed", "b closed"]


def test_a_model_that_fails_to_close_is_unloaded_all_the_same(device, seen, caplog):
    class Stuck(GcContent):
        def close(self) -> None:
            raise ValueError("text")

    loaded = loaded_models(device)
    use(loaded, installed("a", seen, Stuck))

    loaded.close()

    assert loaded.names() == []
    assert "a did not close: ValueError at test_resident.py" in caplog.text
    assert "text" not in caplog.text


def test_on_a_cpu_a_batch_never_grows(seen):
    loaded = loaded_models("cpu", memory_mib=0)

    with loaded.using(installed("a", seen, batch_grows=True)) as one:
        assert (one.planned_batch, one.batch_size) == (4, 4)
