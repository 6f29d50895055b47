"""Values out of a pydicom data set that may be wrong in every way: text, numbers, dates; never an exception.

pydicom converts lazily and raises, warns or logs (with the value in the message) when a value does not fit its VR. A
header with one bad description is still worth storing, and no value may reach a log.
"""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

from pydicom import config
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

PYDICOM = re.compile(r"pydicom(\.|$)")


def quiet() -> None:
    """Keep pydicom from printing values of data sets: its warnings and log lines quote them."""
    if config.settings.reading_validation_mode != config.IGNORE:
        config.settings.reading_validation_mode = config.IGNORE
        logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    if not any(action == "ignore" and module == PYDICOM for action, _, _, module, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=PYDICOM.pattern)


def value_of(dataset: Dataset, name: str) -> Any:
    """The value as pydicom converts it; None when it is absent, empty, or cannot be converted."""
    if tag_for_keyword(name) not in dataset.keys():  # noqa: SIM118 - several times faster than `in dataset`
        return None
    try:
        value = dataset.get(name)
    except Exception:  # converters raise whatever their bytes make them
        return None
    return None if value is None or value == "" else value


def text_of(dataset: Dataset, name: str) -> str | None:
    """Text without padding and NUL; several values joined by a backslash, as in the file; None when blank."""
    value = value_of(dataset, name)
    if isinstance(value, MultiValue | list | tuple):
        value = "\\".join(str(part) for part in value)
    text = str(value).replace("\x00", "").strip() if value is not None else ""
    return text.encode("utf-8", "replace").decode() or None


def first_of(dataset: Dataset, name: str) -> str | None:
    """The first value as text, for elements that may have only one."""
    text = text_of(dataset, name)
    return text.split("\\")[0].strip() or None if text else None


def number_of(dataset: Dataset, name: str) -> int | None:
    """A whole number that fits 32 bits; None otherwise."""
    values = numbers_of(dataset, name)
    return int(values[0]) if values and abs(values[0]) < 2**31 else None


def numbers_of(dataset: Dataset, name: str) -> tuple[float, ...]:
    """All values as finite numbers; an empty tuple when one of them is not."""
    value = value_of(dataset, name)
    if value is None:
        return ()
    values = value if isinstance(value, MultiValue | list | tuple) else [value]
    try:
        numbers = tuple(float(part) for part in values)
    except (TypeError, ValueError, OverflowError):
        return ()
    return numbers if all(map(math.isfinite, numbers)) else ()


def items_of(dataset: Dataset, name: str) -> Sequence[Dataset]:
    """The items of a sequence; none when it is absent or damaged."""
    value = value_of(dataset, name)
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else ()
