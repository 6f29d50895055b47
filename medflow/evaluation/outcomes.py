"""What came of units that a model was, or would be, asked about: from a table of labels, else from the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from medflow.config import Settings
from medflow.evaluation.join import Units, by_label
from medflow.evaluation.labels import Labels
from medflow.evaluation.observed import Found, check_observable, observe
from medflow.plugin import Classification, Risk
from medflow.records import UnitKind
from medflow.store import Connection
from medflow.store.ledger import now_us
from medflow.store.outcomes import Asked, Moment
from medflow.store.units import unit_facts

__all__ = ["Moment", "Question", "outcomes_of"]

NOT_OVER = "horizon-not-over"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked: one output of a model of each ``unit``; ``table`` None: the records are to tell."""

    unit: UnitKind
    output: Risk | Classification
    table: Labels | None = None

    @property
    def horizon(self) -> timedelta | None:
        """How far the output looks ahead; None: to the end of the stay, or it does not say."""
        return self.output.horizon if isinstance(self.output, Risk) else None


def outcomes_of(
    connection: Connection,
    settings: Settings,
    question: Question,
    asked: Sequence[Asked],
    *,
    until_us: int | None = None,
) -> tuple[list[Found], int]:
    """The outcome of each unit asked about, in order, and how many lines of the table name none of them.

    From the records no outcome counts before its horizon is over (at ``until_us``, by default now): a yes is recorded
    when it happens, a no only then, and counting the one sooner than the other would make events look more frequent.

    Parameters
    ----------
    connection, settings
        The store, and its source and time zone.
    question
        The output whose outcome it is.
    asked
        Units and moments: `Moment`, or predictions. A unit may be asked about at several moments.
    until_us
        Up to when the records are taken to tell.

    Raises
    ------
    ConfigurationError
        There is no way to know this output's outcomes, or the table is of other units.
    """
    facts = unit_facts(connection, question.unit, [item.unit_id for item in asked])
    patients: Mapping[int, int | None] = {unit: fact.patient_id for unit, fact in facts.items()}
    if question.table is not None:
        units = Units(kind=question.unit, patients=patients, source=settings.source)
        return by_label(connection, question.table, units, asked, question.horizon)
    risk = check_observable(question.output, question.unit)
    found = observe(connection, risk, asked, patients, settings.zone)
    if risk.horizon is None:
        return found, 0
    latest_us = (now_us() if until_us is None else until_us) - risk.horizon // timedelta(microseconds=1)
    return [
        outcome if isinstance(outcome, str) or item.time_us <= latest_us else NOT_OVER
        for item, outcome in zip(asked, found, strict=True)
    ], 0
