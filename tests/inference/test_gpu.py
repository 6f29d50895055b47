"""What only a GPU can show: real memory, real exhaustion, 16-bit numbers. Skipped where torch sees no CUDA device.

What holds on every device is in test_resident.py and test_lane.py, which run on the GPU as well where there is one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from subprocess import PIPE

import pytest

from medflow.config import load_settings
from medflow.errors import DeviceExhausted, PluginBroken
from medflow.inference.devices import resolve_device
from medflow.inference.lane import Lane
from medflow.inference.loaded import LoadedModel
from medflow.inference.resident import LoadedModels
from medflow.inference.runner import Outcome, Runner
from medflow.plugin import Case, Model, ModelSpec
from medflow.registry import installed
from medflow.testing import check_model, sample_cases
from tests.models import sequence_case
from tests.torch_models import MIB, Layer, layer

pytestmark = pytest.mark.gpu


@dataclass(frozen=True, kw_only=True)
class Installed:
    """What the registry knows of a model."""

    factory: type[Layer]
    distribution: str = "tests 1.0"

    @property
    def spec(self) -> ModelSpec:
        return self.factory.spec

    @property
    def digest(self) -> str:
        return self.spec.name


OTHER_PROGRAM = """
import sys, torch
torch.zeros(1, device={device!r})
free, _ = torch.cuda.mem_get_info({device!r})
taken = torch.empty(free - {mib} * 2**20, dtype=torch.uint8, device={device!r})
print("taken", flush=True)
sys.stdin.read()
"""


@contextmanager
def only_free(device: str, mib: int) -> Iterator[None]:
    """Another program takes all memory of the device but this much."""
    import torch

    (torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)).cpu()  # libraries take their share first
    torch.cuda.empty_cache()
    code = OTHER_PROGRAM.format(device=device, mib=mib)
    with subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, text=True) as other:
        assert other.stdin and other.stdout
        try:
            assert other.stdout.readline() == "taken\n"
            yield
        finally:
            other.stdin.close()


def held_mib(device: str) -> float:
    """What tensors of this process take."""
    import torch

    return torch.cuda.memory_allocated(device) / MIB


def score(loaded: LoadedModel, cases: int) -> list[Outcome]:
    """Score this many cases."""
    openers = [lambda: sequence_case(1, "ACGTACGT")] * cases
    return list(chain.from_iterable(Runner(loaded, threads=2).run(openers)))


def test_auto_takes_the_gpu(cuda):
    assert resolve_device("auto") == cuda


def test_a_model_goes_when_the_next_one_needs_the_memory_that_the_device_has(cuda):
    loaded, before = LoadedModels(load_settings(device=cuda)), held_mib(cuda)
    first, second = (Installed(factory=layer(name, holds_mib=800, memory_mib=1000)) for name in ("first", "second"))

    with only_free(cuda, 1600):
        with loaded.using(first):
            alone = held_mib(cuda) - before
        with loaded.using(second) as one:
            assert score(one, 1)[0].prediction.values["gc"] == 0.5
            after = held_mib(cuda) - before
        names = loaded.names()
    loaded.close()

    assert names == ["second"]
    assert 800 <= alone < 900
    assert 800 <= after < 900
    assert held_mib(cuda) - before < 100


def test_models_that_the_device_has_memory_for_stay_together(cuda):
    loaded = LoadedModels(load_settings(device=cuda))

    with only_free(cuda, 2500):
        for name in ("first", "second"):
            with loaded.using(Installed(factory=layer(name, holds_mib=800, memory_mib=1000))):
                pass
        assert loaded.names() == ["first", "second"]
    loaded.close()


def test_what_a_model_declares_is_kept_for_it_while_it_holds_less(cuda):
    loaded = LoadedModels(load_settings(device=cuda))

    with only_free(cuda, 1600):
        for name in ("first", "second"):
            with loaded.using(Installed(factory=layer(name, memory_mib=1000))):
                pass
        assert loaded.names() == ["second"]
    loaded.close()


def test_memory_that_others_hold_is_worth_another_try_later(cuda):
    loaded = LoadedModels(load_settings(device=cuda))

    with only_free(cuda, 500), pytest.raises(DeviceExhausted, match=r"layer needs 1000 MiB, and cuda:0 has \d+ MiB"):
        with loaded.using(Installed(factory=layer(memory_mib=1000))):
            pass


def test_a_model_larger_than_the_device_is_refused_with_both_figures(cuda):
    loaded = LoadedModels(load_settings(device=cuda))

    with pytest.raises(PluginBroken, match=r"declares 9999999 MiB, and cuda:0 has \d+ MiB for models: .* larger"):
        with loaded.using(Installed(factory=layer(memory_mib=9_999_999))):
            pass


def test_a_model_that_takes_more_than_it_declares_runs_out_of_memory_by_name(cuda):
    loaded = LoadedModels(load_settings(device=cuda))

    with only_free(cuda, 500), pytest.raises(DeviceExhausted, match="while layer was loading, which declares 100 MiB"):
        with loaded.using(Installed(factory=layer(holds_mib=1000, memory_mib=100))):
            pass

    assert loaded.names() == []


def test_a_batch_grows_with_the_free_memory(cuda):
    loaded = LoadedModels(load_settings(device=cuda))
    growing = Installed(factory=layer(case_mib=25, memory_mib=100, batch_grows=True))

    with only_free(cuda, 1200), loaded.using(growing) as one:
        outcomes = score(one, 70)
        sizes = [size for size, _, _ in one.model.calls]

    assert (one.planned_batch, one.batch_size) == (32, 32)  # 4, doubled while 100 MiB for each 4 fit into 1200
    assert sizes == [32, 32, 6]
    assert all(outcome.prediction.values["gc"] == 0.5 for outcome in outcomes)


def test_out_of_memory_halves_the_batch_for_as_long_as_the_model_is_loaded(cuda):
    loaded = LoadedModels(load_settings(device=cuda))
    hungry = Installed(factory=layer(case_mib=100, batch_size=32, memory_mib=100))

    with only_free(cuda, 1200):
        for _ in range(2):
            with loaded.using(hungry) as one:
                assert all(outcome.prediction for outcome in score(one, 40))
                sizes = [size for size, _, _ in one.model.calls]
    loaded.close()

    assert (one.planned_batch, one.batch_size) == (32, 8)  # 32 and 16 cases of 100 MiB do not fit into 1200
    assert sizes == [8] * 10


@pytest.mark.parametrize("mixed", [True, False])
def test_numbers_have_16_bits_only_where_the_model_allows_it(cuda, mixed):
    import torch

    loaded = LoadedModels(load_settings(device=cuda))

    with loaded.using(Installed(factory=layer(mixed_precision=mixed))) as one:
        outcomes = score(one, 4)
        _, dtype, _ = one.model.calls[0]

    assert outcomes[0].prediction.values["gc"] == 0.5
    assert dtype in ((torch.float16, torch.bfloat16) if mixed else (torch.float32,))


def test_every_model_runs_on_the_one_stream_of_its_device_off_the_default_one(cuda):
    import torch

    loaded, streams = LoadedModels(load_settings(device=cuda)), set()

    for name in ("first", "second"):
        with loaded.using(Installed(factory=layer(name))) as one:
            score(one, 8)
            streams |= {stream for _, _, stream in one.model.calls}

    assert len(streams) == 1
    assert streams != {torch.cuda.default_stream(cuda)}


@pytest.mark.parametrize("name", ["splice-site", "icu-mortality"])
def test_scores_are_those_of_the_cpu_within_the_models_tolerance(cuda, name):
    model = installed().get(name)
    cases = sample_cases(model.spec, 8)

    here, there = (_values(model.factory, device, cases) for device in ("cpu", cuda))

    for on_cpu, on_gpu in zip(here, there, strict=True):
        assert on_cpu == pytest.approx(on_gpu, abs=model.spec.tolerance)


def _values(factory: Callable[[], Model], device: str, cases: list[Case]) -> list[dict]:
    model = factory()
    model.load(device)
    runner = Runner(LoadedModel(model, Lane(device)), threads=2)
    outcomes = chain.from_iterable(runner.run([lambda case=case: case for case in cases]))
    return [dict(outcome.prediction.values) for outcome in outcomes]


def test_the_conformance_kit_runs_on_the_gpu(cuda):
    failed = [check for check in check_model(layer(mixed_precision=True), device=cuda) if not check.passed]

    assert [check.name for check in failed] == []


def test_the_kit_tells_of_mixed_precision_beyond_the_tolerance(cuda):
    class Fine(Layer):
        spec = replace(Layer.spec, mixed_precision=True, tolerance=1e-6)

        def load(self, device: str) -> None:
            super().load(device)
            self._weights = self._weights * 0.7  # no 16-bit number

    checks = {check.name: check for check in check_model(Fine, device=cuda)}

    assert "computed in mixed precision" in checks["mixed precision stays within the tolerance"].detail
