"""The shape of R4 itself: elements, cardinality, required codes, reference targets, primitive formats, invariants.

fhir.resources validates R4B, takes codes that no binding allows, and lacks nineteen types of R4. This module knows R4
from r4.json (tests/fhir/make_r4_table.py makes it from HL7's definitions), so that every R4 type is held to R4.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from importlib.resources import files
from math import isfinite
from typing import Any, NamedTuple

import orjson

MAX_DEPTH = 100
ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
DAY = r"(?!0000)\d{4}(?:-(?:0[1-9]|1[0-2])(?:-(?:0[1-9]|[12]\d|3[01])"
TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d+)?"
ZONE = r"(?:Z|[+-](?:(?:0\d|1[0-3]):[0-5]\d|14:00))"
DATE = re.compile(DAY + r")?)?")
DATETIME = re.compile(DAY + rf"(?:T{TIME}{ZONE})?)?)?")
UNPLACED = re.compile(DAY + r"T(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?)?)?")
INSTANT = re.compile(r"(?!0000)\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])" + rf"T{TIME}{ZONE}")
ELEMENT = re.compile(r"_?[A-Za-z][A-Za-z0-9]{0,60}")

WRONG_TYPE = "wrong JSON type"
OUT_OF_RANGE = "number out of range"
NO_ZONE = "time without a zone"
UNKNOWN_TYPE = "not a resource type of R4"


class Row(NamedTuple):
    """What R4 says of one element. ``group`` names its choice (``value[x]``; with "!" one is required)."""

    kind: str
    least: int = 0
    repeats: int = 0
    codes: frozenset[str] | None = None
    targets: frozenset[str] | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class TypeRows:
    """The elements of one type, the required ones, and the choices of which one is required."""

    rows: dict[str, Row]
    required: tuple[str, ...]
    required_groups: tuple[str, ...]


class Problem(NamedTuple):
    """An element that is not as R4 wants it: where, and what kind of fault. Never the value."""

    path: str
    fault: str


@dataclass(slots=True)
class Findings:
    """What a walk over a resource found. ``unplaced``: paths of times without a zone."""

    problems: list[Problem] = field(default_factory=list)
    unplaced: set[str] = field(default_factory=set)

    def add(self, path: str, fault: str) -> None:
        """Note one fault."""
        self.problems.append(Problem(path, fault))


@cache
def types() -> dict[str, TypeRows]:
    """Every type and backbone element of R4 by name or path."""
    table = _table()
    codes = [frozenset(item) for item in table["codes"]]
    return {name: _rows(elements, codes) for name, elements in table["types"].items()}


@cache
def resource_types() -> frozenset[str]:
    """The names of R4's resource types."""
    return frozenset(_table()["resources"])


@cache
def _table() -> dict[str, Any]:
    return orjson.loads((files("medflow.fhir") / "r4.json").read_bytes())


def _rows(elements: dict[str, list[Any]], codes: list[frozenset[str]]) -> TypeRows:
    rows = {}
    for name, row in elements.items():
        kind, least, repeats, bound, targets, group = row + [None] * (6 - len(row))
        rows[name] = Row(
            kind,
            least,
            repeats,
            None if bound is None else codes[bound],
            None if targets is None else frozenset(targets),
            group,
        )
    required = tuple(name for name, row in rows.items() if row.least)
    groups = tuple(sorted({row.group for row in rows.values() if row.group and row.group.endswith("!")}))
    return TypeRows(rows, required, groups)


def walk_resource(resource: dict[str, Any], path: str, found: Findings, depth: int = 0) -> None:
    """Hold a resource, and what it contains, to R4."""
    kind = resource.get("resourceType")
    if not isinstance(kind, str) or kind not in resource_types():
        found.add(path, UNKNOWN_TYPE)
        return
    _walk(resource, kind, path or kind, found, depth, skip="resourceType")


def walk_element(resource_type: str, name: str, value: Any, path: str, found: Findings) -> None:
    """Hold one element of a resource to R4, apart from the others."""
    rows = types()[resource_type].rows
    _element(name, value, rows, path, found, {name: value}, 0)


def _walk(value: dict[str, Any], kind: str, path: str, found: Findings, depth: int, skip: str | None = None) -> None:
    if depth > MAX_DEPTH:
        found.add(path, "nested too deep")
        return
    known = types()[kind]
    groups: set[str] = set()
    for name, item in value.items():
        if name == skip:
            continue
        row = _element(name, item, known.rows, path, found, value, depth)
        if row is not None and row.group is not None and not name.startswith("_"):
            if row.group in groups:
                found.add(f"{path}.{row.group.rstrip('!')}", "more than one of a choice")
            groups.add(row.group)
    for name in known.required:
        if name not in value and f"_{name}" not in value:
            found.add(f"{path}.{name}", "required element is missing")
    for group in known.required_groups:
        if group not in groups and not any(
            f"_{name}" in value for name, row in known.rows.items() if row.group == group
        ):
            found.add(f"{path}.{group.rstrip('!')}", "required element is missing")
    check = INVARIANTS.get(kind)
    if check is not None:
        for fault in check(value):
            found.add(path, fault)


def _element(
    name: str, item: Any, rows: dict[str, Row], path: str, found: Findings, parent: dict[str, Any], depth: int
) -> Row | None:
    row = rows.get(name.removeprefix("_"))
    if row is None or (name.startswith("_") and not row.kind[0].islower()):
        found.add(f"{path}.{name}" if ELEMENT.fullmatch(name) else path, "not an element of R4")
        return None
    here = f"{path}.{name}"
    if not row.repeats:
        _one(name, item, row, here, found, depth)
    elif not isinstance(item, list):
        found.add(here, "must be an array")
    elif not item:
        found.add(here, "empty array")
    else:
        beside = parent.get(name[1:] if name.startswith("_") else f"_{name}")
        for index, each in enumerate(item):
            if each is None and _placeholder(beside, index):
                continue
            _one(name, each, row, f"{here}[{index}]", found, depth)
    return row


def _placeholder(beside: Any, index: int) -> bool:
    """Whether a null lines a primitive up with its extensions, or the other way round (json.html#primitive)."""
    return isinstance(beside, list) and index < len(beside) and beside[index] is not None


def _one(name: str, item: Any, row: Row, path: str, found: Findings, depth: int) -> None:
    kind = row.kind
    if name.startswith("_"):
        kind = "Element"
    elif kind[0].islower() or kind == "String":
        _primitive(item, row, path, found)
        return
    if not isinstance(item, dict):
        found.add(path, WRONG_TYPE)
    elif not item:
        found.add(path, "empty object")
    elif kind == "Resource":
        walk_resource(item, path, found, depth + 1)
    else:
        _walk(item, kind, path, found, depth + 1)
        if row.targets is not None:
            _target(item, row.targets, path, found)


def _primitive(item: Any, row: Row, path: str, found: Findings) -> None:
    fault = PRIMITIVES[row.kind](item)
    if fault is None and row.codes is not None and item not in row.codes:
        fault = "not a code of its required value set"
    if fault == NO_ZONE:
        found.unplaced.add(path)
    elif fault is not None:
        found.add(path, fault)


def _target(reference: dict[str, Any], targets: frozenset[str], path: str, found: Findings) -> None:
    """A literal reference must be to one of the types that the element allows."""
    kind = reference.get("type")
    literal = reference.get("reference")
    if not isinstance(kind, str) and isinstance(literal, str) and not literal.startswith(("#", "urn:")):
        parts = literal.split("?")[0].split("/_history/")[0].split("/")
        kind = parts[-2] if len(parts) >= 2 else parts[0] if "?" in literal else None
    if isinstance(kind, str) and kind in resource_types() and kind not in targets:
        found.add(path, "reference to a type that is not allowed here")


# --- primitive types: http://hl7.org/fhir/R4/datatypes.html ------------------------------------------------------


def _text(pattern: str | None = None, limit: int = 1 << 20) -> Callable[[Any], str | None]:
    compiled = re.compile(pattern, re.DOTALL) if pattern else None

    def check(item: Any) -> str | None:
        if not isinstance(item, str):
            return WRONG_TYPE
        if not item or item.isspace():
            return "empty string"
        if len(item) > limit or (compiled is not None and not compiled.fullmatch(item)):
            return "wrong format"
        return None

    return check


def _moment(pattern: re.Pattern[str]) -> Callable[[Any], str | None]:
    def check(item: Any) -> str | None:
        if not isinstance(item, str):
            return WRONG_TYPE
        unplaced = pattern is not DATE and len(item) > 10 and UNPLACED.fullmatch(item) is not None
        if not unplaced and not pattern.fullmatch(item):
            return "wrong format"
        if len(item) > 7 and moment_of(item) is None:
            return "no such date"
        return NO_ZONE if unplaced else None

    return check


def _integer(least: int) -> Callable[[Any], str | None]:
    def check(item: Any) -> str | None:
        if isinstance(item, bool) or not isinstance(item, int | float):
            return WRONG_TYPE
        if isinstance(item, float):
            return OUT_OF_RANGE if abs(item) >= 1 << 31 else WRONG_TYPE
        return None if least <= item < 1 << 31 else OUT_OF_RANGE

    return check


def _decimal(item: Any) -> str | None:
    if isinstance(item, bool) or not isinstance(item, int | float):
        return WRONG_TYPE
    return None if isfinite(item) else OUT_OF_RANGE


def _boolean(item: Any) -> str | None:
    return None if isinstance(item, bool) else WRONG_TYPE


def moment_of(text: str) -> datetime | None:
    """The datetime of a date or dateTime with at least a day, naive if it has no zone; None if there is no such day.

    A leap second is the last microsecond before it.
    """
    if text[17:19] == "60":
        text = f"{text[:17]}59.999999{text[19:].lstrip('.0123456789')}"
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


PRIMITIVES: dict[str, Callable[[Any], str | None]] = {
    "base64Binary": _text(r"\s*(?:[0-9a-zA-Z+/=]\s*)+", 1 << 40),
    "boolean": _boolean,
    "canonical": _text(r"\S+"),
    "code": _text(r"\S+(?: \S+)*"),
    "date": _moment(DATE),
    "dateTime": _moment(DATETIME),
    "decimal": _decimal,
    "id": _text(ID.pattern),
    "instant": _moment(INSTANT),
    "integer": _integer(-(1 << 31)),
    "markdown": _text(),
    "oid": _text(r"urn:oid:[0-2](?:\.(?:0|[1-9]\d*))+"),
    "positiveInt": _integer(1),
    "string": _text(),
    "String": _text(),
    "time": _text(TIME),
    "unsignedInt": _integer(0),
    "uri": _text(r"\S+"),
    "url": _text(r"\S+"),
    "uuid": _text(r"urn:uuid:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "xhtml": _text(limit=1 << 40),
}


# --- invariants that the structure cannot express -----------------------------------------------------------------


def _observation(value: dict[str, Any]) -> Iterator[str]:
    if "dataAbsentReason" in value and any(name.startswith("value") for name in value):
        yield "obs-6: dataAbsentReason beside a value"
    components = value.get("component")
    if isinstance(components, list) and any(name.startswith("value") for name in value):
        own = _codings(value.get("code"))
        if own and any(own & _codings(item.get("code")) for item in components if isinstance(item, dict)):
            yield "obs-7: a component with the code of the observation, beside a value"


def _component(value: dict[str, Any]) -> Iterator[str]:
    if "dataAbsentReason" in value and any(name.startswith("value") for name in value):
        yield "dataAbsentReason beside a value"


def _codings(concept: Any) -> set[tuple[str, str]]:
    codings = concept.get("coding") if isinstance(concept, dict) else None
    return {
        (str(item.get("system")), str(item["code"]))
        for item in (codings if isinstance(codings, list) else [])
        if isinstance(item, dict) and "code" in item
    }


def _condition(value: dict[str, Any]) -> Iterator[str]:
    clinical = {code for _, code in _codings(value.get("clinicalStatus"))}
    if (
        any(name.startswith("abatement") for name in value)
        and clinical
        and not clinical
        & {
            "inactive",
            "remission",
            "resolved",
        }
    ):
        yield "con-4: abated, but its clinicalStatus is active"
    if clinical and ("entered-in-error" in {code for _, code in _codings(value.get("verificationStatus"))}):
        yield "con-5: a clinicalStatus beside entered-in-error"


def _extension(value: dict[str, Any]) -> Iterator[str]:
    has_value = any(name.startswith(("value", "_value")) for name in value)
    if has_value == ("extension" in value):
        yield "ext-1: either a value or extensions"


def _period(value: dict[str, Any]) -> Iterator[str]:
    start, end = value.get("start"), value.get("end")
    if isinstance(start, str) and isinstance(end, str) and len(start) > 10 and len(end) > 10:
        first, last = moment_of(start), moment_of(end)
        if first and last and first.tzinfo and last.tzinfo and first > last:
            yield "per-1: the end is before the start"


def _quantity(value: dict[str, Any]) -> Iterator[str]:
    if "code" in value and "system" not in value:
        yield "qty-3: a code without its system"


INVARIANTS: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
    "Observation": _observation,
    "Observation.component": _component,
    "Condition": _condition,
    "Extension": _extension,
    "Period": _period,
    "Quantity": _quantity,
}
