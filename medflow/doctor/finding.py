"""What a check finds, and how checks are run: beside each other, and none longer than it may take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from medflow.errors import MedflowError, unforeseen


class State(StrEnum):
    """``WARNING``: it works, and something should be seen to."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


OK, WARNING, FAILED = State


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line. ``name`` says of what ("target ehr"); ``message`` is for an operator, and says what to do."""

    name: str
    state: State
    message: str


Said = tuple[State, str]  # a state and a message


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Something that is tried; ``run`` says what it finds as it finds it, and may raise."""

    name: str
    run: Callable[[], Iterable[Said]]


@dataclass(kw_only=True, slots=True)
class _Running:
    check: Check
    findings: list[Finding] = field(default_factory=list)
    thread: threading.Thread | None = None

    def start(self) -> None:
        # a thread that hangs is left behind: it must not keep the process
        self.thread = threading.Thread(target=self._work, name=f"doctor {self.check.name}", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            for state, message in self.check.run():
                self._found(state, message)
        except MedflowError as error:
            self._found(FAILED, error.message)
        except Exception as error:  # noqa: BLE001 - the others go on
            self._found(FAILED, unforeseen(error).message)

    def _found(self, state: State, message: str) -> None:
        self.findings.append(Finding(name=self.check.name, state=state, message=message))


def run_checks(checks: Sequence[Check], *, deadline_s: float) -> list[Finding]:
    """What the checks find, in their order; one that takes longer than ``deadline_s`` has failed."""
    running = [_Running(check=check) for check in checks]
    for each in running:
        each.start()
    until = time.monotonic() + deadline_s
    found: list[Finding] = []
    for each in running:
        assert each.thread is not None  # noqa: S101 - started above
        each.thread.join(max(0.0, until - time.monotonic()))
        found += each.findings[:]
        if each.thread.is_alive():
            late = f"this did not end within {deadline_s:g} s: something on the way swallows what is sent (a firewall?)"
            found.append(Finding(name=each.check.name, state=FAILED, message=late))
    return found
