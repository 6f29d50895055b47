"""What moved an answer most: from a model's attribution to the few contributions that are told.

The attribution of a time series has a number for each channel and step. Told are the few channels and statics that
weigh most, each summed over its steps, whether it raised or lowered the answer, and in words that hold names alone, no
value of a patient's. That of a sequence has a number for each base and what could stand in its place: told are the few
positions where that changes most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medflow.plugin import (
    Channel,
    Classification,
    Coding,
    OutputSpec,
    Risk,
    SequenceAttribution,
    SeriesAttribution,
    TimeSeries,
    TimeSeriesInput,
)
from medflow.plugin.outputs import BASES
from medflow.records import Contribution, Mutagenesis

MOST = 5  # contributions that are told of one result
LEAST_SHARE = 0.05  # of all that spoke, either way; what is less is not worth a reader's time
DIGITS = 3  # significant ones: integrals over gradients are reproducible to about so many
KINDS_OF_STATIC = ("encounter-type", "encounter-class", "encounter-priority", "admit-source")


def contributions_of(spec: TimeSeriesInput, series: TimeSeries, found: SeriesAttribution) -> tuple[Contribution, ...]:
    """The channels and statics that weigh most, the largest first; in the order of the declaration where they tie.

    Statics that ask for one thing each of the same element (`encounter-type:...`) count as one. Shares are of all
    channels and statics together, told or not.
    """
    every = [*_channels(spec, series, found), *_statics(spec, series, found)]
    total = sum(abs(item.value) for item in every)
    if total == 0:
        return ()
    told = [replace(item, value=_rounded(item.value), share=_rounded(abs(item.value) / total)) for item in every]
    told = [item for item in told if item.share >= LEAST_SHARE]
    return tuple(sorted(told, key=lambda item: -abs(item.value))[:MOST])  # stable: ties stay in their order


def positions_of(bases: str, found: Mutagenesis) -> tuple[Contribution, ...]:
    """The positions of a sequence whose base matters most, the largest change first; in their order where they tie.

    Each is told by the one substitution that changes the result most, the first of A, C, G, T where those tie. Shares
    are of the largest changes of all positions.
    """
    most = [_largest(base, changes) for base, changes in zip(bases, found.changes, strict=True)]
    total = sum(abs(change) for _, change in most)
    every = [
        Contribution(
            kind="position",
            name=f"{place}{base}>{instead}",
            value=change,
            share=_rounded(abs(change) / total),
        )
        for place, (base, (instead, change)) in enumerate(zip(bases, most, strict=True), 1)
        if change
    ]
    return tuple(sorted(every, key=lambda item: -abs(item.value))[:MOST])


def mutagenesis_of(found: SequenceAttribution) -> Mutagenesis:
    """A model's attribution as it is kept: to the digits that are reproducible."""
    changes = tuple(tuple(map(_rounded, row)) for row in found.values.astype(np.float64).tolist())
    return Mutagenesis(of=found.of, changes=changes)


def _largest(base: str, changes: Sequence[float]) -> tuple[str, float]:
    others = [(instead, change) for instead, change in zip(BASES, changes, strict=True) if instead != base]
    return max(others, key=lambda item: abs(item[1]))


def in_words(output: OutputSpec, contributions: Sequence[Contribution]) -> str:
    """What raised the answer and what lowered it, by name; of one class among several, what spoke for and against.

    Of a sequence, which substitutions would.
    """
    several = isinstance(output, Classification) and output.positive is None
    ways = ("Spoke for it", "Spoke against it") if several else ("Raised by", "Lowered by")
    if any(item.kind == "position" for item in contributions):
        ways = ("Would speak for it", "Would speak against it") if several else ("Would raise it", "Would lower it")
    signs = ([item for item in contributions if item.value >= 0], [item for item in contributions if item.value < 0])
    said = (f"{way}: {', '.join(map(label, items))}." for way, items in zip(ways, signs, strict=True) if items)
    return " ".join(said)


def label(contribution: Contribution) -> str:
    """Its name, and whether it is its absence that spoke."""
    return contribution.name if contribution.measured else f"{contribution.name} (not measured)"


def scale_of(output: OutputSpec, mutagenesis: Mutagenesis | None = None) -> str:
    """What contributions to it count in; of a sequence those of the class that is explained."""
    if mutagenesis is not None and isinstance(output, Classification):
        return f"log-odds of {mutagenesis.of}"
    return "log-odds" if isinstance(output, Risk) else "the model's own scale"


def declared_code(spec: TimeSeriesInput, contribution: Contribution) -> Coding | None:
    """The first code that its channel accepts, or the static that is one; None of an age or the like."""
    among = spec.channels if contribution.kind == "channel" else spec.statics
    channels = (item for item in among if isinstance(item, Channel) and item.name == contribution.name)
    return next((channel.codes[0] for channel in channels), None)


def _channels(spec: TimeSeriesInput, series: TimeSeries, found: SeriesAttribution) -> list[Contribution]:
    """All of them, in the order of the declaration, with no share yet."""
    values = found.values.astype(np.float64)
    measured = np.any(np.isfinite(series.values), axis=0)
    return [
        Contribution(
            kind="channel",
            name=channel.name,
            value=float(values[:, place].sum()),
            share=0.0,
            steps=tuple(map(_rounded, values[:, place].tolist())),
            measured=bool(measured[place]),
        )
        for place, channel in enumerate(spec.channels)
    ]


def _statics(spec: TimeSeriesInput, series: TimeSeries, found: SeriesAttribution) -> list[Contribution]:
    """Likewise; those of one name count as one."""
    names = [static_name(item) for item in spec.statics]
    values, known = found.statics.astype(np.float64), np.isfinite(series.statics)
    together = {name: [place for place, other in enumerate(names) if other == name] for name in names}
    return [
        Contribution(
            kind="static",
            name=name,
            value=float(values[places].sum()),
            share=0.0,
            measured=bool(np.any(known[places])),
        )
        for name, places in together.items()
    ]


def static_name(static: str | Channel) -> str:
    """What a static is called for a reader: "age", "encounter type", a channel's own name."""
    if isinstance(static, Channel):
        return static.name
    kind = static.partition(":")[0]
    return kind.replace("-", " ") if kind in KINDS_OF_STATIC else static


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}") + 0.0  # no -0.0
