"""What moved the answers of a batch, with the measurements behind it: of time series, where a run asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from medflow.contributions import contributions_of
from medflow.inference.explaining import Explanations, explained_series
from medflow.inputs import unchanged
from medflow.plugin import Case, ModelSpec, SeriesAttribution, TimeSeries, TimeSeriesInput
from medflow.records import Contribution, Result
from medflow.store import Store
from medflow.store.basis import last_measurements
from medflow.store.jobs import Job

Told = Mapping[str, tuple[Contribution, ...]]
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
    names = {item.name for one in found for told in one.values() for item in told if item.kind == "channel"}
    channels = [channel for channel in wanted.channels if channel.name in names]
    with store.reading() as connection:
        behind = last_measurements(connection, wanted, channels, units)
        same = unchanged(connection, spec, [item.job for item in cases])  # afterwards: what came in between is noticed
    return [
        {
            output: tuple(
                replace(item, basis=its.get(item.name)) if is_same and item.kind == "channel" else item for item in told
            )
            for output, told in one.items()
        }
        for one, its, is_same in zip(found, behind, same, strict=True)
    ]


def with_contributions(results: Sequence[Result], told: Told) -> list[Result]:
    """The results, each with what contributed to it."""
    return [replace(item, contributions=told.get(item.output, ())) for item in results]


def without_contributions(results: Sequence[Result]) -> list[Result]:
    """The results as if nobody had asked why."""
    return with_contributions(results, {})


def _told(spec: ModelSpec, item: ExplainedCase) -> Told:
    series = explained_series(spec, item.case)
    if series is None:
        return {}
    seen = item.case.inputs[series.name]
    assert isinstance(seen, TimeSeries)  # noqa: S101 - `explained_series` names no other
    return {
        output: contributions_of(series, seen, found)
        for output, found in item.explanation.items()
        if isinstance(found, SeriesAttribution)
    }
