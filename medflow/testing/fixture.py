"""A pytest plugin that comes with medflow: the fixture ``check_model`` asserts that a model keeps the contract.

def test_contract(check_model):
check_model(MyModel)
"""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def check_model() -> Callable[..., None]:
    """Call it with a Model subclass (and cases of your own, if you have any): fails naming each broken clause."""
    from medflow.testing.conformance import check_model as run_checks

    def check(model, cases=None, *, device: str = "cpu") -> None:  # noqa: ANN001 - a Model subclass, cases
        failed = [result for result in run_checks(model, cases, device=device) if not result.passed]
        assert not failed, "\n".join(f"{result.name}: {result.detail}" for result in failed)  # noqa: S101

    return check
