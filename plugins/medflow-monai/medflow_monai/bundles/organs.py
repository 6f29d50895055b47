"""What the labels of public bundles mean: the common organs' SNOMED CT codes, and the volumes that are possible.

A label is recognised by its words alone, in any order: "kidney_left" and "Left kidney" are one. What is not on the list
is never guessed at, and a side is part of the name: a label that names one finds no code that does not.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from medflow.plugin import SNOMED, Coding

_SILENT = {"of", "the", "structure"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Organ:
    """A structure's code, and the largest volume in mL that a mask of it may have: disease included, absurdity not."""

    code: Coding
    most_ml: float


def organ_of(label: str) -> Organ | None:
    """The organ that a label names, or None."""
    return _organs().get(_words(label))


def _words(label: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]+[0-9]*|[0-9]+", label.lower())) - _SILENT


@cache
def _organs() -> dict[frozenset[str], Organ]:
    rows = json.loads((files(__package__ or "medflow_monai.bundles") / "organs.json").read_text())
    found: dict[frozenset[str], Organ] = {}
    for row in rows:
        code = Coding(system=SNOMED, code=row["code"], display=row["display"])
        found |= {_words(name): Organ(code=code, most_ml=row["most_ml"]) for name in row["names"]}
    return found
