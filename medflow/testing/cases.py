"""Random cases that fit a model's declared inputs: for the conformance kit, when an author has no better ones."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from medflow.errors import ConfigurationError
from medflow.plugin import (
    Case,
    CaseInput,
    Channel,
    Image,
    ImagingInput,
    InputSpec,
    ModelSpec,
    SequenceInput,
    SequenceWindow,
    TimeSeries,
    TimeSeriesInput,
)
from medflow.records import Unit
from medflow.testing.variants import sample_windows

PREDICTION_TIME = datetime(2026, 1, 1, tzinfo=UTC)
EDGE = 64  # voxels
VOLUMES = 3  # of a series of several


def sample_cases(spec: ModelSpec, count: int = 5, *, seed: int = 0) -> list[Case]:
    """``count`` different cases; the same for the same seed. Every second one is without the optional inputs.

    The images of one case have grids of their own, as the series of a study have.
    """
    rng = np.random.default_rng(seed)
    return [
        Case(
            unit=Unit(kind=spec.unit, id=number),
            prediction_time=PREDICTION_TIME,
            inputs={
                item.name: _input(item, place, rng)
                for place, item in enumerate(spec.accepts)
                if number % 2 or not (isinstance(item, ImagingInput) and item.optional)
            },
        )
        for number in range(1, count + 1)
    ]


def _input(spec: InputSpec, place: int, rng: np.random.Generator) -> CaseInput:
    if isinstance(spec, ImagingInput):
        return _image(spec, place, rng)
    if isinstance(spec, TimeSeriesInput):
        return _series(spec, rng)
    if isinstance(spec, SequenceInput) and spec.source == "variants":
        return sample_windows(spec, rng)
    if isinstance(spec, SequenceInput):
        letters = rng.choice(list(spec.alphabet), size=spec.length)
        return SequenceWindow(bases="".join(letters))
    raise ConfigurationError(f"the kit makes no cases for inputs of kind {spec.kind!r}: give your own")


def _image(spec: ImagingInput, place: int, rng: np.random.Generator) -> Image:
    plane = (EDGE, EDGE + 8 * place)
    grid = plane if spec.dimensions == 2 else (max(32, spec.min_slices) + 2 * place, *plane)
    shape = (VOLUMES, *grid) if spec.dimensions == 4 else grid
    array = rng.normal(40, 20, shape) if "CT" in spec.modality else rng.uniform(0, 4095, shape)  # CT: HU
    affine = None
    spacing: tuple[float, ...] = (3.0,) * len(grid)
    if spec.dimensions != 2:
        affine = np.diag([3.0, 3.0, 3.0, 1.0])
        affine[:3, 3] = -96.0
    times = tuple({"TemporalPositionIndex": float(index + 1)} for index in range(VOLUMES))
    return Image(
        array=array.astype(np.float32),
        spacing_mm=spacing,
        affine=affine,
        modality=spec.modality[0],
        volumes=times if spec.dimensions == 4 else (),
    )


def _series(spec: TimeSeriesInput, rng: np.random.Generator) -> TimeSeries:
    steps = round(spec.window / spec.step)
    values = np.full((steps, len(spec.channels)), np.nan, dtype=np.float32)
    for column, channel in enumerate(spec.channels):
        low, high = channel.valid_range or (0.0, 1.0)
        measured = rng.random(steps) < 0.5
        values[measured, column] = rng.uniform(low, high, int(measured.sum()))
    statics = [_static(item, rng) for item in spec.statics]
    return TimeSeries(values=values, statics=np.asarray(statics, dtype=np.float32))


def _static(item: str | Channel, rng: np.random.Generator) -> float:
    if isinstance(item, Channel):
        return float(rng.uniform(*(item.valid_range or (0.0, 1.0))))
    return float(rng.uniform(20, 90) if item == "age" else rng.integers(0, 2))
