"""Flows as deployments run them: what is tried again, what is not, and what is ended. On a real server."""

import time
from collections.abc import Callable, Iterator
from typing import Annotated

import pytest
from prefect import State, flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Failed
from pydantic import Field

from medflow import __version__
from medflow.errors import ConfigurationError, TargetUnavailable
from medflow.flows.deployed import deployed, nightly
from tests.services.prefect_server import PrefectServer


@pytest.fixture(autouse=True)
def _at_the_server(prefect_server: PrefectServer) -> Iterator[None]:
    with temporary_settings({PREFECT_API_URL: prefect_server.api_url}):
        yield


def run(step: Callable[[int], State], *, retries: int = 1, timeout_s: int = 60) -> tuple[State, int]:
    """The final state of a deployed flow whose tries do this, and how many tries there were."""
    tries = []

    @flow(name="a-flow", flow_run_name="a run")
    def plain() -> State:
        tries.append(1)
        return step(len(tries))

    state = deployed(plain, retries=retries, retry_delay_s=0, timeout_s=timeout_s)(return_state=True)
    return state, len(tries)


def test_a_target_that_is_away_for_a_while_is_tried_again():
    def step(tried: int) -> State:
        if tried == 1:
            raise TargetUnavailable("the target is away")
        return Completed(message="3 delivered")

    state, tries = run(step)

    assert (state.type.value, state.message, tries) == ("COMPLETED", "3 delivered", 2)


def test_a_run_in_which_something_failed_is_tried_again_and_keeps_its_message():
    state, tries = run(lambda _tried: Failed(message="2 failed"))

    assert (state.type.value, tries) == ("FAILED", 2)
    assert state.message is not None and "2 failed" in state.message


def test_what_is_configured_wrongly_is_not_tried_again():
    def step(_tried: int) -> State:
        raise ConfigurationError("no source is called 'pacs'")

    state, tries = run(step, retries=3)

    assert (state.type.value, tries) == ("FAILED", 1)


def test_a_run_that_hangs_is_ended():
    def step(_tried: int) -> State:
        time.sleep(30)
        return Completed()

    begun = time.monotonic()
    state, tries = run(step, retries=0, timeout_s=1)

    assert (state.name, tries) == ("TimedOut", 1)
    assert time.monotonic() - begun < 20


def test_parameters_are_checked_as_in_the_plain_flow():
    @flow(name="another-flow")
    def plain(count: Annotated[int, Field(ge=1)]) -> State:
        return Completed(message=str(count))

    wrapped = deployed(plain, retries=0, retry_delay_s=0, timeout_s=60)

    assert wrapped(count="2", return_state=True).message == "2"
    assert wrapped(count=0, return_state=True).is_failed()


def test_a_deployed_flow_has_the_name_and_version_that_its_runs_are_found_by():
    assert (nightly.name, nightly.version, nightly.retries) == ("nightly", __version__, 2)
