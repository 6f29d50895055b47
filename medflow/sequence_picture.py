"""A sequence as a picture: its letters, and where an answer was explained, how far each base carries it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from medflow.drawing import COLOURS, FAINT, INK, figure
from medflow.plugin.outputs import BASES
from medflow.records import Contribution, Result, VariantScore

PER_LINE = 60  # letters of a sequence
LETTERS = {"A": COLOURS[2], "C": COLOURS[0], "G": COLOURS[1], "T": COLOURS[4]}
MAX_LINES = 40
LEGIBLE = 120  # bases of an explained sequence: of more than these no letter could be read, and bars are drawn
DIVERGING = "RdBu_r"  # red: more of what is explained, blue: less
MOST_VARIANTS, LONGEST = 30, 8  # variants that are drawn, and bases of an allele that are spelt out
LEAST = 1e-9  # what stands for no change at all, where there is none to scale by


def draw_sequence(bases: str) -> Any:
    """The letters, in lines."""
    lines = [bases[start : start + PER_LINE] for start in range(0, len(bases), PER_LINE)]
    shown = lines[:MAX_LINES]
    drawn = figure(8.0, 0.3 * len(shown) + 1.2)
    axes = drawn.add_subplot()
    axes.set(xlim=(-5, PER_LINE + 0.5), ylim=(len(shown), -1))
    axes.set_axis_off()
    for row, line in enumerate(shown):
        axes.text(-1.5, row, str(row * PER_LINE + 1), ha="right", va="center", fontsize=7, color="#8b939e")
        for column, letter in enumerate(line):
            colour = LETTERS.get(letter, INK)
            axes.text(column, row, letter, ha="center", va="center", fontsize=9, weight="bold", color=colour)
    if len(lines) > len(shown):
        axes.text(0, len(shown), f"... {len(bases)} bases in all", fontsize=8, va="center", color=INK)
    return drawn


def draw_mutagenesis(bases: str, result: Result, *, scale: str, job_id: int) -> Any:
    """How far each base carries the answer, what each substitution would change, and the top positions.

    A letter is as high as the score falls, on average, when another base stands in its place; below the line it holds
    the score down. ``scale`` names what is counted in.
    """
    assert result.mutagenesis is not None  # noqa: S101 - whoever draws has looked
    changes = np.array(result.mutagenesis.changes, np.float64)
    wide = max(6.0, 0.14 * min(len(bases), LEGIBLE) + 1.4)
    drawn = figure(wide, 5.6)
    top, middle, bottom = drawn.subplots(3, 1, height_ratios=(3, 2, 2.4))
    top.set_title(f"job {job_id}: what {result.output}, {result.mutagenesis.of}, rests on", fontsize=8, color=INK)
    _letters(top, bases, carried(bases, changes))
    top.set_ylabel(f"fall of the\n{scale}\nwithout it", fontsize=7, color=INK)
    _substitutions(drawn, middle, bases, changes, scale)
    middle.sharex(top)
    _bars(bottom, result.contributions, scale)
    return drawn


def carried(bases: str, changes: np.ndarray) -> np.ndarray:
    """What each base carries: the mean fall of the score over what could stand in its place."""
    others = np.array([[letter != base for letter in BASES] for base in bases])
    return -(changes * others).sum(axis=1) / others.sum(axis=1)


def _letters(axes: Any, bases: str, heights: np.ndarray) -> None:
    low, high = min(float(heights.min()), 0.0), max(float(heights.max()), LEAST)
    margin = 0.06 * (high - low)
    axes.set(xlim=(0.5, len(bases) + 0.5), ylim=(low - margin, high + margin))
    if len(bases) <= LEGIBLE:
        for place, (base, height) in enumerate(zip(bases, heights, strict=True), 1):
            _letter(axes, base, place, float(height))
    else:
        places = range(1, len(bases) + 1)
        axes.vlines(places, 0.0, heights, colors=[LETTERS.get(base, INK) for base in bases], linewidth=0.8)
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.tick_params(labelsize=7, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)


def _letter(axes: Any, base: str, place: int, height: float) -> None:
    """One letter, drawn out to its height; upside down below the line."""
    from matplotlib.patches import PathPatch
    from matplotlib.transforms import Affine2D

    path, (left, low, width, tall) = _glyph(base)
    stretched = Affine2D().translate(-left, -low).scale(0.9 / width, height / tall).translate(place - 0.45, 0.0)
    colour = LETTERS.get(base, INK)
    axes.add_patch(PathPatch(stretched.transform_path(path), facecolor=colour, edgecolor="none"))


@cache
def _glyph(base: str) -> tuple[Any, tuple[float, float, float, float]]:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    path = TextPath((0, 0), base, size=1, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    return path, path.get_extents().bounds


def _substitutions(drawn: Any, axes: Any, bases: str, changes: np.ndarray, scale: str) -> None:
    """Four rows, one for what stands instead; a dot where it is the base itself."""
    most = max(float(np.abs(changes).max()), LEAST)
    extent = (0.5, len(bases) + 0.5, len(BASES) - 0.5, -0.5)
    shown = axes.imshow(
        changes.T, cmap=DIVERGING, vmin=-most, vmax=most, aspect="auto", extent=extent, interpolation="nearest"
    )
    axes.set_yticks(range(len(BASES)), labels=list(BASES))
    if len(bases) <= LEGIBLE:
        itself = [(place, BASES.index(base)) for place, base in enumerate(bases, 1) if base in BASES]
        axes.plot(*zip(*itself, strict=True), linestyle="none", marker=".", markersize=2.5, color=INK)
    axes.set_xlabel("position in the window; the rows are what stands there instead", fontsize=7, color=INK)
    axes.tick_params(labelsize=7, colors=INK)
    bar = drawn.colorbar(shown, ax=axes, pad=0.01, aspect=12)
    bar.set_label(f"change of\n{scale}", fontsize=6, color=INK)
    bar.ax.tick_params(labelsize=6, colors=INK)


def _bars(axes: Any, contributions: tuple[Contribution, ...], scale: str) -> None:
    """The top positions, the largest above."""
    values = [item.value for item in contributions][::-1]
    colours = [COLOURS[4] if value >= 0 else COLOURS[0] for value in values]
    axes.barh(range(len(values)), values, color=colours, height=0.6)
    axes.set_yticks(range(len(values)), labels=[item.name for item in contributions][::-1], fontsize=7)
    axes.axvline(0, color=FAINT if not values else INK, linewidth=0.8)
    axes.set_xlabel(f"top positions: change of {scale} by the substitution that changes most", fontsize=7, color=INK)
    axes.tick_params(labelsize=7, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)


# --- the variants of a sample --------------------------------------------------------------------------------------


def draw_variants(results: Sequence[Result]) -> Any:
    """The variants that are reported, by their scores, the largest above."""
    found = sorted((item for result in results for item in result.variants), key=lambda item: -item.score)
    shown = found[:MOST_VARIANTS]
    drawn = figure(7.0, 0.22 * max(len(shown), 4) + 1.4)
    axes = drawn.add_subplot()
    axes.barh(range(len(shown)), [item.score for item in shown], color=COLOURS[0], height=0.6)
    axes.set_yticks(range(len(shown)), labels=[_named(item) for item in shown], fontsize=7)
    axes.invert_yaxis()
    more = f"the first {len(shown)} of {len(found)} reported" if len(found) > len(shown) else f"{len(found)} reported"
    axes.set_xlabel(f"score; {more}", fontsize=8, color=INK)
    axes.tick_params(labelsize=7, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    return drawn


def _named(item: VariantScore) -> str:
    variant = item.variant
    both = (variant.ref, variant.alt)
    alleles = " > ".join(allele if len(allele) <= LONGEST else f"{len(allele)} bases" for allele in both)
    gene = f" ({variant.gene})" if variant.gene else ""
    return f"{variant.contig}:{variant.position} {alleles}{gene}"
