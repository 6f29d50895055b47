"""What became of a patient, from the records that came later: the outcome a `Risk` speaks of, or why it is unknown.

Nothing is taken from silence about a life: survival needs a discharge, a later death, or a record that says so. For
any other outcome, a stay that has ended (or lasted to the horizon) without its Condition counts as without it, if
such Conditions are written here at all.
What was known at the prediction time already is no outcome of the prediction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from zoneinfo import ZoneInfo

from medflow.errors import ConfigurationError
from medflow.fhir.vital import Span, vital_of
from medflow.plugin import SNOMED, Coding, OutputSpec, Risk
from medflow.records import UnitKind
from medflow.store import Connection
from medflow.store.outcomes import Asked, ConditionSeen, StayEnd, conditions, is_recorded, records, stay_ends

UNKNOWN = "outcome-unknown"
KNOWN_BEFORE = "known-before-the-prediction"
CONTRADICTORY = "contradictory-records"
DEATH = frozenset(Coding(system=SNOMED, code=code) for code in ("419099009", "419620001", "399166001"))
# http://terminology.hl7.org/CodeSystem/discharge-disposition; "oth" and any local code tell nothing here
EXPIRED, DISCHARGED = (
    "exp",
    frozenset(("home", "alt-home", "other-hcf", "hosp", "long", "aadvice", "psy", "rehab", "snf")),
)

Found = int | str  # 1 or 0, or the reason why neither


@dataclass(frozen=True, kw_only=True, slots=True)
class Life:
    """What Patient resources say: when death was, or until when the patient was recorded as alive."""

    died: Span | None = None
    alive_at_us: int | None = None
    contradictory: bool = False


def check_observable(output: OutputSpec, unit: UnitKind) -> Risk:
    """The output, if the store's records can tell its outcome.

    Raises
    ------
    ConfigurationError
        They cannot: a label table is needed.
    """
    if isinstance(output, Risk) and unit is UnitKind.ENCOUNTER:
        return output
    raise ConfigurationError(
        f"the outcome of {output.name} (a {output.kind} of each {unit}) cannot be read from the store's records: "
        "give a label table (--labels)"
    )


def observe(
    connection: Connection,
    output: Risk,
    asked: Sequence[Asked],
    patients: Mapping[int, int | None],
    zone: ZoneInfo | None,
) -> list[Found]:
    """The outcome of each prediction about an encounter, in order; ``patients`` says whose each encounter is."""
    stays = stay_ends(connection, [item.unit_id for item in asked])
    known = {patient for patient in patients.values() if patient is not None}
    if output.outcome in DEATH:
        lives = _lives(connection, known, zone)
        return [
            died(
                item.time_us,
                stays.get(item.unit_id),
                lives.get(patients.get(item.unit_id) or 0, Life()),
                output.horizon,
            )
            for item in asked
        ]
    if not is_recorded(connection, output.outcome):
        return [UNKNOWN] * len(asked)
    seen: defaultdict[int, list[ConditionSeen]] = defaultdict(list)
    for condition in conditions(connection, known, output.outcome):
        seen[condition.patient_id].append(condition)
    return [
        diagnosed(item, stays.get(item.unit_id), seen.get(patients.get(item.unit_id) or 0, []), output.horizon)
        for item in asked
    ]


def died(time_us: int, stay: StayEnd | None, life: Life, horizon: timedelta | None) -> Found:
    """Whether death came after ``time_us`` and before the stay's end, or within the horizon."""
    end_us, disposition = _ending(stay)
    expired = end_us is not None and disposition == EXPIRED
    dead_before = life.died is not None and life.died.last_us <= time_us
    if dead_before or (end_us is not None and end_us <= time_us and (horizon is None or expired)):
        return KNOWN_BEFORE
    bound_us = end_us if horizon is None else time_us + _us(horizon)
    if bound_us is None:
        return UNKNOWN  # the stay goes on
    said: set[int] = set()
    if life.died is not None and not life.died.first_us <= bound_us < life.died.last_us:
        said.add(int(life.died.last_us <= bound_us))
    if end_us is not None and expired:
        said.add(int(end_us <= bound_us))
    if end_us is not None and disposition in DISCHARGED and end_us >= bound_us:
        said.add(0)
    if life.alive_at_us is not None and life.alive_at_us >= bound_us:
        said.add(0)
    if len(said) == 2 or life.contradictory:
        return CONTRADICTORY
    if not said and life.died is not None and life.died.exact:
        return 1  # on the very day of the bound, and nothing says that it was later
    return said.pop() if said else UNKNOWN


def diagnosed(asked: Asked, stay: StayEnd | None, seen: Sequence[ConditionSeen], horizon: timedelta | None) -> Found:
    """Whether a Condition began and was recorded after the prediction, in the stay or within the horizon."""
    end_us, _ = _ending(stay)
    bound_us = end_us if horizon is None else asked.time_us + _us(horizon)
    if horizon is None and end_us is not None and end_us <= asked.time_us:
        return KNOWN_BEFORE
    verdicts = {_verdict(item, asked, bound_us, in_stay=horizon is None) for item in seen}
    for verdict in (KNOWN_BEFORE, 1, UNKNOWN):
        if verdict in verdicts:
            return verdict
    return 0 if end_us is not None and bound_us is not None and end_us >= bound_us else UNKNOWN


def _verdict(item: ConditionSeen, asked: Asked, bound_us: int | None, *, in_stay: bool) -> Found:
    """What one Condition says: 0 where it is another episode, before or after."""
    elsewhere = item.encounter_id is not None and item.encounter_id != asked.unit_id
    recorded_us = item.recorded_us if item.recorded_us is not None else item.start_us
    if in_stay and elsewhere:
        return 0
    if recorded_us is None or bound_us is None:
        return UNKNOWN
    began_us = item.start_us if item.start_us is not None else recorded_us
    if recorded_us <= asked.time_us or began_us <= asked.time_us:
        return 0 if elsewhere else KNOWN_BEFORE
    # of the stay that it names, though coded after discharge, as long as no onset says otherwise
    coded_late = in_stay and item.encounter_id is not None and item.start_us is None
    return int(coded_late or began_us <= bound_us)


def _ending(stay: StayEnd | None) -> tuple[int | None, str | None]:
    """When a stay ended and how; neither of one that goes on."""
    return (stay.end_us, stay.disposition) if stay is not None and stay.status == "finished" else (None, None)


def _lives(connection: Connection, patients: set[int], zone: ZoneInfo | None) -> dict[int, Life]:
    lives: dict[int, Life] = {}
    for record in records(connection, "Patient", patients):
        vital, before = vital_of(record.raw, zone), lives.get(record.patient_id, Life())
        alive = record.last_updated_us if vital.alive else None
        died = before.died or vital.died
        lives[record.patient_id] = Life(
            died=died,
            alive_at_us=max((moment for moment in (alive, before.alive_at_us) if moment is not None), default=None),
            contradictory=before.contradictory
            or (before.died is not None and vital.died is not None and not _meet(before.died, vital.died)),
        )
    return lives


def _meet(one: Span, other: Span) -> bool:
    return one.first_us <= other.last_us and other.first_us <= one.last_us


def _us(span: timedelta) -> int:
    return span // timedelta(microseconds=1)
