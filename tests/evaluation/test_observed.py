"""What later records say of a prediction: yes, no, or why it cannot be told."""

from datetime import timedelta

import pytest

from medflow.errors import ConfigurationError
from medflow.evaluation.observed import CONTRADICTORY, KNOWN_BEFORE, UNKNOWN, Life, check_observable, diagnosed, died
from medflow.fhir.vital import Span
from medflow.plugin import Coding, Measure
from medflow.records import UnitKind
from medflow.store.outcomes import ConditionSeen, Scored, StayEnd

HOUR, DAY = 3_600_000_000, 86_400_000_000
NOW = 100 * DAY  # the prediction
UNIT, PATIENT = 7, 3


def stay(end_us: int | None = NOW + 3 * DAY, disposition: str | None = None, status: str = "finished") -> StayEnd:
    return StayEnd(status=status, end_us=end_us, disposition=disposition)


def death(first_us: int, last_us: int | None = None, *, exact: bool = True) -> Life:
    return Life(died=Span(first_us=first_us, last_us=first_us if last_us is None else last_us, exact=exact))


@pytest.mark.parametrize(
    ("stay", "life", "found"),
    [
        (stay(disposition="exp"), Life(), 1),
        (stay(disposition="home"), Life(), 0),
        (stay(disposition="home"), death(NOW + 30 * DAY), 0),
        (stay(disposition="exp"), death(NOW + 3 * DAY), 1),
        (stay(), death(NOW + 2 * DAY), 1),
        (stay(), death(NOW + 4 * DAY), 0),
        (stay(NOW + 3 * DAY + HOUR), death(NOW + 3 * DAY, NOW + 4 * DAY - 1), 1),  # that day, nothing says otherwise
        (stay(NOW + 3 * DAY + HOUR, "home"), death(NOW + 3 * DAY, NOW + 4 * DAY - 1), 0),  # at home, that evening
        (stay(), death(NOW, NOW + 30 * DAY, exact=False), UNKNOWN),  # that month
        (stay(), Life(), UNKNOWN),  # silence is not survival
        (stay(), Life(alive_at_us=NOW + 3 * DAY), 0),
        (stay(), Life(alive_at_us=NOW + 2 * DAY), UNKNOWN),  # alive, but before the stay's end
        (stay(disposition="20"), Life(), UNKNOWN),  # a local code tells nothing
        (stay(disposition="exp", status="in-progress"), Life(), UNKNOWN),
        (stay(None, status="in-progress"), death(NOW + DAY), UNKNOWN),
        (None, Life(), UNKNOWN),
        (stay(NOW, "exp"), Life(), KNOWN_BEFORE),
        (stay(NOW - DAY, "home"), Life(), KNOWN_BEFORE),
        (stay(), death(NOW - DAY), KNOWN_BEFORE),
        (stay(disposition="home"), death(NOW + DAY), CONTRADICTORY),
        (stay(disposition="exp"), death(NOW + 9 * DAY), CONTRADICTORY),
        (stay(disposition="exp"), Life(contradictory=True), CONTRADICTORY),
    ],
)
def test_death_before_the_stay_ends(stay, life, found):
    assert died(NOW, stay, life, None) == found


@pytest.mark.parametrize(
    ("stay", "life", "found"),
    [
        (None, death(NOW + 29 * DAY), 1),
        (None, death(NOW + 31 * DAY), 0),
        (None, death(NOW + 30 * DAY - HOUR, NOW + 31 * DAY), 1),  # on the thirtieth day
        (None, Life(), UNKNOWN),
        (None, Life(alive_at_us=NOW + 30 * DAY), 0),
        (stay(disposition="exp"), Life(), 1),
        (stay(NOW + 40 * DAY, "exp"), Life(), 0),
        (stay(disposition="home"), Life(), UNKNOWN),  # alive on the third day only
        (stay(NOW + 40 * DAY, "home"), Life(), 0),
        (stay(NOW - DAY, "home"), death(NOW + DAY), 1),
        (stay(NOW - DAY, "exp"), Life(), KNOWN_BEFORE),
    ],
)
def test_death_within_thirty_days(stay, life, found):
    assert died(NOW, stay, life, timedelta(days=30)) == found


def condition(*, start: int | None = None, recorded: int | None = None, encounter: int | None = UNIT) -> ConditionSeen:
    return ConditionSeen(patient_id=PATIENT, encounter_id=encounter, start_us=start, recorded_us=recorded)


SCORED = Scored(unit_id=UNIT, time_us=NOW, version="1", digest="d", value=0.5, probabilities=(), out_of_scope=False)


@pytest.mark.parametrize(
    ("stay", "seen", "found"),
    [
        (stay(), [condition(start=NOW + DAY)], 1),
        (stay(), [condition(recorded=NOW + 9 * DAY)], 1),  # coded after discharge
        (stay(), [condition(recorded=NOW + 9 * DAY, encounter=None)], 0),
        (stay(), [condition(start=NOW + 9 * DAY)], 0),
        (stay(), [condition(start=NOW + DAY, encounter=99)], 0),  # of another stay
        (stay(), [condition(start=NOW - DAY, recorded=NOW + DAY)], KNOWN_BEFORE),
        (stay(), [condition(recorded=NOW), condition(recorded=NOW + DAY)], KNOWN_BEFORE),
        (stay(), [condition()], UNKNOWN),
        (stay(), [], 0),
        (stay(None, status="in-progress"), [], UNKNOWN),
        (None, [], UNKNOWN),
        (stay(NOW - DAY), [condition(recorded=NOW + DAY)], KNOWN_BEFORE),
    ],
)
def test_a_condition_before_the_stay_ends(stay, seen, found):
    assert diagnosed(SCORED, stay, seen, None) == found


@pytest.mark.parametrize(
    ("stay", "seen", "found"),
    [
        (None, [condition(start=NOW + DAY)], 1),
        (None, [condition(start=NOW + DAY, encounter=99)], 1),
        (None, [condition(start=NOW - DAY, encounter=99)], UNKNOWN),  # an earlier episode
        (stay(), [condition(start=NOW + 2 * DAY)], 0),
        (stay(), [], 0),
        (stay(NOW + HOUR), [], UNKNOWN),  # not seen for as long as the horizon
    ],
)
def test_a_condition_within_a_day(stay, seen, found):
    assert diagnosed(SCORED, stay, seen, timedelta(days=1)) == found


def test_other_outcomes_than_of_a_stay_need_labels():
    measure = Measure(name="gc", code=Coding(system="s", code="c"), unit="1", valid_range=(0, 1))

    with pytest.raises(ConfigurationError, match="give a label table"):
        check_observable(measure, UnitKind.SEQUENCE)
