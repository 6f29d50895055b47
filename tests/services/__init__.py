"""Real servers for the tests, on loopback and free ports; each stops with the session that started it."""

from __future__ import annotations

import os
import socket
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skip the test and say what is missing; a failure where CI is set, so that no check is lost in silence."""
    if os.environ.get("CI"):
        pytest.fail(f"missing in CI: {reason}", pytrace=False)
    pytest.skip(reason)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
