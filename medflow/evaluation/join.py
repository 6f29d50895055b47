"""Predictions and outcomes put together: which count as cases, and why the others are left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from medflow.errors import ConfigurationError
from medflow.evaluation.labels import Label, Labels
from medflow.evaluation.observed import KNOWN_BEFORE, UNKNOWN, Found
from medflow.fhir.vital import identifiers_of
from medflow.records import EPOCH, Identifier, UnitKind, fhir_identifier
from medflow.store import Connection
from medflow.store.outcomes import Asked, Person, Scored, patient_identifiers, records, unit_names

AGE_BANDS = ((0, 17), (18, 39), (40, 64), (65, 79), (80, None))
UNIT_OF = {
    "encounter": UnitKind.ENCOUNTER,
    "series": UnitKind.SERIES,
    "study": UnitKind.STUDY,
    "sequence": UnitKind.SEQUENCE,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cases:
    """Predictions with their outcomes, as arrays; ``patients`` tells whose each is, for drawing by patient.

    ``truth`` (n,) is 0 or 1, or a class index; ``score`` (n,) or (n, classes). ``groups`` holds for each dimension
    the group that each case belongs to.
    """

    truth: np.ndarray
    score: np.ndarray
    patients: np.ndarray
    groups: Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class Units:
    """The units that have predictions: their kind, whose each is by id, and the source whose FHIR ids are meant."""

    kind: UnitKind
    patients: Mapping[int, int | None]
    source: str


def by_label(
    connection: Connection, labels: Labels, units: Units, asked: Sequence[Asked], horizon: timedelta | None = None
) -> tuple[list[Found], int]:
    """The labelled outcome of each prediction, in order, and how many lines of the table name none of them.

    A yes that says when it happened is one for the predictions in whose horizon that lies; what was so before is no
    outcome of a prediction. Of several such lines about a unit the first to happen counts.

    Raises
    ------
    ConfigurationError
        The table names another kind of unit than the model scores; or it does not say when outcomes happened, and
        there are several predictions of a unit, each about the time that follows.
    """
    if horizon is not None and not labels.timed and len({item.unit_id for item in asked}) < len(asked):
        raise ConfigurationError(
            "there are several predictions of a unit, each about the time that follows: the label table must say when "
            "each yes happened, in a column happened_at (or leave it out, so that the records tell)"
        )
    by_name = _units_by_name(connection, labels, units)
    told: defaultdict[int, list[Label | str]] = defaultdict(list)
    unmatched = 0
    for line in labels.lines:
        named = by_name.get(line.name, ())
        unmatched += not named
        for unit in named:
            told[unit].append(line if len(named) == 1 else "several-units-of-that-name")
    firsts = {unit: _first_to_happen(lines) for unit, lines in told.items()}
    timed = horizon is not None and labels.timed
    said = (
        {_said(line, item.time_us, horizon, timed=timed) for line in firsts.get(item.unit_id, ())} for item in asked
    )
    return [_agreed(each) for each in said], unmatched


def _first_to_happen(lines: Sequence[Label | str]) -> list[Label | str]:
    happened = [line for line in lines if isinstance(line, Label) and line.outcome and line.happened_us is not None]
    first = min(happened, key=lambda line: line.happened_us or 0, default=None)
    return [line for line in lines if line is first or line not in happened]


def _said(line: Label | str, time_us: int, horizon: timedelta | None, *, timed: bool) -> Found:
    """What a line says of a prediction at ``time_us``."""
    if isinstance(line, str):
        return line
    if line.outcome is None:
        return UNKNOWN
    if line.known_us is not None and line.known_us <= time_us:
        return KNOWN_BEFORE  # though it says to have happened later: whoever asked could know
    if line.outcome and line.happened_us is not None:
        if line.happened_us <= time_us:
            return KNOWN_BEFORE
        within = horizon is None or line.happened_us - time_us <= horizon // timedelta(microseconds=1)
        return line.outcome if within else 0
    return UNKNOWN if line.outcome and timed else line.outcome


def _agreed(found: set[Found]) -> Found:
    if not found:
        return "no-label"
    return found.pop() if len(found) == 1 else "contradictory-labels"


def _units_by_name(connection: Connection, labels: Labels, units: Units) -> Mapping[str, set[int]]:
    """The scored units that each name in the table stands for."""
    names: defaultdict[str, set[int]] = defaultdict(set)
    if labels.by == "unit":
        for unit in units.patients:
            names[str(unit)].add(unit)
            names[f"{units.kind}/{unit}"].add(unit)
    elif labels.by == "patient":
        of_patient: defaultdict[int, set[int]] = defaultdict(set)
        for unit, patient in units.patients.items():
            if patient is not None:
                of_patient[patient].add(unit)
        for identifier, patient in patient_identifiers(connection, of_patient).items():
            for name in _spellings(identifier, labels.system, fhir_identifier(units.source, "").system):
                names[name] |= of_patient[patient]
    elif UNIT_OF[labels.by] is not units.kind:
        raise ConfigurationError(f"the label table names each {labels.by}, but the model scores each {units.kind}")
    else:
        stored = unit_names(connection, units.kind, units.patients)
        for source, name, unit in stored:
            if labels.system is None and source in ("", units.source):
                names[name].add(unit)
        if units.kind is UnitKind.ENCOUNTER:
            by_fhir_id = {(source, name): unit for source, name, unit in stored}
            _name_encounters(connection, names, labels, units, by_fhir_id)
    return names


def _name_encounters(
    connection: Connection,
    names: defaultdict[str, set[int]],
    labels: Labels,
    units: Units,
    by_fhir_id: Mapping[tuple[str, str], int],
) -> None:
    """Add the other ways to name an encounter: as a reference, and (read only where asked for) by identifier."""
    for (source, name), unit in by_fhir_id.items():
        if labels.system is None and source == units.source:
            names[f"Encounter/{name}"].add(unit)
    if labels.system is None and not any("|" in line.name for line in labels.lines):
        return
    known = {patient for patient in units.patients.values() if patient is not None}
    for record in records(connection, "Encounter", known):
        unit = by_fhir_id.get((record.source, record.fhir_id))
        if unit is not None:
            for identifier in identifiers_of(record.raw):
                for name in _spellings(identifier, labels.system, ""):
                    names[name].add(unit)


def _spellings(identifier: Identifier, system: str | None, fhir_system: str) -> tuple[str, ...]:
    """How a table may write an identifier: ``system|value``; the value alone, of the table's system or as FHIR id."""
    full = f"{identifier.system}|{identifier.value}"
    if system is not None:
        return (full, identifier.value) if identifier.system == system else (full,)
    if identifier.system == fhir_system:
        return full, identifier.value, f"Patient/{identifier.value}"
    return (full,)


def join(
    scored: Sequence[Scored],
    outcomes: Sequence[Found],
    patients: Mapping[int, int | None],
    people: Mapping[int, Person],
    *,
    classes: bool,
) -> tuple[Cases, Counter[str]]:
    """The cases whose outcome is known, and how many predictions are left out for which reason."""
    left_out = Counter(outcome for outcome in outcomes if isinstance(outcome, str))
    kept = [(item, outcome) for item, outcome in zip(scored, outcomes, strict=True) if not isinstance(outcome, str)]
    whose = [patients.get(item.unit_id) for item, _ in kept]
    who = [people.get(patient) if patient is not None else None for patient in whose]
    cases = Cases(
        truth=np.array([outcome for _, outcome in kept], dtype=np.int64),
        score=np.array([item.probabilities if classes else item.value for item, _ in kept], dtype=np.float64),
        patients=np.array(
            [patient if patient is not None else -1 - place for place, patient in enumerate(whose)], dtype=np.int64
        ),
        groups={
            "sex": np.array([person.sex or "unknown" if person else "unknown" for person in who], dtype=object),
            "age": np.array(
                [
                    age_band(person.birth_date if person else None, item.time_us)
                    for person, (item, _) in zip(who, kept, strict=True)
                ],
                dtype=object,
            ),
        },
    )
    return cases, left_out


def age_band(born: date | None, time_us: int) -> str:
    """The age band that somebody was in at a moment (UTC's day: a birthday's error at most)."""
    if born is None:
        return "unknown"
    then = date.fromordinal(EPOCH.toordinal() + time_us // 86_400_000_000)
    years = then.year - born.year - ((then.month, then.day) < (born.month, born.day))
    for low, high in AGE_BANDS:
        if low <= years and (high is None or years <= high):
            return f"{low}-{high}" if high is not None else f"{low} and older"
    return "unknown"
