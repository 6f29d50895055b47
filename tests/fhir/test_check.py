import copy
import json
from collections.abc import Iterator
from pathlib import Path
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflow.errors import InputRejected, RejectCode
from medflow.fhir.check import Checker, check_resource
from medflow.fhir.r4 import resource_types, types

OBSERVATION = {
    "resourceType": "Observation",
    "id": "o1",
    "status": "final",
    "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
    "subject": {"reference": "Patient/p1"},
    "effectiveDateTime": "2012-01-01T00:07:00Z",
    "valueQuantity": {"value": 73, "unit": "/min", "system": "http://unitsofmeasure.org", "code": "/min"},
}


def changed(**elements) -> dict:
    resource = copy.deepcopy(OBSERVATION)
    resource.update(elements)
    return {name: value for name, value in resource.items() if value is not ...}


def code_of(resource: dict, **options) -> RejectCode | None:
    """The reject code, which the whole check and the remembering one must agree on."""
    with_memory = Checker(options.get("zone"))
    with_memory.check(OBSERVATION)
    codes = []
    for check in (lambda: check_resource(resource, **options), lambda: with_memory.check(resource)):
        try:
            check()
            codes.append(None)
        except InputRejected as error:
            codes.append(error.code)
    assert codes[0] == codes[1]
    return codes[0]


def test_a_valid_observation_passes():
    assert code_of(OBSERVATION) is None


@pytest.mark.parametrize(
    "resource",
    [
        changed(status="foo"),
        changed(status=...),
        changed(code=...),
        changed(id="not an id"),
        changed(id="x" * 65),
        changed(foo="bar"),
        changed(effectiveDateTime="2012-02-30T00:00:00Z"),
        changed(effectiveDateTime="2012-13-01"),
        changed(effectiveDateTime="yesterday"),
        changed(effectivePeriod={"start": "2012-01-01"}),
        changed(valueString="two of a choice"),
        changed(valueQuantity={"value": "73"}),
        changed(valueQuantity={"value": 73, "code": "/min"}),
        changed(valueQuantity={}),
        changed(valueQuantity=None),
        changed(performer=[{"reference": "Device/d1"}]),
        changed(performer={"reference": "Practitioner/d1"}),
        changed(category=[]),
        changed(dataAbsentReason={"text": "obs-6"}),
        changed(component=[{"code": OBSERVATION["code"], "valueInteger": 1}]),
        changed(component=[{"code": {"text": "x"}, "valueInteger": 1, "dataAbsentReason": {"text": "x"}}]),
        changed(
            effectiveDateTime=..., effectivePeriod={"start": "2012-01-02T00:00:00Z", "end": "2012-01-01T00:00:00Z"}
        ),
        changed(extension=[{"url": "http://x", "valueString": "x", "extension": [{"url": "y", "valueCode": "z"}]}]),
        changed(subject={"reference": "Patient/p1", "identifier": {"use": "foo", "value": "1"}}),
        changed(contained=[{"resourceType": "Nonsense", "id": "c"}]),
        {"resourceType": "Encounter", "status": "foo", "class": {"code": "IMP"}},
        {"resourceType": "RiskAssessment", "status": "foo", "subject": {"reference": "Patient/1"}},
        {
            "resourceType": "Condition",
            "subject": {"reference": "Patient/1"},
            "abatementDateTime": "2012-01-01",
            "clinicalStatus": {"coding": [{"system": "http://x", "code": "active"}]},
        },
    ],
    ids=lambda resource: json.dumps(resource)[-60:],
)
def test_what_r4_forbids_is_an_invalid_resource(resource):
    assert code_of(resource) is RejectCode.INVALID_RESOURCE


@pytest.mark.parametrize(
    "resource",
    [
        changed(effectiveDateTime="2012"),
        changed(effectiveDateTime="2012-01"),
        changed(effectiveDateTime="2016-12-31T23:59:60Z"),
        changed(effectiveDateTime="2012-01-01T00:00:00.123456789+14:00"),
        changed(status=..., _status={"extension": [{"url": "http://x", "valueCode": "unknown"}]}),
        changed(valueQuantity=..., dataAbsentReason={"text": "asked"}),
        changed(valueQuantity={"value": 1e300}),
        changed(performer=[{"reference": "http://other/fhir/Practitioner/1"}, {"display": "someone"}]),
        changed(component=[{"code": {"text": "other"}, "valueInteger": 1}]),
        {"resourceType": "MedicinalProduct", "name": [{"productName": "known to R4, not to R4B"}]},
        {
            "resourceType": "Patient",
            "name": [{"given": ["A", None], "_given": [None, {"extension": [{"url": "http://x", "valueCode": "y"}]}]}],
        },
    ],
    ids=lambda resource: json.dumps(resource)[-60:],
)
def test_what_r4_allows_passes(resource):
    assert code_of(resource) is None


@pytest.mark.parametrize("kind", ["Nonsense", "", "SubscriptionStatus", "DomainResource", 7])
def test_an_unknown_type_has_its_own_code(kind):
    assert code_of({"resourceType": kind, "id": "1"}) is RejectCode.UNKNOWN_RESOURCE_TYPE


def test_numbers_out_of_range_have_their_own_code():
    assert code_of(changed(valueQuantity=..., valueInteger=1 << 31)) is RejectCode.NUMBER_OUT_OF_RANGE
    assert code_of(changed(valueQuantity=..., valueInteger=1e20)) is RejectCode.NUMBER_OUT_OF_RANGE
    assert code_of(changed(valueQuantity={"value": float("inf")})) is RejectCode.NUMBER_OUT_OF_RANGE


@pytest.mark.parametrize("text", ["2012-01-01T10:00:00", "2012-01-01T10:00:00.5", "2012-01-01T10:00"])
def test_a_time_without_a_zone_is_refused_unless_a_zone_places_it(text):
    assert code_of(changed(effectiveDateTime=text)) is RejectCode.TIME_WITHOUT_ZONE
    assert code_of(changed(effectiveDateTime=text), zone=ZoneInfo("Europe/Berlin")) is None


def test_errors_name_paths_and_never_values():
    secret = "Miller 1950-03-04"
    for resource in (
        changed(status=secret),
        changed(effectiveDateTime=secret),
        changed(id=secret),
        {"resourceType": "Patient", "birthDate": secret, "gender": secret, secret: 1},
        {"resourceType": secret},
    ):
        with pytest.raises(InputRejected) as caught:
            check_resource(resource)
        assert secret not in str(caught.value)
        assert "1950" not in repr(caught.value.fields)


def test_remembered_elements_do_not_hide_a_broken_rule_between_elements():
    checker = Checker()
    checker.check(changed(component=[{"code": {"coding": [{"system": "s", "code": "1"}]}, "valueInteger": 1}]))
    checker.check(changed(code={"coding": [{"system": "s", "code": "1"}]}))
    with pytest.raises(InputRejected, match="obs-7"):
        checker.check(
            changed(
                code={"coding": [{"system": "s", "code": "1"}]},
                component=[{"code": {"coding": [{"system": "s", "code": "1"}]}, "valueInteger": 1}],
            )
        )


def test_items_of_a_list_are_remembered_one_by_one_and_no_bad_one_among_good_ones_passes():
    checker = Checker()
    one, other = ({"code": {"coding": [{"system": "s", "code": code}]}, "valueInteger": 1} for code in ("2", "3"))
    broken = {"valueInteger": 1}
    checker.check(changed(component=[one, other]))
    checker.check(changed(component=[other, one, one]))
    for components in ([one, broken], [broken, one], [one, None], [one, "2"]):
        for _ in range(2):
            with pytest.raises(InputRejected):
                checker.check(changed(component=components))


def test_no_element_that_numbers_stand_for_one_another_in_is_a_whole_number():
    kinds = {row.kind for known in types().values() for name, row in known.rows.items() if name == "value"}
    assert not kinds & {"integer", "positiveInt", "unsignedInt"}


def test_r4_has_146_types():
    assert len(resource_types()) == 146


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 63) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from([*types()["Observation"].rows, "_status", "resourceType", "foo"])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(NAMES, JSON_VALUES, max_size=5))
def test_junk_is_refused_and_never_crashes(junk):
    resource = {"resourceType": "Observation", **{name: value for name, value in junk.items() if name != "foo"}}
    code_of(resource)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_remembering_check_agrees_after_any_change(data):
    resource = copy.deepcopy(OBSERVATION)
    path = data.draw(st.sampled_from(list(_paths(resource))))
    holder = resource
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = data.draw(JSON_VALUES | st.sampled_from(["2012-01-01T00:00:00Z", "Patient/2", "final", 2]))
    code_of(resource)


def _paths(value, path=()) -> Iterator[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if key != "resourceType":
            yield (*path, key)
            yield from _paths(item, (*path, key))


@pytest.mark.realdata
def test_every_synthea_resource_is_valid_either_way(realdata):
    checker = Checker()
    paths = sorted(Path(realdata("synthea_r4_24")).rglob("*.json"))
    assert len(paths) == 24
    for path in paths[:4]:
        for entry in orjson.loads(path.read_bytes())["entry"]:
            checker.check(entry["resource"])
            check_resource(entry["resource"])
