"""A model's answer against its declaration: what does not fit is an error, never a result."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from medflow.errors import PredictionInvalid
from medflow.plugin import (
    Case,
    Classification,
    Image,
    ImagingInput,
    LabelMask,
    Mask,
    Measure,
    ModelSpec,
    OutputSpec,
    Prediction,
    Segment,
    VariantEffect,
    VariantWindows,
)
from medflow.records import Result

SUM_TOLERANCE = 1e-3
PROBABLE = 0.5  # from here on a voxel of a fractional mask counts as inside
HOUNSFIELD = "[hnsf'U]"  # UCUM; other modalities count in units of their own


def results_of(spec: ModelSpec, case: Case, prediction: Prediction) -> list[Result]:
    """The checked results of one case, one per declared output; masks are measured on the input's geometry.

    Raises
    ------
    PredictionInvalid
        An output is missing, undeclared, of the wrong kind or shape, not finite, or outside its declared range.
    """
    if prediction.out_of_scope is not None:
        return [Result(output=output.name, out_of_scope=prediction.out_of_scope) for output in spec.outputs]
    declared = {output.name for output in spec.outputs}
    if declared != set(prediction.values):
        raise PredictionInvalid(
            "prediction-incomplete",
            f"the model declares {', '.join(sorted(declared))} and answered {', '.join(sorted(prediction.values))}",
        )
    tallies: _Tallies = {}
    return [_result(spec, output, prediction.values[output.name], case, tallies) for output in spec.outputs]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tally:
    """Of a label map over an image, by label: how many voxels, and the sum of the image's values there (or None)."""

    counts: np.ndarray
    sums: np.ndarray | None


_Tallies = dict[tuple[int, str], _Tally]  # by the array (its id) and the image: each is gone through once


def _result(spec: ModelSpec, output: OutputSpec, value: float | Mask, case: Case, tallies: _Tallies) -> Result:
    if isinstance(output, Segment):
        return _segment(spec, output, value, case, tallies)
    if isinstance(output, Classification):
        return _classification(output, value)
    if isinstance(output, VariantEffect):
        return _effects(output, value, case)
    number = _number(output.name, value)
    low, high = output.valid_range if isinstance(output, Measure) else (0.0, 1.0)
    _check_range(output.name, number, low, high)
    return Result(output=output.name, value=number)


def _number(name: str, value: float | Mask) -> float:
    array = np.asarray(value)
    if array.ndim != 0 or array.dtype.kind not in "fiu":
        raise PredictionInvalid("prediction-malformed", f"output {name} must be one number")
    return float(array)


def _check_range(name: str, number: float, low: float, high: float) -> None:
    if not math.isfinite(number) or not low <= number <= high:
        raise PredictionInvalid(
            "prediction-out-of-range", f"output {name} lies outside its declared range {low}..{high}"
        )


def _classification(output: Classification, value: float | Mask) -> Result:
    probabilities = np.asarray(value, dtype=np.float64)
    if probabilities.shape != (len(output.classes),):
        raise PredictionInvalid(
            "prediction-malformed", f"output {output.name} must give {len(output.classes)} class probabilities"
        )
    for number in probabilities:
        _check_range(output.name, float(number), 0.0, 1.0)
    if abs(float(probabilities.sum()) - 1.0) > SUM_TOLERANCE:
        raise PredictionInvalid("prediction-malformed", f"the class probabilities of {output.name} do not sum to 1")
    names = [label.name for label in output.classes]
    chosen = names.index(output.positive) if output.positive else int(probabilities.argmax())
    return Result(
        output=output.name,
        value=float(probabilities[chosen]),
        probabilities=tuple(float(number) for number in probabilities),
    )


def _effects(output: VariantEffect, value: float | Mask, case: Case) -> Result:
    """The largest score, and how many variants have one; `medflow.variant_scores` tells which they are."""
    (windows,) = (item for item in case.inputs.values() if isinstance(item, VariantWindows))
    scores = scores_of(output, value, len(windows))
    scored = scores[np.isfinite(scores)]
    counts = {"scored": len(scored), "out-of-scope": len(scores) - len(scored)}
    return Result(
        output=output.name,
        value=float(scored.max()) if len(scored) else None,
        counts={reason: count for reason, count in counts.items() if count or reason == "scored"},
    )


def scores_of(output: VariantEffect, value: float | Mask, variants: int) -> np.ndarray:
    """The score of each variant, float64: the largest absolute value of its effects, NaN where it is out of scope.

    Raises
    ------
    PredictionInvalid
        The effects have another shape than (variants, effects), lie outside the declared range, or are partly NaN.
    """
    effects, shape = np.asarray(value), (variants, len(output.effects))
    if effects.dtype.kind != "f" or effects.shape != shape:
        raise PredictionInvalid(
            "prediction-malformed", f"output {output.name} must give floats of shape {shape} (variants, effects)"
        )
    missing = np.isnan(effects)
    outside = missing.all(axis=1)
    if missing[~outside].any():
        raise PredictionInvalid(
            "prediction-malformed", f"output {output.name} gives a variant some effects, and NaN for others"
        )
    low, high = output.valid_range
    told = effects[~outside].astype(np.float64)
    if told.size and not (low <= told.min() and told.max() <= high):
        raise PredictionInvalid(
            "prediction-out-of-range", f"output {output.name} lies outside its declared range {low}..{high}"
        )
    scores = np.full(variants, np.nan)
    scores[~outside] = np.abs(told).max(axis=1)
    return scores


def image_of(spec: ModelSpec, output: Segment) -> str:
    """The name of the input that a segment is a mask of."""
    images = [item.name for item in spec.accepts if isinstance(item, ImagingInput)]
    name = output.of or next(iter(images), None)
    if name not in images:
        raise PredictionInvalid("prediction-malformed", f"output {output.name} is a mask of no image that is declared")
    return name


def _segment(spec: ModelSpec, output: Segment, value: float | Mask, case: Case, tallies: _Tallies) -> Result:
    name = image_of(spec, output)
    image = case.inputs.get(name)
    if not isinstance(image, Image):
        raise PredictionInvalid("prediction-malformed", f"output {output.name} is a mask of {name}, which is missing")
    inside = _inside(output, value, image)
    if image.affine is None:
        raise PredictionInvalid("prediction-malformed", f"output {output.name} needs an image with a geometry")
    if isinstance(inside, LabelMask):
        key = (id(inside.labels), name)
        if key not in tallies:
            tallies[key] = _tally(inside.labels, image)
        voxels, mean = _of_label(tallies[key], inside.value)
    else:
        voxels, mean = _of_mask(inside, image)
    millilitres = voxels * abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000.0
    _check_range(output.name, millilitres, *output.valid_ml)
    unit = HOUNSFIELD if image.modality == "CT" else "1"
    return Result(
        output=output.name, value=millilitres, voxels=voxels, mean=mean, mean_unit=None if mean is None else unit
    )


def _inside(output: Segment, value: float | Mask, image: Image) -> Mask:
    """The voxels of a mask, checked: those that are set, or at least as probable as not."""
    mask = value if isinstance(value, LabelMask) else np.asarray(value)
    kind, wanted = (np.float32, "a float32 mask of 0..1") if output.fractional else (np.bool_, "a boolean mask")
    if mask.dtype != kind or mask.shape != image.array.shape[-3:]:
        raise PredictionInvalid(
            "prediction-malformed", f"output {output.name} must be {wanted} on the grid of the input image"
        )
    if isinstance(mask, LabelMask):
        return _checked_label(output, mask)
    if not output.fractional:
        return mask
    if not np.isfinite(mask).all() or mask.min() < 0 or mask.max() > 1:
        raise PredictionInvalid("prediction-out-of-range", f"output {output.name} lies outside 0..1")
    return mask >= PROBABLE


def _checked_label(output: Segment, mask: LabelMask) -> LabelMask:
    known = mask.labels.dtype in (np.uint8, np.uint16)
    if not known or not 0 <= mask.value <= np.iinfo(mask.labels.dtype).max:
        raise PredictionInvalid(
            "prediction-malformed", f"output {output.name} must be a label of a map of uint8 or uint16"
        )
    return mask


def _of_mask(inside: np.ndarray, image: Image) -> tuple[int, float | None]:
    """How many voxels a mask has, and the mean of the image in them."""
    voxels = int(np.count_nonzero(inside))
    measured = voxels > 0 and inside.shape == image.array.shape  # of several volumes none is the one to measure
    return voxels, float(image.array[inside].mean(dtype=np.float64)) if measured else None


def _of_label(tally: _Tally, value: int) -> tuple[int, float | None]:
    voxels = int(tally.counts[value])
    return voxels, float(tally.sums[value] / voxels) if voxels > 0 and tally.sums is not None else None


def _tally(labels: np.ndarray, image: Image) -> _Tally:
    """All labels at once, slice by slice: `bincount` works on copies of 8 bytes a voxel."""
    size = np.iinfo(labels.dtype).max + 1
    counts, sums = np.zeros(size, np.int64), np.zeros(size, np.float64)
    measured = labels.shape == image.array.shape
    for z, plane in enumerate(labels):
        flat = plane.ravel()
        counts += np.bincount(flat, minlength=size)
        if measured:
            sums += np.bincount(flat, weights=image.array[z].ravel(), minlength=size)
    return _Tally(counts=counts, sums=sums if measured else None)
