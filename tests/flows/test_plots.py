"""The plots as files: what they are of, and that they stay small."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medflow.drawing import COLOURS, MAX_PNG, data_uri
from medflow.flows import plots
from medflow.flows.drift import Drift
from medflow.flows.timings import SECOND_US
from medflow.store.history import DAY_US, ChunkLine, RunLine

START = 20_000 * DAY_US


def opened(png: bytes) -> np.ndarray:
    """The pixels of a PNG file small enough to lie on a page."""
    assert png.startswith(b"\x89PNG")
    assert len(png) <= MAX_PNG
    assert len(data_uri(png)) < 200_000
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def has(pixels: np.ndarray, colour: str) -> int:
    """How many pixels are of this colour."""
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return int((np.abs(pixels - wanted).max(axis=2) <= 2).sum())


def chunk(model: str, start: int, end: int, done: int = 100) -> ChunkLine:
    times = {"started_us": START + start * SECOND_US, "finished_us": START + end * SECOND_US}
    return ChunkLine(model=model, version="1", state="done", asked_us=START, done=done, **times)


def night(number: int, done: int, dead: int = 0, minutes: float | None = 10) -> RunLine:
    begun = START + number * DAY_US
    ended = None if minutes is None else begun + int(minutes * 60 * SECOND_US)
    counts = {"score": {"done": done, "failed": 0, "dead": dead}}
    return RunLine(
        id=number, command="nightly", source=None, started_us=begun, finished_us=ended, status="", counts=counts
    )


def drift(**changes) -> Drift:
    bins = tuple(np.full(10, 0.1))
    fields = {"model": "m", "output": "o", "unit": "1", "cases": 50, "edges": tuple(np.linspace(0, 1, 11))}
    return replace(Drift(**fields, tonight=bins, earlier=(bins, bins), gap=0.1, chance=0.3), **changes)


def test_each_model_has_a_line_of_its_own_in_the_throughput():
    pixels = opened(plots.throughput([chunk("a", 0, 30), chunk("a", 30, 60), chunk("b", 60, 90, done=10)], START))

    assert has(pixels, COLOURS[0]) > 50
    assert has(pixels, COLOURS[1]) > 50
    assert has(pixels, COLOURS[2]) == 0


def test_a_chunks_cases_are_spread_over_its_time():
    edges = np.array([0.0, 10.0, 20.0])

    rates = plots._rates([chunk("a", 5, 15, done=100)], START, edges)

    assert rates["a"].tolist() == [5.0, 5.0]


def test_more_models_than_colours_are_drawn_together():
    names = [f"m{number}" for number in range(12)]

    rates = plots._rates([chunk(name, 0, 10) for name in names], START, np.array([0.0, 10.0]))

    assert len(rates) == len(COLOURS)
    assert rates["others"].tolist() == [50.0]


@pytest.mark.parametrize("chunks", [[], [chunk("a", 0, 10, done=0)]])
def test_nothing_scored_is_no_plot(chunks):
    assert plots.throughput(chunks, START) is None


def test_nights_are_drawn_with_what_went_wrong():
    well = opened(plots.nights([night(number, 900) for number in range(30)]))
    badly = opened(plots.nights([night(number, 900, dead=300) for number in range(30)]))

    # the legend shows the colour in both
    assert has(badly, COLOURS[4]) > 20 * has(well, COLOURS[4])


def test_a_killed_night_is_drawn_without_an_end():
    assert opened(plots.nights([night(0, 900), night(1, 0, minutes=None)])).size
    assert plots.nights([]) is None


def test_scores_are_drawn_over_the_band_and_in_red_when_they_shifted():
    usual, shifted = opened(plots.spread([drift()])), opened(plots.spread([drift(gap=0.5)]))

    assert has(usual, COLOURS[0]) > 50 > has(usual, COLOURS[4])
    assert has(shifted, COLOURS[4]) > 50


def test_an_output_with_too_few_cases_is_not_drawn():
    few = drift(cases=19, edges=(), tonight=(), earlier=(), gap=None, chance=None)

    assert plots.spread([few]) is None
    assert opened(plots.spread([few, drift()])).shape == opened(plots.spread([drift()])).shape


def test_a_model_of_many_outputs_stays_small():
    opened(plots.spread([drift(output=f"output-{number}") for number in range(20)]))
