"""The circuit breaker: a failing server is asked by one at a time, and left when it does not come back."""

from __future__ import annotations

import threading
import time

import pytest

from medflow.connections.circuit import Circuit, CircuitRule
from medflow.errors import ServerUnavailable

RULE = CircuitRule(open_after=3, first_wait_s=0.05, longest_wait_s=0.1, patience_s=5.0)
AWAY = ServerUnavailable("the server is away")


def opened(rule: CircuitRule = RULE) -> Circuit:
    circuit = Circuit(rule)
    for _ in range(rule.open_after):
        circuit.admit()
        circuit.failed(AWAY)
    return circuit


def test_it_opens_after_failures_in_a_row_and_says_why() -> None:
    circuit = Circuit(RULE)
    circuit.failed(AWAY)
    circuit.failed(AWAY)
    circuit.answered()
    circuit.failed(AWAY)
    assert circuit.trouble is None

    circuit.failed(AWAY)
    circuit.failed(AWAY)

    assert circuit.trouble == "the server is away"


def test_while_it_is_open_one_thread_probes_and_the_others_wait_for_its_answer() -> None:
    circuit, through = opened(), []

    def ask() -> None:
        circuit.admit()
        through.append(time.monotonic())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    assert len(through) == 1

    circuit.answered()
    for thread in threads:
        thread.join(timeout=2)

    assert len(through) == 4
    assert circuit.trouble is None


def test_the_waits_between_probes_grow() -> None:
    circuit, started = opened(), time.monotonic()

    for _ in range(3):
        circuit.admit()
        circuit.failed(AWAY)
    circuit.admit()

    assert time.monotonic() - started >= 0.05 + 0.1 + 0.1 + 0.1


def test_it_gives_up_when_its_patience_is_over() -> None:
    circuit = opened(CircuitRule(open_after=1, first_wait_s=0.02, longest_wait_s=0.02, patience_s=0.1))

    with pytest.raises(ServerUnavailable, match="the server is away"):
        for _ in range(20):
            circuit.admit()
            circuit.failed(AWAY)

    assert circuit.gave_up


def test_who_waits_is_woken_when_it_is_stopped() -> None:
    circuit = opened(CircuitRule(open_after=1, first_wait_s=60))
    threading.Timer(0.05, circuit.stop).start()

    with pytest.raises(ServerUnavailable):
        circuit.admit()


def test_what_the_server_asks_for_holds_every_thread() -> None:
    circuit, started = Circuit(RULE), time.monotonic()

    circuit.failed(AWAY, hold_s=0.1)
    circuit.admit()

    assert time.monotonic() - started >= 0.1
