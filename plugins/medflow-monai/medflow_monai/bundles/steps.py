"""Looking into a chain of MONAI's transforms, and changing it where it is: what inverts it refers to the object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from monai.transforms.compose import Compose
from monai.transforms.transform import MapTransform


def composed(part: Any) -> Compose:
    """A part as a chain: itself, or the one step or none that it is."""
    if isinstance(part, Compose):
        return part
    return Compose([] if part is None else part)


def steps(compose: Compose) -> Iterator[Any]:
    """Every step, those of chains inside included."""
    for step in compose.transforms:
        yield step
        if isinstance(step, Compose):
            yield from steps(step)


def replace_steps(compose: Compose, change: Callable[[Any], Any]) -> None:
    """Put what ``change`` gives in the place of each step; None takes it out."""
    for step in compose.transforms:
        if isinstance(step, Compose):
            replace_steps(step, change)
    compose.transforms = tuple(new for step in compose.transforms if (new := change(step)) is not None)


def forgive(compose: Compose, absent: set[Any]) -> None:
    """Let steps that also work on a label, which no case has, pass it over; a misspelt key stays an error."""
    for step in steps(compose):
        if isinstance(step, MapTransform) and set(step.keys) & absent:
            step.allow_missing_keys = True


def has(compose: Compose, kind: type) -> bool:
    """Whether a step of this type is among them."""
    return any(isinstance(step, kind) for step in steps(compose))
