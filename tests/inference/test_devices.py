import pytest

from medflow.errors import ConfigurationError
from medflow.inference.devices import is_out_of_memory, resolve_device


def test_cpu_is_always_there():
    assert resolve_device("cpu") == "cpu"


def test_a_device_that_is_not_there_names_those_that_are():
    with pytest.raises(ConfigurationError, match=r"this machine has: cpu"):
        resolve_device("cuda:97")


def test_torchs_own_out_of_memory_is_known():
    import torch

    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert not is_out_of_memory(RuntimeError("x"))
