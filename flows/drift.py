"""How tonight's scores are spread beside those of the nights before: what an operator sees drift by.

All of it is counts in bins. Fewer than `ENOUGH` cases are not shown at all, so that nobody's score can be read off.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from medflow import steps
from medflow.errors import ConfigurationError, MedflowError
from medflow.evaluation.result import InputDrift
from medflow.plugin import Measure, OutputSpec, Segment, VariantEffect
from medflow.registry import load_spec
from medflow.store import Connection, history
from medflow.store.history import TONIGHT, Spread

log = logging.getLogger(__name__)
ENOUGH = 20  # cases
INPUTS = 2000  # cases of a night whose inputs are read again for their drift, at most: a few seconds
NAMED = 5  # inputs that have moved, of one model
NIGHTS = 30
FINE = 1000  # bins counted in
SHOWN = (4, 20)  # bins shown, at least and at most
PER_BIN = 5  # cases that there are for each bin shown, so that a bin is not one patient's
TAIL = 0.01  # of all cases on either side, or PER_BIN of them, go into the outermost bins
CHANCE = 1.95  # Kolmogorov and Smirnov's factor for one false alarm in a thousand


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """One output: fractions of tonight's cases by bin, and of each earlier night's with enough of them.

    ``edges`` has one more than there are bins; values beyond them are counted in the outermost bins. ``gap`` is the
    largest distance between tonight's cumulative curve and that of the earlier nights together, ``chance`` what
    chance alone exceeds once in a thousand nights; both None without earlier nights.
    """

    model: str
    output: str
    unit: str
    cases: int
    edges: tuple[float, ...] = ()
    tonight: tuple[float, ...] = ()
    earlier: tuple[tuple[float, ...], ...] = ()
    gap: float | None = None
    chance: float | None = None

    @property
    def shown(self) -> bool:
        """Whether there are enough cases to show."""
        return self.cases >= ENOUGH

    @property
    def shifted(self) -> bool:
        """Whether tonight differs from the nights before by more than chance explains."""
        return self.gap is not None and self.chance is not None and self.gap > self.chance


def drifts(connection: Connection, *, since_us: int) -> list[Drift]:
    """Every output of every model that scored something since then, by model and in the order of its spec."""
    found: list[Drift] = []
    for model, declared in _outputs(history.scored_models(connection, since_us=since_us)).items():
        ranges = {name: _range(output) for name, output in declared.items()}
        spreads = history.spreads(connection, model, ranges, since_us=since_us, days=NIGHTS, bins=FINE)
        for name, output in declared.items():
            found.append(_drift(model, output, [spread for spread in spreads if spread.output == name]))
    return found


def _outputs(models: Sequence[tuple[str, str, dict]]) -> dict[str, dict[str, OutputSpec]]:
    outputs: dict[str, dict[str, OutputSpec]] = {}
    for name, _, stored in models:
        try:
            spec = load_spec(stored)
        except ConfigurationError:  # of a version whose declaration this one cannot read
            continue
        outputs.setdefault(name, {}).update({output.name: output for output in spec.outputs})
    return outputs


def _range(output: OutputSpec) -> tuple[float, float]:
    if isinstance(output, Measure):
        return output.valid_range
    if isinstance(output, VariantEffect):  # its value is the largest score of a sample
        return 0.0, max(map(abs, output.valid_range))
    return output.valid_ml if isinstance(output, Segment) else (0.0, 1.0)


def _unit(output: OutputSpec) -> str:
    if isinstance(output, Measure):
        return output.unit
    return "mL" if isinstance(output, Segment) else "score" if isinstance(output, VariantEffect) else "probability"


def _drift(model: str, output: OutputSpec, spreads: Sequence[Spread]) -> Drift:
    tonight = next((spread for spread in spreads if spread.night == TONIGHT), None)
    unit = _unit(output)
    if tonight is None or tonight.cases < ENOUGH:
        return Drift(model=model, output=output.name, unit=unit, cases=tonight.cases if tonight else 0)
    before = [spread for spread in spreads if spread.night != TONIGHT and spread.cases >= ENOUGH]
    places = _places([tonight, *before], bins=min(max(tonight.cases // PER_BIN, SHOWN[0]), SHOWN[1]))
    counts, *others = [_merged(spread.counts, places) for spread in (tonight, *before)]
    step = (tonight.high - tonight.low) / FINE
    gap, chance = _gap(tonight.counts, _pooled(before))
    return Drift(
        model=model,
        output=output.name,
        unit=unit,
        cases=tonight.cases,
        edges=tuple(tonight.low + place * step for place in places),
        tonight=_fractions(counts),
        earlier=tuple(map(_fractions, others)),
        gap=gap,
        chance=chance,
    )


def _pooled(spreads: Sequence[Spread]) -> list[int]:
    return [sum(column) for column in zip(*(spread.counts for spread in spreads), strict=True)]


def _places(spreads: Sequence[Spread], *, bins: int) -> list[int]:
    """The edges of so many bins, as numbers of fine bins, around all but the tails of these spreads."""
    pooled = _pooled(spreads)
    total, reached, inside = sum(pooled), 0, []
    tail = max(TAIL * total, PER_BIN - 1)
    for place, count in enumerate(pooled):
        if count and reached + count > tail and reached < total - tail:
            inside.append(place)
        reached += count
    width = min(-(-(inside[-1] + 1 - inside[0]) // bins), FINE // bins)
    first = min(inside[0], FINE - bins * width)
    return [first + number * width for number in range(bins + 1)]


def _merged(counts: Sequence[int], places: Sequence[int]) -> list[int]:
    inner = list(places[1:-1])
    starts, ends = [0, *inner], [*inner, len(counts)]
    return [sum(counts[start:end]) for start, end in zip(starts, ends, strict=True)]


def _fractions(counts: Sequence[int]) -> tuple[float, ...]:
    return tuple(count / sum(counts) for count in counts)


def _gap(tonight: Sequence[int], before: Sequence[int]) -> tuple[float | None, float | None]:
    if not before:
        return None, None
    many, more = sum(tonight), sum(before)
    reached = other = gap = 0.0
    for one, two in zip(tonight, before, strict=True):
        reached, other = reached + one / many, other + two / more
        gap = max(gap, abs(reached - other))
    return gap, CHANCE * sqrt((many + more) / (many * more))


# --- what the scores were made from ------------------------------------------------------------------------------


def input_drifts(here: steps.Site, models: Iterable[str], *, since_us: int) -> dict[str, InputDrift]:
    """The inputs since then beside the training, of each model that brings a reference of its own."""
    found: dict[str, InputDrift] = {}
    for name in dict.fromkeys(models):
        model = here.registry.models.get(name)
        if model is None or model.spec.reference is None:
            continue
        try:
            found[name] = steps.input_drift(here, name, since_us=since_us, most=INPUTS)
        except MedflowError as error:  # too few cases, mostly: a night's report does not wait for that
            log.info("no drift of the inputs of %s: %s", name, error.message)
    return found


def input_rows(found: Mapping[str, InputDrift]) -> list[dict[str, Any]]:
    """One row a model, in words."""
    return [
        {"model": name, "cases": drift.cases, "inputs": len(drift.columns), "which means": _moved(drift)}
        for name, drift in found.items()
    ]


def _moved(drift: InputDrift) -> str:
    order = ("shifted", "some")
    moved = [item for item in drift.columns if item.verdict in order]
    moved.sort(key=lambda item: (order.index(item.verdict), -(item.psi or 0.0)))
    if not moved:
        return "nothing has moved" if drift.verdict == "steady" else "too few cases to tell of every input"
    more = f" and {len(moved) - NAMED} more" if len(moved) > NAMED else ""
    return ", ".join(f"{item.name} {item.verdict}" for item in moved[:NAMED]) + more


# --- in words ----------------------------------------------------------------------------------------------------


def as_rows(drifts: Sequence[Drift]) -> list[dict[str, Any]]:
    """One row an output, in words."""
    return [
        {
            "model": drift.model,
            "output": drift.output,
            "cases": drift.cases,
            "earlier nights": len(drift.earlier),
            "distance": "" if drift.gap is None else round(drift.gap, 3),
            "chance allows": "" if drift.chance is None else round(drift.chance, 3),
            "which means": _said(drift),
        }
        for drift in drifts
    ]


def _said(drift: Drift) -> str:
    if not drift.shown:
        return f"not shown: fewer than {ENOUGH} cases"
    if drift.gap is None:
        return f"nothing to compare with: no earlier night of {ENOUGH} cases"
    return "shifted: look at what came in" if drift.shifted else "as before"
