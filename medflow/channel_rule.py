"""What a model's time series must be declared like, and how that is said: for whoever installs or reads a model.

Looking at a declaration loads no library of units where its units are ordinary ones (`medflow.units.is_unit`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, timedelta

from medflow.plugin import Channel, Coding, ModelSpec, TimeSeriesInput
from medflow.timeseries import statics, steps_of
from medflow.units import LONGEST, is_unit

# FHIR ObservationStatus, less those of which nothing was measured, or nothing that counts
STATUSES = ("registered", "preliminary", "final", "amended", "corrected")
CODED_STATICS = ("encounter-type", "encounter-priority", "admit-source")
NAMED = 8  # channels that are named in a line


def problems_of(spec: ModelSpec) -> list[str]:
    """What of a model's time series cannot be served as declared, in words; nothing where all can."""
    inputs = [item for item in spec.accepts if isinstance(item, TimeSeriesInput)]
    return [f"input {item.name}: {problem}" for item in inputs for problem in _problems(item)]


def rule_of(spec: TimeSeriesInput) -> str:
    """What the input takes, in one line."""
    hours, step = _hours(spec.window), _hours(spec.step)
    if spec.anchor == "admission":
        window = f"{hours} h from admission in steps of {step} h"
    else:
        window = f"the {hours} h before the prediction time in steps of {step} h"
    names = [channel.name if channel.unit is None else f"{channel.name} in {channel.unit}" for channel in spec.channels]
    said = [f"{len(spec.channels)} channels, {window}", _first(names)]
    if spec.statics:
        kinds = (item.partition(":")[0] if isinstance(item, str) else item.name for item in spec.statics)
        said.append(f"statics {_first(dict.fromkeys(kinds))}")
    least = {"measurement": spec.min_measurements, "channel": spec.min_channels, "step": spec.min_steps}
    asked = [f"{count} {name}{'s' * (count > 1)}" for name, count in least.items() if count]
    if asked:
        said.append(f"with values of at least {', '.join(asked)}")
    required = [item.name for item in _channels(spec) if item.required]
    if required:
        said.append(f"never without {', '.join(required)}")
    if set(spec.statuses) != {"preliminary", "final", "amended", "corrected"}:
        said.append(f"only what is {' or '.join(spec.statuses)}")
    return "; ".join(said)


def _first(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:NAMED]) + (f" and {len(every) - NAMED} more" if len(every) > NAMED else "")


def _hours(span: timedelta) -> str:
    return f"{span.total_seconds() / 3600:g}"


def _channels(spec: TimeSeriesInput) -> list[Channel]:
    return [*spec.channels, *(item for item in spec.statics if isinstance(item, Channel))]


# --- problems --------------------------------------------------------------------------------------------------------


def _problems(spec: TimeSeriesInput) -> Iterator[str]:
    if not spec.channels:
        yield "it has no channel"
    yield from _time_problems(spec)
    names = [item.name for item in _channels(spec)]
    for name in _doubles(names):
        yield f"two channels are called {name!r}"
    for item in _channels(spec):
        for problem in _channel_problems(item):
            yield f"channel {item.name}: {problem}"
    yield from _static_problems(spec)
    if not spec.statuses:
        yield "statuses is empty: nothing would count"
    for status in spec.statuses:
        if status not in STATUSES:
            yield f"status {status!r} never counts: statuses are of {', '.join(STATUSES)}"


def _time_problems(spec: TimeSeriesInput) -> Iterator[str]:
    if spec.step <= timedelta(0) or spec.window <= timedelta(0):
        yield "window and step must be longer than nothing"
        return
    if spec.window % spec.step:
        yield f"the window of {_hours(spec.window)} h is no multiple of the step of {_hours(spec.step)} h"
    for name, least, most in (
        ("min_measurements", spec.min_measurements, None),
        ("min_channels", spec.min_channels, len(spec.channels)),
        ("min_steps", spec.min_steps, steps_of(spec)),
    ):
        if least < 0 or (most is not None and least > most):
            yield f"{name} must be 0 or more" + (f", and {most} at most" if most is not None else "")


def _channel_problems(channel: Channel) -> Iterator[str]:
    if not channel.name.strip():
        yield "it has no name"
    if not channel.codes:
        yield "it has no code"
    yield from _code_problems(channel.codes)
    if channel.unit is not None and not is_unit(channel.unit):
        yield f"{channel.unit!r} is no UCUM unit; a unit that is only text is written in braces, and equals only itself"
    for unit, factor in channel.units.items():
        if not unit or unit != unit.strip() or len(unit) > LONGEST or not unit.isprintable():
            yield f"{unit!r} can be no unit"
        if not (math.isfinite(factor) and factor > 0):
            yield f"{unit!r} has the factor {factor}: it must be a number above 0"
        elif unit == channel.unit and factor != 1:
            yield f"{unit!r} is its own unit: its factor can be 1 only"
    mass = channel.molar_mass_g_mol
    if mass is not None and (channel.unit is None or not (math.isfinite(mass) and mass > 0)):
        yield "molar_mass_g_mol must be above 0, and of a channel with a unit"
    yield from _value_problems(channel)


def _value_problems(channel: Channel) -> Iterator[str]:
    low, high = channel.valid_range or (-math.inf, math.inf)
    if not low <= high:
        yield "valid_range is the least value, then the largest"
    yield from _code_problems([item.code for item in channel.values])
    for item in channel.values:
        if not (math.isfinite(item.value) and low <= item.value <= high):
            yield f"the answer {item.code.code} stands for {item.value}, which is not in its range"


def _code_problems(codes: Sequence[Coding]) -> Iterator[str]:
    for code in codes:
        if not code.system.strip() or not code.code.strip():
            yield f"{code.system}|{code.code} needs a system and a code"
    for code in _doubles([f"{code.system}|{code.code}" for code in codes]):
        yield f"{code} is named twice"


def _static_problems(spec: TimeSeriesInput) -> Iterator[str]:
    for name in _doubles([item for item in spec.statics if isinstance(item, str)]):
        yield f"static {name!r} is named twice"
    fixed = [item for item in spec.statics if isinstance(item, Channel)]
    for code in _doubles([code for item in fixed for code in {f"{one.system}|{one.code}" for one in item.codes}]):
        yield f"two statics read {code}"
    for item in spec.statics:
        if isinstance(item, str):
            try:
                statics([item], birth=None, admitted=date.min, sex=None, types=())
            except ValueError as error:
                yield str(error)
                continue
            kind, _, value = item.partition(":")
            if kind in CODED_STATICS and not all(value.partition("|")):
                yield f"static {item!r} must be {kind}:<system>|<code>"


def _doubles(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
