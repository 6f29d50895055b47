"""Secrets that Prefect keeps, read from a running server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import SecretStr

from medflow.connections.secrets import reveal
from medflow.doctor.here import prefect
from medflow.errors import ConfigurationError, ServerUnavailable
from tests.services import free_port
from tests.services.prefect_server import PrefectServer


@pytest.fixture(autouse=True)
def _at_the_server(prefect_server: PrefectServer) -> Iterator[None]:
    with temporary_settings({PREFECT_API_URL: prefect_server.api_url}):
        yield


@pytest.mark.parametrize("value", ["a:word", "0123", "1e5", "true"])
def test_a_secret_block_is_read_as_it_was_written(value: str) -> None:
    Secret(value=SecretStr(value)).save("pacs-password", overwrite=True)

    assert reveal(SecretStr("prefect:pacs-password")) == value


def test_a_block_of_json_gives_its_text() -> None:
    Secret(value={"kty": "EC"}).save("ehr-key", overwrite=True)

    assert reveal(SecretStr("prefect:ehr-key")) == '{"kty": "EC"}'


def test_a_block_that_there_is_not_says_how_to_make_one() -> None:
    with pytest.raises(ConfigurationError, match="no Secret block 'nothing'"):
        reveal(SecretStr("prefect:nothing"))


def test_a_server_that_is_away_is_worth_another_try() -> None:
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        with pytest.raises(ServerUnavailable, match="Prefect"):
            reveal(SecretStr("prefect:pacs-password"))


def test_the_doctor_finds_its_api(prefect_server: PrefectServer) -> None:
    assert [state for state, _ in prefect(prefect_server.api_url, None, 10)] == ["ok"]
    with pytest.raises(ConfigurationError, match="ends in /api"):
        list(prefect(prefect_server.url, None, 10))
    with pytest.raises(ServerUnavailable):
        list(prefect(f"http://127.0.0.1:{free_port()}/api", "medflow:word", 10))
