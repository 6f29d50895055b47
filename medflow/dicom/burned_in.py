"""Whether the pixels of a series may have text burned in: names and dates that no header can take away."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Protocol

from pydicom import dcmread

from medflow.dicom.elements import first_of, quiet
from medflow.records import Instance

CAPTURES = (  # kinds of images that devices write text into (PS3.15 E.3.1): ultrasound, secondary captures
    *("1.2.840.10008.5.1.4.1.1.3.", "1.2.840.10008.5.1.4.1.1.6."),
    *("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.12."),
)


class Objects(Protocol):
    """The object store: bytes by their SHA-256 (hex)."""

    def get(self, digest: str) -> bytes:
        """The bytes of an object."""
        ...


def may_have_burned_in_text(instances: Sequence[Instance], objects: Objects) -> bool:
    """Whether any instance says so (Burned In Annotation, PS3.3 C.7.6.1.1.5), or is silent and of a kind that has it.

    An instance that cannot be read may have anything.
    """
    quiet()
    return any(_may_have(instance, objects) for instance in instances)


def _may_have(instance: Instance, objects: Objects) -> bool:
    try:
        data = Path(instance.path).read_bytes() if instance.path is not None else objects.get(instance.sha256)
        header = dcmread(BytesIO(data), stop_before_pixels=True, force=True, specific_tags=["BurnedInAnnotation"])
        said = first_of(header, "BurnedInAnnotation")
    except Exception:  # noqa: BLE001 - whatever damaged bytes raise: it is not known to be free of text
        return True
    return said != "NO" and (said is not None or instance.sop_class_uid.startswith(CAPTURES))
