"""What a model saw and said of one case, as a picture titled by surrogate ids only.

The case is read as the model's was, from what is stored; nothing of a header is drawn, and no plugin is imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medflow.contributions import scale_of
from medflow.dicom.burned_in import may_have_burned_in_text
from medflow.dicom.upright import Upright
from medflow.drawing import COLOURS, HEAT, INK, MOST, figure, grey_range, heat_range, heat_strength, png
from medflow.errors import ConfigurationError, InputNotUsable
from medflow.heat_maps import read_heat_maps
from medflow.inference.results import PROBABLE
from medflow.inputs import image_instances, open_cases
from medflow.plugin import (
    Case,
    Classification,
    Image,
    ImagingInput,
    Measure,
    ModelSpec,
    OutputSpec,
    Risk,
    Segment,
    SequenceInput,
    TimeSeriesInput,
    VariantEffect,
)
from medflow.records import Result
from medflow.registry import load_spec
from medflow.segmentations import read_masks
from medflow.sequence_picture import draw_mutagenesis, draw_sequence, draw_variants
from medflow.series_rule import imaging_inputs
from medflow.stay_picture import draw_channels, draw_explained
from medflow.store import Store, history
from medflow.store.history import JobView
from medflow.store.jobs import Job
from medflow.variant_rule import variants_of

CT_HU = (-160.0, 240.0)  # soft tissue
SLICES = (("axial", "RLAP"), ("coronal", "RLSI"), ("sagittal", "APSI"))  # and the sides: left, right, top, bottom
READINGS = {"POS": "positive", "NEG": "negative", "IND": "indeterminate"}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Over:
    """What is drawn over an image: outlines of masks, and what ``explained`` an output in colours.

    ``numbers`` says whether the colours' scale has any.
    """

    masks: Mapping[str, np.ndarray]
    explained: str | None = None
    heat: np.ndarray | None = None
    numbers: bool = True

    def at(self, place: int, axis: int) -> _Over:
        """The same of one plane of a volume."""
        masks = {output: np.take(mask, place, axis) for output, mask in self.masks.items()}
        return replace(self, masks=masks, heat=None if self.heat is None else np.take(self.heat, place, axis))

    def turned(self, upright: Upright) -> _Over:
        """The same over the image as it is shown."""
        masks = {output: upright.apply(mask) for output, mask in self.masks.items()}
        return replace(self, masks=masks, heat=None if self.heat is None else upright.apply(self.heat))

    @property
    def span(self) -> tuple[float, float]:
        """What the colours stand for."""
        return (0.0, 1.0) if self.heat is None else heat_range(self.heat)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A PNG file, its title (``series/12 · model 1.0.0``), and what the model said in words.

    ``explained`` is the result that is shown with what contributed to it, which counts in ``scale``. ``of_variants``:
    the case was the variants of a sample.
    """

    title: str
    answer: str
    png: bytes
    explained: Result | None = None
    scale: str = ""
    of_variants: bool = False


def picture_of(store: Store, job_id: int, *, output: str | None = None, published: bool = False) -> Picture:
    """What the model of this job saw, and said if it has; and what explains it, if that was kept.

    One that is to be ``published`` names classes but no measured value, and is refused where its pixels may have a
    name burned in (PS3.3 C.7.6.1.1.5).

    Parameters
    ----------
    store
        Where the case and what was made of it are.
    job_id
        The job.
    output
        Whose heat map or contributions are drawn; of the first declared that has some unless given.
    published
        Whether it leaves for where anyone may see it.

    Raises
    ------
    ConfigurationError
        There is no such job, its model was stored by an incompatible version, or nothing kept explains ``output``.
    InputNotUsable
        Its input cannot be read: the reason why the job is dead, most often.
    """
    with store.reading() as connection:
        view = history.job_view(connection, job_id)
    if view is None:
        raise ConfigurationError(f"there is no job {job_id}: `medflow jobs --state done` lists those that were scored")
    spec = load_spec(view.spec)
    if variants_of(spec) is not None:
        return _of_variants(spec, view, published=published)
    (opener,) = open_cases(store, spec, [view.job])
    if published and imaging_inputs(spec):
        _check_no_text(store, spec, view.job)
    title = f"{view.job.unit} · {view.model} {view.version}"
    said = answer(spec, view)
    case = opener()
    over = _over(store, spec, view, case, output) if imaging_inputs(spec) else _Over(masks={})
    explained = _explained(spec, view, output)
    drawn = _draw(case, spec, view, replace(over, numbers=not published), explained)
    drawn.suptitle(f"{title}\n{_classes(spec, view) if published else said}", color=INK, fontsize=10)
    scale = scale_of(spec.output(explained.output), explained.mutagenesis) if explained else ""
    return Picture(title=title, answer=said, png=png(drawn), explained=explained, scale=scale)


def _of_variants(spec: ModelSpec, view: JobView, *, published: bool) -> Picture:
    """The variants that are reported; they identify a person, so that they are never published."""
    if published:
        raise InputNotUsable("genome", "the variants of a person are shown nowhere that anyone may see")
    title, said = f"{view.job.unit} · {view.model} {view.version}", answer(spec, view)
    drawn = draw_variants(view.results)
    drawn.suptitle(f"{title}\n{said}", color=INK, fontsize=10)
    return Picture(title=title, answer=said, png=png(drawn), of_variants=True)


def _explained(spec: ModelSpec, view: JobView, output: str | None) -> Result | None:
    """The result whose contributions are shown: of ``output``, else of the first declared that has some."""
    kept = {result.output: result for result in view.results if result.contributions}
    if output is not None and output not in kept and isinstance(spec.accepts[0], TimeSeriesInput | SequenceInput):
        names = ", ".join(sorted(kept)) or "none; score with --explain to have some"
        raise ConfigurationError(f"no explanation of {output!r} is kept of this job: there are {names}")
    name = output or next((item.name for item in spec.outputs if item.name in kept), "")
    return kept.get(name)


def _check_no_text(store: Store, spec: ModelSpec, job: Job) -> None:
    with store.reading() as connection:
        instances = [one for its in image_instances(connection, spec, job).values() for one in its]
    if may_have_burned_in_text(instances, store.objects):
        raise InputNotUsable("burned-in-text", "the pixels may have text burned in, so they are shown nowhere")


def answer(spec: ModelSpec, view: JobView) -> str:
    """The results of a job in words."""
    if not view.results:
        return f"not scored: {view.state}"
    declared = {output.name: output for output in spec.outputs}
    return ", ".join(said_of(declared[result.output], result) for result in view.results if result.output in declared)


def _classes(spec: ModelSpec, view: JobView) -> str:
    labelled = {output.name: output for output in spec.outputs if isinstance(output, Classification)}
    return ", ".join(said_of(labelled[result.output], result) for result in view.results if result.output in labelled)


def said_of(output: OutputSpec, result: Result) -> str:
    """One result in words, with its unit."""
    if isinstance(output, VariantEffect) and result.out_of_scope is None:
        return f"{output.name} of {result.counts.get('scored', 0)} variants, {len(result.variants)} reported"
    if result.value is None:
        return f"{output.name}: no answer ({result.out_of_scope})"
    if isinstance(output, Classification) and output.positive is not None:
        return f"{output.positive} {result.value:.2f}: {READINGS[output.interpretation(result.value)]}"
    if isinstance(output, Classification):
        best = int(np.argmax(result.probabilities))
        return f"{output.classes[best].name} {result.probabilities[best]:.2f}"
    if isinstance(output, Risk):
        return f"{output.name} {100 * result.value:.1f} %"
    return f"{output.name} {plain(result.value)} {output.unit if isinstance(output, Measure) else 'mL'}"


def plain(value: float) -> str:
    """A number to four significant digits, without an exponent; what is before the point is never rounded away."""
    digits = 3 - math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
    text = f"{value:.{max(digits, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _over(store: Store, spec: ModelSpec, view: JobView, case: Case, output: str | None) -> _Over:
    name = _shown_name(case, spec)
    masks = _masks(store, spec, view, case)
    kept = read_heat_maps(store, spec, view.job, case, image=name)
    heat = {said: found for said, maps in kept.items() for found in maps if found.volume == 0}
    if output is not None and output not in heat:
        names = ", ".join(sorted(heat)) or "none; score with --explain to have some"
        raise ConfigurationError(f"no heat map of {output!r} is kept of this job: there are {names}")
    explained = output or next((item.name for item in spec.outputs if item.name in heat), None)
    return _Over(masks=masks, explained=explained, heat=heat[explained].values if explained else None)


def _masks(store: Store, spec: ModelSpec, view: JobView, case: Case) -> dict[str, np.ndarray]:
    if not any(result.mask for result in view.results):
        return {}
    found = read_masks(store, spec, view.job, view.results, image=_shown_name(case, spec))
    return {output: mask if mask.dtype == np.bool_ else mask >= PROBABLE for output, mask in found.items()}


def _draw(case: Case, spec: ModelSpec, view: JobView, over: _Over, explained: Result | None) -> Any:
    wanted = spec.accepts[0]
    if isinstance(wanted, ImagingInput):
        image = _shown(case, spec)
        return _radiograph(image, over) if image.array.ndim == 2 else _volume(image, over)
    if isinstance(wanted, TimeSeriesInput):
        if explained is None:
            return draw_channels(case.series, wanted)
        scale = scale_of(spec.output(explained.output))
        return draw_explained(case.series, wanted, explained.contributions, scale=scale)
    assert isinstance(wanted, SequenceInput)  # noqa: S101 - the registry admits no other
    if explained is None or explained.mutagenesis is None:
        return draw_sequence(case.sequence.bases)
    scale = scale_of(spec.output(explained.output), explained.mutagenesis)
    return draw_mutagenesis(case.sequence.bases, explained, scale=scale, job_id=view.job.id)


def _shown(case: Case, spec: ModelSpec) -> Image:
    """The image that is shown; of several volumes the first."""
    image = case.inputs[_shown_name(case, spec)]
    assert isinstance(image, Image)  # noqa: S101 - `_shown_name` names no other
    return replace(image, array=image.array[0], volumes=()) if image.array.ndim == 4 else image


def _shown_name(case: Case, spec: ModelSpec) -> str:
    """The image that segments are of, else the first that the case has."""
    of = [output.of for output in spec.outputs if isinstance(output, Segment) and output.of is not None]
    names = [*of, *(item.name for item in imaging_inputs(spec))]
    return next(name for name in names if isinstance(case.inputs.get(name), Image))


# --- images ------------------------------------------------------------------------------------------------------


def _radiograph(image: Image, over: _Over) -> Any:
    drawn = figure(5.0, 5.4)
    _slice(drawn.add_subplot(), image.array, image.spacing_mm or (1.0, 1.0), _window(image), over, over.span)
    _scale(drawn, over)
    return drawn


def _volume(image: Image, over: _Over) -> Any:
    """Three slices through the middle of what was found, else of what explains it, else of the volume.

    As radiologists hang them: the patient's right on the left, the front or the head above.
    """
    assert image.affine is not None and image.spacing_mm is not None  # noqa: S101 - no volume is without
    upright = Upright.of(image.affine, image.spacing_mm)
    array, over, (z, y, x) = upright.apply(image.array), over.turned(upright), upright.spacing_mm
    centre, window = _centre(array.shape, over), _window(image)
    drawn = figure(9.0, 4.0)
    for axis, ((name, sides), spacing) in enumerate(zip(SLICES, ((y, x), (z, x), (z, y)), strict=True)):
        axes = drawn.add_subplot(1, 3, axis + 1)
        _slice(axes, np.take(array, centre[axis], axis), spacing, window, over.at(centre[axis], axis), over.span)
        if axis:
            axes.invert_yaxis()  # the head is above
        _name_sides(axes, sides)
        place = upright.stored_place(axis, centre[axis], array.shape)
        axes.set_title(f"{name}, {place}", fontsize=8, color=INK)
    _scale(drawn, over)
    handles = [_line(colour, output) for output, colour in zip(over.masks, COLOURS[1:], strict=False)]
    if handles:
        drawn.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return drawn


def _name_sides(axes: Any, sides: str) -> None:
    """The patient's sides at the edges: right, left, anterior, posterior, superior, inferior."""
    for side, (x, y) in zip(sides, ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02)), strict=True):
        across, along = {0.02: "left", 0.98: "right"}.get(x, "center"), {0.02: "bottom", 0.98: "top"}.get(y, "center")
        axes.text(x, y, side, ha=across, va=along, transform=axes.transAxes, color="white", fontsize=8, weight="bold")


def _line(colour: str, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, label=label)


def _scale(drawn: Any, over: _Over) -> None:
    """What the colours of a heat map stand for, beside it."""
    if over.heat is None:
        return
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = drawn.colorbar(ScalarMappable(Normalize(*over.span), HEAT), ax=drawn.axes, shrink=0.7, pad=0.02)
    scale.set_label(f"spoke for {over.explained}", fontsize=8, color=INK)
    scale.ax.tick_params(labelsize=7, colors=INK)
    if not over.numbers:
        scale.set_ticks(over.span, labels=["less", "more"])


def _centre(shape: Sequence[int], over: _Over) -> tuple[int, ...]:
    found = np.logical_or.reduce(list(over.masks.values())) if over.masks else np.zeros(shape, bool)
    if not found.any() and over.heat is not None:
        found = heat_strength(over.heat, over.span)
    if not found.any():
        return tuple(length // 2 for length in shape)
    others = [tuple(place for place in range(3) if place != axis) for axis in range(3)]
    return tuple(int(np.argmax(found.sum(axis=axes))) for axes in others)  # where most of it is


def _window(image: Image) -> tuple[float, float]:
    if image.modality == "CT":
        return CT_HU
    return grey_range(image.array)


def _slice(
    axes: Any,
    plane: np.ndarray,
    spacing: Sequence[float],
    window: tuple[float, float],
    over: _Over,
    span: tuple[float, float],
) -> None:
    aspect = spacing[0] / spacing[1]
    axes.imshow(plane, cmap="gray", vmin=window[0], vmax=window[1], aspect=aspect)
    if over.heat is not None:
        strength = heat_strength(over.heat, span)
        axes.imshow(strength, cmap=HEAT, vmin=0.0, vmax=1.0, alpha=MOST * strength, aspect=aspect)
    for colour, mask in zip(COLOURS[1:], over.masks.values(), strict=False):
        if mask.any():
            axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.2)
    axes.set_axis_off()
