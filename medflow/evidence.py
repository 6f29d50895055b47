"""What moved the answers of a batch, where a run asks for it: of time series with the measurements behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from medflow.contributions import contributions_of, mutagenesis_of, positions_of
from medflow.inference.explaining import Explanations, explained_sequence, explained_series
from medflow.inputs import unchanged
from medflow.plugin import Case, ModelSpec, SequenceAttribution, SeriesAttribution, TimeSeries, TimeSeriesInput
from medflow.records import Contribution, Mutagenesis, Result
from medflow.store import Store
from medflow.store.basis import last_measurements
from medflow.store.jobs import Job


@dataclass(frozen=True, kw_only=True, slots=True)
class Reasons:
    """What is told of one output, the largest first; of a sequence also what it was taken from."""

    contributions: tuple[Contribution, ...] = ()
    mutagenesis: Mutagenesis | None = None


Told = Mapping[str, Reasons]
"""By the name of the output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExplainedCase:
    """A case that was predicted and explained, and the job that it is of."""

    job: Job
    case: Case
    explanation: Explanations


def told_of(store: Store, spec: ModelSpec, cases: Sequence[ExplainedCase]) -> list[Told]:
    """What contributed to each output of each case, in order; nothing of what is explained otherwise, as a picture is.

    The measurements are looked up for all cases at once. Of a case whose records have changed meanwhile none are named:
    the model may have been given others.
    """
    found = [_told(spec, item) for item in cases]
    wanted = next((item for item in spec.accepts if isinstance(item, TimeSeriesInput)), None)
    if wanted is None or not any(found):
        return found
    units = [(item.job.unit.id, item.job.prediction_time) for item in cases]
    reasons = [its for one in found for its in one.values()]
    names = {item.name for its in reasons for item in its.contributions if item.kind == "channel"}
    channels = [channel for channel in wanted.channels if channel.name in names]
    with store.reading() as connection:
        behind = last_measurements(connection, wanted, channels, units)
        same = unchanged(connection, spec, [item.job for item in cases])  # afterwards: what came in between is noticed
    return [
        {output: _based(told, its) if is_same else told for output, told in one.items()}
        for one, its, is_same in zip(found, behind, same, strict=True)
    ]


def _based(told: Reasons, behind: Mapping[str, str]) -> Reasons:
    """With the last measurement of each channel."""
    found = (
        replace(item, basis=behind.get(item.name)) if item.kind == "channel" else item for item in told.contributions
    )
    return replace(told, contributions=tuple(found))


def with_contributions(results: Sequence[Result], told: Told) -> list[Result]:
    """The results, each with what contributed to it."""
    found = [(item, told.get(item.output, Reasons())) for item in results]
    return [replace(item, contributions=its.contributions, mutagenesis=its.mutagenesis) for item, its in found]


def without_contributions(results: Sequence[Result]) -> list[Result]:
    """The results as if nobody had asked why."""
    return with_contributions(results, {})


def _told(spec: ModelSpec, item: ExplainedCase) -> Told:
    series, sequence = explained_series(spec, item.case), explained_sequence(spec, item.case)
    told: dict[str, Reasons] = {}
    for output, found in item.explanation.items():
        if series is not None and isinstance(found, SeriesAttribution):
            seen = item.case.inputs[series.name]
            assert isinstance(seen, TimeSeries)  # noqa: S101 - `explained_series` names no other
            told[output] = Reasons(contributions=contributions_of(series, seen, found))
        elif sequence is not None and isinstance(found, SequenceAttribution):
            changes = mutagenesis_of(found)
            told[output] = Reasons(contributions=positions_of(sequence.bases, changes), mutagenesis=changes)
    return told
