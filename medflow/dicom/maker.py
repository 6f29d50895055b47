"""Who makes DICOM objects of a model's answer, under which UIDs, and what a heat map is: known without pydicom.

Every result has a maker; only those of images are written by it, and only they should wait for pydicom.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import tzinfo
from importlib.metadata import version
from uuid import UUID, uuid5

import numpy as np

from medflow.records import Instant, digest_of

NAMESPACE = UUID("5f6ac6a8-2d3b-4f34-9d0f-5a6c7d5c2c0e")  # of all UIDs made here; changing it would orphan every object
ROOT = "2.25."  # PS3.5 B.2: a UUID as a UID
LO = 64  # characters of a Long String (PS3.5 6.2)
KIND = "heat-map"  # of a ResultObject


@dataclass(frozen=True, kw_only=True, slots=True)
class Maker:
    """The model that made an object, of what, and when.

    ``identity`` says what the result is of (its exact input, its prediction time): with the model's ``digest`` and the
    source series it makes the object's UIDs. ``zone`` places the run's time where the source says no offset.
    """

    model: str
    version: str
    title: str
    digest: str
    identity: tuple[str, ...]
    issued: Instant
    zone: tzinfo | None = None

    def uid(self, *parts: object) -> str:
        """The UID of something this model made of this input: the same whenever and wherever it is made."""
        return uid_of(self.model, self.digest, *self.identity, *parts)

    @property
    def series_description(self) -> str:
        """The model's title and version."""
        return ascii_text(f"{self.title} ({self.version})", LO)

    @property
    def software_versions(self) -> list[str]:
        """The model's version and medflow's."""
        return [ascii_text(self.version, LO), f"medflow {version('medflow')}"[:LO]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeatMap:
    """A heat map on its image's grid: float32 (z, y, x) or (rows, columns), NaN where nothing is said.

    ``volume`` is the number, from 0, of the volume that it explains where the image has several.
    """

    values: np.ndarray
    volume: int = 0


def uid_of(*parts: object) -> str:
    """A UID that stands for these parts: UUIDv5, as PS3.5 B.2 writes it."""
    return f"{ROOT}{uuid5(NAMESPACE, digest_of(*parts)).int}"


def ascii_text(text: str, length: int) -> str:
    """Text that fits any character set the source may use; a backslash would divide it into values."""
    plain = text.encode("ascii", "replace").decode().replace("\\", "/")
    return " ".join("".join(letter if letter.isprintable() else " " for letter in plain).split())[:length].strip()
