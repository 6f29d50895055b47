"""Devices to test on: the CPU everywhere, and the first GPU where torch sees one."""

from __future__ import annotations

import pytest


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture
def cuda() -> str:
    """The first CUDA device, emptied of what earlier tests left in torch's cache."""
    if not _has_cuda():
        pytest.skip("torch sees no CUDA device")
    import torch

    torch.cuda.empty_cache()
    return "cuda:0"


@pytest.fixture(params=["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Each device in turn."""
    return request.getfixturevalue("cuda") if request.param.startswith("cuda") else request.param
