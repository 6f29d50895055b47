"""What a delivery target is: what it does with resources, and what it tells of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from medflow.store.outbox import PendingResource

UNANSWERED = "unavailable"  # the reason where a target gave no answer; the detail is then a sentence of ours


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """One resource that a target did not take.

    ``reason`` is made of codes; ``detail`` is the target's own text, for SQL only. ``wait_s``: not again before.
    ``withheld``: the target has no place for its type, so that it was never sent.
    """

    resource: PendingResource
    reason: str
    detail: str = ""
    wait_s: float = 0.0
    withheld: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """What became of some resources. ``committed``: a folder's file sizes that are now safe on disk.

    ``trouble``: what is wrong with the target now, as an operator may read it.
    """

    delivered: Sequence[PendingResource] = ()
    refused: Sequence[Refusal] = ()
    committed: Mapping[str, int] | None = None
    trouble: str | None = None

    def __len__(self) -> int:
        return len(self.delivered) + len(self.refused)

    def joined(self, other: Sent) -> Sent:
        """Both together; sizes are those of the latter."""
        return Sent(
            delivered=[*self.delivered, *other.delivered],
            refused=[*self.refused, *other.refused],
            committed=other.committed,
            trouble=other.trouble,
        )


class Target(Protocol):
    """Something that takes resources."""

    def open(self, committed: Mapping[str, int]) -> None:
        """Make ready. ``committed`` are the sizes of a folder's files, by name, that are known to be right.

        Raises
        ------
        ConfigurationError, TargetUnavailable
            It cannot take anything; the message says what to do.
        """
        ...

    def send(self, envelopes: Sequence[Sequence[PendingResource]]) -> Iterator[Sent]:
        """Send envelopes, and tell of each part once it is safely there; errors as for `open`.

        The caller records a part before it asks for the next.
        """
        ...

    def close(self) -> None:
        """Give everything back."""
        ...
