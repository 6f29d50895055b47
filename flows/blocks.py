"""Secrets that Prefect keeps: ``prefect:NAME`` in the configuration is the Secret block of that name."""

from __future__ import annotations

import json

import httpx
from prefect.blocks.system import Secret
from prefect.exceptions import PrefectHTTPStatusError

from medflow.errors import ConfigurationError, ServerUnavailable

UNAUTHORISED = (401, 403)


def secret_block(name: str) -> str:
    """What a Secret block holds; of one that holds JSON (a JWK), its text.

    Raises
    ------
    ConfigurationError
        There is no such block, or Prefect does not let us read it.
    ServerUnavailable
        Prefect does not answer.
    """
    try:
        block = Secret.load(name, _sync=True)  # pyright: ignore[reportCallIssue] - Prefect's own switch
        value = block.value.get_secret_value()  # .get() makes numbers of digits
    except ValueError:
        raise ConfigurationError(
            f"Prefect has no Secret block {name!r}: make one (Blocks in its pages), or name another"
        ) from None
    except PrefectHTTPStatusError as error:
        if error.response.status_code in UNAUTHORISED:
            raise ConfigurationError(
                f"Prefect does not let us read the Secret block {name!r}: check PREFECT_API_AUTH_STRING"
            ) from None
        raise _away(name) from None
    except (httpx.HTTPError, RuntimeError):  # RuntimeError: its temporary server did not start
        raise _away(name) from None
    return value if isinstance(value, str) else json.dumps(value)


def _away(name: str) -> ServerUnavailable:
    return ServerUnavailable(f"Prefect, which keeps the Secret block {name!r}, does not answer")
