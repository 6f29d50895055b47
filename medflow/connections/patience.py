"""How long a busy server is waited for: exponential back-off with jitter, and what its Retry-After asks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import stamina

from medflow.errors import ServerUnavailable

LONGEST_S = 86_400.0  # that a server may ask for: what it says beyond is a mistake of its own, and no reason to wait


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How often a request is tried, and how long waited between, all tries together."""

    attempts: int = 6
    first_wait_s: float = 0.5
    longest_wait_s: float = 10.0
    longest_retry_after_s: float = 120.0  # a server that names more is left for a later run


def tries(patience: Patience, *, stopping: Callable[[], bool] = lambda: False) -> Iterable[stamina.Attempt]:
    """Attempts for a ``for`` loop, each a context manager; only ServerUnavailable has another one follow."""

    def again(error: Exception) -> bool | float:
        if not isinstance(error, ServerUnavailable) or stopping():
            return False
        if error.retry_after_s is None:
            return True
        return max(0.01, error.retry_after_s) if error.retry_after_s <= patience.longest_retry_after_s else False

    return stamina.retry_context(
        on=again,
        attempts=patience.attempts,
        timeout=None,
        wait_initial=patience.first_wait_s,
        wait_max=patience.longest_wait_s,
        wait_jitter=patience.first_wait_s,
    )


def retry_after_s(value: str | None) -> float | None:
    """Seconds from a Retry-After header: a number, or an HTTP date (RFC 9110 section 10.2.3); a day at most."""
    if not value:
        return None
    if re.fullmatch(r"[0-9]+", value.strip()):
        return min(float(value), LONGEST_S)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return min(max(0.0, (moment - datetime.now(UTC)).total_seconds()), LONGEST_S)
