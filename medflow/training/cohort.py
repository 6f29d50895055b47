"""Who a model is trained on: the stays of a cohort at their prediction times, each with its outcome.

A stay counts as it would when it is scored: admitted long enough (or open at the moment asked about), and with an
outcome that became known afterwards. Every stay that does not count is counted under a reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

import numpy as np

from medflow.config import Cohort, LabelTable, Settings
from medflow.evaluation.labels import read_labels
from medflow.evaluation.observed import Found
from medflow.evaluation.outcomes import Question, outcomes_of
from medflow.plugin import Risk, TimeSeriesInput
from medflow.records import Instant, UnitKind
from medflow.store import Store
from medflow.store.cohort import Stay, count_encounters, count_within, stays
from medflow.store.outcomes import Person
from medflow.store.timeseries import VOID_ENCOUNTER
from medflow.timeseries import age_years

HOUR_US = 3_600_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """One stay at one prediction time. ``revision`` changes with whatever the stay's input is made of."""

    encounter_id: int
    patient_id: int
    time: Instant
    revision: int

    @property
    def unit_id(self) -> int:
        """The encounter."""
        return self.encounter_id

    @property
    def time_us(self) -> int:
        """The prediction time."""
        return self.time.utc_us


@dataclass(frozen=True, kw_only=True)
class Members:
    """A cohort: ``moments`` with their ``outcome`` (n,) of 0 and 1, and the account of all that is left out.

    ``encounters`` were looked at. ``left_out`` counts by reason: encounters first, then moments.
    """

    moments: Sequence[Moment]
    outcome: np.ndarray
    people: Mapping[int, Person]
    encounters: int
    left_out: Mapping[str, int]
    labels_sha256: str | None = None
    labels_unmatched: int = 0

    def take(self, rows: np.ndarray) -> Members:
        """Only these rows, by index or as a mask."""
        places = np.arange(len(self.moments))[rows]
        return replace(self, moments=[self.moments[place] for place in places], outcome=self.outcome[rows])

    def without(self, refused: Mapping[int, str]) -> Members:
        """Without the rows that have no usable input, which are counted."""
        kept = np.ones(len(self.moments), dtype=bool)
        kept[list(refused)] = False
        counts = Counter(self.left_out)
        counts.update(refused.values())
        return replace(self.take(kept), left_out=dict(counts))

    @property
    def patients(self) -> np.ndarray:
        """(n,) int64: whose each row is."""
        return np.array([item.patient_id for item in self.moments], dtype=np.int64)


def find(
    store: Store,
    settings: Settings,
    cohort: Cohort,
    spec: TimeSeriesInput,
    output: Risk,
    labels: LabelTable | None,
    *,
    now: Instant,
) -> Members:
    """The members of ``cohort`` for a model of ``spec`` and ``output``; outcomes from ``labels``, else the records.

    Raises
    ------
    ConfigurationError
        The label table cannot be used, or cannot tell the outcomes of several moments of a stay.
    """
    table = read_labels(labels, output, settings.zone) if labels is not None else None
    since, until = _us(cohort.since), _us(cohort.until)
    left_out: Counter[str] = Counter()
    people: dict[int, Person] = {}
    moments: list[Moment] = []
    with store.reading() as connection:
        everything = count_encounters(connection)
        within, seen = count_within(connection, since_us=since, until_us=until), 0
        for stay in stays(connection, since_us=since, until_us=until):
            seen += 1
            found = _moments(stay, cohort, spec, now)
            if isinstance(found, str):
                left_out[found] += 1
                continue
            moments += found
            people[stay.patient_id] = Person(sex=stay.sex, birth_date=stay.birth_date)
        left_out["outside-the-period"] += everything - within
        left_out["without-a-patient"] += within - seen
        question = Question(unit=UnitKind.ENCOUNTER, output=output, table=table)
        outcomes, unmatched = outcomes_of(connection, settings, question, moments, until_us=now.utc_us)
    return _members(
        moments,
        outcomes,
        left_out,
        Members(
            moments=(),
            outcome=np.empty(0, dtype=np.float32),
            people=people,
            encounters=everything,
            left_out={},
            labels_sha256=None if table is None else table.sha256,
            labels_unmatched=unmatched,
        ),
    )


def _members(moments: Sequence[Moment], outcomes: Sequence[Found], left_out: Counter[str], empty: Members) -> Members:
    known = [not isinstance(outcome, str) for outcome in outcomes]
    left_out.update(outcome for outcome in outcomes if isinstance(outcome, str))
    return replace(
        empty,
        moments=[moment for moment, kept in zip(moments, known, strict=True) if kept],
        outcome=np.array([outcome for outcome in outcomes if not isinstance(outcome, str)], dtype=np.float32),
        left_out={reason: count for reason, count in left_out.items() if count},
    )


def _moments(stay: Stay, cohort: Cohort, spec: TimeSeriesInput, now: Instant) -> list[Moment] | str:
    """The prediction times of a stay, or why it is none of the cohort's."""
    reason = _outside(stay, cohort)
    if reason is not None:
        return reason
    times = list(_times(stay, cohort, spec, now.utc_us))
    return [
        Moment(
            encounter_id=stay.encounter_id,
            patient_id=stay.patient_id,
            time=Instant(utc_us=time_us, offset_min=stay.start.offset_min),
            revision=stay.revision,
        )
        for time_us in times
    ] or "too-short"


def _outside(stay: Stay, cohort: Cohort) -> str | None:
    if stay.status is None or stay.status in VOID_ENCOUNTER:
        return "not-a-stay-that-took-place"
    if cohort.encounter_classes and stay.encounter_class not in cohort.encounter_classes:
        return "of-another-class"
    if cohort.encounter_types and not set(cohort.encounter_types) & set(stay.types):
        return "of-another-type"
    if cohort.min_age is not None or cohort.max_age is not None:
        return _outside_ages(stay.birth_date, stay.start.datetime().date(), cohort)
    return None


def _outside_ages(born: date | None, admitted: date, cohort: Cohort) -> str | None:
    if born is None:
        return "age-unknown"
    age = age_years(born, admitted)
    if cohort.min_age is not None and age < cohort.min_age:
        return "too-young"
    return "too-old" if cohort.max_age is not None and age > cohort.max_age else None


def _times(stay: Stay, cohort: Cohort, spec: TimeSeriesInput, now_us: int) -> Iterator[int]:
    """When a model would have been asked: what selection asks of a stay, for moments that have passed.

    A stay is asked about as long as something became known since the time before: an encounter may stay open for good.
    """
    start_us, end_us = stay.start.utc_us, stay.end_us
    if spec.anchor == "admission":
        time_us = start_us + spec.window // timedelta(microseconds=1)
        if time_us <= now_us and (end_us is None or end_us >= time_us):
            yield time_us
        return
    time_us, step_us = start_us, max(1, round(cohort.every * HOUR_US))
    until_us = min(now_us, stay.latest_us + step_us - 1)
    while (time_us := time_us + step_us) <= until_us and (end_us is None or time_us < end_us):
        yield time_us


def _us(moment: datetime | None) -> int | None:
    return None if moment is None else Instant.of(moment).utc_us
