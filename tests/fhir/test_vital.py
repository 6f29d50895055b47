"""When somebody died is a span of time, as exact as it was written."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import orjson
import pytest

from medflow.fhir.vital import identifiers_of, span_of, vital_of
from medflow.records import Identifier, Instant

BERLIN = ZoneInfo("Europe/Berlin")


def us(*moment: int) -> int:
    return Instant.of(datetime(*moment, tzinfo=UTC)).utc_us  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "first", "last", "exact"),
    [
        ("2026-03-05T10:00:00+01:00", us(2026, 3, 5, 9), us(2026, 3, 5, 9), True),
        ("2026-03-05", us(2026, 3, 4, 23), us(2026, 3, 5, 23) - 1, True),
        ("2026-12", us(2026, 11, 30, 23), us(2026, 12, 31, 23) - 1, False),
        ("2026", us(2025, 12, 31, 23), us(2026, 12, 31, 23) - 1, False),
    ],
)
def test_a_date_is_a_span(text, first, last, exact):
    span = span_of(text, BERLIN)

    assert span is not None
    assert (span.first_us, span.last_us, span.exact) == (first, last, exact)


def test_a_day_without_a_zone_is_not_placed():
    assert span_of("2026-03-05", None) is None


@pytest.mark.parametrize(
    ("patient", "died", "alive"),
    [
        ({}, False, False),
        ({"deceasedBoolean": False}, False, True),
        ({"deceasedBoolean": True}, False, False),
        ({"deceasedDateTime": "2026-03-05T10:00:00Z"}, True, False),
    ],
)
def test_what_a_patient_says_of_death(patient, died, alive):
    vital = vital_of(orjson.dumps({"resourceType": "Patient", **patient}), BERLIN)

    assert (vital.died is not None, vital.alive) == (died, alive)


def test_identifiers_without_a_system_name_nobody():
    raw = orjson.dumps({"identifier": [{"value": "1"}, {"system": "urn:a", "value": "2"}]})

    assert identifiers_of(raw) == [Identifier(system="urn:a", value="2")]
