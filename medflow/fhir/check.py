"""Whether one parsed resource is R4: fhir.resources (R4B) and medflow's own knowledge of R4 must both agree.

Neither suffices alone: fhir.resources takes codes, references and repeated choices that R4 forbids, and what it
forbids beyond R4 (elements that R4B dropped, UUIDs of other versions) is no fault here. Error texts carry element paths
and kinds of fault, never values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import orjson
from pydantic import ValidationError

from medflow.errors import InputRejected, RejectCode
from medflow.fhir.r4 import (
    ID,
    INSTANT,
    INVARIANTS,
    NO_ZONE,
    OUT_OF_RANGE,
    Findings,
    Problem,
    moment_of,
    resource_types,
    types,
    walk_resource,
)

CHANGED_IN_R4B = {"Evidence", "EvidenceVariable"}  # another shape altogether: only R4's own table can judge them
NOT_A_FAULT = {"extra_forbidden", "uuid_version"}  # R4's table knows which elements there are; R4 takes any UUID
SHOWN = 4  # faults named in one sentence
MEMO = 100_000  # elements remembered with VARIABLE's constants, then it starts afresh,
MEMO_AS_IT_CAME = 20_000  # and as they came: what repeats does so soon
REMEMBERED = 65_536  # times: one of a patient's values is often that of the next
MEMO_BYTES = 2000  # a larger element is not worth remembering

# In an element's compact JSON, what differs from case to case while its validity does not: each match stands for every
# other of its class. Days beyond the 28th, leap seconds and periods are left to the full check where the calendar or
# the order of two times would matter.
_MOMENT = rb"(?!0000)\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?"
_OFFSET = rb"(?:Z|[+-](?:0\d|1[0-3]):[0-5]\d)"
_UUID = rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# All begin with a quotation mark, for which the search can leap: tried at every byte they take six times as long.
VARIABLE = re.compile(
    rb'"(?:'
    rb'start":"(?P<start>' + _MOMENT + rb")(?P<offset>" + _OFFSET + rb')","end":"(?P<end>' + _MOMENT + rb')(?P=offset)"'
    rb'|(?<=\{")(?P<open>start":")' + _MOMENT + _OFFSET + rb'"(?=\})'
    rb'|(?P<kept>(?:start|end)":"' + _MOMENT + _OFFSET + rb'")'
    rb'|(?<!\\")(?P<moment>)' + _MOMENT + _OFFSET + rb'"'
    rb'|(?<!\\")(?P<uuid>(?:urn:uuid:)?)' + _UUID + rb'"'
    rb'|(?P<reference>reference":"[A-Za-z]{2,40}/)[A-Za-z0-9\-.]{1,64}"'
    rb'|(?P<value>value":)-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?=[,}])'
    rb"|(?P<float>:)-?\d+\.\d+(?:[eE][+-]?\d+)?(?=[,}])"
    rb")"
)


def check_resource(resource: dict[str, Any], *, zone: ZoneInfo | None = None) -> None:
    """Check one resource; returns nothing if it is valid R4.

    Parameters
    ----------
    resource
        As parsed from JSON.
    zone
        Where given, a time without a zone is no fault: it will be placed there.

    Raises
    ------
    InputRejected
        UNKNOWN_RESOURCE_TYPE, INVALID_RESOURCE, NUMBER_OUT_OF_RANGE or TIME_WITHOUT_ZONE, with element paths.
    """
    found = Findings()
    walk_resource(resource, "", found)
    if not found.problems:
        found.problems.extend(_second_opinion(resource, found.unplaced))
    if found.problems or (found.unplaced and zone is None):
        raise _rejected(found)


class Checker:
    """`check_resource` for many resources: elements and combinations of elements already seen valid are not redone.

    What R4 and fhir.resources say of a resource follows from each of its elements alone, from which elements there
    are, and from the type's invariants. So a resource is valid if every element was part of a valid resource before,
    their combination too, and the invariants hold. Times, numbers, UUIDs and the ids in references, which rarely
    repeat, stand for one another once their format is seen to be right (`VARIABLE`).
    """

    def __init__(self, zone: ZoneInfo | None = None) -> None:
        self._zone = zone
        self._seen: set[tuple[str, str, bytes]] = set()  # elements with VARIABLE's constants
        self._as_they_came: set[tuple[str, str, bytes]] = set()
        self._shapes: set[tuple[str, ...]] = set()

    def check(self, resource: dict[str, Any]) -> None:
        """As `check_resource`."""
        kind = resource.get("resourceType")
        if not isinstance(kind, str) or kind not in resource_types():
            check_resource(resource, zone=self._zone)
            return
        shape = (kind, *resource)
        fresh = self._unseen(kind, resource)
        if fresh is None or fresh or shape not in self._shapes or not _invariants_hold(resource):
            check_resource(resource, zone=self._zone)
            self._shapes.add(shape)
            self._seen.update(fresh or ())

    def _unseen(self, kind: str, resource: dict[str, Any]) -> list[tuple[str, str, bytes]] | None:
        """The elements that no valid resource has had; None if this one must be checked whole each time."""
        if len(self._seen) > MEMO:
            self._seen.clear()
        if len(self._as_they_came) > MEMO_AS_IT_CAME:
            self._as_they_came.clear()
        rows, formats = types()[kind].rows, _formats(kind)
        fresh = []
        for name, value in resource.items():
            if name == "resourceType":
                continue
            right = formats.get(name)
            if right is not None and isinstance(value, str) and right(value):
                continue
            for key, part in _items(name, value) if isinstance(value, list) else ((name, value),):
                element = orjson.dumps(part)
                if (kind, key, element) in self._as_they_came:
                    continue
                if name not in rows or len(element) > MEMO_BYTES:
                    return None
                general = (kind, key, VARIABLE.sub(_constant, element))
                if general not in self._seen:
                    fresh.append(general)
                else:  # a copy: what orjson makes holds on to kilobytes
                    self._as_they_came.add((kind, key, bytes(memoryview(element))))
        return fresh


def _items(name: str, value: list[Any]) -> Iterable[tuple[str, Any]]:
    """A list as it is remembered: item by item where it has several, as each is valid or not by itself."""
    if len(value) > 1 and all(isinstance(item, dict) for item in value):
        return [(f"{name}[]", item) for item in value]
    return [(name, value)]


@cache
def _formats(kind: str) -> dict[str, Callable[[str], bool]]:
    """By element of a type, what tells of a text whether it is beyond doubt right there."""
    judges = {"id": _is_id, "dateTime": _is_moment, "instant": _is_moment}
    return {name: judges[row.kind] for name, row in types()[kind].rows.items() if row.kind in judges}


def _is_id(text: str) -> bool:
    return ID.fullmatch(text) is not None


@lru_cache(maxsize=REMEMBERED)
def _is_moment(text: str) -> bool:
    """A dateTime and an instant alike: to the second, with a zone, on a day that there is."""
    return INSTANT.fullmatch(text) is not None and text[17:19] != "60" and moment_of(text) is not None


def _invariants_hold(resource: dict[str, Any]) -> bool:
    check = INVARIANTS.get(resource["resourceType"])
    return check is None or next(check(resource), None) is None


def _constant(found: re.Match[bytes]) -> bytes:
    """What stands for one changing part, once its format is known to be right."""
    kind = found.lastgroup
    if kind == "end":  # a period with both ends: in order, or it stays as it is
        ordered = len(found["start"]) == len(found["end"]) and found["start"] <= found["end"]
        return b'"start":@,"end":@' if ordered else found[0]
    if kind == "kept":
        return found[0]
    return b'"' + (found[kind] if kind else b"") + b"@"


def _second_opinion(resource: dict[str, Any], unplaced: set[str]) -> list[Problem]:
    """What fhir.resources finds wrong, unless R4 says otherwise."""
    kind = resource["resourceType"]
    model = _model(kind)
    if model is None or not all(_model(name) for name in _contained_types(resource)):
        return []
    try:
        model.model_validate(resource)
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False, include_context=False, include_input=False):
            path = _path(kind, item["loc"])
            if item["type"] not in NOT_A_FAULT and path not in unplaced:
                problems.append(Problem(path, item["type"].replace("_", " ")))
        return problems
    except Exception as error:  # noqa: BLE001 - whatever a stranger's validator does, this one resource is put aside
        return [Problem(kind, f"fhir.resources cannot read it ({type(error).__name__})")]
    return []


@cache
def _model(kind: str) -> Any:
    """The fhir.resources class of a type, or None if R4B has no such type or another one of that name."""
    from fhir.resources.R4B import get_fhir_model_class  # heavy: only who validates pays for it

    if kind in CHANGED_IN_R4B:
        return None
    try:
        return get_fhir_model_class(kind)
    except (ValueError, KeyError):
        return None


def _contained_types(resource: dict[str, Any]) -> list[str]:
    contained = resource.get("contained", [])
    nested = [item["resource"] for item in resource.get("entry", []) if isinstance(item, dict) and "resource" in item]
    return [item["resourceType"] for item in [*contained, *nested]]


def _path(kind: str, loc: tuple[int | str, ...]) -> str:
    return kind + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)


def _rejected(found: Findings) -> InputRejected:
    faults = {problem.fault for problem in found.problems}
    if not faults:
        where = ", ".join(sorted(found.unplaced)[:SHOWN])
        reason = f"{NO_ZONE} at {where}: set MEDFLOW_TIMEZONE to place it, or mend it at the source"
        return InputRejected(RejectCode.TIME_WITHOUT_ZONE, reason)
    first = found.problems[0]
    if first == Problem("", first.fault):
        return InputRejected(RejectCode.UNKNOWN_RESOURCE_TYPE, "its resourceType is not one of R4's")
    code = RejectCode.NUMBER_OUT_OF_RANGE if faults == {OUT_OF_RANGE} else RejectCode.INVALID_RESOURCE
    sentence = "; ".join(f"{problem.path}: {problem.fault}" for problem in found.problems[:SHOWN])
    more = len(found.problems) - SHOWN
    return InputRejected(code, f"{sentence}; and {more} more" if more > 0 else sentence)
