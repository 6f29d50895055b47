"""A model's answer against its declaration: what does not fit is an error, never a result."""

from __future__ import annotations

import math

import numpy as np

from medflow.errors import PredictionInvalid
from medflow.plugin import Case, Classification, Image, Measure, ModelSpec, OutputSpec, Prediction, Segment
from medflow.records import Result

SUM_TOLERANCE = 1e-3


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
    return [_result(output, prediction.values[output.name], case) for output in spec.outputs]


def _result(output: OutputSpec, value: float | np.ndarray, case: Case) -> Result:
    if isinstance(output, Segment):
        return _segment(output, value, case)
    if isinstance(output, Classification):
        return _classification(output, value)
    number = _number(output.name, value)
    low, high = output.valid_range if isinstance(output, Measure) else (0.0, 1.0)
    _check_range(output.name, number, low, high)
    return Result(output=output.name, value=number)


def _number(name: str, value: float | np.ndarray) -> float:
    array = np.asarray(value)
    if array.ndim != 0 or array.dtype.kind not in "fiu":
        raise PredictionInvalid("prediction-malformed", f"output {name} must be one number")
    return float(array)


def _check_range(name: str, number: float, low: float, high: float) -> None:
    if not math.isfinite(number) or not low <= number <= high:
        raise PredictionInvalid(
            "prediction-out-of-range", f"output {name} lies outside its declared range {low}..{high}"
        )


def _classification(output: Classification, value: float | np.ndarray) -> Result:
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


def _segment(output: Segment, value: float | np.ndarray, case: Case) -> Result:
    image = next(item for item in case.inputs.values() if isinstance(item, Image))
    mask = np.asarray(value)
    if mask.dtype != np.bool_ or mask.shape != image.array.shape:
        raise PredictionInvalid(
            "prediction-malformed", f"output {output.name} must be a boolean mask on the grid of the input image"
        )
    if image.affine is None:
        raise PredictionInvalid("prediction-malformed", f"output {output.name} needs an image with a geometry")
    voxels = int(np.count_nonzero(mask))
    millilitres = voxels * abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000.0
    _check_range(output.name, millilitres, *output.valid_ml)
    return Result(output=output.name, value=millilitres, voxels=voxels)
